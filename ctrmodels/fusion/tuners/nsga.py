"""NSGA-II: an evolving population that spreads over the front."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.trial import FrozenTrial

from ctrmodels.fusion.goal import Goal
from ctrmodels.fusion.tuners.base import Space, Tuner


@dataclass(frozen=True)
class Nsga2(Tuner):
    """Deb et al., "A fast and elitist multiobjective genetic algorithm" (IEEE TEC 2002), for two or three objectives.

    With simulated binary crossover and polynomial mutation, as there. The first generation is the start points
    and random ones, so ten generations are the least that makes sense. On the planted lists its fronts have
    more volume than random search's from 60 trials on, and less than those of tpe up to 200 (.1602, .1537 and
    .1636). For one objective it is no match for tpe and gp, and at 60 trials it beats random search only
    with generations of 8.

    Attributes:
        population: points per generation.
    """

    id: ClassVar[str] = "nsga2"
    population: int = 12

    def sampler(self, seed: int, goal: Goal, space: Space) -> BaseSampler:
        """Optuna's, with the start points in the first generation."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return _WithStarts(population_size=self.population, seed=seed, crossover=SBXCrossover(),
                               mutation=PolynomialMutation())


class _WithStarts(NSGAIISampler):
    """Optuna counts trials that were set by hand to no generation."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().before_trial(study, trial)
        self.get_trial_generation(study, trial)
