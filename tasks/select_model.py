"""Compares the multi-objective models on ``valid``, chooses one by the rule, and reads its ``test`` metrics once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.metrics import HIGHER_IS_BETTER, Interval
from ctrmodels.multitask.checkpoint import FILES
from ctrmodels.multitask.choice import Choice, Contender, Rule, choose
from ctrmodels.multitask.evaluation import evaluate_scores
from ctrmodels.multitask.predictions import Predictions
from ctrmodels.multitask.spaces import ALL, score_names
from ctrmodels.multitask.uncertainty import Resampler
from tasks import model_figures
from tasks.config import model_and_balancer
from tasks.runtime.figure import finite
from tasks.runtime.stage import Stage, main

COSTS = ("parameters", "parameters_embedding", "parameters_other", "flops", "bytes")
SINGLE = "single"
MATCHED = 1.05
"""Networks whose parameters beside the embedding differ by less than this factor count as of one size."""


@dataclass(frozen=True)
class Candidate:
    """One retrained model.

    Attributes:
        name: its key.
        folder: its outputs.
        recorded: its ``metrics.json``: means over the seeds, and ``….sd``.
        contender: what the rule looks at.
    """

    name: str
    folder: Path
    recorded: Mapping[str, float]
    contender: Contender


def run(stage: Stage) -> None:
    """Write the leaderboard, the choice, the winner's files, and its test metrics."""
    own = stage.params.select_model
    rule = Rule(own.metric, own.primary, own.floors)
    candidates = [load(name, stage.input("retrain", name), own.metric) for name in stage.params.retrain.models]
    try:
        choice = choose([c.contender for c in candidates], rule)
    except ValueError as error:
        raise InputError("params.yaml", "select_model.floors", dict(own.floors), str(error),
                         "allow more, or train other models") from error
    chosen = next(c for c in candidates if c.name == choice.name)
    schema = Schema.load(chosen.folder / "schema.json")
    samples = resampled(schema, candidates, rule)
    gained = gains(schema, candidates, own.metric)
    compared = rows(candidates, rule, choice, samples, gained)
    write(stage.out / "leaderboard.json", {
        "metric": own.metric, "rule": str(rule), "reason": choice.reason, "notes": notes(candidates, gained),
        "rows": compared})
    write(stage.out / "choice.json", {"candidate": chosen.name, "reason": choice.reason, "rule": str(rule)})
    copy(chosen.folder, stage.out)

    test = Predictions.load(chosen.folder / "predictions" / "test.parquet", schema)
    values = evaluate_scores(schema, test.labels, test.scores, test.group, test.relative)
    bounds = {} if test.relative else intervals(schema, test)
    stage.metrics(values, "test.")
    for name, bound in bounds.items():
        stage.metrics({f"{name}.low": bound.low, f"{name}.high": bound.high}, "test.")
    row = next(r for r in compared if r["chosen"])
    stage.metrics({f"valid.{own.metric}": row["valid"], f"valid.{own.metric}.sd": row["valid_sd"],
                   **{cost: chosen.recorded[cost] for cost in COSTS}})
    stage.figure(model_figures.leaderboard([c.name for c in candidates], compared, own.metric, rule.subject))
    stage.figure(model_figures.comparison(compared, rule.subject))
    if gained:
        stage.figure(model_figures.gains(gained, own.metric))
    recorded = {c.name: c.recorded for c in candidates}
    stage.figure(model_figures.calibrations(recorded))
    if any(name.startswith("gates.") for metrics in recorded.values() for name in metrics):
        stage.figure(model_figures.gate_use(recorded))
    if not test.relative:
        stage.figure(model_figures.calibration(schema, test, f"Calibration of {chosen.name} on test"))
    stage.figure(model_figures.metrics_table(chosen.name, chosen.recorded, values, bounds))
    stage.facts |= {"schema_hash": schema.hash, "rows": len(test.row)}


def load(name: str, folder: Path, metric: str) -> Candidate:
    """A candidate from the outputs of its ``retrain`` stage.

    Raises:
        InputError: the metric is undefined for it, as a GAUC without lists.
    """
    schema = Schema.load(folder / "schema.json")
    seeds = json.loads((folder / "seeds.json").read_text())
    recorded = json.loads((folder / "metrics.json").read_text())
    try:
        values = {o.name: tuple(float(s["metrics"][f"{metric}.{o.name}@{ALL}"]) for s in seeds)
                  for o in schema.objectives if o.kind == "binary"}
    except (KeyError, TypeError) as error:
        raise InputError("params.yaml", "select_model.metric", metric, f"undefined for {name}",
                         "choose another metric; gauc needs data.group and lists with both classes, and models of "
                         "relative scores have no other") from error
    return Candidate(name, folder, recorded, Contender(
        name, values, recorded["parameters"], recorded["flops"], model_and_balancer(name)[1] is not None))


def resampled(schema: Schema, candidates: Sequence[Candidate], rule: Rule) -> dict[str, np.ndarray]:
    """Model → the rule's subject on ``valid`` and on every resample of its groups, from the best seed's predictions.

    Raises:
        InputError: two models were judged on different rows.
    """
    subject = [rule.primary] if rule.primary else list(candidates[0].contender.values)
    found: dict[str, np.ndarray] = {}
    first: Predictions | None = None
    for c in candidates:
        table = Predictions.load(c.folder / "predictions" / "valid.parquet", schema)
        if first is None:
            first, resampler = table, Resampler(schema, table.group)
        elif not np.array_equal(first.row, table.row):
            raise InputError(c.folder / "predictions" / "valid.parquet", "row", f"{len(table.row)} rows",
                             f"not the rows of {candidates[0].name}", f"run `dvc repro retrain@{c.name}` again")
        found[c.name] = resampler.mean(table, [f"{name}@{ALL}" for name in subject], rule.metric)
    return found


def rows(candidates: Sequence[Candidate], rule: Rule, choice: Choice, samples: Mapping[str, np.ndarray],
         gained: Mapping[str, Mapping[str, tuple[float, float]]]) -> list[dict[str, Any]]:
    """The leaderboard's rows, best first."""
    found = []
    for c in candidates:
        values = rule.judged(c.contender)
        own, apart = (Resampler.interval(v) for v in (samples[c.name], samples[c.name] - samples[choice.best]))
        found.append({
            "candidate": c.name, "kind": "model", "valid": float(values.mean()),
            "valid_sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, "seeds": len(values),
            "chosen": c.name == choice.name, "below_floor": dict(choice.broken[c.name]),
            "best_seed": {"valid": own.mean, "low": own.low, "high": own.high},
            "to_best": None if c.name == choice.best else {"valid": apart.mean, "low": apart.low, "high": apart.high},
            "gain": {name: {"mean": mean, "sd": sd} for name, (mean, sd) in gained.get(c.name, {}).items()},
            **{cost: c.recorded[cost] for cost in COSTS},
            **{k: v for k, v in c.recorded.items() if k.startswith(("valid.", "gates."))}})
    return sorted(found, key=lambda row: rule.behind(row["valid"], 0.0))


def gains(schema: Schema, candidates: Sequence[Candidate], metric: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Multi-task gain: model → score → by how much it is better than the single-objective models, and its deviation.

    "Progressive Layered Extraction (PLE)", RecSys 2020, equation 11: the difference of the metric, with its sign turned
    where less is better. Binary scores are judged by ``metric``, regressions by XAUC. Empty without ``single``.
    """
    single = next((c for c in candidates if c.name == SINGLE), None)
    if single is None:
        return {}
    kinds = {o.name: o.kind for o in schema.objectives}
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for c in (c for c in candidates if c is not single):
        found[c.name] = {}
        for name in score_names(schema):
            judge = metric if kinds[name.partition("@")[0]] == "binary" else "xauc"
            key = f"valid.{judge}.{name}"
            sign = 1.0 if HIGHER_IS_BETTER.get(judge, True) else -1.0
            if c.recorded.get(key) is not None and single.recorded.get(key) is not None:
                found[c.name][name] = (sign * (c.recorded[key] - single.recorded[key]),
                                       float(np.hypot(c.recorded[f"{key}.sd"], single.recorded[f"{key}.sd"])))
    return found


def notes(candidates: Sequence[Candidate], gained: Mapping[str, Any]) -> list[str]:
    """What a reader must know to compare the rows."""
    found = []
    if not gained:
        why = (f"only {SINGLE} was trained" if any(c.name == SINGLE for c in candidates) else
               f"retrain.models does not have {SINGLE}, the models of one objective each that it is measured against")
        found.append(f"No multi-task gain: {why}.")
    by_size = sorted(candidates, key=lambda c: c.recorded["parameters_other"])
    small, large = by_size[0], by_size[-1]
    sizes = [c.recorded["parameters_other"] for c in (small, large)]
    if sizes[1] <= MATCHED * sizes[0]:
        found.append("Parameters beside the embedding are matched: they differ by less than 5 %.")
    else:
        found.append(f"Parameters are not matched: beside the embedding from {sizes[0]:,.0f} ({small.name}) to "
                     f"{sizes[1]:,.0f} ({large.name}), so that a difference may come of size.")
    return found


def intervals(schema: Schema, table: Predictions) -> dict[str, Interval]:
    """95 % intervals of ``auc.OBJECTIVE@SPACE``, resampling whole groups."""
    kinds = {o.name: o.kind for o in schema.objectives}
    resampler = Resampler(schema, table.group)
    return {f"auc.{name}": Resampler.interval(resampler.values(table, name, "auc"))
            for name in table.scores if kinds[name.partition("@")[0]] == "binary"}


def copy(source: Path, out: Path) -> None:
    """Put the winner's model and predictions into ``out``."""
    for name in (*FILES, "predictions"):
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name)
        else:
            shutil.copyfile(source / name, out / name)


def write(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` as JSON, NaN and infinity as null."""
    path.write_text(json.dumps(finite(document), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main("select_model", run)
