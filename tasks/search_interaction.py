"""Search the feature interactions on the chosen embedding, retrained beside the equal-cost random control."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np

from ctrmodels.archspec import ArchSpec
from ctrmodels.search import AllPairs, AutoFIS, Baseline, SearchMethod
from tasks.config import INTERACTION_METHODS, Params
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, main
from tasks.searches import host_of, run_method

STRONGEST = 20


def method_of(key: str, params: Params) -> SearchMethod:
    """The search that ``key`` names, with its settings, or a plain model beside them."""
    if key == "autofis":
        return AutoFIS(**params.search_interaction.autofis.model_dump())
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
            strength = {i.fields: i.strength for i in spec.interactions}
            stage.metric(f"{c.name}.kept_pairs", len(strength))
            if strength:
                stage.figure(gates(c.name, spec.fields, strength))
                stage.figure(strongest(c.name, spec.fields, strength))
    kept = _kept_by_seed(stage)
    if len(kept) > 1:
        stage.metric("kept_pairs.jaccard", float(np.mean(
            [len(a & b) / max(len(a | b), 1) for a, b in combinations(kept, 2)])))


def _kept_by_seed(stage: Stage) -> list[set[tuple[int, ...]]]:
    """The kept pairs of every seed's search, to say how stable they are."""
    kept = []
    for line in (stage.out / "trace.jsonl").read_text().splitlines():
        trial = json.loads(line)
        if trial["trial"].startswith("search/"):
            seed = trial["trial"].split("/")[1]
            for level in trial["levels"]:
                interactions = ArchSpec.load(stage.scratch / "specs" / seed / level).interactions or ()
                kept.append({i.fields for i in interactions})
    return kept


def gates(name: str, fields: tuple[str, ...], strength: dict[tuple[int, ...], float]) -> Figure:
    """The gates of all pairs as a matrix; dropped pairs are empty."""
    n = len(fields)
    values: list[list[float | None]] = [[None] * n for _ in range(n)]
    for (i, j), alpha in strength.items():
        values[i][j] = values[j][i] = alpha
    return Figure(f"gates_{name}", f"Gates of the kept pairs, {name}", "heatmap",
                  "A cell is a pair's gate at the end of the best seed's search; empty cells were dropped.",
                  rows=fields, columns=fields, values=values)


def strongest(name: str, fields: tuple[str, ...], strength: dict[tuple[int, ...], float]) -> Figure:
    """The strongest pairs."""
    top = sorted(strength.items(), key=lambda item: -abs(item[1]))[:STRONGEST]
    return Figure(f"strongest_{name}", f"Strongest interactions, {name}", "bar",
                  f"The {len(top)} kept pairs with the largest gates.", Axis("pair of fields"), Axis("gate"),
                  [Series("gate", [" x ".join(fields[i] for i in pair) for pair, _ in top], [a for _, a in top])])


if __name__ == "__main__":
    main("search_interaction", run, INTERACTION_METHODS)
