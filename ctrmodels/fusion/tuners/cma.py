"""Covariance matrix adaptation."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

from optuna.samplers import BaseSampler, CmaEsSampler

from ctrmodels.errors import InputError
from ctrmodels.fusion.goal import Goal
from ctrmodels.fusion.tuners.base import Space, Tuner


@dataclass(frozen=True)
class CmaEs(Tuner):
    """Hansen, "The CMA evolution strategy: a tutorial" (arXiv:1604.00772): an adapted Gaussian, by rank alone.

    Starts at equal weights with a standard deviation of a sixth of the range, 1 for log-weights. By rank alone
    means that no monotone change of the metric matters and that points below a floor may simply rank last.

    Attributes:
        population: points per generation, ``None`` = 4 + ⌊3 ln d⌋; larger ones average noise away.
    """

    id: ClassVar[str] = "cma"
    takes_floors: ClassVar[bool] = False
    finds_fronts: ClassVar[bool] = False
    population: int | None = None

    def sampler(self, seed: int, goal: Goal, space: Space) -> BaseSampler:
        """Optuna's, which stands on the package cmaes.

        Raises:
            InputError: cmaes is not installed.
        """
        if importlib.util.find_spec("cmaes") is None:
            raise InputError("fusion tuner", "package", "cmaes", "not installed", "pip install cmaes, or take gp")
        return CmaEsSampler(seed=seed, popsize=self.population, warn_independent_sampling=False)
