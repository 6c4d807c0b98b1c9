"""Tree-structured Parzen estimator: the cheap default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optuna.samplers import BaseSampler, TPESampler

from ctrmodels.fusion.goal import Goal
from ctrmodels.fusion.tuners.base import Space, Tuner


@dataclass(frozen=True)
class Tpe(Tuner):
    """Bergstra et al., "Algorithms for hyper-parameter optimization" (NeurIPS 2011), multivariate.

    Proposes where the density of good trials exceeds that of the others; its sampling finds the region, and
    the local search, which gets 40 % of the trials, the point. Costs a few milliseconds a trial. Where floors leave a
    narrow wedge of weights, about one search of 60 trials in seven ends more than 1 % below the best: take gp there.

    Attributes:
        startup: trials that are drawn at random before.
    """

    id: ClassVar[str] = "tpe"
    polish: float = 0.4
    startup: int = 10

    def sampler(self, seed: int, goal: Goal, space: Space) -> BaseSampler:
        """Optuna's, with one density over all parameters."""
        return TPESampler(seed=seed, n_startup_trials=self.startup, multivariate=True)
