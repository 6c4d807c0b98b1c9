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


def pool(index: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Mean of the rows of each bag; zero for an empty bag.

    Args:
        index: [n] row numbers of all bags, one after the other.
        offsets: [B] where each bag starts.
        table: [V, W].

    Returns:
        [B, W].
    """
    return F.embedding_bag(index, table, offsets, mode="mean")


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

    def bags(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Per sequence: int32 [n] row numbers of the steps that are there, and int32 [B] where each row's begin."""
        out = []
        for name, start in self.sequences:
            steps = batch.sequences[name]
            there = steps >= 0
            lengths = there.sum(1, dtype=torch.int32)
            begins = torch.cumsum(lengths, 0, dtype=torch.int32) - lengths
            out.append((steps[there] + start, begins))
        return out


class FieldEmbedding(nn.Module):
    """Base: the embedding of every field of a batch. Sequences are the mean of their steps' embeddings."""

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.spaces, self.dim = IdSpaces(schema), dim

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
        fields = [F.embedding(self.spaces.ids(batch), self.table)]
        fields += [pool(index, begins, self.table).unsqueeze(1) for index, begins in self.spaces.bags(batch)]
        return torch.cat(fields, 1)


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

    def __init__(self, schema: Schema, dims: Sequence[int], dim: int) -> None:
        super().__init__(schema, dim)
        spaces = schema.id_spaces
        if len(dims) != len(spaces):
            raise ValueError(f"{len(dims)} widths for {len(spaces)} id spaces")
        width = {f.name: w for f, w in zip(spaces, dims, strict=True)}
        owner = {f.name: f.of or f.name for f in schema.fields}
        order = [*schema.id_fields, *schema.sequence_fields]
        self.tables, self.projections = nn.ParameterDict(), nn.ParameterDict()
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
        ids, bags = self.spaces.ids(batch), self.spaces.bags(batch)
        out = []
        for position, (space, width, shift) in enumerate(self.plan):
            if not width:
                out.append(torch.zeros(len(batch), self.dim, device=ids.device))
                continue
            table = self.tables[str(width)]
            if position < ids.shape[1]:
                vector = F.embedding(ids[:, position] + shift, table)
            else:
                index, begins = bags[position - ids.shape[1]]
                vector = pool(index + shift, begins, table)
            out.append(vector @ self.projections[space] if space in self.projections else vector)
        return torch.stack(out, 1)

    def flops(self) -> int:
        """The projections."""
        return sum(2 * width * self.dim for space, width, _ in self.plan if space in self.projections)
