"""What every test runs under."""

import os

os.environ.setdefault("WANDB_MODE", "disabled")  # a stage under test starts no W&B process unless the test asks for one
os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums in one order, whatever the number of cores
