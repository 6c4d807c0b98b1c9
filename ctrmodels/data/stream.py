"""Rows in the order of their time, for models that learn from every row once and in turn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ctrmodels.data.dataset import Batch, Rows


def stream(rows: Rows, size: int) -> Iterator[Batch]:
    """All ``rows`` in batches of ``size`` by rising time; rows of one second stay in the order of the log.

    A single row that is left over joins the last batch: batch statistics are undefined on it.
    """
    order = np.argsort(rows.time, kind="stable")
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        yield rows.take(order[start:stop])
