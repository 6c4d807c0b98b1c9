"""Memory-mapped rows of the encoded log, handed out by role."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctrmodels.data.schema import ROLES, Schema
from ctrmodels.errors import InputError, RoleError

PADDING = -1


@dataclass
class Batch:
    """B rows as tensors.

    Shapes: ``ids`` int32 [B, F]; ``numeric`` float32 [B, N]; ``sequences[name]`` int32 [B, L], oldest step
    first, padded on the right with -1; ``labels`` float32 [B, K], NaN where unknown; ``position`` int32 [B],
    0 where unknown.
    """

    ids: Tensor
    numeric: Tensor
    sequences: dict[str, Tensor]
    labels: Tensor
    position: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same rows on ``device``."""
        return Batch(self.ids.to(device), self.numeric.to(device),
                     {k: v.to(device) for k, v in self.sequences.items()},
                     self.labels.to(device), self.position.to(device))


class Rows:
    """The rows of one or more roles, as memory-mapped columns.

    Attributes:
        schema: their description.
        ids, numeric, labels, position, group, time: one array per column kind; ``group`` int64 [N] is the
            64-bit hash of the group value (0 everywhere if the log has none), ``time`` int64 [N] in seconds.
        sequences: name of the sequence field → int32 [N, L].
    """

    def __init__(self, schema: Schema, ids: np.ndarray, numeric: np.ndarray, sequences: dict[str, np.ndarray],
                 labels: np.ndarray, position: np.ndarray, group: np.ndarray, time: np.ndarray) -> None:
        self.schema = schema
        self.ids, self.numeric, self.sequences = ids, numeric, sequences
        self.labels, self.position, self.group, self.time = labels, position, group, time

    def __len__(self) -> int:
        return self.ids.shape[0]

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

        return cls(schema, column("ids"), column("numeric"),
                   {f.name: column(f"sequence.{f.name}") for f in schema.sequence_fields},
                   column("labels"), column("position"), column("group"), column("time"))

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """All rows of ``parts`` in order, copied into memory."""
        first = parts[0]
        def join(arrays: Iterable[np.ndarray]) -> np.ndarray:
            return np.concatenate(list(arrays))

        return cls(first.schema, join(p.ids for p in parts), join(p.numeric for p in parts),
                   {k: join(p.sequences[k] for p in parts) for k in first.sequences},
                   join(p.labels for p in parts), join(p.position for p in parts),
                   join(p.group for p in parts), join(p.time for p in parts))

    def take(self, index: np.ndarray | slice) -> Batch:
        """Rows ``index`` as tensors."""
        def tensor(a: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(a[index]))  # a copy: mapped pages are read-only

        return Batch(tensor(self.ids), tensor(self.numeric),
                     {k: tensor(v) for k, v in self.sequences.items()},
                     tensor(self.labels), tensor(self.position))

    def batches(self, size: int, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """One pass in batches of ``size`` rows: in order, or shuffled when ``rng`` is given.

        Reads are slices of the mapped columns when in order. The last batch may be smaller; a last batch
        of a single row is left out when shuffled, since batch statistics are undefined on it.
        """
        n = len(self)
        if rng is None:
            for start in range(0, n, size):
                yield self.take(slice(start, start + size))
            return
        order = rng.permutation(n)
        for start in range(0, n, size):
            index = order[start:start + size]
            if len(index) > 1:
                yield self.take(np.sort(index))


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
        parts = [p for p in parts if len(p)] or parts[:1]
        return parts[0] if len(parts) == 1 else Rows.concatenate(parts)

    def counts(self) -> np.ndarray:
        """int64 [total_vocab]: how often each id occurs on ``train``, ``schema.id_spaces`` laid end to end."""
        return np.load(self.folder / "counts.npy", mmap_mode="r", allow_pickle=False)
