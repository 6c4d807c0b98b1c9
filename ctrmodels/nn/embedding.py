"""Embeddings of every field of a batch, for each way an ArchSpec may allocate them.

Notation: B rows, F fields (id fields, then sequences), L steps of a sequence, D common width, V ids of all id spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ctrmodels.archspec import PerBucket
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.flat import LaidOut, lay_out, look_up
from ctrmodels.nn.table import Layout, Lookup, Table, steps_lookup

INIT_SD = 0.01


class FieldEmbedding(nn.Module):
    """Base: the embedding of every field of a batch. Sequences are the mean of their steps' embeddings.

    ``forward(batch, lookup)`` gives [B, F, D]; ``lookup`` is the batch's in the layout of all fields and all id
    spaces, which the other parts of a network share.

    Attributes:
        read: whether the network reads the fields that :meth:`laid_out` gives, and not only their other forms.
    """

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.n_fields, self.dim = len(schema.id_fields) + len(schema.sequence_fields), dim
        self.read = True

    def laid_out(self, batch: Batch, lookup: Lookup, numeric: Tensor, pairs: bool) -> LaidOut:
        """:meth:`forward`, in all the forms that models read."""
        return lay_out(self(batch, lookup), numeric, pairs)

    def steps(self, batch: Batch, name: str) -> Tensor:
        """[B, L, D]: each step of sequence ``name``, from the table that :meth:`forward` reads; mask padded ones.

        Raises:
            ValueError: a search's relaxation pools sequences: no model that reads single steps can be its host.
        """
        raise ValueError(f"{type(self).__name__} has no single steps of {name!r}: choose a host that pools sequences")

    def folded(self) -> FieldEmbedding:
        """What serves in its place once it is trained: itself, or a simpler embedding of the same values."""
        return self

    def stored_values(self) -> int:
        """Number of values that serving has to keep."""
        return sum(p.numel() for p in self.parameters())

    def overhead_bytes(self) -> int:
        """Bytes beyond the values themselves, such as a mask."""
        return 0

    def flops(self) -> int:
        """Operations per row beyond the look-ups."""
        return 0


class UniformEmbedding(FieldEmbedding):
    """One table of width D for all id spaces; its values start with standard deviation ``sd``."""

    def __init__(self, schema: Schema, dim: int, sd: float = INIT_SD) -> None:
        super().__init__(schema, dim)
        self.table = Table(schema.total_vocab, dim, sd)
        self.offsets = schema.offsets

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]."""
        return self.table(lookup)

    def laid_out(self, batch: Batch, lookup: Lookup, numeric: Tensor, pairs: bool) -> LaidOut:
        """See :class:`FieldEmbedding`."""
        return look_up(self.table, lookup, numeric, pairs)

    def steps(self, batch: Batch, name: str) -> Tensor:
        """[B, L, D]."""
        return self.table(steps_lookup(batch.sequences[name], self.offsets[name]))


class MaskedEmbedding(UniformEmbedding):
    """One table of which only the entries in ``mask`` live."""

    def __init__(self, schema: Schema, mask: np.ndarray, init: np.ndarray | None) -> None:
        super().__init__(schema, mask.shape[1])
        if init is not None:
            with torch.no_grad():
                self.table.weight.copy_(torch.from_numpy(init.astype(np.float32)))
        self.table.prune(torch.from_numpy(mask.copy()))

    def stored_values(self) -> int:
        """The kept entries."""
        assert self.table.mask is not None
        return int(self.table.mask.sum())

    def overhead_bytes(self) -> int:
        """One bit per entry of the table."""
        return (self.table.weight.numel() + 7) // 8


class PerFieldEmbedding(FieldEmbedding):
    """One width per id space, each brought to width D by a linear map of its own (none where it is D already).

    Fields of equal width share one fused table. A width of 0 gives zeros.

    Args:
        schema: the log.
        dims: width of every id space.
        dim: D.
    """

    order: Tensor

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int) -> None:
        super().__init__(schema, dim)
        spaces = schema.id_spaces
        if len(dims) != len(spaces):
            raise ValueError(f"{len(dims)} widths for {len(spaces)} id spaces")
        width = {f.name: w for f, w in zip(spaces, dims, strict=True)}
        fields = [(f.name, f.of or f.name) for f in (*schema.id_fields, *schema.sequence_fields)]
        self.tables, self.layouts, self.projections = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        self.members: dict[str, int] = {}
        self.spaces_of: dict[int, list[int]] = {}
        self.sequences: dict[str, tuple[str, int, int]] = {}  # name → width, start, projection
        places: list[int] = []
        for w in sorted(set(dims)):
            owners = [f for f in spaces if width[f.name] == w]
            starts, rows = {}, 0
            for f in owners:
                starts[f.name], rows = rows, rows + f.vocab
            members = [i for i, (_, owner) in enumerate(fields) if owner in starts]
            places += members
            starts |= {name: starts[owner] for name, owner in fields if owner in starts}
            names = [f.name for f in owners]
            self.sequences |= {f.name: (str(w), starts[f.name], names.index(f.of or f.name))
                               for f in schema.sequence_fields if f.name in starts}
            self.layouts[str(w)], self.members[str(w)] = Layout(schema, members, starts), len(members)
            if w:
                self.tables[str(w)] = Table(rows, w, INIT_SD)
            if w not in (0, dim):
                self.widen(str(w), [spaces.index(f) for f in owners])
                self.spaces_of[w] = [names.index(fields[i][1]) for i in members]
        self.register_buffer("order", torch.tensor(places).argsort(), persistent=False)

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]; each width has a layout of its own."""
        if not self.tables:
            return torch.zeros((), device=batch.ids.device).expand(*lookup.shape, self.dim)
        parts = []
        for w, layout in self.layouts.items():
            if w not in self.tables:
                parts.append(torch.zeros(batch.ids.shape[0], self.members[w], self.dim, device=batch.ids.device))
                continue
            rows = self.tables[w](layout(batch))  # [B, F_w, w]
            parts.append(self.widened(w, rows, self.spaces_of[int(w)]) if int(w) != self.dim else rows)
        return torch.cat(parts, 1).index_select(1, self.order)

    def steps(self, batch: Batch, name: str) -> Tensor:
        """[B, L, D]."""
        w, start, place = self.sequences[name]
        steps = batch.sequences[name]
        if w not in self.tables:
            return torch.zeros(*steps.shape, self.dim, device=steps.device)
        rows = self.tables[w](steps_lookup(steps, start))  # [B, L, w]
        return self.widened(w, rows, [place]) if int(w) != self.dim else rows

    def widen(self, w: str, spaces: Sequence[int]) -> None:
        """Prepare :meth:`widened` for the id spaces ``spaces`` of width ``w``."""
        self.projections[w] = projection(len(spaces), int(w), self.dim)

    def widened(self, w: str, rows: Tensor, places: Sequence[int]) -> Tensor:
        """[B, F, w] → [B, F, D].

        Args:
            w: the width.
            rows: of F fields, or the F steps of one sequence.
            places: of each field's id space among those of the width, or of the sequence's only one.
        """
        maps = self.projections[w][places]
        return rows @ maps[0] if len(places) == 1 else torch.einsum("bfw,fwd->bfd", rows, maps)

    def flops(self) -> int:
        """The projections."""
        return sum(2 * int(w) * self.dim * self.members[w] for w in self.projections)


class FieldDimMaskEmbedding(PerFieldEmbedding):
    """Of every id space some of the D dimensions; the others are zero and stored nowhere.

    Args:
        schema: the log.
        mask: bool [id spaces, D], True = kept.
    """

    def __init__(self, schema: Schema, mask: np.ndarray) -> None:
        if mask.shape[0] != len(schema.id_spaces):
            raise ValueError(f"a mask of {mask.shape[0]} rows for {len(schema.id_spaces)} id spaces")
        self.kept = [np.flatnonzero(row).tolist() for row in mask]
        super().__init__(schema, [len(k) for k in self.kept], mask.shape[1])

    def widen(self, w: str, spaces: Sequence[int]) -> None:
        """See :class:`PerFieldEmbedding`."""
        self.register_buffer(f"columns{w}", torch.tensor([self.kept[s] for s in spaces]), persistent=False)

    def widened(self, w: str, rows: Tensor, places: Sequence[int]) -> Tensor:
        """See :class:`PerFieldEmbedding`."""
        columns = getattr(self, f"columns{w}")[places].expand(rows.shape)  # [B, F, w]
        return rows.new_zeros(*rows.shape[:2], self.dim).scatter(2, columns, rows)


class PerBucketEmbedding(FieldEmbedding):
    """One width per bucket of ids, each brought to width D by a linear map per id space (none where it is D already).

    All buckets of one width share a fused table, whose first row is zero: it stands for the ids of other widths, so
    that a field's embedding is the sum over the widths. A width of 0 is in no table.

    Args:
        schema: the log.
        alloc: the buckets.
        dim: D.
    """

    def __init__(self, schema: Schema, alloc: PerBucket, dim: int) -> None:
        super().__init__(schema, dim)
        spaces = [f.name for f in schema.id_spaces]
        starts = [schema.offsets[name] for name in spaces]
        self.owners = [spaces.index(f.of or f.name) for f in (*schema.id_fields, *schema.sequence_fields)]
        self.sequences = {f.name: (schema.offsets[f.name], spaces.index(f.of or f.name))
                          for f in schema.sequence_fields}
        # Of each width: (first row, behind the last row, first row in the width's table, whether all have that row).
        self.ranges: dict[str, list[tuple[int, int, int, bool]]] = {}
        rows: dict[str, int] = {}
        for s, begin, end, width, shared in alloc.buckets(schema):
            if width:
                w = str(width)
                first, ranges = rows.setdefault(w, 1), self.ranges.setdefault(w, [])
                a = starts[s] + begin
                if ranges and ranges[-1][1] == a and not (shared or ranges[-1][3]):
                    a, _, first, _ = ranges.pop()  # neighbours lie side by side in the table as well
                ranges.append((a, starts[s] + end, first, shared))
                rows[w] += 1 if shared else end - begin
        self.tables, self.projections = nn.ModuleDict(), nn.ParameterDict()
        for w in sorted(self.ranges, key=int):
            self.tables[w] = Table(rows[w], int(w), INIT_SD, void=True)
            if int(w) != dim:
                self.projections[w] = projection(len(spaces), int(w), dim)

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]."""
        return self._embedded(lookup, self.owners)

    def steps(self, batch: Batch, name: str) -> Tensor:
        """[B, L, D]."""
        start, owner = self.sequences[name]
        return self._embedded(steps_lookup(batch.sequences[name], start), owner)

    def _embedded(self, lookup: Lookup, owners: Sequence[int] | int) -> Tensor:
        """[.., .., D] of a look-up whose second dimension has the id spaces ``owners``, or all the same."""
        total: Tensor | None = None
        for w, table in self.tables.items():
            rows = table(lookup.renumbered(partial(self._place, w)))  # [B, F, w]
            if w in self.projections:
                maps = self.projections[w][owners]
                rows = rows @ maps if maps.dim() == 2 else torch.einsum("bfw,fwd->bfd", rows, maps)
            total = rows if total is None else total + rows
        return torch.zeros(*lookup.shape, self.dim, device=lookup.index.device) if total is None else total

    def _place(self, w: str, index: Tensor) -> Tensor:
        """Rows of all id spaces → rows of the table of width ``w``, 0 where it does not have them."""
        place = torch.zeros_like(index)
        for begin, end, first, shared in self.ranges[w]:
            inside = (index >= begin) & (index < end)
            place = torch.where(inside, torch.full_like(index, first) if shared else index + (first - begin), place)
        return place

    def stored_values(self) -> int:
        """Without the rows of zeros."""
        return super().stored_values() - sum(int(w) for w in self.tables)

    def flops(self) -> int:
        """The projections, and the sum over the widths."""
        maps = sum(2 * int(w) * self.dim for w in self.projections)
        return self.n_fields * (maps + self.dim * max(len(self.tables) - 1, 0))


def projection(count: int, width: int, dim: int) -> nn.Parameter:
    """``count`` linear maps from ``width`` to ``dim``: [count, width, dim]."""
    bound = (6 / (width + dim)) ** 0.5
    return nn.Parameter(torch.empty(count, width, dim).uniform_(-bound, bound))
