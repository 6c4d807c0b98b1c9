"""AIM: interactions grown order by order, a function for each, and the dimensions of the embeddings they read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from ctrmodels.archspec import (
    MAIN,
    Alloc,
    ArchSpec,
    FieldDimMask,
    Interaction,
    Op,
    Uniform,
    ValueMask,
    all_combinations,
)
from ctrmodels.data.schema import Schema
from ctrmodels.search.base import Found, Host, SearchRows, configuration
from ctrmodels.search.embedding.aim_eds import AIMEDS
from ctrmodels.search.interaction.gated import GatedSearch
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import seed_everything

FUNCTIONS: tuple[Op, ...] = ("inner", "outer", "vector_kernel", "scalar_kernel")
SHARED = "shared"


@dataclass(frozen=True)
class AIM(GatedSearch):
    """Interactions, their functions and their embeddings' dimensions, in stages that may be left out.

    "AIM: Automatic Interaction Machine for Click-Through Rate Prediction", TKDE 2021. Feature interaction selection:
    all pairs are gated; of every function the strongest ones, each with every other field, are the candidates of the
    next order, which are gated beside the pairs that stay; and so on. What it misses are interactions of which no part
    shows by itself. Interaction function selection: a combination has a gate per function, and every function and order
    an embedding of its own. Embedding dimension selection: gates on the dimensions of those embeddings, once the
    interactions are fixed. The host's MLP takes no part in the search, which it would make easier to do without
    interactions; the retraining has it. See :class:`GatedSearch` for the other settings, those of the first two.

    Attributes:
        functions: to choose from; of one alone, none is chosen.
        order: fields of an interaction at most; 2 = nothing is grown.
        top: interactions per function that grow into the next order.
        share: one embedding for all functions and orders, which the paper argues against.
        dimensions: how the embeddings' dimensions are selected; ``None`` = all stay.
    """

    functions: tuple[Op, ...] = FUNCTIONS
    order: int = 3
    top: int = 24
    share: bool = False
    dimensions: AIMEDS | None = field(default_factory=AIMEDS)

    name: ClassVar[str] = "aim"

    def table(self, function: Op, order: int) -> str:
        """Name of the embedding that a function reads."""
        return SHARED if self.share else f"{function}_{order}"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The interactions and the embeddings that they read."""
        interactions, found = self.grow(rows, host, seed, checkpoint)
        spec = ArchSpec.of(rows.schema, self.name, host.dim, interactions=interactions, seed=seed,
                           config=configuration(self),
                           tables={name: Uniform(host.dim) for name in sorted({i.table for i in interactions})})
        if self.dimensions is not None and interactions:
            spec, narrowed = select_dimensions(spec, self.dimensions, rows, host, seed, _part(checkpoint, "dimensions"))
            found = _after(found, narrowed)
        for name in ("dimensions", *(f"order{p}" for p in range(2, self.order + 1))):
            if part := _part(checkpoint, name):
                part.remove()
        found.specs[self.name] = spec
        return found

    def grow(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None
             ) -> tuple[tuple[Interaction, ...], Found]:
        """Interactions of all orders, with trace and steps."""
        schema, alone = rows.schema, _without_mlp(host)
        kept: tuple[Interaction, ...] = ()
        found = Found({})
        for order in range(2, self.order + 1):
            candidates = [i for f in self.functions for i in self.candidates(f, order, kept, schema)]
            if not candidates:
                break
            tables = {i.table: Uniform(host.dim) for i in (*kept, *candidates)}
            spec = _bare(ArchSpec.of(schema, self.name, host.dim, interactions=kept, tables=tables))
            stage = self.select(spec, candidates, rows, alone, seed, _part(checkpoint, f"order{order}"), order=order)
            found, kept = _after(found, stage.found), (*kept, *stage.kept)
        return kept, found

    def candidates(self, function: Op, order: int, kept: Iterable[Interaction], schema: Schema) -> list[Interaction]:
        """Of one function: all pairs, or what grows from the kept interactions of one order less."""
        table = self.table(function, order)
        if order == 2:
            return list(all_combinations(schema, 2, function, table))
        parents = [i for i in kept if i.op == function and i.order == order - 1]
        n = len(schema.id_fields) + len(schema.sequence_fields)
        return [Interaction(fields, function, table=table) for fields in grown(parents, n, self.top)]


def grown(parents: Sequence[Interaction], n_fields: int, top: int) -> list[tuple[int, ...]]:
    """The ``top`` strongest ``parents``, each with every other field; each combination once."""
    strongest = sorted(parents, key=lambda i: (-abs(i.strength), i.fields))[:top]
    return sorted({tuple(sorted((*i.fields, f))) for i in strongest for f in range(n_fields) if f not in i.fields})


def select_dimensions(spec: ArchSpec, method: AIMEDS, rows: SearchRows, host: Host, seed: int,
                      checkpoint: Checkpoint | None = None) -> tuple[ArchSpec, Found]:
    """``spec`` with those dimensions of its interactions' embeddings whose gate is not zero at the end.

    The interactions' own gates are weights here: to search both at once, one behind the other's normalisation, would
    leave neither a meaning. Interactions that no dimension is left to are dropped, and embeddings without interactions.

    Raises:
        RuntimeError: no interaction is left.
    """
    seed_everything(seed)
    schema, alone = rows.schema, _without_mlp(host)
    # Normalised rows have one norm, so that a penalty on it would act on the gates alone.
    network = replace(alone, l2=0.0).build(schema, _bare(spec))
    embeddings = {name: method.embedding(schema, spec.out_dim) for name in spec.tables}
    network.encoder.tables.update(embeddings)
    found = method.train(network, list(embeddings.values()), rows, alone, seed, checkpoint)
    tables = {name: method.allocation(e) for name, e in embeddings.items()}
    of_field = {name: dimensions_of_fields(alloc, schema) for name, alloc in tables.items()}
    living = tuple(i for i in spec.interactions or () if i.table == MAIN or lives(i, of_field[i.table]))
    if not living:
        raise RuntimeError(f"no interaction outlived a threshold of {method.target_threshold:g} on its embedding's "
                           "dimensions: lower search_interaction.aim.dimensions.target_threshold or raise gamma")
    used = {i.table for i in living}
    return replace(spec, interactions=living, tables={n: a for n, a in tables.items() if n in used}), found


def dimensions_of_fields(alloc: Alloc, schema: Schema) -> np.ndarray:
    """bool [F, D]: the dimensions that some id of each field has under a mask."""
    assert isinstance(alloc, FieldDimMask | ValueMask)
    kept, spaces = alloc.mask, schema.id_spaces
    if isinstance(alloc, ValueMask):
        kept = np.stack([part.any(0) for part in np.split(kept, np.cumsum([f.vocab for f in spaces])[:-1])])
    names = [f.name for f in spaces]
    return kept[[names.index(f.of or f.name) for f in (*schema.id_fields, *schema.sequence_fields)]]


def lives(i: Interaction, of_field: np.ndarray) -> bool:
    """Whether it is anything but zero: all its fields have a dimension in common, or, of ``outer``, any each."""
    dims = of_field[list(i.fields)]  # [p, D]
    return bool(dims.any(1).all() if i.op == "outer" else dims.all(0).any())


def _without_mlp(host: Host) -> Host:
    """The host of the search itself."""
    return replace(host, model="autodeepfm", hidden=())


def _bare(spec: ArchSpec) -> ArchSpec:
    """``spec`` on a network whose own embedding, which without an MLP nothing reads, is empty."""
    read = any(i.table == MAIN for i in spec.interactions or ())
    return replace(spec, alloc=Uniform(spec.out_dim if read else 0))


def _part(checkpoint: Checkpoint | None, name: str) -> Checkpoint | None:
    """The checkpoint of one stage, beside that of the whole search."""
    if checkpoint is None:
        return None
    return Checkpoint(checkpoint.path.with_stem(f"{checkpoint.path.stem}-{name}"), checkpoint.every)


def _after(found: Found, stage: Found) -> Found:
    """What was found so far, and in the stage behind it."""
    return Found({}, [*found.trace, *stage.trace], found.steps + stage.steps)
