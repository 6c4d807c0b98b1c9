"""How sure a metric of a score is: the rows resampled in whole groups, the same resamples for every score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctrmodels import metrics
from ctrmodels.data.schema import Schema
from ctrmodels.metrics import Bootstrap, ListAuc
from ctrmodels.multitask.predictions import Predictions
from ctrmodels.multitask.spaces import space_mask


class Resampler:
    """Metrics of scores on resamples of a log's groups: a user's rows are not independent.

    Where the log has no groups, single rows are resampled. All scores see the same resamples, so that the difference of
    two models' values on the same rows is paired.

    Args:
        schema: the log.
        group: int64 [N], equal everywhere if the log has none.
    """

    def __init__(self, schema: Schema, group: np.ndarray, replicates: int = 1000) -> None:
        self.schema = schema
        _, self.unit = np.unique(group, return_inverse=True)
        if not self.unit.any():
            self.unit = np.arange(len(group))
        self.units = int(self.unit.max()) + 1
        self.bootstrap = Bootstrap(self.units, replicates)

    def values(self, table: Predictions, name: str, metric: str) -> np.ndarray:
        """[1 + R] a metric of the score ``name`` on the rows of its space, then on every resample.

        Args:
            table: predictions of the rows that the groups are of.
            name: ``OBJECTIVE@SPACE`` of a binary objective.
            metric: ``auc``, ``gauc`` or ``logloss``.
        """
        objective, _, space = name.partition("@")
        mask = space_mask(self.schema, table.labels, objective, space)
        label = table.labels[mask, self.schema.objective_index(objective)]
        score, unit = table.scores[name][mask], self.unit[mask]
        if metric == "gauc":
            lists = ListAuc(label, unit)
            values, weights = np.zeros(self.units), np.zeros(self.units)
            values[lists.groups], weights[lists.groups] = lists.values(score), lists.weights
            mean = lists.average(lists.values(score))
        else:
            parts = self._parts(metric, label, score)
            weights = np.bincount(unit, minlength=self.units).astype(np.float64)
            total = np.bincount(unit, parts, self.units)
            values = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
            mean = float(parts.mean()) if len(parts) else float("nan")
        return np.concatenate([[mean], self.bootstrap.means(values, weights)])

    def mean(self, table: Predictions, names: Sequence[str], metric: str) -> np.ndarray:
        """[1 + R] the mean of :meth:`values` over several scores."""
        return np.mean([self.values(table, name, metric) for name in names], axis=0)

    @staticmethod
    def interval(values: np.ndarray) -> metrics.Interval:
        """95 % interval of what :meth:`values` gives, or of the difference of two such."""
        return metrics.interval(float(values[0]), values[1:])

    @staticmethod
    def _parts(metric: str, label: np.ndarray, score: np.ndarray) -> np.ndarray:
        """[n] values of single rows whose mean is the metric."""
        if metric == "auc":
            return metrics.auc_contributions(label, score)
        if metric == "logloss":
            return metrics.logloss_contributions(label, score)
        raise ValueError(f"metric {metric!r} is not resampled")
