"""Pareto-efficient training weights: how much each objective's loss counts while a model is trained.

Lin et al., "A Pareto-efficient algorithm for multiple objective optimization in e-commerce recommendation"
(RecSys 2019). Training alternates between steps on Σ_k w_k L_k and a choice of w that makes the summed gradient
as short as lower bounds c_k on the weights allow:

    min_w ‖Σ_k w_k g_k‖²  with  Σ_k w_k = 1,  w_k ≥ c_k,    g_k = ∂L_k/∂θ.

Where the minimum is 0 no direction improves all losses: θ is Pareto-stationary. Bounds choose the part of the front.
That is a statement on training losses; fronts are filtered on validation metrics (:func:`trace_front`).

Gradients are of the *shared* parameters (``MultiObjectiveModel.shared_parameters``): an objective's own head would
dominate its gradient and has no conflict to settle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from ctrmodels.fusion.pareto import hypervolumes, non_dominated

Mode = Literal["exact", "paper"]


def pareto_weights(gradients: np.ndarray, bounds: Sequence[float] | np.ndarray, mode: Mode = "exact") -> np.ndarray:
    """The weights [K] that make Σ_k w_k g_k shortest.

    Args:
        gradients: [K, P], one row per objective.
        bounds: c [K], ≥ 0, with a sum of at most 1; a sum of 1 leaves no choice.
        mode: ``exact``: the minimum itself. With r = 1 - Σ c it is the point nearest to 0 in the convex hull of
            the Σ_j c_j g_j + r g_k, and that is, up to a factor, the non-negative least-squares solution of
            "the combination is 0 and its coefficients sum to 1" (Lawson and Hanson, "Solving least squares
            problems", 1974, ch. 23), whose active-set method SciPy has. ``paper``: the paper's two steps, the
            minimum under the equality alone and then the nearest point that meets the bounds; from three
            objectives on that is not the minimum.

    Raises:
        ValueError: shapes do not fit, a gradient is not finite, a bound is negative or they sum to more than 1.
    """
    gradients, bounds = np.asarray(gradients, np.float64), np.asarray(bounds, np.float64)
    if gradients.ndim != 2 or bounds.shape != gradients.shape[:1] or not len(bounds):
        raise ValueError(f"gradients {gradients.shape} and bounds {bounds.shape} do not fit")
    if not np.isfinite(gradients).all():
        raise ValueError("gradients must be finite: lower the learning rate")
    free = 1 - bounds.sum()
    if (bounds < 0).any() or free < -1e-9 or not np.isfinite(free):
        raise ValueError(f"bounds {bounds.tolist()}: not negative and a sum of at most 1 expected")
    if free <= 1e-9:
        return bounds / bounds.sum()
    size = np.linalg.norm(gradients, axis=1).max()
    if size == 0:
        return bounds + free / len(bounds)
    # The triangular factor has the gradients' inner products, and K columns instead of P.
    factor = np.asarray(np.linalg.qr(gradients.T / size, mode="r"))
    return _exact(factor, bounds, free) if mode == "exact" else _relaxed(factor, bounds, free)


def _exact(factor: np.ndarray, bounds: np.ndarray, free: float) -> np.ndarray:
    corners = factor @ bounds[:, None] + free * factor
    found, _ = nnls(np.vstack([corners, np.ones(len(bounds))]), np.append(np.zeros(len(corners)), 1.0))
    return bounds + free * found / found.sum()


def _relaxed(factor: np.ndarray, bounds: np.ndarray, free: float) -> np.ndarray:
    gram, k = factor.T @ factor, len(bounds)
    system = np.block([[gram, np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
    found = np.linalg.lstsq(system, np.append(-gram @ bounds, free), rcond=None)[0][:k]
    # The nearest point with this sum and no negative part (Held et al., Mathematical Programming 1974).
    down = np.sort(found)[::-1]
    excess = (np.cumsum(down) - free) / np.arange(1, k + 1)
    return bounds + np.maximum(found - excess[np.flatnonzero(down > excess)[-1]], 0)


class ParetoWeights:
    """The weights in the course of a training.

    Args:
        bounds: c [K].
        mode: as of :func:`pareto_weights`.
        memory: share of the old weights that an update keeps, in [0, 1): batches are noisy, and weights that
            jump with them shake the training.

    Attributes:
        weights: [K], at first in the bounds' middle: c_k + (1 - Σ c) / K.
    """

    def __init__(self, bounds: Sequence[float], mode: Mode = "exact", memory: float = 0.0) -> None:
        self._bounds, self._mode, self._memory = np.asarray(bounds, np.float64), mode, memory
        if not 0 <= memory < 1:
            raise ValueError(f"memory = {memory}: a share below 1 is expected")
        self.weights = pareto_weights(np.zeros((len(self._bounds), 1)), self._bounds)
        self._scale: np.ndarray | None = None

    def update(self, gradients: np.ndarray, losses: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
        """New weights [K] from gradients [K, P].

        Args:
            gradients: of the losses.
            losses: [K], each > 0. If given, loss and gradient count relative to the first call's loss: a loss of
                a smaller scale has the shorter gradient and would otherwise get all the weight. The weights
                are then of the *relative* losses.

        Raises:
            ValueError: as :func:`pareto_weights`; a loss is not positive.
        """
        if losses is not None:
            if self._scale is None:
                self._scale = np.asarray(losses, np.float64)
                if not (self._scale > 0).all():
                    raise ValueError(f"losses {self._scale.tolist()}: positive ones are expected to scale by")
            gradients = np.asarray(gradients, np.float64) / self._scale[:, None]
        found = pareto_weights(gradients, self._bounds, self._mode)
        self.weights = self._memory * self.weights + (1 - self._memory) * found
        return self.weights


def bound_grid(objectives: int, step: float = 0.1, most: float = 0.9) -> Iterator[tuple[float, ...]]:
    """All bounds that are multiples of ``step`` and sum to at most ``most``, which leaves the training a choice.

    Raises:
        ValueError: ``step`` or ``most`` is not in (0, 1].
    """
    if not (0 < step <= 1 and 0 < most <= 1):
        raise ValueError(f"step {step} and most {most}: shares above 0 and up to 1 are expected")
    limit = int(most / step + 1e-9)
    for steps in product(range(limit + 1), repeat=objectives):
        if sum(steps) <= limit:
            yield tuple(round(s * step, 12) for s in steps)


@dataclass(frozen=True)
class TracedFront:
    """Trainings under several bounds.

    Attributes:
        bounds: [T, K].
        metrics: [T, M] on validation rows, larger is better.
        efficient: [T] whether no other training is better in one metric and worse in none.
        hypervolumes: [T] after each training.
    """

    bounds: np.ndarray
    metrics: np.ndarray
    efficient: np.ndarray
    hypervolumes: np.ndarray


def trace_front(train: Callable[[tuple[float, ...]], Sequence[float] | np.ndarray],
                bounds: Sequence[tuple[float, ...]], reference: Sequence[float]) -> TracedFront:
    """Train under each of ``bounds`` and compare the *validation* metrics.

    Fixed weights reach the convex part of a front only; a training under bounds stops anywhere on it.

    Args:
        train: bounds [K] → validation metrics [M] of the trained model, larger is better.
        bounds: such as :func:`bound_grid` gives.
        reference: [M], fixed beforehand and slightly worse than the baseline everywhere.

    Raises:
        ValueError: there are no bounds.
    """
    if not bounds:
        raise ValueError("at least one training is needed: give bounds")
    metrics = np.array([train(b) for b in bounds], np.float64)
    return TracedFront(np.array(bounds), metrics, non_dominated(metrics),
                       hypervolumes(metrics, np.asarray(reference, np.float64)))
