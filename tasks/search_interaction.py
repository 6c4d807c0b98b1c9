"""Search the feature interactions on the chosen embedding, retrained beside the equal-cost random control."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ctrmodels.archspec import ArchSpec
from ctrmodels.search import (
    AIM,
    AIMEDS,
    AllPairs,
    AutoFeature,
    AutoFIS,
    AutoGroup,
    Baseline,
    Listed,
    MutualInformation,
    NoPairs,
    SearchMethod,
    SplitGain,
)
from ctrmodels.search.controller import Breeding
from tasks.config import INTERACTION_METHODS, Params
from tasks.interaction_figures import found_figures, stability
from tasks.runtime.stage import Stage, main
from tasks.searches import host_of, run_method


def aim(dimensions: dict[str, Any] | None, **settings: Any) -> AIM:
    """AIM, whose last stage has settings of its own."""
    return AIM(dimensions=None if dimensions is None else AIMEDS(**dimensions), **settings)


def listed(interactions: list[list[str]]) -> Listed:
    """The interactions that params.yaml names."""
    return Listed(tuple(tuple(names) for names in interactions))


def autofeature(breeding: dict[str, Any], **settings: Any) -> AutoFeature:
    """AutoFeature, whose controller has settings of its own."""
    return AutoFeature(breeding=Breeding(**breeding), **settings)


METHODS: Mapping[str, Callable[..., SearchMethod]] = {
    "all_pairs": AllPairs, "no_pairs": NoPairs, "listed": listed, "mutual_information": MutualInformation,
    "split_gain": SplitGain, "autofis": AutoFIS, "aim": aim, "autogroup": AutoGroup, "autofeature": autofeature}


def method_of(key: str, params: Params) -> SearchMethod:
    """The search that ``key`` names, with its settings, or a plain model beside them."""
    if key not in METHODS:
        return Baseline(key)
    settings = getattr(params.search_interaction, key, None)
    return METHODS[key](**settings.model_dump() if settings is not None else {})


def run(stage: Stage) -> None:
    """The stage."""
    assert stage.key is not None
    chosen = ArchSpec.load(stage.input("select_embedding") / "spec")
    method, host = method_of(stage.key, stage.params), host_of(stage.params, "search_interaction", chosen)
    data, candidates = run_method(stage, method,
                                  replace(host, model=stage.key) if method.kind == "baseline" else host)
    searched: dict[str, list[ArchSpec]] = {}
    for c in candidates:
        if c.kind != "baseline":
            stage.metric(f"{c.name}.interactions", c.interactions)
        if c.kind in ("searched", "rule") and c.spec:
            by_seed = [ArchSpec.load(stage.out / c.spec / str(seed)) for seed in c.seeds]
            for figure in found_figures(c.name, ArchSpec.load(stage.out / c.best_spec()), by_seed):
                stage.figure(figure)
            if c.kind == "searched" and len(by_seed) > 1 and c.interactions:
                searched[c.name] = by_seed
    if searched:
        figure, metrics = stability(searched, data.schema)
        stage.figure(figure)
        for name, value in metrics.items():
            stage.metric(name, value)


if __name__ == "__main__":
    main("search_interaction", run, INTERACTION_METHODS)
