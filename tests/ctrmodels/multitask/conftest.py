from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ctrmodels.data.dataset import Rows
from ctrmodels.data.schema import Field, Objective, Schema

FIELDS = (Field("user", "categorical", 20, "user"), Field("price", "numeric", 5, "item"),
          Field("item", "categorical", 30, "item"), Field("seen", "sequence", 30, "user", of="item", max_length=4))
FUNNEL = (Objective("click"), Objective("cart", after="click"), Objective("buy", after="cart"),
          Objective("dwell", "regression", after="click"), Objective("hide"))


def draw(objectives: tuple[Objective, ...] = FUNNEL, n: int = 400, seed: int = 0) -> Rows:
    """Random rows with every kind of field; labels obey the funnel, some are unknown."""
    rng = np.random.default_rng(seed)
    schema = Schema(FIELDS, objectives, {"train": n}, "v", "r")
    ids = np.stack([rng.integers(f.vocab, size=n) for f in FIELDS[:3]], 1).astype(np.int32)
    steps = np.where(np.arange(4) < rng.integers(0, 5, (n, 1)), rng.integers(30, size=(n, 4)), -1).astype(np.int32)
    columns: dict[str, np.ndarray] = {}
    for o in objectives:
        happened = rng.random(n) < (0.6 if o.after else 0.4)
        if o.after:
            happened &= columns[o.after] == 1
        columns[o.name] = np.where(happened, rng.exponential(20.0, n) if o.kind == "regression" else 1.0, 0.0)
        if o.kind == "regression" and o.after:
            columns[o.name][columns[o.after] == 0] = np.nan  # the log does not say what nobody clicked
    labels = np.stack(list(columns.values()), 1).astype(np.float32)
    if "hide" in columns:
        labels[rng.random(n) < 0.3, list(columns).index("hide")] = np.nan
    return Rows.of(schema, ids, rng.standard_normal((n, 1)).astype(np.float32), {"seen": steps}, labels,
                (1 + np.arange(n) % 4).astype(np.int32), ids[:, 0].astype(np.int64), np.arange(n, dtype=np.int64))


@pytest.fixture
def make_rows() -> Callable[..., Rows]:
    return draw


@pytest.fixture
def rows() -> Rows:
    return draw()
