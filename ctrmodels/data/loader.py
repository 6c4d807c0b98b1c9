"""Shuffled batches of rows, from memory or streamed from disk through a bounded buffer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ctrmodels.data.dataset import Batch, Rows

BLOCK_ROWS = 8192
SHUFFLE = 0x7261


class Loader:
    """Batches in an order that is a function of seed and epoch alone, so that any position can be gone to.

    Rows that fit into the buffer are read once, kept, and shuffled as a whole in every epoch. Of a larger log the
    buffer holds two windows, one that is trained on and the next, which is read meanwhile; a window is a random
    set of blocks of consecutive rows, shuffled row by row. Neither needs a worker process: a batch is one gather per
    column. Epochs are gone through one at a time.

    Args:
        rows: what to hand out.
        batch_size: rows per batch, over all ranks.
        seed: of the order.
        buffer_mb: size of the buffer in MiB.
        rank, ranks: which part of every batch this process gets; together the ranks get each batch once.
        block_rows: consecutive rows that a window takes together.
        device: where rows that fit into the buffer are held, and so where their batches are put together.

    Raises:
        ValueError: a batch has fewer than two rows per rank.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, buffer_mb: int = 2048, rank: int = 0,
                 ranks: int = 1, block_rows: int = BLOCK_ROWS, device: torch.device | str = "cpu") -> None:
        self.batch_size, self.seed, self.rank, self.ranks = batch_size, seed, rank, ranks
        if batch_size < self._least:
            raise ValueError(f"a batch of {batch_size} rows is too small for {ranks} ranks: statistics need two rows")
        self.rows, self.device = rows, device
        self.blocks = [(part, start, min(start + block_rows, len(part)))
                       for part in rows.parts for start in range(0, len(part), block_rows)]
        self.streams = row_bytes(rows) * len(rows) > buffer_mb << 20
        per_window = max(1, (buffer_mb << 20) // (2 * row_bytes(rows) * block_rows))
        self.per_window = per_window if self.streams else max(1, len(self.blocks))

    def plan(self, epoch: int) -> list[list[int]]:
        """The blocks of every window of ``epoch``, in order."""
        order = list(range(len(self.blocks)))
        if self.streams:
            order = np.random.default_rng([self.seed, SHUFFLE, epoch]).permutation(len(self.blocks)).tolist()
        return [order[i:i + self.per_window] for i in range(0, len(order), self.per_window)]

    def steps(self, epoch: int) -> int:
        """Number of batches of ``epoch``."""
        return sum(self._batches(window) for window in self.plan(epoch))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` after the first ``skip``; windows that are skipped are not read."""
        windows = list(enumerate(self.plan(epoch)))
        while windows and skip >= self._batches(windows[0][1]):
            skip -= self._batches(windows.pop(0)[1])
        if not self.streams:
            # By this thread: in another one, torch's loops would start a second team of threads. As long as there are
            # more threads than processors, all sleep between any two loops, which makes a step half as long again.
            _ = self._held
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._load, windows[0][1], 0) if windows else None
            for i, (number, _) in enumerate(windows):
                assert coming is not None
                rows = coming.result()
                if i + 1 < len(windows):
                    coming = reader.submit(self._load, windows[i + 1][1], i + 1)
                rng = np.random.default_rng([self.seed, SHUFFLE, epoch, number])
                order = torch.from_numpy(rng.permutation(len(rows)).astype(np.int32)).to(rows.ids.device)
                for index in list(order.split(self.batch_size))[skip:]:
                    if len(index) >= self._least:
                        yield rows.select(index[self.rank::self.ranks])
                skip = 0

    @property
    def _least(self) -> int:
        """A batch of a single row is left out: batch statistics are undefined on it."""
        return 2 * self.ranks

    def _batches(self, window: list[int]) -> int:
        n = sum(self.blocks[b][2] - self.blocks[b][1] for b in window)
        return n // self.batch_size + (n % self.batch_size >= self._least)

    def _load(self, window: list[int], turn: int) -> Batch:
        """The rows of ``window``, until the turn after the next one is loaded."""
        if not self.streams:
            return self._held
        room, at = self._rooms[turn % 2], 0
        for part, start, stop in (self.blocks[b] for b in window):
            part.read_into(room, at, start, stop)
            at += stop - start
        return room.each(lambda column: column[:at])

    @cached_property
    def _rooms(self) -> list[Batch]:
        """Memory of two windows. It is kept, since fresh memory costs more than the reading."""
        rows = self.per_window * max(stop - start for _, start, stop in self.blocks)
        return [self.rows.parts[0].room(rows) for _ in range(2)]

    @cached_property
    def _held(self) -> Batch:
        return Batch.join([part.held() for part in self.rows.parts]).to(self.device)


class Endless:
    """Batches of one epoch after the other, from any position on.

    Args:
        loader: of the batches.

    Attributes:
        epoch: that the next batch belongs to.
        step: its number in that epoch, or the number of that epoch's batches.

    Raises:
        ValueError: when a batch is asked for, and there are too few rows for a single one.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.epoch, self.step = 0, 0
        self.batches: Iterator[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self.loader.steps(self.epoch):
            raise ValueError(f"{len(self.loader.rows)} rows do not make a batch")
        if self.batches is None:
            self.batches = self.loader.epoch(self.epoch, self.step)
        for batch in self.batches:
            self.step += 1
            return batch
        self.epoch, self.step, self.batches = self.epoch + 1, 0, None
        return next(self)

    def state(self) -> dict[str, Tensor]:
        """The position, which :meth:`load` goes to."""
        return {"position": torch.tensor([self.epoch, self.step])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go to where :meth:`state` was asked."""
        self.epoch, self.step = state["position"].tolist()
        self.batches = None


def row_bytes(rows: Rows) -> int:
    """Bytes of one row in the columns that batches have."""
    part = rows.parts[0]
    columns = (part.ids, part.numeric, part.labels, part.position, *part.sequences.values())
    return sum(c.itemsize * int(np.prod(c.shape[1:])) for c in columns)
