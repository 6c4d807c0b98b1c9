"""What every tuner is: settings, and a way to propose the next point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from ctrmodels.fusion.goal import Goal

Space = Mapping[str, FloatDistribution]
"""What is searched, by name."""


@dataclass(frozen=True)
class Tuner(ABC):
    """A way to search. Its fields are its settings.

    Attributes:
        id: its name in files and settings.
        takes_floors: whether it knows what a floor is. For others, points below a floor rank last.
        finds_fronts: whether it can look for the front of all objectives.
        front: look for the front of all objectives instead of the best primary one. Floors hold as before.
        polish: share of the trials that a local search from the best point gets in the end.
    """

    id: ClassVar[str]
    takes_floors: ClassVar[bool] = True
    finds_fronts: ClassVar[bool] = True
    front: bool = False
    polish: float = 0.0

    def __post_init__(self) -> None:
        if self.front and not self.finds_fronts:
            raise ValueError(f"{self.id} maximises one objective; for a front take tpe, gp or nsga2")
        if self.front and self.polish:
            raise ValueError("front and polish: the local search maximises one objective; set polish=0")
        if not 0 <= self.polish < 1:
            raise ValueError(f"polish = {self.polish}: a share of the trials, below 1, is expected")

    @abstractmethod
    def sampler(self, seed: int, goal: Goal, space: Space) -> BaseSampler:
        """What proposes one trial; made anew for each, so all it knows is in the study."""

    def points(self, dimensions: int) -> int | None:
        """How many points there are at most; ``None`` = no end."""
        return None


class SeededByTrial(BaseSampler):
    """A tuner whose random numbers depend on the seed and the trial's number, and on nothing else.

    A search that was interrupted thereby goes on as if it had not been, and workers that share a study do not
    propose the same points.

    Args:
        build: seed of the trial → sampler.
        seed: of the search.
    """

    def __init__(self, build: Callable[[int], BaseSampler], seed: int) -> None:
        self._build, self._seed = build, seed
        self._sampler = build(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the trial's own sampler."""
        self._sampler = self._build(int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the trial's sampler says."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """As the trial's sampler says."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        """As the trial's sampler says."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState,
                    values: Sequence[float] | None) -> None:
        """Tell the trial's sampler."""
        self._sampler.after_trial(study, trial, state, values)


def scaled(trials: Sequence[FrozenTrial], space: Space) -> np.ndarray:
    """Parameters [n, d] of trials, in [0, 1]."""
    rows = [[(t.params[name] - d.low) / (d.high - d.low) for name, d in space.items()] for t in trials]
    return np.array(rows).reshape(len(trials), len(space))


def placed(point: np.ndarray, space: Space) -> dict[str, float]:
    """Parameters by name from a point [d] in [0, 1]."""
    return {name: d.low + x * (d.high - d.low) for x, (name, d) in zip(point.tolist(), space.items(), strict=True)}
