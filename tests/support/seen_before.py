"""A planted log that a mean of the history hides: labels depend on whether the candidate is in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctrmodels.data import Field, Objective, Rows, Schema

CATEGORIES, STEPS = 40, 10


def seen_before(seed: int, rows: int, objectives: Sequence[str] = ("click",)) -> Rows:
    """Rows whose labels are likely 1 exactly if the candidate's category is in the history, which half of them have.

    Which categories a history holds says nothing of a label, nor does the candidate's: only both together do. The best
    AUC that scores can have is .9.
    """
    rng = np.random.default_rng(seed)
    schema = Schema((Field("category", "categorical", CATEGORIES, "item"),
                     Field("seen", "sequence", CATEGORIES, "user", "category", STEPS)),
                    tuple(Objective(name) for name in objectives), {"train": rows}, "v", "r")
    history = rng.permuted(np.tile(np.arange(CATEGORIES), (rows, 1)), axis=1)
    length = rng.integers(3, STEPS + 1, rows)
    inside = rng.random(rows) < 0.5
    place = np.where(inside, rng.integers(0, length), rng.integers(STEPS, CATEGORIES, rows))
    candidate = history[np.arange(rows), place]
    steps = np.where(np.arange(STEPS) < length[:, None], history[:, :STEPS], -1)
    labels = [rng.random(rows) < np.where(inside, 0.9, 0.1) for _ in objectives]
    zeros = np.zeros(rows, np.int64)
    return Rows.of(schema, candidate[:, None].astype(np.int32), np.zeros((rows, 0), np.float32),
                   {"seen": steps.astype(np.int32)}, np.stack(labels, 1).astype(np.float32), zeros.astype(np.int32),
                   zeros, zeros)
