"""Sample spaces: on which rows an objective is defined, and what its label is there.

Every score and metric is named ``OBJECTIVE@SPACE``: ``all`` = every impression, a parent's name = the rows
where the parent happened. A conversion rate on clicked rows and one on all rows are different quantities.
The functions take NumPy arrays and tensors alike, so that loss and metric cannot disagree about a space.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from ctrmodels.data.schema import Schema

Array = TypeVar("Array", np.ndarray, Tensor)
ALL = "all"


def known(label: Array) -> Array:
    """True where a label is known, that is, not NaN; same shape."""
    return label == label


def space_mask(schema: Schema, labels: Array, objective: str, space: str) -> Array:
    """Which rows count for ``objective`` in ``space``.

    Args:
        labels: [N, K], NaN where unknown.
        space: ``all`` or the name of the objective's parent.

    Returns:
        bool [N]: the label is known and, in a parent's space, the parent happened.

    Raises:
        ValueError: the objective has no such space.
    """
    parent = _objective(schema, objective, space)
    mask = known(joint_label(schema, labels, objective))
    if space == ALL:
        return mask
    return mask & (labels[:, schema.objective_index(str(parent))] == 1)


def joint_label(schema: Schema, labels: Array, objective: str) -> Array:
    """The label of ``objective`` on all rows, [N], NaN where unknown.

    A binary objective already holds the joint event (a conversion implies its click). A value after an event
    is worth 0 where the event did not happen: the dwell time of an impression that nobody clicked.
    """
    index = schema.objective_index(objective)
    label, spec = labels[:, index], schema.objectives[index]
    if spec.kind == "binary" or spec.after is None:
        return label
    parent = labels[:, schema.objective_index(spec.after)]
    label = label.copy() if isinstance(label, np.ndarray) else label.clone()
    label[parent == 0] = 0.0
    return label


def score_names(schema: Schema) -> list[str]:
    """Every ``OBJECTIVE@SPACE`` a multi-objective model scores: on all rows, then in the parent's space."""
    names = []
    for objective in schema.objectives:
        names.append(f"{objective.name}@{ALL}")
        if objective.after is not None:
            names.append(f"{objective.name}@{objective.after}")
    return names


def _objective(schema: Schema, objective: str, space: str) -> str | None:
    parent = schema.objectives[schema.objective_index(objective)].after
    if space != ALL and space != parent:
        raise ValueError(f"objective {objective!r} has no sample space {space!r}")
    return parent
