"""Grid search: a control for one or two parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from ctrmodels.fusion.goal import Goal
from ctrmodels.fusion.tuners.base import Space, Tuner, placed

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Grid(Tuner):
    """All combinations of equally spaced levels, both ends among them.

    They are visited in jumps of about .618 of the grid, so that the trials so far are spread over it whenever
    the budget ends.

    Attributes:
        levels: per parameter.
    """

    id: ClassVar[str] = "grid"
    levels: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 2:
            raise ValueError(f"levels = {self.levels}: at least the two ends are expected")

    def sampler(self, seed: int, goal: Goal, space: Space) -> BaseSampler:
        """The grid has no chance in it: the seed plays no part."""
        return _Jumps(self.levels, space)

    def points(self, dimensions: int) -> int:
        """The size of the grid."""
        return self.levels**dimensions


class _Jumps(BaseSampler):
    """Proposes by the trial's number. Optuna's own grid ends a study from within, which only its own loop bears."""

    def __init__(self, levels: int, space: Space) -> None:
        self._levels, self._space = levels, space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        shape = (self._levels,) * len(self._space)
        size = math.prod(shape)
        jump = next(j for j in range(max(round(GOLDEN * size), 1), 2 * size) if math.gcd(j, size) == 1)
        place = np.array(np.unravel_index(trial.number * jump % size, shape))
        return placed(place / (self._levels - 1), self._space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        raise AssertionError(f"{param_name} is no parameter of the grid")
