"""``python -m ctrmodels.native`` compiles the kernels, so that no training has to wait for them."""

from ctrmodels.native import build

print(build())
