"""Monotone maps that bring every model score to a scale on which weights mean something.

Probabilities are calibrated (:class:`Platt`, :class:`Isotonic`), predicted amounts are replaced by their
quantile (:class:`Quantile`). Each is fitted on one window of rows and is plain numbers afterwards, so that
JSON carries it exactly. All rise strictly where the fit window had scores, so no order is lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression


class Normaliser(ABC):
    """A fitted monotone map of one score."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, scores: np.ndarray, labels: np.ndarray) -> Self:
        """Fit on a window: ``scores`` [N] and known ``labels`` [N]."""

    @abstractmethod
    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Normalised scores, same shape, float64."""

    def to_json(self) -> dict[str, Any]:
        """Kind and parameters, for :func:`normaliser_from_json`."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Platt(Normaliser):
    """sigmoid(slope · logit(p) + intercept): two numbers, so a few hundred positives suffice.

    Platt, "Probabilistic outputs for support vector machines" (1999), on the log-odds of a probability. The
    labels are smoothed as there, to (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2), which keeps the fit finite on
    separable rows; the slope is at least ``SMALLEST_SLOPE``, so that order is kept even for a bad model.
    """

    kind: ClassVar[str] = "platt"
    SMALLEST_SLOPE: ClassVar[float] = 0.01
    slope: float
    intercept: float

    @classmethod
    def fit(cls, scores: np.ndarray, labels: np.ndarray) -> Self:
        """Maximum likelihood.

        Raises:
            ValueError: the labels have one class only.
        """
        x, positive = _log_odds(scores), _both_classes(labels)
        n1, n0 = positive.sum(), (~positive).sum()
        target = np.where(positive, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            z = theta[0] * x + theta[1]
            error = expit(z) - target
            return (np.logaddexp(0, z) - target * z).mean(), np.array([error @ x, error.sum()]) / len(x)

        found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B",
                         bounds=[(cls.SMALLEST_SLOPE, None), (None, None)], options={"gtol": 1e-9, "ftol": 1e-14})
        # Eight digits: beyond them stands the optimiser's noise, which differs from machine to machine.
        slope, intercept = (float(f"{v:.8g}") for v in found.x)
        return cls(slope, intercept)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probabilities."""
        return expit(self.slope * _log_odds(scores) + self.intercept)


@dataclass(frozen=True)
class Isotonic(Normaliser):
    """The best non-decreasing map (Zadrozny and Elkan, KDD 2002): any shape, for thousands of positives.

    Its steps would tie the rows inside a step, so the score itself is mixed in with the weight ``MIX``:
    order is kept, and the calibration moves by at most that.

    Attributes:
        x, y: knots of the map; linear between them, constant outside.
    """

    kind: ClassVar[str] = "isotonic"
    MIX: ClassVar[float] = 1e-3
    x: tuple[float, ...]
    y: tuple[float, ...]

    @classmethod
    def fit(cls, scores: np.ndarray, labels: np.ndarray) -> Self:
        """Least squares under the order.

        Raises:
            ValueError: the labels have one class only.
        """
        model = IsotonicRegression(y_min=0, y_max=1).fit(np.asarray(scores, np.float64), _both_classes(labels))
        return cls(tuple(model.X_thresholds_.tolist()), tuple(model.y_thresholds_.tolist()))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probabilities."""
        scores = np.asarray(scores, np.float64)
        return (1 - self.MIX) * np.interp(scores, self.x, self.y) + self.MIX * scores


@dataclass(frozen=True)
class Quantile(Normaliser):
    """An amount (seconds, money) as its quantile among the window's predictions, between .005 and .995.

    Amounts have no common unit with probabilities and heavy tails; their rank has neither problem. The ends
    stay away from 0 and 1, so that the lowest row does not bring a product to 0.

    Attributes:
        x: predictions at equally spaced levels, rising; y: the levels. Linear between, constant outside.
    """

    kind: ClassVar[str] = "quantile"
    LEVELS: ClassVar[int] = 201
    MARGIN: ClassVar[float] = 0.005
    x: tuple[float, ...]
    y: tuple[float, ...]

    @classmethod
    def fit(cls, scores: np.ndarray, labels: np.ndarray) -> Self:
        """Read the quantiles of ``scores``; the labels are not used.

        Raises:
            ValueError: all scores are equal.
        """
        level = np.linspace(0, 1, cls.LEVELS)
        at = np.quantile(np.asarray(scores, np.float64), level)
        x, first, count = np.unique(at, return_index=True, return_counts=True)
        if len(x) < 2:
            raise ValueError("the score is the same on every row")
        middle = (level[first] + level[first + count - 1]) / 2  # a value that fills several levels gets their mean
        y = cls.MARGIN + (1 - 2 * cls.MARGIN) * middle
        return cls(tuple(x.tolist()), tuple(y.tolist()))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Quantiles."""
        return np.interp(np.asarray(scores, np.float64), self.x, self.y)


NORMALISERS: dict[str, type[Normaliser]] = {n.kind: n for n in (Platt, Isotonic, Quantile)}


def normaliser_from_json(raw: Mapping[str, Any]) -> Normaliser:
    """Rebuild what :meth:`Normaliser.to_json` gave.

    Raises:
        ValueError: the kind is unknown.
        TypeError: a parameter is missing or unknown.
    """
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    kind = parameters.pop("kind", None)
    if kind not in NORMALISERS:
        raise ValueError(f"unknown normaliser {kind!r}; known are {', '.join(NORMALISERS)}")
    return NORMALISERS[kind](**parameters)


def _log_odds(scores: np.ndarray) -> np.ndarray:
    return logit(np.clip(np.asarray(scores, np.float64), 1e-12, 1 - 1e-12))


def _both_classes(labels: np.ndarray) -> np.ndarray:
    positive = np.asarray(labels) > 0
    if positive.all() or not positive.any():
        raise ValueError("a calibration needs rows of both classes")
    return positive
