"""What every test runs under."""

import os
import sys

os.environ.setdefault("WANDB_MODE", "disabled")  # a stage under test starts no W&B process unless the test asks for one
# What a planted truth has to reach, and what agrees to the bit, was set on a processor: GPUs have tests of their own.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order, whatever the number of cores

# A main module without a file, as in the processes that run tests side by side, is to pyspark a run of its doctests,
# which it ends if a package of Spark Connect is missing.
if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = __file__
