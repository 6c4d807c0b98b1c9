"""What the stages that search, and those that choose among searches, have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from ctrmodels.archspec import ArchSpec, merge
from ctrmodels.data import Dataset
from ctrmodels.errors import InputError
from ctrmodels.search.base import Host, SearchMethod
from ctrmodels.search.choose import choose, leaderboard, mean_sd
from ctrmodels.search.run import Candidate, run_search
from tasks.config import Params
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage
from tasks.training import train_config

SearchStage = Literal["search_embedding", "search_interaction"]


def host_of(params: Params, section: SearchStage, embedding: ArchSpec | None = None) -> Host:
    """The network that a search works on, as params.yaml describes it."""
    training = params.training
    binary = [o.name for o in params.data.objectives if o.kind == "binary"]
    return Host(
        objective=getattr(params, section).objective or binary[0], dim=training.embedding_dim,
        model=getattr(params, section).host,
        hidden=training.hidden, dropout=training.dropout, l2=training.l2, gate_init=training.gate_init,
        train=train_config(training),
        embedding=embedding)


def run_method(stage: Stage, method: SearchMethod, host: Host) -> tuple[Dataset, list[Candidate]]:
    """Search with ``method``, judge it beside its control, record metrics and the figures all methods have."""
    encoded = stage.input("encode")
    section: SearchStage = stage.name  # type: ignore[assignment]
    data = Dataset(encoded, ("train", "arch", "valid"))
    seeds = range(getattr(stage.params, section).seeds)
    candidates, seconds = run_search(method, encoded, host, seeds, stage.scratch, stage.out,
                                     checkpoint_steps=stage.params.training.checkpoint_steps)
    for kind, value in seconds.items():
        stage.measure(f"seconds.{kind}", round(value, 3))
    for c in candidates:
        for name, values in c.valid.items():
            mean, sd = mean_sd(values)
            stage.metric(f"{c.name}.valid.{name}.{host.objective}@all", mean)
            stage.metric(f"{c.name}.valid.{name}.{host.objective}@all.sd", sd)
        for name in ("parameters", "parameters_embedding", "flops", "bytes"):
            stage.metric(f"{c.name}.{name}", float(np.mean([getattr(k, name) for k in c.costs])))
        stage.metric(f"{c.name}.search_steps", c.steps)
        stage.metric(f"{c.name}.retrain_steps", c.retrain_steps)
    stage.facts.update(schema_hash=data.schema.hash)
    stage.figure(training_curves(stage, candidates))
    return data, candidates


def training_curves(stage: Stage, candidates: Sequence[Candidate]) -> Figure:
    """Valid AUC by epoch of every retraining's first seed."""
    trials = [json.loads(line) for line in (stage.out / "trace.jsonl").read_text().splitlines()]
    series = []
    for c in candidates:
        level, random = c.name.removeprefix("random(").removesuffix(")"), c.kind == "random"
        for t in trials:
            if t.get("level") == level and t["random"] == random and t["seed"] == c.seeds[0]:
                values = [e["metric"] for e in t["history"]]
                series.append(Series(c.name, list(range(1, len(values) + 1)), values))
    return Figure("training_curves", f"Retraining, {stage.title}", "line",
                  "Valid AUC after every epoch, first seed. Training stops when it no longer rises.",
                  Axis("epoch"), Axis("valid AUC"), series)


def load_candidates(stage: Stage, section: SearchStage, methods: Sequence[str]) -> list[tuple[str, Candidate]]:
    """(method, candidate) of every configured method of a search stage."""
    found = []
    for method in methods:
        folder = stage.input(section, method)
        for raw in json.loads((folder / "candidates.json").read_text()):
            found.append((method, Candidate.parse(raw)))
    return found


def select(stage: Stage, section: SearchStage, embedding: ArchSpec | None = None) -> None:
    """Choose among the candidates of ``section`` by the stage's rule; write choice, leaderboard and spec.

    Raises:
        InputError: no candidate fits the budget.
    """
    own = getattr(stage.params, stage.name)
    found = load_candidates(stage, section, getattr(stage.params, section).methods)
    candidates = [c for _, c in found]
    try:
        choice = choose(candidates, own.metric, own.budget)
    except ValueError as error:
        raise InputError("params.yaml", f"{stage.name}.budget", own.budget, str(error),
                         "raise the budget or search smaller models") from error
    method = next(m for m, c in found if c is choice.candidate)
    assert choice.candidate.spec is not None
    spec = ArchSpec.load(stage.input(section, method) / choice.candidate.best_spec(own.metric))
    if embedding is not None:
        spec = replace(merge(embedding, spec), cost=spec.cost, result=spec.result)
    spec.save(stage.out / "spec")
    board = leaderboard(candidates, own.metric, choice)
    (stage.out / "leaderboard.json").write_text(json.dumps(board, indent=1, sort_keys=True) + "\n")
    (stage.out / "choice.json").write_text(json.dumps(
        {"candidate": choice.candidate.name, "method": method, "reason": choice.reason, "rule": choice.rule},
        indent=1, sort_keys=True) + "\n")
    row = next(r for r in board["rows"] if r["chosen"])
    stage.metric(f"valid.{own.metric}", row["valid"])
    stage.metric(f"valid.{own.metric}.sd", row["valid_sd"])
    for name in ("parameters", "parameters_embedding", "flops", "bytes"):
        stage.metric(name, row[name])
    for cost in ("parameters_embedding", "bytes") if embedding is None else ("flops", "interactions"):
        stage.figure(quality_against_cost(board, own.metric, cost))
    stage.figure(search_cost(board))


def quality_against_cost(board: dict, metric: str, cost: str) -> Figure:
    """All candidates and controls on the same axes."""
    labels = {"parameters_embedding": "stored embedding values", "bytes": "stored bytes", "flops": "FLOPs per row",
              "interactions": "number of interactions"}
    titles = {"searched": "searched", "rule": "rule of thumb", "control": "unsearched control",
              "random": "random control of equal cost"}
    if cost != "interactions":  # plain models have their own, which no ArchSpec counts
        titles["baseline"] = "plain model"
    series = []
    for kind, title in titles.items():
        rows = [r for r in board["rows"] if r["kind"] == kind]
        if rows:
            series.append(Series(title, [r[cost] for r in rows], [r["valid"] for r in rows],
                                 [r["valid_sd"] for r in rows], [r["candidate"] for r in rows]))
    name = f"quality_against_{cost if cost in ('bytes', 'interactions') else 'cost'}"
    return Figure(name, f"Valid {metric} against {labels[cost]}", "scatter",
                  "Every candidate beside the unsearched model, rules of thumb and a random choice of equal cost; bars "
                  "are one standard deviation over the seeds.", Axis(labels[cost]), Axis(f"valid {metric}"), series)


def search_cost(board: dict) -> Figure:
    """What each search costs, in units of the control's training."""
    plain = next(r["retrain_steps"] for r in board["rows"] if r["kind"] == "control")
    rows = [r for r in board["rows"] if r["kind"] == "searched"]
    return Figure("search_cost", "Cost of the search in plain trainings", "bar",
                  "Optimiser steps of the search and of the retraining, divided by the steps of one training of the "
                  "unsearched model. A level of a search that finds several sizes at once carries the whole search.",
                  Axis("candidate"), Axis("plain trainings"),
                  [Series("search", [r["candidate"] for r in rows], [r["search_steps"] / plain for r in rows]),
                   Series("retraining", [r["candidate"] for r in rows], [r["retrain_steps"] / plain for r in rows])])
