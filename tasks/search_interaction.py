"""Search the feature interactions on the chosen embedding, retrained beside the equal-cost random control."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from ctrmodels.archspec import ArchSpec, Interaction
from ctrmodels.search import AIM, AIMEDS, AllPairs, AutoFIS, Baseline, SearchMethod
from tasks.config import INTERACTION_METHODS, Params
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, main
from tasks.searches import host_of, run_method

STRONGEST = 20


def method_of(key: str, params: Params) -> SearchMethod:
    """The search that ``key`` names, with its settings, or a plain model beside them."""
    own = params.search_interaction
    if key == "autofis":
        return AutoFIS(**own.autofis.model_dump())
    if key == "aim":
        narrow = own.aim.dimensions
        return AIM(**own.aim.model_dump(exclude={"dimensions"}),
                   dimensions=None if narrow is None else AIMEDS(**narrow.model_dump()))
    return AllPairs() if key == "all_pairs" else Baseline(key)


def run(stage: Stage) -> None:
    """The stage."""
    assert stage.key is not None
    chosen = ArchSpec.load(stage.input("select_embedding") / "spec")
    method, host = method_of(stage.key, stage.params), host_of(stage.params, "search_interaction", chosen)
    _, candidates = run_method(stage, method, replace(host, model=stage.key) if method.kind == "baseline" else host)
    for c in candidates:
        if c.kind == "searched" and c.spec:
            spec = ArchSpec.load(stage.out / c.spec)
            assert spec.interactions is not None
            pairs = [i for i in spec.interactions if i.order == 2]
            stage.metric(f"{c.name}.kept_pairs", len({i.fields for i in pairs}))
            stage.metric(f"{c.name}.kept_interactions", len(spec.interactions))
            if pairs:
                stage.figure(gates(c.name, spec.fields, pairs))
            if spec.interactions:
                stage.figure(strongest(c.name, spec.fields, spec.interactions))
    kept = _kept_by_seed(stage)
    if len(kept) > 1:
        stage.metric("kept_pairs.jaccard", float(np.mean(
            [len(a & b) / max(len(a | b), 1) for a, b in combinations(kept, 2)])))


def _kept_by_seed(stage: Stage) -> list[set[tuple[int, ...]]]:
    """The kept combinations of every seed's search, to say how stable they are."""
    kept = []
    for line in (stage.out / "trace.jsonl").read_text().splitlines():
        trial = json.loads(line)
        if trial["trial"].startswith("search/"):
            seed = trial["trial"].split("/")[1]
            for level in trial["levels"]:
                interactions = ArchSpec.load(stage.scratch / "specs" / seed / level).interactions or ()
                kept.append({i.fields for i in interactions})
    return kept


def gates(name: str, fields: tuple[str, ...], pairs: Sequence[Interaction]) -> Figure:
    """The gates of all pairs as a matrix; dropped pairs are empty, and of several functions the strongest counts."""
    n = len(fields)
    values: list[list[float | None]] = [[None] * n for _ in range(n)]
    for pair in sorted(pairs, key=lambda p: abs(p.strength)):
        i, j = pair.fields
        values[i][j] = values[j][i] = pair.strength
    return Figure(f"gates_{name}", f"Gates of the kept pairs, {name}", "heatmap",
                  "A cell is a pair's gate at the end of the best seed's search; empty cells were dropped.",
                  rows=fields, columns=fields, values=values)


def strongest(name: str, fields: tuple[str, ...], found: Sequence[Interaction]) -> Figure:
    """The strongest interactions, of all orders."""
    top = sorted(found, key=lambda i: -abs(i.strength))[:STRONGEST]
    functions = len({i.op for i in found}) > 1
    names = [" x ".join(fields[f] for f in i.fields) + (f", {i.op}" if functions else "") for i in top]
    return Figure(f"strongest_{name}", f"Strongest interactions, {name}", "bar",
                  f"The {len(top)} kept interactions with the largest gates.", Axis("fields"), Axis("gate"),
                  [Series("gate", names, [i.strength for i in top])])


if __name__ == "__main__":
    main("search_interaction", run, INTERACTION_METHODS)
