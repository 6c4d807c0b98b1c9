"""What an order would bring if it were shown, estimated on the report window of a log that has propensities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ctrmodels.errors import InputError
from ctrmodels.fusion import Estimate, ItemPosition, OffPolicy
from tasks.config import TuneFusion
from tasks.fusion.inputs import Logged

METHODS = ("ips", "snips", "doubly_robust")
PRIOR_EXPOSURES = 20.0
"""An item's rate is drawn to its positions' as if so many more rows of an average item had been seen."""


@dataclass(frozen=True)
class Line:
    """One estimate, or why there is none.

    Attributes:
        order: whose value.
        objective: of which label, per exposure.
        method: see :data:`METHODS`.
        estimate: the value; ``None`` where it is refused.
        refused: why.
    """

    order: str
    objective: str
    method: str
    estimate: Estimate | None
    refused: str = ""


@dataclass(frozen=True)
class Exposure:
    """The estimates of a stage.

    Attributes:
        lines: one per order, objective and method.
        rows: exposures they rest on.
        refused: why there are no lines.
    """

    lines: tuple[Line, ...] = ()
    rows: int = 0
    refused: str = ""


def estimate(tuning: Logged, report: Logged, orders: Mapping[str, np.ndarray], settings: TuneFusion) -> Exposure:
    """Estimates for ``orders``, fused scores [N] of the rows of ``report``, over the first k positions.

    Lists that are not whole, or that have an unknown propensity or label, are left out.
    """
    if not (report.propensity > 0).any():
        return Exposure(refused="the log has no propensities: name data.propensity")
    lines: list[Line] = []
    most = 0
    for i, objective in enumerate(report.table.objectives):
        kept = whole_lists(report, report.table.labels[:, i])
        if not kept.any():
            return Exposure(refused=f"no list of the report window is whole, with known propensities, positions "
                                    f"(data.position) and labels of {objective.name}")
        rows, model = report.take(kept), Rates.fit(tuning, i)
        judged = Judged(rows, rows.table.labels[:, i], model, settings)
        most = max(most, judged.rows)
        for order, fused in orders.items():
            for method in METHODS:
                try:
                    lines.append(Line(order, objective.name, method, judged.estimate(method, fused[kept])))
                except InputError as error:
                    lines.append(Line(order, objective.name, method, None, str(error)))
    return Exposure(tuple(lines), most)


def whole_lists(logged: Logged, labels: np.ndarray) -> np.ndarray:
    """Which rows [N] are of lists with the positions 1, 2, …, their number of rows, and with nothing unknown."""
    _, unit, size = np.unique(logged.table.groups, return_inverse=True, return_counts=True)
    position = logged.position.astype(np.int64)
    wrong = (logged.propensity <= 0) | (position < 1) | (position > size[unit]) | np.isnan(labels)
    broken = np.bincount(unit, wrong, len(size)) > 0
    places = np.unique(unit * (position.max(initial=0) + 1) + position) // (position.max(initial=0) + 1)
    broken |= np.bincount(places, minlength=len(size)) < size  # a position twice
    return ~broken[unit]


@dataclass(frozen=True)
class Rates:
    """A reward model that is not the one under test: rate of the position times lift of the item.

    Fitted on the tuning window, whose lists are not judged.

    Attributes:
        positions: [P] mean label at each position, from 0.
        items: lift by item, 1 = as at an average item; empty where items are not known.
    """

    positions: np.ndarray
    items: Mapping[object, float]

    @classmethod
    def fit(cls, tuning: Logged, index: int) -> Rates:
        """From the rows of ``tuning`` whose label of objective ``index`` is known."""
        labels = tuning.table.labels[:, index]
        known = ~np.isnan(labels)
        labels, position = labels[known], tuning.position[known]
        shown, brought = np.bincount(position), np.bincount(position, labels)
        mean = float(labels.mean())
        positions = (brought + mean) / (shown + 1)
        if tuning.items is None:
            return cls(positions, {})
        names, code = np.unique(tuning.items[known], return_inverse=True)
        prior = PRIOR_EXPOSURES * mean
        expected = np.bincount(code, positions[position]) + prior
        lift = np.divide(np.bincount(code, labels) + prior, expected, out=np.ones(len(names)), where=expected != 0)
        return cls(positions, dict(zip(names.tolist(), lift.tolist(), strict=True)))

    def seen(self, position: np.ndarray) -> np.ndarray:
        """[N] the rate of each position; beyond the last known one, its own."""
        return self.positions[np.minimum(position, len(self.positions) - 1)]

    def lift(self, items: np.ndarray | None, rows: int) -> np.ndarray:
        """[N] the lift of each item."""
        if items is None or not self.items:
            return np.ones(rows)
        names, code = np.unique(items, return_inverse=True)
        return np.array([self.items.get(n, 1.0) for n in names.tolist()])[code]


class Judged:
    """One objective's exposures.

    Args:
        rows: whole lists.
        labels: [N].
        model: of the rewards.
        settings: what is judged and how.
    """

    def __init__(self, rows: Logged, labels: np.ndarray, model: Rates, settings: TuneFusion) -> None:
        self._order = ItemPosition(rows.table.groups, rows.position)
        self._shown = rows.position <= settings.k
        user = settings.off_policy.user
        groups = rows.table.groups if user is None else rows.fields[user]
        self._log = OffPolicy(labels[self._shown], rows.propensity[self._shown], groups[self._shown],
                              floor=settings.off_policy.floor)
        self._lift, self._seen = model.lift(rows.items, len(labels)), model.seen(rows.position)
        self._clip = settings.off_policy.clip

    @property
    def rows(self) -> int:
        """Exposures."""
        return int(self._shown.sum())

    def estimate(self, method: str, fused: np.ndarray) -> Estimate:
        """The value of the order by ``fused`` [N].

        Raises:
            InputError: it is refused.
        """
        target = self._order.target(fused)[self._shown]
        if method != "doubly_robust":
            found: Estimate = getattr(self._log, method)(target, self._clip)
            return found
        predicted = (self._lift * self._seen)[self._shown]
        expected = (self._order.at_position(fused, self._lift) * self._seen)[self._shown]
        return self._log.doubly_robust(target, predicted, expected, self._clip)
