"""Monotone maps that bring every model score to a scale on which weights mean something.

Probabilities are calibrated (:class:`Platt`, :class:`Isotonic`), predicted amounts are replaced by their
quantile (:class:`Quantile`), and scores that mean something inside their list only by their rank there
(:func:`rank_in_list`, which needs no fit). Amounts that the log knows keep their unit (:class:`Bounded`). Each is
fitted on one window of rows and is plain numbers afterwards, so that JSON carries it exactly. All rise strictly where
the fit window had scores, so no order is lost.

A model trained on a share ``rate`` of the negatives overstates probabilities: its log-odds are too large by
-log(rate), so p = q / (q + (1 - q) / rate) (He et al., "Practical lessons from predicting clicks on ads at
Facebook", ADKDD 2014, §6.3). A calibration fitted on rows with all negatives mends that by itself; one fitted on
rows that were sampled too is told the rate; without rows to fit on there is :meth:`Platt.of_sampling`.
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

from ctrmodels.metrics import ListRanks


class Normaliser(ABC):
    """A fitted monotone map of one score.

    Attributes:
        kind: its name.
        relative: whether what it gives is a place in a list, and no probability or level.
    """

    kind: ClassVar[str]
    relative: ClassVar[bool] = False

    @classmethod
    def fit(cls, scores: np.ndarray, labels: np.ndarray, rate: float = 1.0) -> Self:
        """Fit on a window.

        Args:
            scores: [N].
            labels: [N], known.
            rate: share of the negatives that the window kept; amounts do not use it.

        Raises:
            ValueError: a score or label is not finite, all scores are equal, ``rate`` is not in (0, 1], or a
                calibration got one class only.
        """
        scores, labels = _finite(scores), np.asarray(labels, np.float64)
        if np.isnan(labels).any():
            raise ValueError("labels must not be NaN: drop rows whose label is unknown first")
        _check_rate(rate)
        if not len(scores) or scores.min() == scores.max():
            raise ValueError("the score is the same on every row")
        return cls._fit(scores, labels, rate)

    def __call__(self, scores: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Normalised scores, same shape, float64.

        Args:
            scores: [N].
            groups: [N] the list of each row, for a map that needs it.

        Raises:
            ValueError: a score is not finite, or lists are needed and not given.
        """
        return self._map(_finite(scores), groups)

    @classmethod
    @abstractmethod
    def _fit(cls, scores: np.ndarray, labels: np.ndarray, rate: float) -> Self: ...

    @abstractmethod
    def _map(self, scores: np.ndarray, groups: np.ndarray | None) -> np.ndarray: ...

    def to_json(self) -> dict[str, Any]:
        """Kind and parameters, for :func:`normaliser_from_json`."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Platt(Normaliser):
    """sigmoid(slope · logit(p) + intercept): two numbers, so a few hundred positives suffice.

    Platt, "Probabilistic outputs for support vector machines" (1999), on the log-odds of a probability. The
    labels are smoothed as there, to (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2), which keeps the fit finite on
    separable rows; the slope is at least ``SMALLEST_SLOPE``, so that order is kept even for a bad model.
    Negatives that the window did not keep move the intercept by log(rate) alone (King and Zeng, "Logistic
    regression in rare events data", Political Analysis 2001, §4.1).
    """

    kind: ClassVar[str] = "platt"
    SMALLEST_SLOPE: ClassVar[float] = 0.01
    slope: float
    intercept: float

    @classmethod
    def of_sampling(cls, rate: float) -> Self:
        """The exact correction of a calibrated model that was trained on a share ``rate`` of the negatives.

        Raises:
            ValueError: ``rate`` is not in (0, 1].
        """
        _check_rate(rate)
        return cls(1.0, float(np.log(rate)))

    @classmethod
    def _fit(cls, scores: np.ndarray, labels: np.ndarray, rate: float) -> Self:
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
        slope, intercept = found.x
        return cls(float(f"{slope:.8g}"), float(f"{intercept + np.log(rate):.8g}"))

    def _map(self, scores: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        return expit(self.slope * _log_odds(scores) + self.intercept)


@dataclass(frozen=True)
class Isotonic(Normaliser):
    """The best non-decreasing map (Zadrozny and Elkan, KDD 2002): any shape, for thousands of positives.

    Its steps would tie the rows inside a step, so a line from 0 to the mean label over the window's scores is mixed in
    with the weight ``MIX``: order is kept, and the calibration moves by about that share. Kept negatives stand for
    1/rate of them.

    Attributes:
        x, y: knots of the map; linear between them, constant outside.
    """

    kind: ClassVar[str] = "isotonic"
    MIX: ClassVar[float] = 1e-3
    x: tuple[float, ...]
    y: tuple[float, ...]

    @classmethod
    def _fit(cls, scores: np.ndarray, labels: np.ndarray, rate: float) -> Self:
        positive = _both_classes(labels)
        weights = np.where(positive, 1, 1 / rate)
        model = IsotonicRegression(y_min=0, y_max=1).fit(scores, positive, sample_weight=weights)
        x, y = model.X_thresholds_, model.y_thresholds_
        line = np.average(positive, weights=weights) * (x - x[0]) / (x[-1] - x[0])
        return cls(tuple(x.tolist()), tuple(((1 - cls.MIX) * y + cls.MIX * line).tolist()))

    def _map(self, scores: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        return np.interp(scores, self.x, self.y)


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
    def _fit(cls, scores: np.ndarray, labels: np.ndarray, rate: float) -> Self:
        level = np.linspace(0, 1, cls.LEVELS)
        at = np.quantile(scores, level)
        x, first, count = np.unique(at, return_index=True, return_counts=True)
        middle = (level[first] + level[first + count - 1]) / 2  # a value that fills several levels gets their mean
        y = cls.MARGIN + (1 - 2 * cls.MARGIN) * middle
        return cls(tuple(x.tolist()), tuple(y.tolist()))

    def _map(self, scores: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        return np.interp(scores, self.x, self.y)


@dataclass(frozen=True)
class RankInList(Normaliser):
    """A relative score as the share of its list that it outranks, see :func:`rank_in_list`; there is nothing to fit."""

    kind: ClassVar[str] = "rank_in_list"
    relative: ClassVar[bool] = True

    @classmethod
    def _fit(cls, scores: np.ndarray, labels: np.ndarray, rate: float) -> Self:
        return cls()

    def _map(self, scores: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        if groups is None:
            raise ValueError("a relative score is normalised inside its list: give the list of each row")
        return rank_in_list(scores, groups)


@dataclass(frozen=True)
class Bounded(Normaliser):
    """A known amount, such as a price, as it is, but never beyond the smallest and largest of the window.

    So what is read wrongly when rows are served, a price of 10⁹ or below 0, cannot rule a list or leave a function's
    domain.

    Attributes:
        low, high: of the window.
    """

    kind: ClassVar[str] = "bounded"
    low: float
    high: float

    @classmethod
    def _fit(cls, scores: np.ndarray, labels: np.ndarray, rate: float) -> Self:
        return cls(float(scores.min()), float(scores.max()))

    def _map(self, scores: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        return scores.clip(self.low, self.high)


NORMALISERS: dict[str, type[Normaliser]] = {n.kind: n for n in (Platt, Isotonic, Quantile, RankInList, Bounded)}


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


def rank_in_list(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[N] the share of each row's list that it outranks: (rows - above - tied / 2) / rows, between 0 and 1.

    For scores that order a list and mean nothing between lists, such as a list-wise loss's. Every list averages 1/2,
    so a list of one row, or of equal scores, is neutral.

    Args:
        scores: [N].
        groups: [N], the list of each row.

    Raises:
        ValueError: a score is not finite.
    """
    ranks = ListRanks(groups)
    above, tied = ranks(scores)
    size = ranks.size[ranks.unit]
    return (size - above - tied / 2) / size


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: NaN and infinity have no place on a scale")
    return scores


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"rate = {rate}: the share of the negatives that were kept lies in (0, 1]")


def _log_odds(scores: np.ndarray) -> np.ndarray:
    return logit(np.clip(scores, 1e-12, 1 - 1e-12))


def _both_classes(labels: np.ndarray) -> np.ndarray:
    positive = labels > 0
    if positive.all() or not positive.any():
        raise ValueError("a calibration needs rows of both classes")
    return positive
