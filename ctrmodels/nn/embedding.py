"""Embeddings of every field of a batch, for each way an ArchSpec may allocate them.

Notation: B rows, F fields (id fields, then sequences), D common width, V ids of all id spaces, L sequence steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema

INIT_SD = 0.01


class Bags(nn.Module):
    """Turns a batch into bags of row numbers of a table, one bag per row and field.

    An id field's bag holds its id, a sequence's bag the steps that are there. With all fields in one layout a
    batch costs one look-up, whatever its fields.

    Args:
        schema: the log.
        fields: positions of the fields to look up, among id fields and then sequences; all by default.
        starts: where each field's ids begin in the table; by default all id spaces lie end to end.
    """

    starts: Tensor
    columns: Tensor

    def __init__(self, schema: Schema, fields: Sequence[int] | None = None,
                 starts: Mapping[str, int] | None = None) -> None:
        super().__init__()
        starts = schema.offsets if starts is None else starts
        n_ids = len(schema.id_fields)
        chosen = range(n_ids + len(schema.sequence_fields)) if fields is None else sorted(fields)
        columns = [i for i in chosen if i < n_ids]
        self.sequences = [(f.name, starts[f.name]) for i, f in enumerate(schema.sequence_fields, n_ids)
                          if i in chosen]
        self.n_fields = len(chosen)
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.register_buffer("starts", torch.tensor([starts[schema.id_fields[i].name] for i in columns],
                                                    dtype=torch.int32), persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """int32 [n] row numbers, field after field within a row, and int32 [B * F] where each bag begins."""
        ids = batch.ids.index_select(1, self.columns) + self.starts
        parts, lengths = [ids], [torch.ones_like(ids)]
        for name, start in self.sequences:
            steps = batch.sequences[name]
            there = steps >= 0
            parts.append(torch.where(there, steps + start, steps))
            lengths.append(there.sum(1, keepdim=True, dtype=torch.int32))
        rows, length = torch.cat(parts, 1), torch.cat(lengths, 1).flatten()
        return rows[rows >= 0], torch.cumsum(length, 0, dtype=torch.int32) - length

    def gather(self, batch: Batch, table: Tensor) -> Tensor:
        """Mean of each bag's rows of ``table`` [V, W], zero for an empty bag: [B, F, W]."""
        index, begins = self(batch)
        return F.embedding_bag(index, table, begins, mode="mean").view(len(batch), self.n_fields, table.shape[1])


class FieldEmbedding(nn.Module):
    """Base: the embedding of every field of a batch. Sequences are the mean of their steps' embeddings."""

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.bags, self.dim = Bags(schema), dim

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
    """One table of width D for all id spaces."""

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__(schema, dim)
        self.table = nn.Parameter(torch.empty(schema.total_vocab, dim).normal_(std=INIT_SD))

    def forward(self, batch: Batch) -> Tensor:
        """[B, F, D]."""
        return self.bags.gather(batch, self.table)


class MaskedEmbedding(UniformEmbedding):
    """One table of which only the entries in ``mask`` live.

    The others start at zero and their gradient is masked, so that no optimiser ever moves them.
    """

    mask: Tensor

    def __init__(self, schema: Schema, mask: np.ndarray, init: np.ndarray | None) -> None:
        super().__init__(schema, mask.shape[1])
        self.register_buffer("mask", torch.from_numpy(mask.copy()))
        with torch.no_grad():
            if init is not None:
                self.table.copy_(torch.from_numpy(init.astype(np.float32)))
            self.table.mul_(self.mask)
        self.table.register_hook(lambda gradient: gradient * self.mask)

    def stored_values(self) -> int:
        """The kept entries."""
        return int(self.mask.sum())

    def overhead_bytes(self) -> int:
        """One bit per entry of the table."""
        return (self.mask.numel() + 7) // 8


class PerFieldEmbedding(FieldEmbedding):
    """One width per id space, each brought to width D by a linear map of its own (none where it is D already).

    Fields of equal width share one fused table. A width of 0 gives zeros.
    """

    order: Tensor

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int) -> None:
        super().__init__(schema, dim)
        spaces = schema.id_spaces
        if len(dims) != len(spaces):
            raise ValueError(f"{len(dims)} widths for {len(spaces)} id spaces")
        width = {f.name: w for f, w in zip(spaces, dims, strict=True)}
        fields = [(f.name, f.of or f.name) for f in (*schema.id_fields, *schema.sequence_fields)]
        self.tables, self.projections = nn.ParameterDict(), nn.ParameterDict()
        self.groups: list[tuple[int, Bags]] = []
        self.spaces_of: dict[int, list[int]] = {}
        places: list[int] = []
        for w in sorted(set(dims)):
            owners = [f for f in spaces if width[f.name] == w]
            starts, rows = {}, 0
            for f in owners:
                starts[f.name], rows = rows, rows + f.vocab
            members = [i for i, (_, owner) in enumerate(fields) if owner in starts]
            places += members
            starts |= {name: starts[owner] for name, owner in fields if owner in starts}
            self.groups.append((w, Bags(schema, members, starts)))
            if w:
                self.tables[str(w)] = nn.Parameter(torch.empty(rows, w).normal_(std=INIT_SD))
            if w not in (0, dim):
                bound = (6 / (w + dim)) ** 0.5
                self.projections[str(w)] = nn.Parameter(torch.empty(len(owners), w, dim).uniform_(-bound, bound))
                names = [f.name for f in owners]
                self.spaces_of[w] = [names.index(fields[i][1]) for i in members]
        self.register_buffer("order", torch.tensor(places).argsort(), persistent=False)
        for i, (_, bags) in enumerate(self.groups):
            self.add_module(f"bags_{i}", bags)

    def forward(self, batch: Batch) -> Tensor:
        """[B, F, D]."""
        parts = []
        for w, bags in self.groups:
            if not w:
                parts.append(torch.zeros(len(batch), bags.n_fields, self.dim, device=batch.ids.device))
                continue
            rows = bags.gather(batch, self.tables[str(w)])  # [B, F_w, w]
            if w != self.dim:
                rows = torch.einsum("bfw,fwd->bfd", rows, self.projections[str(w)][self.spaces_of[w]])
            parts.append(rows)
        return torch.cat(parts, 1).index_select(1, self.order)

    def flops(self) -> int:
        """The projections."""
        return sum(2 * w * self.dim * bags.n_fields for w, bags in self.groups if w not in (0, self.dim))
