"""Random search: what any other tuner has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optuna.samplers import BaseSampler, RandomSampler

from ctrmodels.fusion.goal import Goal
from ctrmodels.fusion.tuners.base import Space, Tuner


@dataclass(frozen=True)
class RandomSearch(Tuner):
    """Uniform in the box; Bergstra and Bengio (JMLR 2012)."""

    id: ClassVar[str] = "random"

    def sampler(self, seed: int, goal: Goal, space: Space) -> BaseSampler:
        """Optuna's."""
        return RandomSampler(seed=seed)
