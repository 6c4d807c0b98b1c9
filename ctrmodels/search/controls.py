"""The random control: an architecture of equal cost that nobody searched."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice, product
from math import comb

import numpy as np

from ctrmodels.archspec import (
    Alloc,
    ArchSpec,
    CentralResidual,
    FieldDimMask,
    Group,
    Interaction,
    Op,
    PerBucket,
    PerField,
    Uniform,
    ValueMask,
)
from ctrmodels.data.schema import Schema
from ctrmodels.nn.micronet import CONCAT, HADAMARD, PRODUCT, SUM, cost_of
from ctrmodels.search.interaction.aim import dimensions_of_fields, lives

log = logging.getLogger(__name__)

TOLERANCE = 0.02
ATTEMPTS = 200
EXCHANGES = 4  # of genes, per micro-network
MASKS = 11  # draws of an embedding's mask, from independent fields to fields that all prefer the same dimensions
GENES = (SUM, HADAMARD, CONCAT, PRODUCT)


def random_control(spec: ArchSpec, schema: Schema, seed: int) -> ArchSpec:
    """A random architecture that costs what ``spec`` costs, in the part that ``spec`` speaks of.

    Widths, by field or by bucket: random ones from the same candidates whose parameters come within 2 % (or as near as
    can be: a warning says so) of the spec's. Masks of fields' dimensions: random numbers of random dimensions that cost
    the same, or, where the search had candidate widths, random ones of these. Value masks: as many random values, from
    the same initial ones. Graphs: the same edges between other items. Interactions: as many random ones of every
    order, operation and embedding. Micro-networks: as many of every order, of other fields and of random genes that
    cost the same together. Groups: as many different ones of as many random members. Embeddings of their own: like that
    of the network, and as they are where they have one width. Where the search left out interactions that its masks
    make zero, the control has none either.

    Raises:
        ValueError: the spec is not searched, so that there is nothing to draw, or it repeats an interaction or a group
            more often than there are combinations of fields.
    """
    rng = np.random.default_rng([seed, 0x726E64])
    changes: dict[str, object] = {}
    if spec.alloc is not None:
        if isinstance(spec.alloc, Uniform):
            raise ValueError("a uniform width has no random control")
        changes["alloc"] = _random_alloc(spec, spec.alloc, schema, rng)
    if spec.interactions is not None:
        tables = {name: alloc if isinstance(alloc, Uniform) else _random_table(spec, name, alloc, schema, rng)
                  for name, alloc in spec.tables.items()}
        changes["interactions"] = _random_interactions(
            _random_genes(spec.interactions, spec.out_dim, rng), len(spec.fields),
            {name: dimensions_of_fields(t, schema) for name, t in tables.items() if _pruned(spec, name, schema)}, rng)
        changes["groups"] = _random_groups(spec.groups, len(spec.fields), rng)
        changes["tables"] = tables
    return replace(spec, method=f"random({spec.method})", cost=None, result={}, **changes)  # type: ignore[arg-type]


def _random_alloc(spec: ArchSpec, alloc: Alloc, schema: Schema, rng: np.random.Generator, alike: float = 0.0) -> Alloc:
    """A random allocation of the same cost.

    Of ``FieldDimMask``, about a share of ``alike`` of the fields prefers the same dimensions; and above 0, no field is
    left without any unless the search left one so.
    """
    candidates = set(spec.config.get("candidates", ()))
    vocab = np.array([f.vocab for f in schema.id_spaces])
    if isinstance(alloc, PerField):
        def by_field(widths: np.ndarray) -> int:
            return int((widths * vocab + np.where(widths == spec.out_dim, 0, widths * spec.out_dim)).sum())

        return PerField(_random_widths(alloc.dims, candidates, by_field, rng))
    if isinstance(alloc, PerBucket):
        return _random_buckets(spec, alloc, schema, rng)
    if isinstance(alloc, FieldDimMask):
        widths = candidates or set(range(int(alike > 0), alloc.mask.shape[1] + 1))
        counts = _random_widths(tuple(alloc.mask.sum(1)), widths,
                                lambda widths: int((widths * vocab).sum()), rng)
        order = np.arange(alloc.mask.shape[1])[None] if candidates else rng.random(alloc.mask.shape).argsort(1)
        if alike and not candidates:
            order[rng.random(len(order)) < alike] = rng.permutation(order.shape[1])
        return FieldDimMask(order < np.array(counts)[:, None])
    if isinstance(alloc, ValueMask):
        mask = np.zeros(alloc.mask.size, bool)
        mask[rng.choice(mask.size, int(alloc.mask.sum()), replace=False)] = True
        return ValueMask(mask.reshape(alloc.mask.shape), alloc.init)
    assert isinstance(alloc, CentralResidual)
    near, weights = np.empty_like(alloc.neighbours), np.empty_like(alloc.weights)
    other = rng.permutation(len(near)).astype(near.dtype)  # the item that takes each one's place in the graph
    near[other] = np.where(alloc.neighbours >= 0, other[alloc.neighbours], alloc.neighbours)
    weights[other] = alloc.weights
    return replace(alloc, neighbours=near, weights=weights)


def _pruned(spec: ArchSpec, name: str, schema: Schema) -> bool:
    """Whether an embedding has a mask and no interaction that this makes zero: the search left those out."""
    if not isinstance(alloc := spec.tables[name], FieldDimMask | ValueMask):
        return False
    dims = dimensions_of_fields(alloc, schema)
    return all(lives(i, dims) for i in spec.interactions or () if i.table == name)


def _random_table(spec: ArchSpec, name: str, alloc: Alloc, schema: Schema, rng: np.random.Generator) -> Alloc:
    """A random allocation of one embedding, whose mask leaves as many interactions alive as the search found on it.

    Independent fields of few dimensions seldom have one in common, so that later draws make more fields prefer the same
    dimensions: that changes neither the numbers of dimensions nor the cost.
    """
    if not _pruned(spec, name, schema):
        return _random_alloc(spec, alloc, schema, rng)
    needed = Counter((i.op, i.order) for i in spec.interactions or () if i.table == name)
    for alike in np.linspace(0, 1, MASKS):
        drawn = _random_alloc(spec, alloc, schema, rng, float(alike))
        dims = dimensions_of_fields(drawn, schema)
        if all(len(list(islice(_living(op, order, dims), n))) == n for (op, order), n in needed.items()):
            return drawn
    log.warning("no random mask of the embedding %s leaves as many interactions alive as were found: it stays as it is",
                name)
    return alloc


def _random_interactions(found: Sequence[Interaction], n_fields: int, dims: Mapping[str, np.ndarray],
                         rng: np.random.Generator) -> tuple[Interaction, ...]:
    """Other fields for every interaction, without repetition among those of one kind; living ones where masks decide.

    Args:
        dims: by embedding with a mask, the dimensions of every field.
    """
    sources: dict[tuple[Op, str, int], Iterator[tuple[int, ...]]] = {}
    drawn = []
    for i in found:
        if (kind := (i.op, i.table, i.order)) not in sources:
            sources[kind] = (_shuffled(list(_living(i.op, i.order, dims[i.table])), rng) if i.table in dims
                             else _distinct_fields(i.order, n_fields, rng))
        drawn.append(replace(i, fields=_next(sources[kind], i), strength=1.0))
    return tuple(sorted(drawn, key=lambda i: (i.order, i.op, i.table, i.fields)))


def _random_groups(found: Sequence[Group], n_fields: int, rng: np.random.Generator) -> tuple[Group, ...]:
    """Other members for every group, without repetition, as the search has none."""
    sources: dict[Group, Iterator[tuple[int, ...]]] = {}
    drawn = []
    for g in found:
        n = len(g.fields)
        source = sources.setdefault(replace(g, fields=tuple(range(n))), _distinct_fields(n, n_fields, rng))
        drawn.append(replace(g, fields=_next(source, g)))
    return tuple(drawn)


def _living(op: Op, order: int, dims: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The fields of all interactions that are not zero under a mask."""
    return (fields for fields in combinations(range(len(dims)), order) if lives(Interaction(fields, op), dims))


def _shuffled(choices: list[tuple[int, ...]], rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Each once, in random order."""
    return (choices[k] for k in rng.permutation(len(choices)))


def _distinct_fields(n: int, n_fields: int, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    """Random combinations of ``n`` fields, each once; drawn rather than listed, as large groups have too many."""
    taken: set[tuple[int, ...]] = set()
    while len(taken) < comb(n_fields, n):
        if (fields := _random_fields(n, n_fields, rng)) not in taken:
            taken.add(fields)
            yield fields


def _next(source: Iterator[tuple[int, ...]], found: Interaction | Group) -> tuple[int, ...]:
    """The next fields.

    Raises:
        ValueError: there are no more.
    """
    fields = next(source, None)
    if fields is None:
        raise ValueError(f"there are fewer combinations of {len(found.fields)} fields than the spec has like {found}")
    return fields


def _random_genes(found: Sequence[Interaction], dim: int, rng: np.random.Generator) -> list[Interaction]:
    """Other genes for the micro-networks: exactly the same parameters and operations, differently shared out.

    Two micro-networks of one order at a time get a random one of all pairs of strings that cost what theirs cost
    together. Strings are at most as long as the longest of their order.
    """
    drawn = list(found)
    for order in sorted({i.order for i in found if i.genes}):
        places = [k for k, i in enumerate(found) if i.genes and i.order == order]
        longest = max(len(found[k].genes) for k in places)
        strings = [genes for n in range(1, longest + 1) for genes in product(GENES, repeat=n)]
        alike: defaultdict[tuple[int, int], list[tuple[int, ...]]] = defaultdict(list)  # by parameters and operations
        for genes in strings:
            alike[cost_of(genes, order, dim)].append(genes)
        for _ in range(EXCHANGES * len(places)):
            pair = rng.choice(places, min(2, len(places)), replace=False)
            total = np.sum([cost_of(drawn[k].genes, order, dim) for k in pair], axis=0)
            for left, k in zip(range(len(pair) - 1, -1, -1), pair, strict=True):
                rest = [alike.get((total[0] - p, total[1] - f), []) if left else [()] * ((p, f) == tuple(total))
                        for p, f in alike]
                ways = np.array([len(mine) * len(theirs) for mine, theirs in zip(alike.values(), rest, strict=True)])
                mine = list(alike.values())[rng.choice(len(ways), p=ways / ways.sum())]
                drawn[k] = replace(drawn[k], genes=mine[rng.integers(len(mine))])
                total = total - cost_of(drawn[k].genes, order, dim)
    return drawn


def _random_fields(n: int, n_fields: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(sorted(rng.choice(n_fields, n, replace=False).tolist()))


def _random_buckets(spec: ArchSpec, alloc: PerBucket, schema: Schema, rng: np.random.Generator) -> PerBucket:
    """Random widths for the same buckets."""
    counts = [len(d) for d in alloc.dims]
    ends = np.cumsum(counts)
    rows = np.concatenate([np.diff((0, *cuts, f.vocab)) for cuts, f in zip(alloc.cuts, schema.id_spaces, strict=True)])
    if alloc.shared:
        rows[ends - 1] = 1

    def cost(widths: np.ndarray) -> int:
        maps = sum(int(w) for w in np.unique(widths) if w != spec.out_dim)
        return int((widths * rows).sum()) + len(counts) * spec.out_dim * maps

    drawn = _random_widths(tuple(w for d in alloc.dims for w in d), set(spec.config.get("candidates", ())), cost, rng)
    return replace(alloc, dims=tuple(drawn[end - n:end] for n, end in zip(counts, ends, strict=True)))


def _random_widths(searched: tuple[int, ...], candidates: set[int], cost: Callable[[np.ndarray], int],
                   rng: np.random.Generator) -> tuple[int, ...]:
    """Widths drawn at random, then moved one by one at random towards the target until they cost the same."""
    choices = np.array(sorted(candidates | set(searched)))
    target = cost(np.array(searched))
    best, best_gap = np.array(searched), np.inf
    for _ in range(ATTEMPTS):
        widths = rng.choice(choices, len(searched))
        gap = abs(cost(widths) - target)
        for _ in range(ATTEMPTS):
            trial = widths.copy()
            trial[rng.integers(len(searched))] = rng.choice(choices)
            trial_gap = abs(cost(trial) - target)
            if trial_gap < gap:
                widths, gap = trial, trial_gap
            if gap <= TOLERANCE * target:
                break
        if gap < best_gap and tuple(widths) != tuple(searched):
            best, best_gap = widths, gap
        if best_gap <= TOLERANCE * target:
            break
    if best_gap > TOLERANCE * target:
        log.warning("the random control of widths %s is %s apart from their cost of %d", searched, best_gap, target)
    return tuple(int(w) for w in best)
