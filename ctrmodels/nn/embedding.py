"""Embeddings of every field of a batch, for each way an ArchSpec may allocate them.

Notation: B rows, F fields (id fields, then sequences), D common width, V ids of all id spaces, L sequence steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema

INIT_SD = 0.01


def pool(rows: Tensor, steps: Tensor) -> Tensor:
    """Mean of the steps that are there.

    Args:
        rows: [B, L, W] step embeddings.
        steps: [B, L] ids, negative = padding.

    Returns:
        [B, W]; zero where no step is there.
    """
    there = (steps >= 0).unsqueeze(-1).to(rows.dtype)
    return (rows * there).sum(1) / there.sum(1).clamp(min=1.0)


class IdSpaces(nn.Module):
    """Turns a batch's local ids into row numbers of one table in which all id spaces lie end to end."""

    offsets: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        starts = schema.offsets
        self.sequences = [(f.name, starts[f.name]) for f in schema.sequence_fields]
        self.n_fields = len(schema.id_fields) + len(self.sequences)
        self.register_buffer("offsets", torch.tensor([starts[f.name] for f in schema.id_fields],
                                                     dtype=torch.int32), persistent=False)

    def ids(self, batch: Batch) -> Tensor:
        """int32 [B, F_id] row numbers of the id fields."""
        return batch.ids + self.offsets

    def steps(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Per sequence: row numbers [B, L] (padding points at row 0 of its space) and the raw steps."""
        return [(batch.sequences[name].clamp(min=0) + start, batch.sequences[name])
                for name, start in self.sequences]


class FieldEmbedding(nn.Module):
    """Base: the embedding of every field.

    A subclass gives :meth:`rows`; fields are then looked up and sequences averaged the same way for all.
    """

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.spaces, self.dim = IdSpaces(schema), dim

    def rows(self, index: Tensor) -> Tensor:
        """[..., D] embeddings of row numbers [...]."""
        raise TypeError(f"{type(self).__name__} has no row look-up")

    def forward(self, batch: Batch) -> Tensor:
        """[B, F, D]."""
        fields = [self.rows(self.spaces.ids(batch))]
        fields += [pool(self.rows(index), steps).unsqueeze(1) for index, steps in self.spaces.steps(batch)]
        return torch.cat(fields, 1)

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

    def rows(self, index: Tensor) -> Tensor:
        """[..., D] rows of the table."""
        return F.embedding(index, self.table)


class MaskedEmbedding(FieldEmbedding):
    """One table of which only the entries in ``mask`` live; the others are zero and get no gradient."""

    mask: Tensor

    def __init__(self, schema: Schema, mask: np.ndarray, init: np.ndarray | None) -> None:
        super().__init__(schema, mask.shape[1])
        table = (torch.empty(mask.shape).normal_(std=INIT_SD) if init is None
                 else torch.from_numpy(init.astype(np.float32)).clone())
        self.register_buffer("mask", torch.from_numpy(mask.copy()))
        self.table = nn.Parameter(table * self.mask)

    def rows(self, index: Tensor) -> Tensor:
        """[..., D] masked rows of the table."""
        return F.embedding(index, self.table) * F.embedding(index, self.mask)

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

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int) -> None:
        super().__init__(schema, dim)
        spaces = schema.id_spaces
        if len(dims) != len(spaces):
            raise ValueError(f"{len(dims)} widths for {len(spaces)} id spaces")
        width = {f.name: w for f, w in zip(spaces, dims, strict=True)}
        owner = {f.name: f.of or f.name for f in schema.fields}
        order = [*schema.id_fields, *schema.sequence_fields]
        self.tables, self.projections = nn.ParameterDict(), nn.ParameterDict()
        self.lookups: list[tuple[str, int, int, int]] = []  # table, column or sequence number, shift, space
        starts, used = schema.offsets, dict.fromkeys(sorted({w for w in dims if w}), 0)
        begin: dict[str, int] = {}
        for f in spaces:
            w = width[f.name]
            if w:
                begin[f.name] = used[w]
                used[w] += f.vocab
                if w != dim:
                    bound = (6 / (w + dim)) ** 0.5
                    self.projections[f.name] = nn.Parameter(torch.empty(w, dim).uniform_(-bound, bound))
        for w, rows in used.items():
            self.tables[str(w)] = nn.Parameter(torch.empty(rows, w).normal_(std=INIT_SD))
        self.plan = [(owner[f.name], width[owner[f.name]],
                      begin.get(owner[f.name], 0) - starts[f.name]) for f in order]

    def forward(self, batch: Batch) -> Tensor:
        """[B, F, D]."""
        ids, steps = self.spaces.ids(batch), self.spaces.steps(batch)
        out = []
        for position, (space, width, shift) in enumerate(self.plan):
            if not width:
                out.append(torch.zeros(len(batch), self.dim, device=ids.device))
                continue
            table = self.tables[str(width)]
            if position < ids.shape[1]:
                vector = F.embedding(ids[:, position] + shift, table)
            else:
                index, raw = steps[position - ids.shape[1]]
                vector = pool(F.embedding(index + shift, table), raw)
            out.append(vector @ self.projections[space] if space in self.projections else vector)
        return torch.stack(out, 1)

    def flops(self) -> int:
        """The projections."""
        return sum(2 * width * self.dim for space, width, _ in self.plan if space in self.projections)
