"""What this processor could reach on a task: its own matrix products and its own table look-ups, nothing else.

A step takes at least the time of its matrix products, forward and twice backward, at the rate that products of
just these shapes reach, and of the look-ups: gathering the batch's rows, sorting them by row, adding up their
gradients by row, and writing the touched rows back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contestants.common import WIDTH, Task, main

REPEATS = 16
MATRICES = 4


def best(calls: Iterable[Callable[[], object]], wait: Callable[[], None]) -> float:
    """Shortest seconds of a call: a bound is what the machine does when nothing else does."""
    taken = []
    for call in calls:
        wait()
        began = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - began)
    return min(taken)


def products(task: Task, layers: list[tuple[int, int]], dtype: torch.dtype) -> float:
    """Seconds of all matrix products of one step; every call has other matrices, as in training."""
    def drawn(*shape: int) -> list[Tensor]:
        return [torch.randn(*shape, device=task.device).to(dtype) for _ in range(MATRICES)]

    def seconds(a: list[Tensor], b: list[Tensor], out: list[Tensor]) -> float:
        return best([partial(torch.mm, a[i % MATRICES], b[i % MATRICES], out=out[i % MATRICES])
                     for i in range(REPEATS)], task.wait)

    total = 0.0
    for inside, outside in layers:
        x, w, g = drawn(task.batch, inside), drawn(inside, outside), drawn(task.batch, outside)
        total += seconds(x, w, g) + seconds(g, [m.t() for m in w], x) + seconds([m.t() for m in x], g, w)
    return total


def look_ups(task: Task, batches: list[Tensor], rows: int) -> float:
    """Seconds of all table work of one step; every call works on another batch, as in training."""
    table, gradient, values = (torch.randn(n, WIDTH, device=task.device) for n in (
        rows, len(batches[0]), len(batches[0])))
    sorted_ = [torch.sort(index) for index in batches]
    touched, begins = [], []
    for ordered, _ in sorted_:
        found, counts = torch.unique_consecutive(ordered, return_counts=True)
        touched.append(found.long())
        begins.append(torch.cumsum(counts, 0) - counts)

    def cycle(work: Callable[[int], object]) -> float:
        return best([partial(work, i) for i in range(len(batches))], task.wait)

    return (cycle(lambda i: table.index_select(0, batches[i])) + cycle(lambda i: torch.sort(batches[i]))
            + cycle(lambda i: F.embedding_bag(sorted_[i].indices, gradient, begins[i], mode="sum"))
            + cycle(lambda i: table.index_select(0, touched[i]))
            + cycle(lambda i: table.index_copy_(0, touched[i], values[:len(touched[i])])))


def train(task: Task) -> None:
    """Measure; no training."""
    ids, numeric, _ = task.columns("train")
    vocabularies = np.array(task.vocabularies())
    starts = np.cumsum(vocabularies) - vocabularies
    chosen = np.random.default_rng(0).permutation(len(ids))[:REPEATS * task.batch]
    batches = [torch.from_numpy((ids[part] + starts).astype(np.int32)).flatten().to(task.device)
               for part in np.array_split(chosen, REPEATS)]
    width = ids.shape[1] * WIDTH + numeric.shape[1]
    layers = list(pairwise((width, *task.hidden)))
    if task.model == "deepfm":
        layers.append((task.hidden[-1], 1))
    else:
        layers += [(width, width)] * 3 + [(width + task.hidden[-1], 1)]
    tables = look_ups(task, batches, int(vocabularies.sum()))
    task.result["flops_per_sample"] = 6 * sum(a * b for a, b in layers)
    task.result["tables_ms"] = round(1000 * tables, 3)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        taken = products(task, layers, dtype)
        task.result[f"products_ms_{name}"] = round(1000 * taken, 3)
        task.result[f"gflops_{name}"] = round(task.result["flops_per_sample"] * task.batch / taken / 1e9, 1)
        task.result[f"samples_per_s_{name}"] = round(task.batch / (taken + tables))


if __name__ == "__main__":
    main(train, "bound", "1")
