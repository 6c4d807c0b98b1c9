"""Gaussian processes with an acquisition function that knows of noise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import norm, qmc
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from ctrmodels.fusion.goal import Goal
from ctrmodels.fusion.tuners.base import Space, Tuner, placed, scaled

FUNCTIONS = 64  # drawn from the posterior; the average over them is the integral over what the noise hides
CANDIDATES = 512  # of which the best is refined
RADII = (0.1, 0.03, 0.01)  # of the refinements, in parts of each range
JITTER = 1e-6  # of a prior variance, so that close points leave the matrices invertible
AUGMENTATION = 0.05  # share of the plain sum in a scalarisation; Knowles' value


@dataclass(frozen=True)
class GaussianProcess(Tuner):
    """Noisy expected improvement (Letham et al., "Constrained Bayesian optimization with noisy experiments",
    Bayesian Analysis 2019), and for fronts noisy ParEGO (Knowles, IEEE TEC 2006; its noisy form in Daulton et
    al., NeurIPS 2020).

    The improvement is over the best of the *true* values at the trials so far, which are integrated out, and
    not over the best observed one: that one was partly luck, and trials that chase it are wasted. Floors enter
    as the probability that they hold, each objective having its own process (Matérn 5/2, one length scale per
    parameter, noise estimated). A front is traced by one random Chebyshev scalarisation per trial. Trials that
    other workers have not finished are integrated out as well.

    scikit-learn's processes and not Optuna's ``GPSampler``, whose improvement is over the best observed value.
    Costs tenths of a second a trial, and more with the cube of their number: meant for a few hundred at most.

    Attributes:
        startup: trials that are drawn at random before.
    """

    id: ClassVar[str] = "gp"
    startup: int = 10

    def sampler(self, seed: int, goal: Goal, space: Space) -> BaseSampler:
        """One that reads every trial's metrics from its user attributes."""
        return _NoisyImprovement(seed, goal, space, self.startup, self.front)


class _NoisyImprovement(BaseSampler):
    def __init__(self, seed: int, goal: Goal, space: Space, startup: int, front: bool) -> None:
        self._rng, self._independent = np.random.default_rng(seed), RandomSampler(seed=seed)
        self._goal, self._space, self._startup, self._front = goal, space, startup, front

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(done) < self._startup:
            return {name: self.sample_independent(study, trial, name, d) for name, d in self._space.items()}
        pending = [t for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
                   if t.number != trial.number and t.params.keys() == self._space.keys()]
        metrics = np.array([t.user_attrs["metrics"] for t in done])
        belief = _Belief(scaled(done, self._space), metrics, scaled(pending, self._space), self._goal, self._rng)
        improvement = belief.front_improvement(self._rng) if self._front else belief.improvement
        return placed(self._maximise(improvement, belief.best()), self._space)

    def _maximise(self, improvement: Any, best: np.ndarray) -> np.ndarray:
        """The best [d] of many points all over the box and around ``best``, then of ever closer ones around it."""
        dimensions = len(best)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # any number of Sobol points will do here
            everywhere = qmc.Sobol(dimensions, rng=self._rng).random(CANDIDATES)
        candidates = np.vstack([everywhere, self._around(best, RADII[0]), self._around(best, RADII[-1])])
        for radius in RADII:
            values = improvement(candidates)
            best = candidates[int(np.argmax(values))]
            candidates = np.vstack([best, self._around(best, radius)])
        return candidates[int(np.argmax(improvement(candidates)))]

    def _around(self, centre: np.ndarray, radius: float) -> np.ndarray:
        return np.clip(centre + radius * self._rng.normal(size=(CANDIDATES // 4, len(centre))), 0, 1)


class _Belief:
    """What trials say of the metrics: one process per objective, and functions drawn from their posterior.

    Args:
        x: [n, d] the finished trials; y: their metrics [n, M]; pending: [p, d] the unfinished ones.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, pending: np.ndarray, goal: Goal, rng: np.random.Generator) -> None:
        self._goal = goal
        self._processes = [_Process(x, column, pending, rng) for column in y.T]
        self._x = np.vstack([x, pending])
        self._floors = [m for m, floor in enumerate(goal.floors) if floor is not None]
        self._reached = np.ones((len(self._x), FUNCTIONS), bool)
        for m in self._floors:
            self._reached &= self._processes[m].drawn >= goal.floors[m]

    def best(self) -> np.ndarray:
        """The trial [d] that most probably reaches the floors and, of those, has the largest expected metric."""
        mean = np.stack([p.drawn.mean(axis=1) for p in self._processes], axis=1)
        return self._x[max(range(len(mean)), key=lambda i: self._goal.merit(mean[i].tolist()))]

    def improvement(self, candidates: np.ndarray) -> np.ndarray:
        """Expected improvement [C] of the primary metric, times the probability that the floors are reached."""
        process = self._processes[self._goal.primary]
        mean, sd = process.at(candidates)
        best = np.where(self._reached, process.drawn, -np.inf).max(axis=0)
        found = np.isfinite(best)
        z = (mean - np.where(found, best, 0)) / sd[:, None]
        gain = sd[:, None] * (z * norm.cdf(z) + norm.pdf(z))
        # Where no trial reaches the floors, the first that does is worth more than any later improvement.
        worth = np.where(found, gain, 10 * process.scale)
        return (worth * self._probability(candidates)).mean(axis=1)

    def front_improvement(self, rng: np.random.Generator) -> Any:
        """The same of a random scalarisation: a function of candidates."""
        drawn = np.stack([p.drawn for p in self._processes], axis=-1)  # [n, S, M]
        low, high = (end(drawn.mean(axis=1), axis=0) for end in (np.min, np.max))
        weights = rng.dirichlet(np.ones(drawn.shape[-1]))

        def scalar(values: np.ndarray) -> np.ndarray:
            parts = weights * (values - low) / np.maximum(high - low, 1e-12)
            return parts.min(axis=-1) + AUGMENTATION * parts.sum(axis=-1)

        best = np.where(self._reached, scalar(drawn), -np.inf).max(axis=0)
        best = np.where(np.isfinite(best), best, -10.0)
        noise = rng.normal(size=drawn.shape[1:])

        def improvement(candidates: np.ndarray) -> np.ndarray:
            at = [p.at(candidates) for p in self._processes]
            values = np.stack([mean + sd[:, None] * noise[:, m] for m, (mean, sd) in enumerate(at)], axis=-1)
            gain = np.maximum(scalar(values) - best, 0)
            return (gain * self._probability(candidates)).mean(axis=1)

        return improvement

    def _probability(self, candidates: np.ndarray) -> np.ndarray | float:
        """That every floor is reached, [C, S]."""
        probability: np.ndarray | float = 1.0
        for m in self._floors:
            mean, sd = self._processes[m].at(candidates)
            probability = probability * norm.cdf((mean - self._goal.floors[m]) / sd[:, None])
        return probability


class _Process:
    """A Gaussian process of one metric, and S functions drawn from it at the trials.

    Attributes:
        drawn: [n + p, S] true values at the trials.
        scale: standard deviation of the metric over the trials.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, pending: np.ndarray, rng: np.random.Generator) -> None:
        self._shift, self.scale = y.mean(), max(float(y.std()), 1e-12)
        standardised = (y - self._shift) / self.scale
        dimensions = x.shape[1]
        prior = ConstantKernel(1.0, (0.05, 50)) * Matern(np.full(dimensions, 0.5), (0.05, 10), nu=2.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at the end of its range is no fault
            fitted = GaussianProcessRegressor(prior + WhiteKernel(0.01, (1e-6, 1)), alpha=1e-9).fit(x, standardised)
        self._kernel = fitted.kernel_.k1
        noise, self._x = fitted.kernel_.k2.noise_level, np.vstack([x, pending])
        across = self._kernel(x, self._x)
        solve = cho_factor(self._kernel(x) + (noise + 1e-9) * np.eye(len(x)))
        covariance = self._covariance()
        posterior = covariance - across.T @ cho_solve(solve, across)
        self._drawn = (across.T @ cho_solve(solve, standardised))[:, None] + _root(posterior) @ rng.normal(
            size=(len(self._x), FUNCTIONS))
        self._given = cho_factor(covariance)
        self.drawn = self._shift + self.scale * self._drawn

    def at(self, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean [C, S] and standard deviation [C] at candidates [C, d], given each drawn function."""
        across = self._kernel(self._x, candidates)
        weights = cho_solve(self._given, across)
        variance = self._kernel.diag(candidates) - np.einsum("nc,nc->c", across, weights)
        return (self._shift + self.scale * weights.T @ self._drawn,
                self.scale * np.sqrt(np.maximum(variance, JITTER * self._kernel.diag(candidates))))

    def _covariance(self) -> np.ndarray:
        covariance = self._kernel(self._x)
        return covariance + JITTER * covariance[0, 0] * np.eye(len(covariance))


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix whose product with its transpose is ``covariance``, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))
