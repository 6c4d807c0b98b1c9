"""How good a fused order is: one ranking metric per objective over the lists of a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.metrics import (
    Bootstrap,
    Interval,
    ListAuc,
    ListConcordance,
    ListMetric,
    ListMrr,
    ListNdcg,
    ListValue,
    RowAuc,
    interval,
)

Metric = Literal["ndcg", "gauc", "mrr", "value"]


def tuning_window(groups: np.ndarray, share: float) -> np.ndarray:
    """Which rows belong to the tuning window, as bool [N]; the others report.

    The groups are taken in the order of their first row, which is time's in a log ordered by time, and the
    first ``share`` of them tune: no group is in both windows. A log without groups (one group) is cut by rows.
    """
    _, first, unit = np.unique(groups, return_index=True, return_inverse=True)
    if len(first) < 2:
        return np.arange(len(groups)) < round(share * len(groups))
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[unit] < min(max(round(share * len(first)), 1), len(first) - 1)


class Evaluator:
    """The chosen ranking metric of every objective, for many fused scores on the same rows.

    ``ndcg``: NDCG@k per list; the gain is the label, for regression an amount. ``gauc``: AUC inside each list,
    for regression the share of concordant pairs. ``mrr``: reciprocal rank of the first positive row. ``value``: sum
    of the labels of the first k rows per row shown; times each label's price and summed, the value per exposure.

    Rows that form a single list come from a log without groups; NDCG@k of it would look at k rows of all, so the
    metric is then the AUC over rows. Tied scores count as a random order of them, so a constant score is worth what
    shuffled lists are. Lists of one row have no order: ``gauc`` leaves them out, in the others they count the same
    for every score; if there are no other lists, the log is refused.

    Args:
        labels: [N, M], NaN where unknown.
        groups: [N], the list of each row.
        objectives: the M objectives.
        metric: see above.
        k: cut-off of NDCG.

    Attributes:
        name: ``ndcg@K``, ``gauc``, ``mrr``, ``value@K`` or ``auc``.
        metrics: one per objective.

    Raises:
        ValueError: NDCG of a regression objective with a negative label.
        InputError: every list has one row, or MRR of a regression objective.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray, objectives: Sequence[Objective], metric: Metric,
                 k: int) -> None:
        self.objectives = tuple(objectives)
        lists = len(np.unique(groups))
        if 1 < lists == len(groups):
            raise InputError("evaluator", "groups", f"{lists} lists of one row", "there is no order to judge",
                             "group the rows by request or by user")
        listless = lists < 2
        names = {"ndcg": f"ndcg@{k}", "value": f"value@{k}"}
        self.name = "auc" if listless else names.get(metric, metric)

        def build(objective: Objective, column: np.ndarray) -> ListMetric:
            if listless and objective.kind == "binary":
                return RowAuc(column)
            if listless or metric == "gauc":
                return (ListConcordance if objective.kind == "regression" else ListAuc)(column, groups)
            if metric == "ndcg":
                return ListNdcg(column, groups, k, "linear")
            if metric == "value":
                return ListValue(column, groups, k)
            if objective.kind == "regression":
                raise InputError("evaluator", "metric", metric,
                                 f"{objective.name} is an amount, not relevant or irrelevant",
                                 "choose ndcg, gauc or value")
            return ListMrr(column, groups)

        self.metrics = tuple(build(o, labels[:, i]) for i, o in enumerate(self.objectives))

    def __call__(self, fused: np.ndarray) -> np.ndarray:
        """[M] the metric of each objective when rows are ordered by ``fused`` [N]; NaN where undefined."""
        return np.array([m.mean(fused) for m in self.metrics])

    def undefined(self) -> list[int]:
        """Indices of the objectives that no list can be judged by: no positive, or no negative beside one."""
        return [i for i, m in enumerate(self.metrics) if not m.weights.any()]


class Resampled:
    """Standard errors and paired differences of :class:`Evaluator` metrics, by resampling lists.

    Args:
        evaluator: what is measured.
        replicates: number of resamples.
        seed: of the draw; every fused score sees the same resamples.
    """

    def __init__(self, evaluator: Evaluator, replicates: int = 400, seed: int = 0) -> None:
        self.evaluator = evaluator
        units = {len(m.weights) for m in evaluator.metrics}
        self._bootstraps = {u: Bootstrap(u, replicates, seed) for u in units}

    def intervals(self, fused: np.ndarray) -> list[Interval]:
        """The metric of each objective with its error and 95 % interval."""
        return [self._interval(m, m.values(fused)) for m in self.evaluator.metrics]

    def gains(self, fused: np.ndarray, baseline: np.ndarray) -> list[Interval]:
        """Difference of each metric between two fused scores on the same rows: ``fused`` minus ``baseline``."""
        return [self._interval(m, m.values(fused) - m.values(baseline)) for m in self.evaluator.metrics]

    def _interval(self, metric: ListMetric, values: np.ndarray) -> Interval:
        sample = self._bootstraps[len(metric.weights)].means(values, metric.weights)
        return interval(metric.average(values), sample)
