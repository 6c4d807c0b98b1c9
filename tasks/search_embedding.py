"""Search the embedding: how wide each field, or which values, retrained beside the equal-cost random control."""

from __future__ import annotations

import numpy as np

from ctrmodels.archspec import ArchSpec, PerField, ValueMask
from ctrmodels.data import Dataset
from ctrmodels.search import PEP, AutoDim, SearchMethod, UniformWidth
from tasks.config import EMBEDDING_METHODS, Params
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, main
from tasks.searches import host_of, run_method

DECILES = 10


def method_of(key: str, params: Params) -> SearchMethod:
    """The search that ``key`` names, with its settings."""
    section = params.search_embedding
    if key == "autodim":
        return AutoDim(**section.autodim.model_dump())
    if key == "pep":
        return PEP(**section.pep.model_dump())
    return UniformWidth()


def run(stage: Stage) -> None:
    """The stage."""
    assert stage.key is not None
    host = host_of(stage.params, "search_embedding")
    data, candidates = run_method(stage, method_of(stage.key, stage.params), host)
    specs = {c.name: ArchSpec.load(stage.out / c.spec) for c in candidates if c.spec and c.kind == "searched"}
    for name, spec in specs.items():
        if isinstance(spec.alloc, PerField):
            stage.figure(widths(name, spec.alloc, data))
    masks = {name: spec.alloc for name, spec in specs.items() if isinstance(spec.alloc, ValueMask)}
    if masks:
        stage.figure(kept_by_frequency(masks, data))
        stage.figure(kept_by_field(masks, data))


def widths(name: str, alloc: PerField, data: Dataset) -> Figure:
    """Chosen width against the number of ids, field by field."""
    spaces = data.schema.id_spaces
    return Figure(f"widths_{name}", f"Chosen embedding widths, {name}", "scatter",
                  "Each point is a field: the width that the best seed chose against the number of its ids.",
                  Axis("ids of the field", "log"), Axis("embedding width"),
                  [Series(name, [f.vocab for f in spaces], list(alloc.dims), labels=[f.name for f in spaces])])


def kept_by_frequency(masks: dict[str, ValueMask], data: Dataset) -> Figure:
    """Mean kept dimensions of an id against how often the id occurs."""
    counts = np.asarray(data.counts())
    parts = [p for p in np.array_split(np.argsort(counts, kind="stable"), DECILES) if len(p)]
    x = [max(float(np.median(counts[p])), 0.5) for p in parts]
    return Figure("kept_by_frequency", "Kept dimensions against frequency", "line",
                  "Ids in ten equal groups by how often they occur on train (median count of the group); mean number "
                  "of embedding dimensions that survive.", Axis("occurrences of the id on train", "log"),
                  Axis("kept dimensions per id"),
                  [Series(name, x, [float(m.mask[p].sum(1).mean()) for p in parts]) for name, m in masks.items()])


def kept_by_field(masks: dict[str, ValueMask], data: Dataset) -> Figure:
    """Share of kept values, field by field."""
    spaces, starts = data.schema.id_spaces, data.schema.offsets
    return Figure("kept_by_field", "Kept values by field", "bar",
                  "Share of each field's embedding values that survive.", Axis("field"), Axis("kept share"),
                  [Series(name, [f.name for f in spaces],
                          [float(m.mask[starts[f.name]:starts[f.name] + f.vocab].mean()) for f in spaces])
                   for name, m in masks.items()])


if __name__ == "__main__":
    main("search_embedding", run, EMBEDDING_METHODS)
