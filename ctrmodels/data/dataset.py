"""Memory-mapped rows of the encoded log, handed out by role."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrmodels.data.schema import ROLES, Schema
from ctrmodels.errors import InputError, RoleError
from ctrmodels.native import kernels

PADDING = -1


@dataclass
class Batch:
    """B rows as tensors.

    Shapes: ``ids`` int32 [B, F]; ``numeric`` float32 [B, N]; ``sequences[name]`` int32 [B, L], oldest step
    first, padded on the right with -1; ``labels`` float32 [B, K], NaN where unknown; ``position`` int32 [B],
    0 where unknown; ``group`` int32 [B], a number per list, in batches that hold their lists whole.
    """

    ids: Tensor
    numeric: Tensor
    sequences: dict[str, Tensor]
    labels: Tensor
    position: Tensor
    group: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """A batch of ``change`` applied to every column."""
        return Batch(change(self.ids), change(self.numeric), {k: change(v) for k, v in self.sequences.items()},
                     change(self.labels), change(self.position), None if self.group is None else change(self.group))

    def to(self, device: torch.device | str) -> Batch:
        """The same rows on ``device``."""
        return self.each(lambda column: column.to(device))

    def select(self, index: Tensor) -> Batch:
        """Rows ``index``, integers [n], in that order."""
        columns = [self.ids, self.numeric, *self.sequences.values(), self.labels, self.position]
        columns += [] if self.group is None else [self.group]
        compiled = kernels(*columns, index)
        if not compiled:
            return self.each(lambda column: column.index_select(0, index))
        found = iter(compiled.take(columns, index.int().contiguous()))
        return self.each(lambda _: next(found))

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """All rows of ``parts`` in order; of several parts without their lists."""
        if len(parts) == 1:
            return parts[0]
        sequences = {k: torch.cat([p.sequences[k] for p in parts]) for k in parts[0].sequences}
        return cls(torch.cat([p.ids for p in parts]), torch.cat([p.numeric for p in parts]), sequences,
                   torch.cat([p.labels for p in parts]), torch.cat([p.position for p in parts]))


@dataclass(frozen=True)
class Columns:
    """The columns of one folder of the encoded log, N rows each, in memory or mapped from their files.

    Attributes:
        ids: int32 [N, F].
        numeric: float32 [N, M].
        sequences: name of the sequence field → int32 [N, L].
        labels: float32 [N, K], NaN where unknown.
        position: int32 [N], 0 where unknown.
        group: int64 [N], the 64-bit hash of the group value; 0 everywhere if the log has none.
        time: int64 [N], in seconds.
    """

    ids: np.ndarray
    numeric: np.ndarray
    sequences: dict[str, np.ndarray]
    labels: np.ndarray
    position: np.ndarray
    group: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return self.ids.shape[0]

    @classmethod
    def join(cls, parts: Sequence[Columns]) -> Columns:
        """All rows of ``parts`` in order, copied into memory; a single part as it is."""
        if len(parts) == 1:
            return parts[0]

        def joined(name: str) -> np.ndarray:
            return np.concatenate([getattr(p, name) for p in parts])

        sequences = {k: np.concatenate([p.sequences[k] for p in parts]) for k in parts[0].sequences}
        return cls(joined("ids"), joined("numeric"), sequences, joined("labels"), joined("position"),
                   joined("group"), joined("time"))

    def each(self, tensor: Callable[[np.ndarray], Tensor]) -> Batch:
        """The columns of a batch, each as ``tensor`` makes it."""
        return Batch(tensor(self.ids), tensor(self.numeric), {k: tensor(v) for k, v in self.sequences.items()},
                     tensor(self.labels), tensor(self.position))

    def room(self, rows: int) -> Batch:
        """Memory for ``rows`` rows, to be read into."""
        return self.each(lambda column: torch.from_numpy(np.empty((rows, *column.shape[1:]), column.dtype)))

    def read_into(self, room: Batch, at: int, start: int, stop: int) -> None:
        """Read rows ``start`` to ``stop`` into ``room`` from its row ``at`` on."""
        pairs = [(self.ids, room.ids), (self.numeric, room.numeric), (self.labels, room.labels),
                 (self.position, room.position), *((self.sequences[k], room.sequences[k]) for k in self.sequences)]
        for column, to in pairs:
            _read_into(column, start, to[at:at + stop - start].numpy())

    def read(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop`` as tensors of their own memory."""
        stop = min(stop, len(self))
        room = self.room(stop - start)
        self.read_into(room, 0, start, stop)
        return room

    def held(self) -> Batch:
        """All rows, for as many reads as one likes: mapped columns stay mapped, once they are in memory."""
        return self.each(_held)


def _read_into(column: np.ndarray, start: int, to: np.ndarray) -> None:
    """Copy some rows. A mapped column is read from its file: pages of a mapping would add up in memory."""
    if not isinstance(column, np.memmap) or not to.size or column.filename is None:
        to[:] = column[start:start + len(to)]
        return
    with Path(column.filename).open("rb", buffering=0) as stream:
        stream.seek(column.offset + start * column[0].nbytes)
        view = memoryview(to.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while view:
            got = stream.readinto(view)
            if not got:
                raise InputError(column.filename, "rows", start, "the file ends before them",
                                 "run the stage `encode` again")
            view = view[got:]


def _held(column: np.ndarray) -> Tensor:
    """All rows without a copy. A mapped column's pages are read in the order of the file, which a disk prefers."""
    if not isinstance(column, np.memmap) or not column.size or column.filename is None:
        return torch.from_numpy(np.require(column, requirements=["C", "W"]))
    # Mapped for copying on write, since torch knows no read-only memory; nothing writes to it.
    mapped = np.memmap(column.filename, column.dtype, "c", column.offset, column.shape)
    mapped.reshape(-1).view(np.uint8)[::mmap.PAGESIZE].max()
    return torch.from_numpy(mapped)


class Rows:
    """The rows of one or more roles.

    Attributes:
        schema: their description.
        parts: their columns, one entry per role.
    """

    def __init__(self, schema: Schema, parts: Sequence[Columns]) -> None:
        self.schema, self.parts = schema, tuple(parts)

    def __len__(self) -> int:
        return sum(len(p) for p in self.parts)

    @classmethod
    def of(cls, schema: Schema, *columns: Any) -> Rows:
        """Rows of the columns that :class:`Columns` lists, in its order."""
        return cls(schema, [Columns(*columns)])

    @classmethod
    def open(cls, schema: Schema, folder: Path) -> Rows:
        """Map the columns of one role's folder.

        Raises:
            InputError: a column is absent, truncated, not an array, or has another number of rows than the ids.
        """
        lengths: dict[str, int] = {}

        def column(name: str) -> np.ndarray:
            path = folder / f"{name}.npy"
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(path, name, type(error).__name__, "not a readable column",
                                 "run the stage `encode` again") from error
            if lengths.setdefault("ids", len(array)) != len(array):
                raise InputError(path, name, len(array), f"the ids have {lengths['ids']} rows",
                                 "run the stage `encode` again")
            return array

        return cls.of(schema, column("ids"), column("numeric"),
                      {f.name: column(f"sequence.{f.name}") for f in schema.sequence_fields},
                      column("labels"), column("position"), column("group"), column("time"))

    @classmethod
    def concatenate(cls, rows: Sequence[Rows]) -> Rows:
        """All rows in order. Nothing is copied until a whole column is asked for."""
        return cls(rows[0].schema, [part for r in rows for part in r.parts])

    @cached_property
    def _whole(self) -> Columns:
        return Columns.join(self.parts)

    @property
    def ids(self) -> np.ndarray:
        """int32 [N, F]."""
        return self._whole.ids

    @property
    def numeric(self) -> np.ndarray:
        """float32 [N, M]."""
        return self._whole.numeric

    @property
    def sequences(self) -> dict[str, np.ndarray]:
        """Name of the sequence field → int32 [N, L]."""
        return self._whole.sequences

    @cached_property
    def labels(self) -> np.ndarray:
        """float32 [N, K], NaN where unknown."""
        return np.concatenate([p.labels for p in self.parts])

    @property
    def position(self) -> np.ndarray:
        """int32 [N], 0 where unknown."""
        return self._whole.position

    @property
    def group(self) -> np.ndarray:
        """int64 [N]."""
        return self._whole.group

    @property
    def time(self) -> np.ndarray:
        """int64 [N], in seconds."""
        return self._whole.time

    def take(self, index: np.ndarray | slice) -> Batch:
        """Rows ``index`` as tensors."""
        def tensor(a: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(a[index]))  # a copy: mapped pages are read-only

        return Batch(tensor(self.ids), tensor(self.numeric),
                     {k: tensor(v) for k, v in self.sequences.items()},
                     tensor(self.labels), tensor(self.position))

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows in order, in batches of ``size``; batches end where a role ends."""
        for part in self.parts:
            for start in range(0, len(part), size):
                yield part.read(start, start + size)


class Dataset:
    """The encoded log, with a guard on who may read which role.

    Args:
        folder: the output folder of ``encode``.
        allow: the roles this reader may ask for. A search never allows ``test``.
    """

    def __init__(self, folder: Path, allow: Sequence[str]) -> None:
        unknown = set(allow) - set(ROLES)
        if unknown:
            raise ValueError(f"unknown roles {sorted(unknown)}; the roles are {ROLES}")
        self.folder, self.allow = Path(folder), tuple(allow)
        self.schema = Schema.load(self.folder / "schema.json")

    def role(self, *names: str) -> Rows:
        """Rows of the roles ``names``, in that order.

        Raises:
            RoleError: one of them is not allowed to this reader.
        """
        for name in names:
            if name not in self.allow:
                raise RoleError(f"role {name!r} asked for by a reader of {self.allow}: "
                                "a search or a choice may not see these rows")
        parts = [Rows.open(self.schema, self.folder / name) for name in names]
        return Rows.concatenate([p for p in parts if len(p)] or parts[:1])

    def counts(self) -> np.ndarray:
        """int64 [total_vocab]: how often each id occurs on ``train``, ``schema.id_spaces`` laid end to end."""
        return np.load(self.folder / "counts.npy", mmap_mode="r", allow_pickle=False)
