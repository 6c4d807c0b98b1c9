"""Embeddings of every field of a batch, for each way an ArchSpec may allocate them.

Notation: B rows, F fields (id fields, then sequences), L steps of a sequence, D common width, V ids of all id spaces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.table import Layout, Lookup, Table, steps_lookup

INIT_SD = 0.01


class FieldEmbedding(nn.Module):
    """Base: the embedding of every field of a batch. Sequences are the mean of their steps' embeddings.

    ``forward(batch, lookup)`` gives [B, F, D]; ``lookup`` is the batch's in the layout of all fields and all id
    spaces, which the other parts of a network share.
    """

    def __init__(self, schema: Schema, dim: int) -> None:
        super().__init__()
        self.n_fields, self.dim = len(schema.id_fields) + len(schema.sequence_fields), dim

    def steps(self, batch: Batch, name: str) -> Tensor:
        """[B, L, D]: each step of sequence ``name``, from the table that :meth:`forward` reads; mask padded ones.

        Raises:
            ValueError: a search's relaxation pools sequences: no model that reads single steps can be its host.
        """
        raise ValueError(f"{type(self).__name__} has no single steps of {name!r}: choose a host that pools sequences")

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
        self.table = Table(schema.total_vocab, dim, INIT_SD)
        self.offsets = schema.offsets

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]."""
        return self.table(lookup)

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
                bound = (6 / (w + dim)) ** 0.5
                self.projections[str(w)] = nn.Parameter(torch.empty(len(owners), w, dim).uniform_(-bound, bound))
                self.spaces_of[w] = [names.index(fields[i][1]) for i in members]
        self.register_buffer("order", torch.tensor(places).argsort(), persistent=False)

    def forward(self, batch: Batch, lookup: Lookup) -> Tensor:
        """[B, F, D]; each width has a layout of its own."""
        parts = []
        for w, layout in self.layouts.items():
            if w not in self.tables:
                parts.append(torch.zeros(batch.ids.shape[0], self.members[w], self.dim, device=batch.ids.device))
                continue
            rows = self.tables[w](layout(batch))  # [B, F_w, w]
            if w in self.projections:
                rows = torch.einsum("bfw,fwd->bfd", rows, self.projections[w][self.spaces_of[int(w)]])
            parts.append(rows)
        return torch.cat(parts, 1).index_select(1, self.order)

    def steps(self, batch: Batch, name: str) -> Tensor:
        """[B, L, D]."""
        w, start, place = self.sequences[name]
        steps = batch.sequences[name]
        if w not in self.tables:
            return torch.zeros(*steps.shape, self.dim, device=steps.device)
        rows = self.tables[w](steps_lookup(steps, start))  # [B, L, w]
        return rows @ self.projections[w][place] if w in self.projections else rows

    def flops(self) -> int:
        """The projections."""
        return sum(2 * int(w) * self.dim * self.members[w] for w in self.projections)
