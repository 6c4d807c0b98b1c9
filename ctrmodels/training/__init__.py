"""The one training loop, and trials side by side."""

from ctrmodels.training.parallel import run_trials
from ctrmodels.training.trainer import FitResult, Model, TrainConfig, fit, predict, seed_everything

__all__ = ["FitResult", "Model", "TrainConfig", "fit", "predict", "run_trials", "seed_everything"]
