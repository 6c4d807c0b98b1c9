"""Rows in the order of their time, for models that learn from every row once and in turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ctrmodels.data.dataset import Batch, Rows


def stream(rows: Rows, size: int) -> Iterator[Batch]:
    """All ``rows`` in batches of ``size`` by rising time; rows of one second stay in the order of the log."""
    order = np.argsort(rows.time, kind="stable")
    for start in range(0, len(order), size):
        yield rows.take(order[start:start + size])
