"""Metrics of multi-objective scores, named with their sample space: ``auc.love@like``, ``auc.love@all``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ctrmodels import metrics
from ctrmodels.data.dataset import Rows
from ctrmodels.data.schema import Schema
from ctrmodels.multitask.spaces import ALL, joint_label, space_mask

OF_LISTS = ("gauc", "gauc_coverage")


def evaluate_scores(schema: Schema, labels: np.ndarray, scores: Mapping[str, np.ndarray],
                    groups: np.ndarray, relative: bool = False) -> dict[str, float]:
    """Every standard metric of every score on the rows of its own space.

    Args:
        schema: the log.
        labels: [N, K], NaN where unknown.
        scores: ``OBJECTIVE@SPACE`` → [N].
        groups: int64 [N]; all equal = the log has no lists, and metrics of lists are left out.
        relative: scores say something inside a list only: metrics that compare rows of different lists, or take scores
            for probabilities or amounts, are left out.

    Returns:
        ``METRIC.OBJECTIVE@SPACE`` → value; NaN where it is undefined, as for a space with one class only.
    """
    lists = groups if len(groups) and (groups != groups[0]).any() else None
    found: dict[str, float] = {}
    for name, score in scores.items():
        objective, _, space = name.partition("@")
        mask = space_mask(schema, labels, objective, space)
        kind = schema.objectives[schema.objective_index(objective)].kind
        values = metrics.evaluate(kind, joint_label(schema, labels, objective)[mask], score[mask],
                                  None if lists is None else lists[mask])
        found |= {f"{metric}.{name}": value for metric, value in values.items() if not relative or metric in OF_LISTS}
    return found


def mean_over_objectives(schema: Schema, values: Mapping[str, float], metric: str) -> float:
    """Mean of ``METRIC.OBJECTIVE@all`` over the binary objectives: the number that models are chosen by.

    All rows are the one space that every model scores alike, whatever its probability chain.
    """
    return float(np.mean([values[f"{metric}.{name}@{ALL}"] for name in _binary(schema)]))


def mean_auc(schema: Schema) -> Callable[[dict[str, np.ndarray], Rows], float]:
    """Early stopping's metric: mean AUC@all over the binary objectives."""

    def metric(scores: dict[str, np.ndarray], rows: Rows) -> float:
        areas = []
        for name in _binary(schema):
            label, score = rows.labels[:, schema.objective_index(name)], scores[f"{name}@{ALL}"]
            mask = space_mask(schema, rows.labels, name, ALL)
            areas.append(metrics.auc(label[mask], score[mask]))
        return float(np.mean(areas))

    return metric


def mean_gauc(schema: Schema) -> Callable[[dict[str, np.ndarray], Rows], float]:
    """Early stopping's metric of relative scores: mean GAUC@all over the binary objectives."""

    def metric(scores: dict[str, np.ndarray], rows: Rows) -> float:
        found = []
        for name in _binary(schema):
            mask = space_mask(schema, rows.labels, name, ALL)
            label = rows.labels[mask, schema.objective_index(name)]
            found.append(metrics.gauc(label, scores[f"{name}@{ALL}"][mask], rows.group[mask]))
        return float(np.mean(found))

    return metric


def _binary(schema: Schema) -> list[str]:
    return [o.name for o in schema.objectives if o.kind == "binary"]
