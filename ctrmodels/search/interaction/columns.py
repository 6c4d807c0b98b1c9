"""The ids of all fields, column by column, for statistics of pairs of fields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrmodels.archspec import model_fields
from ctrmodels.data.dataset import Columns, Rows
from ctrmodels.errors import InputError


@dataclass(frozen=True)
class IdColumns:
    """One id per field and row, and the label.

    A sequence counts with its last step: its ids are those of its steps plus one, and 0 where it is empty.

    Attributes:
        ids: int32 [F, n], in the order of ``model_fields``.
        sizes: how many ids each field has.
        ordered: whether a field's ids are in the order of a number.
        label: bool [n].
    """

    ids: np.ndarray
    sizes: tuple[int, ...]
    ordered: tuple[bool, ...]
    label: np.ndarray

    @classmethod
    def draw(cls, rows: Rows, objective: str, limit: int, seed: int) -> IdColumns:
        """Those of the rows whose label is known; of ``limit`` random ones if there are more.

        Raises:
            InputError: there are no such rows, or their labels are all the same.
        """
        schema, place = rows.schema, rows.schema.objective_index(objective)
        known = [np.flatnonzero(~np.isnan(part.labels[:, place])) for part in rows.parts]
        ends = np.cumsum([len(k) for k in known])
        if ends[-1] > limit:
            drawn = np.sort(np.random.default_rng(seed).choice(ends[-1], limit, replace=False))
            known = [k[drawn[(drawn >= end - len(k)) & (drawn < end)] - (end - len(k))]
                     for k, end in zip(known, ends, strict=True)]
        label = np.concatenate([part.labels[k, place] > 0 for part, k in zip(rows.parts, known, strict=True)])
        if not len(label) or label.all() or not label.any():
            raise InputError("outputs/encode", f"label of {objective}", "one value" if len(label) else "none",
                             "a statistic of pairs needs rows of both labels in the roles train and arch",
                             "mend its `label:` in data.objectives or the split")
        ids = np.empty((len(model_fields(schema)), len(label)), np.int32)
        start = 0
        for part, k in zip(rows.parts, known, strict=True):
            ids[:len(schema.id_fields), start:start + len(k)] = part.ids[k].T
            for f, field in enumerate(schema.sequence_fields, len(schema.id_fields)):
                ids[f, start:start + len(k)] = _last_step(part, field.name, k) + 1
            start += len(k)
        return cls(ids, (*(f.vocab for f in schema.id_fields), *(f.vocab + 1 for f in schema.sequence_fields)),
                   (*(f.kind == "numeric" for f in schema.id_fields), *(False for _ in schema.sequence_fields)), label)


def _last_step(part: Columns, name: str, rows: np.ndarray) -> np.ndarray:
    """[n] id of the last step, -1 where there is none."""
    steps = part.sequences[name][rows]
    return steps[np.arange(len(steps)), np.maximum((steps >= 0).sum(1) - 1, 0)]
