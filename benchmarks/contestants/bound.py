"""What this processor could reach on a task: its own matrix products and its own table look-ups, nothing else.

A step takes at least the time of its matrix products, forward and twice backward, at the rate that products of
just these shapes reach, and of the look-ups: gathering the batch's rows, sorting them by row, adding up their
gradients by row, and writing the touched rows back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contestants.common import WIDTH, Task, main


def best(function: Callable[[], object], repeats: int = 15) -> float:
    """Shortest seconds of a call: a bound is what the machine does when nothing else does."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return min(taken)


def products(batch: int, layers: list[tuple[int, int]], dtype: torch.dtype) -> float:
    """Seconds of all matrix products of one step."""
    def seconds(a: Tensor, b: Tensor) -> float:
        out = torch.empty(a.shape[0], b.shape[1], dtype=dtype)
        return best(lambda: torch.mm(a, b, out=out))

    total = 0.0
    for inside, outside in layers:
        x, w, g = (torch.randn(*shape).to(dtype) for shape in (
            (batch, inside), (inside, outside), (batch, outside)))
        total += seconds(x, w) + seconds(g, w.t()) + seconds(x.t(), g)
    return total


def look_ups(index: Tensor, rows: int) -> float:
    """Seconds of all table work of one step."""
    table, gradient = torch.randn(rows, WIDTH), torch.randn(len(index), WIDTH)
    ordered, place = torch.sort(index)
    touched, counts = torch.unique_consecutive(ordered, return_counts=True)
    begins, touched = torch.cumsum(counts, 0) - counts, touched.long()
    values = torch.randn(len(touched), WIDTH)
    return (best(lambda: table.index_select(0, index)) + best(lambda: torch.sort(index))
            + best(lambda: F.embedding_bag(place, gradient, begins, mode="sum"))
            + best(lambda: table.index_select(0, touched)) + best(lambda: table.index_copy_(0, touched, values)))


def train(task: Task) -> None:
    """Measure; no training."""
    ids, numeric, _ = task.columns("train")
    vocabularies = np.array(task.vocabularies())
    starts = np.cumsum(vocabularies) - vocabularies
    index = torch.from_numpy((ids[:task.batch] + starts).astype(np.int32)).flatten()
    width = ids.shape[1] * WIDTH + numeric.shape[1]
    layers = list(pairwise((width, *task.hidden)))
    if task.model == "deepfm":
        layers.append((task.hidden[-1], 1))
    else:
        layers += [(width, width)] * 3 + [(width + task.hidden[-1], 1)]
    tables = look_ups(index, int(vocabularies.sum()))
    task.result["flops_per_sample"] = 6 * sum(a * b for a, b in layers)
    task.result["tables_ms"] = round(1000 * tables, 3)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        taken = products(task.batch, layers, dtype)
        task.result[f"products_ms_{name}"] = round(1000 * taken, 3)
        task.result[f"gflops_{name}"] = round(task.result["flops_per_sample"] * task.batch / taken / 1e9, 1)
        task.result[f"samples_per_s_{name}"] = round(task.batch / (taken + tables))


if __name__ == "__main__":
    main(train, "bound", "1")
