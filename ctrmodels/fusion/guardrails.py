"""What a new order must not harm while it raises its objective; a recommendation that does is withheld.

Each guard-rail is a number with bounds. One that cannot be measured counts as broken: what nobody looked at is not
safe. All of them compare the new order with the one in service on the same lists, except the calibration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ctrmodels.errors import InputError
from ctrmodels.metrics import ListMetric, ListRanks, calibration_ratio


@dataclass(frozen=True)
class Proposal:
    """A new order beside the one in service, on N rows.

    Attributes:
        groups: [N] the list of each row.
        items: [N] what the row shows; ``None`` = not known, and coverage and Gini are not judged.
        fused: [N] score of the new order.
        incumbent: [N] score of the order in service; higher ranks first, so ``-position`` for a logged order.
        metric: what orders are judged by in the segments, built on the same rows.
        probabilities: by objective, labels [N] (NaN where unknown) and calibrated probabilities [N].
        segments: by name, such as ``device``, the segment [N] of each row; the same for all rows of a list.
    """

    groups: np.ndarray
    items: np.ndarray | None
    fused: np.ndarray
    incumbent: np.ndarray
    metric: ListMetric
    probabilities: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A guard-rail's reading.

    Attributes:
        name: such as ``rank_correlation``, ``calibration.click`` or ``segment.device=2``.
        value: what was measured; NaN = could not be.
        low, high: bounds within which it holds.
    """

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def holds(self) -> bool:
        """Whether the value lies within the bounds."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        limit = (f"at least {self.low:g}" if self.high == math.inf else f"at most {self.high:g}"
                 if self.low == -math.inf else f"between {self.low:g} and {self.high:g}")
        return f"{self.name} = {self.value:.4g}, {limit} expected"


@dataclass(frozen=True)
class Verdict:
    """All readings on one proposal.

    Attributes:
        checks: in the order of the guard-rails.
        unjudged: ``coverage`` and ``gini`` where items are not known; segments of too few lists to say anything, as
            ``NAME=VALUE``.
    """

    checks: tuple[Check, ...]
    unjudged: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[Check, ...]:
        """The checks that do not hold; if there is one, the recommendation is withheld."""
        return tuple(c for c in self.checks if not c.holds)

    @property
    def withheld(self) -> bool:
        """Whether a guard-rail is broken."""
        return bool(self.broken)

    def __str__(self) -> str:
        return "withheld: " + "; ".join(map(str, self.broken)) if self.withheld else "all guard-rails hold"


@dataclass(frozen=True)
class Guardrails:
    """The limits. The defaults are rules of thumb to be replaced by what the business can bear.

    Attributes:
        k: rows of a list that count as shown.
        calibration: bounds of predicted over observed positives, per objective.
        coverage: least number of distinct items shown, as a multiple of the incumbent's.
        gini: largest rise of the Gini coefficient of the items' exposures.
        segment: least relative change of the metric in any segment; -0.02 = a loss of 2 %.
        lists: segments with fewer lists on which the metric is defined are not judged.
        rank_correlation: least mean correlation with the incumbent's ranks inside a list: how much of the order
            may change at once.

    Raises:
        InputError: a limit cannot be used.
    """

    k: int = 10
    calibration: tuple[float, float] = (0.9, 1.1)
    coverage: float = 0.9
    gini: float = 0.05
    segment: float = -0.02
    lists: int = 100
    rank_correlation: float = 0.7

    def __post_init__(self) -> None:
        low, high = self.calibration
        usable = {"k": self.k >= 1, "calibration": 0 < low <= 1 <= high, "coverage": self.coverage >= 0,
                  "gini": self.gini >= 0, "segment": -1 <= self.segment <= 0, "lists": self.lists >= 1,
                  "rank_correlation": -1 <= self.rank_correlation <= 1}
        for key, right in usable.items():
            if not right:
                raise InputError("guardrails", key, getattr(self, key), "cannot be used as a limit", "mend this value")

    def judge(self, proposal: Proposal) -> Verdict:
        """All readings.

        Raises:
            InputError: a list has rows of two segments.
            ValueError: a score is not finite.
        """
        ranks = ListRanks(proposal.groups)
        checks = [Check(f"calibration.{name}", calibration(*both), *self.calibration)
                  for name, both in proposal.probabilities.items()]
        unjudged = []
        if proposal.items is None:
            unjudged += ["coverage", "gini"]
        else:
            new, old = (exposures(ranks(s), proposal.items, self.k) for s in (proposal.fused, proposal.incumbent))
            checks.append(Check("coverage", coverage(new) / coverage(old), self.coverage))
            checks.append(Check("gini", gini(new) - gini(old), high=self.gini))
        checks.append(Check("rank_correlation", rank_correlation(ranks, proposal.fused, proposal.incumbent),
                            self.rank_correlation))
        for name, values in proposal.segments.items():
            for value, lists, change in segment_changes(proposal, name, values):
                if lists < self.lists:
                    unjudged.append(f"{name}={value}")
                else:
                    checks.append(Check(f"segment.{name}={value}", change, self.segment))
        return Verdict(tuple(checks), tuple(unjudged))


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Predicted over observed positives among the rows with a known label; NaN without positives."""
    known = ~np.isnan(labels)
    return calibration_ratio(labels[known], probabilities[known])


def exposures(ranked: tuple[np.ndarray, np.ndarray], items: np.ndarray, k: int) -> np.ndarray:
    """[items that occur] expected number of times that each is among the first ``k`` rows of a list.

    Args:
        ranked: what :class:`~ctrmodels.metrics.ListRanks` says; tied rows share their places.
        items: [N].
        k: rows shown.
    """
    above, tied = ranked
    shown = np.clip((k - above) / tied, 0, 1)
    return np.bincount(np.unique(items, return_inverse=True)[1], shown)


def coverage(exposure: np.ndarray) -> int:
    """How many items are shown at all."""
    return int(np.count_nonzero(exposure))


def gini(exposure: np.ndarray) -> float:
    """Gini coefficient of the items' exposures: 0 = all are shown alike, near 1 = a few are shown always.

    Σ_i (2i - n - 1) x_(i) / (n Σ x), with x sorted upwards (Gini 1912; Fleder and Hosanagar, Management Science
    2009, for recommenders).
    """
    x = np.sort(exposure)
    return float((2 * np.arange(1, len(x) + 1) - len(x) - 1) @ x / (len(x) * x.sum()))


def rank_correlation(ranks: ListRanks, one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rho inside each list, averaged over the lists in which neither score is constant; else NaN."""
    a, b = (_centred_ranks(ranks, s) for s in (one, other))
    lists = len(ranks.size)
    spread = np.sqrt(np.bincount(ranks.unit, a * a, lists) * np.bincount(ranks.unit, b * b, lists))
    defined = spread > 0
    if not defined.any():
        return math.nan
    return float((np.bincount(ranks.unit, a * b, lists)[defined] / spread[defined]).mean())


def segment_changes(proposal: Proposal, name: str, values: np.ndarray) -> Iterator[tuple[object, int, float]]:
    """Of each segment: its value, the lists on which the metric is defined, the metric's relative change.

    NaN where the incumbent's metric is 0 or no list is defined.

    Raises:
        InputError: a list has rows of two segments.
    """
    metric = proposal.metric
    unit = np.searchsorted(metric.groups, proposal.groups)
    found, code = np.unique(values, return_inverse=True)
    segment = np.zeros(len(metric.groups), np.int64)
    segment[unit] = code
    mixed = segment[unit] != code
    if mixed.any():
        raise InputError("guardrails", f"segments.{name}", proposal.groups[mixed][0].item(),
                         "this list has rows of two segments", "use a property of the user or of the request")
    defined = metric.weights > 0
    lists = np.bincount(segment, defined, len(found)).astype(np.int64)
    new, old = (np.bincount(segment, metric.weights * metric.values(s), len(found))
                for s in (proposal.fused, proposal.incumbent))
    change = np.divide(new - old, np.abs(old), out=np.full(len(found), math.nan), where=old != 0)
    yield from zip(found.tolist(), lists.tolist(), change.tolist(), strict=True)


def _centred_ranks(ranks: ListRanks, scores: np.ndarray) -> np.ndarray:
    above, tied = ranks(scores)
    return above + (tied + 1) / 2 - (ranks.size[ranks.unit] + 1) / 2
