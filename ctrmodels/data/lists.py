"""Shuffled batches that hold every list whole, for losses that compare the rows of a list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.data.loader import SHUFFLE, Loader
from ctrmodels.errors import InputError


class ListLoader(Loader):
    """Batches of whole lists in an order that is a function of seed and epoch alone.

    Lists are shuffled in every epoch and put into batches one after the other, a new batch beginning where the next
    list would not fit; so batches have ``batch_size`` rows at most, most have a little less, and ``Batch.group`` tells
    the lists apart. A list is all rows of one group, whatever their roles and wherever they lie in the log, and the
    rows are held in memory.

    Args:
        rows, batch_size, seed, buffer_mb, rank, ranks, device: those of :class:`Loader`; with several ranks each gets
            lists of its own, for ``batch_size / ranks`` rows.

    Raises:
        InputError: the log has no lists, or one that is longer than a batch, or does not fit into the buffer.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, buffer_mb: int = 2048, rank: int = 0,
                 ranks: int = 1, device: torch.device | str = "cpu") -> None:
        super().__init__(rows, batch_size, seed, buffer_mb, rank, ranks, device=device)
        if self.streams:
            raise InputError("params.yaml", "training.buffer_mb", buffer_mb,
                             f"{len(rows)} rows do not fit, and lists are held whole in memory",
                             "raise it, or train a model without lists")
        group = np.concatenate([part.group for part in rows.parts])
        found, unit, self.sizes = np.unique(group, return_inverse=True, return_counts=True)
        if len(found) < 2:
            raise InputError("params.yaml", "data.group", None, "a loss of lists needs rows that belong to lists",
                             "name the column that tells requests or users apart")
        self.capacity = batch_size // ranks
        if self.sizes.max() > self.capacity:
            raise InputError("params.yaml", "training.batch_size", batch_size,
                             f"the longest list has {self.sizes.max()} rows and must fit into one batch"
                             + (f" of {ranks} ranks" if ranks > 1 else ""),
                             f"set {self.sizes.max() * ranks} or more, or group by something finer in data.group")
        self.unit = torch.from_numpy(unit.astype(np.int32))
        self.by_list = np.argsort(unit, kind="stable")
        self.start = np.cumsum(self.sizes) - self.sizes

    def steps(self, epoch: int) -> int:
        """Number of batches of ``epoch``."""
        return len(self._batches_of(epoch)) // self.ranks

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` after the first ``skip``."""
        held = replace(self._held, group=self.unit.to(self.device))
        batches = self._batches_of(epoch)
        for step in range(skip, len(batches) // self.ranks):
            index = self._rows(batches[step * self.ranks + self.rank])
            yield held.select(torch.from_numpy(index).to(self.device))

    def _batches_of(self, epoch: int) -> list[np.ndarray]:
        """The lists of every batch, over all ranks; one of a single row is left out, as batch statistics need two."""
        order = np.random.default_rng([self.seed, SHUFFLE, epoch]).permutation(len(self.sizes))
        total, ends, taken = np.cumsum(self.sizes[order]), [0], 0
        while taken < total[-1]:
            ends.append(int(np.searchsorted(total, taken + self.capacity, side="right")))
            taken = int(total[ends[-1] - 1])
        batches = [order[start:end] for start, end in pairwise(ends)]
        return [lists for lists in batches if self.sizes[lists].sum() > 1]

    def _rows(self, lists: np.ndarray) -> np.ndarray:
        """int32, the rows of ``lists``, list by list."""
        sizes = self.sizes[lists]
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.by_list[np.repeat(self.start[lists], sizes) + inside].astype(np.int32)
