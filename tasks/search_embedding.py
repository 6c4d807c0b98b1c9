"""Search the embedding: how wide each field, or which values, retrained beside the equal-cost random control."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ctrmodels.archspec import ArchSpec, CentralResidual, id_widths
from ctrmodels.data import Dataset, Schema
from ctrmodels.search import (
    AIMEDS,
    NIS,
    PEP,
    AutoDim,
    AutoEmb,
    FrequencyRule,
    Host,
    NarrowWidth,
    RareIds,
    ResEmbedding,
    SearchMethod,
    SearchRows,
    UniformWidth,
    retrain,
)
from ctrmodels.search.embedding.interests import envelope, interest_domains
from tasks.config import EMBEDDING_METHODS, Params
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, main
from tasks.searches import host_of, run_method

DECILES = 10
METHODS: Mapping[str, Callable[..., SearchMethod]] = {
    "uniform": UniformWidth, "narrow": NarrowWidth, "rare_ids": RareIds, "frequency_rule": FrequencyRule,
    "autodim": AutoDim, "pep": PEP, "aim_eds": AIMEDS, "nis": NIS, "autoemb": AutoEmb,
    "res_embedding": ResEmbedding}


def method_of(key: str, params: Params) -> SearchMethod:
    """The search that ``key`` names, with its settings."""
    settings = getattr(params.search_embedding, key, None)
    return METHODS[key](**settings.model_dump() if settings is not None else {})


def run(stage: Stage) -> None:
    """The stage."""
    assert stage.key is not None
    host = host_of(stage.params, "search_embedding")
    data, candidates = run_method(stage, method_of(stage.key, stage.params), host)
    widths = {c.name: id_widths(ArchSpec.load(stage.out / c.best_spec()), data.schema)
              for c in candidates if c.spec and c.kind != "control"}
    if widths:
        stage.figure(width_by_frequency(widths, data))
        stage.figure(width_by_field(widths, data.schema))
    specs = {c.name: ArchSpec.load(stage.out / c.best_spec()) for c in candidates if c.spec and c.kind == "searched"}
    graphs = {name: spec for name, spec in specs.items() if isinstance(spec.alloc, CentralResidual)}
    if graphs:
        stage.figure(envelopes(graphs, data, host))


def width_by_frequency(widths: Mapping[str, np.ndarray], data: Dataset) -> Figure:
    """Stored values of an id against how often the id occurs."""
    counts = np.asarray(data.counts())
    parts = [p for p in np.array_split(np.argsort(counts, kind="stable"), DECILES) if len(p)]
    x = [max(float(np.median(counts[p])), 0.5) for p in parts]
    return Figure("width_by_frequency", "Embedding width against frequency", "line",
                  "Ids in ten equal groups by how often they occur on train (median count of the group); mean number "
                  "of embedding values of their own that an id has, in the best seed.",
                  Axis("occurrences of the id on train", "log"), Axis("values per id"),
                  [Series(name, x, [float(w[p].mean()) for p in parts]) for name, w in widths.items()])


def width_by_field(widths: Mapping[str, np.ndarray], schema: Schema) -> Figure:
    """Stored values of an id, field by field."""
    spaces, starts = schema.id_spaces, schema.offsets
    return Figure("width_by_field", "Embedding width by field", "bar",
                  "Mean number of embedding values of their own that a field's ids have, in the best seed.",
                  Axis("field"), Axis("values per id"),
                  [Series(name, [f.name for f in spaces],
                          [float(w[starts[f.name]:starts[f.name] + f.vocab].mean()) for f in spaces])
                   for name, w in widths.items()])


def envelopes(specs: Mapping[str, ArchSpec], data: Dataset, host: Host) -> Figure:
    """How tightly the embedding holds the graph's domains together, before and after, each trained once."""
    rows = SearchRows(data.role("train"), data.role("arch"))
    first = next(iter(specs.values())).alloc
    assert isinstance(first, CentralResidual)
    domains = interest_domains(first)
    lines = []
    for name, spec in {"uniform": UniformWidth().search(rows, host, 0).specs["uniform"], **specs}.items():
        trained = retrain(spec, rows, data.role("valid"), host, 0)
        found = envelope(trained.model.encoder.embedding, data.schema, first.item, domains)
        lines.append([name, found.radius, found.separation, found.ratio])
    return Figure("envelopes", "Radii of interest domains", "table",
                  "Domains of items in the graph of histories: mean radius, distance between domains, and their ratio, "
                  "in the plain embedding and in those with shared vectors, first seed.",
                  columns=["embedding", "radius", "separation", "radius / separation"], values=lines)


if __name__ == "__main__":
    main("search_embedding", run, EMBEDDING_METHODS)
