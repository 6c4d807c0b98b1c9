"""What a search of interactions found, as figures: gates, a list, and how far its seeds agree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from ctrmodels.archspec import ArchSpec, Group, Interaction
from ctrmodels.data.schema import Schema
from ctrmodels.search import random_control
from tasks.runtime.figure import Axis, Figure, Series

STRONGEST = 20  # bars
LISTED = 100  # lines of a table
DRAWS = 20  # random architectures, to say what agreement is worth

Part = Interaction | Group
Key = tuple[str, int, str, tuple[int, ...]]  # operation, order, embedding, fields


def found_figures(name: str, spec: ArchSpec, by_seed: Sequence[ArchSpec]) -> list[Figure]:
    """Of one level: ``spec`` is its best seed's, ``by_seed`` are all of them."""
    figures = []
    if spec.interactions or spec.groups:
        figures.append(kept(name, spec, by_seed))
    if len({i.strength for i in spec.interactions or ()}) > 1:
        figures.append(strongest(name, spec))
        if any(i.order == 2 for i in spec.interactions or ()):
            figures.append(gates(name, spec))
    return figures


def gates(name: str, spec: ArchSpec) -> Figure:
    """The strengths of all pairs as a matrix, whatever their operation; dropped pairs are empty."""
    n = len(spec.fields)
    values: list[list[float | None]] = [[None] * n for _ in range(n)]
    for i in sorted(spec.interactions or (), key=lambda i: abs(i.strength)):
        if i.order == 2:
            a, b = i.fields
            values[a][b] = values[b][a] = i.strength
    return Figure(_id("gates", name), f"Strength of the kept pairs, {name}", "heatmap",
                  "A cell is a pair's gate at the end of the best seed's search, or the statistic of a rule; where a "
                  "pair is kept with several operations, the largest. Empty cells were dropped.",
                  rows=spec.fields, columns=spec.fields, values=values)


def strongest(name: str, spec: ArchSpec) -> Figure:
    """The strongest interactions of any order."""
    top = sorted(spec.interactions or (), key=lambda i: -abs(i.strength))[:STRONGEST]
    labels = [f"{_fields(i, spec)}{'' if i.op == 'inner' else f' ({_operation(i)})'}"
              f"{f' [{i.table}]' if i.table else ''}" for i in top]
    return Figure(_id("strongest", name), f"Strongest interactions, {name}", "bar",
                  f"The {len(top)} kept interactions of the largest strength.", Axis("interaction"), Axis("strength"),
                  [Series("strength", labels, [i.strength for i in top])])


def kept(name: str, spec: ArchSpec, by_seed: Sequence[ArchSpec]) -> Figure:
    """Every kept interaction and group, the strongest first, and how many seeds found it."""
    seeds = Counter(key for s in by_seed for key in {*map(_key, s.interactions or ()), *map(_key, s.groups)})
    parts: list[Part] = [*sorted(spec.interactions or (), key=lambda i: (-abs(i.strength), i)), *sorted(spec.groups)]
    lines = [[_fields(p, spec), p.order, _operation(p), p.table or "the network's",
              p.strength if isinstance(p, Interaction) else None, f"{seeds[_key(p)]} of {len(by_seed)}"]
             for p in parts[:LISTED]]
    shown = f"{len(parts)}" if len(parts) <= LISTED else f"{LISTED} strongest of {len(parts)}"
    return Figure(_id("kept", name), f"Kept interactions, {name}", "table",
                  f"The {shown} of the best seed, and how many seeds kept the same fields with the same operation.",
                  columns=["fields", "order", "operation", "embedding", "strength", "seeds"], values=lines)


def stability(found: Mapping[str, Sequence[ArchSpec]], schema: Schema) -> tuple[Figure, dict[str, float]]:
    """How far the seeds of every level agree, beside as many random interactions; and the same as metrics.

    Args:
        found: level → one spec per seed, two or more.
        schema: the log.
    """
    rng = np.random.default_rng(0)
    series: list[Series] = []
    metrics: dict[str, float] = {}
    for level, specs in found.items():
        agreed = _mean([agreement(a, b) for a, b in combinations(specs, 2)])
        draws = rng.integers(2**31, size=(DRAWS, 2))
        by_chance = _mean([agreement(random_control(specs[k % len(specs)], schema, int(a)),
                                     random_control(specs[(k + 1) % len(specs)], schema, int(b)))
                           for k, (a, b) in enumerate(draws)])
        for suffix, values in (("", agreed), (", by chance", by_chance)):
            series.append(Series(f"{level}{suffix}", list(values), list(values.values())))
        metrics |= {f"{level}.jaccard.{part.replace(' ', '_')}": value for part, value in agreed.items()}
    return Figure("stability", "Agreement of the seeds", "bar",
                  "What two seeds' searches keep in common over what either keeps (Jaccard), mean over the pairs of "
                  "seeds, beside random architectures of equal size. A group is compared with the most similar one of "
                  "the other seed.", Axis("part"), Axis("agreement"), series), metrics


def agreement(a: ArchSpec, b: ArchSpec) -> dict[str, float]:
    """By order, the share of interactions in common; and of groups, how similar the members of the nearest are.

    Two interactions are the same if their fields, operation and embedding are. What neither has is left out.
    """
    found = {}
    for order in sorted({i.order for s in (a, b) for i in s.interactions or ()}):
        mine, theirs = ({_key(i) for i in s.interactions or () if i.order == order} for s in (a, b))
        found[f"order {order}"] = len(mine & theirs) / len(mine | theirs)
    for order in sorted({g.order for s in (a, b) for g in s.groups}):
        members, others = ([set(g.fields) for g in s.groups if g.order == order] for s in (a, b))
        nearest = [max((_jaccard(g, h) for h in there), default=0.0)
                   for here, there in ((members, others), (others, members)) for g in here]
        found[f"groups of order {order}"] = float(np.mean(nearest))
    return found


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By part, over the entries that have it."""
    return {part: float(np.mean([f[part] for f in found if part in f]))
            for part in sorted({part for f in found for part in f})}


def _key(part: Part) -> Key:
    return part.op if isinstance(part, Interaction) else "group", part.order, part.table, part.fields


def _operation(part: Part) -> str:
    if isinstance(part, Group):
        return "group"
    return f"{part.op} {'-'.join(map(str, part.genes))}".strip().replace("_", " ")


def _fields(part: Part, spec: ArchSpec) -> str:
    return (" x " if isinstance(part, Interaction) else ", ").join(spec.fields[f] for f in part.fields)


def _id(figure: str, level: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", f"{figure}_{level}".lower())
