"""Calibrates the chosen model's scores, tunes the weights that fuse them, and traces the Pareto front."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctrmodels import metrics
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.fusion import (
    FUNCTIONS,
    NORMALISERS,
    TUNERS,
    FusionSpec,
    Judge,
    ScoreTable,
    Window,
    corners,
    goal,
    hypervolume,
    score_name,
    tune,
    tuning_window,
)
from ctrmodels.fusion.evaluator import Metric
from ctrmodels.metrics import Interval
from ctrmodels.multitask.checkpoint import WEIGHTS, fingerprint
from ctrmodels.multitask.predictions import Predictions
from tasks.config import TuneFusion
from tasks.fusion import figures
from tasks.fusion.document import describe, front_table
from tasks.fusion.outcome import Tuned
from tasks.runtime import manifest
from tasks.runtime.stage import Stage, main

MOST_DIMENSIONS = 4  # an exact hypervolume takes points^(objectives - 1) steps
log = logging.getLogger("ctrmodels")


def run(stage: Stage) -> None:
    """Tune on one window of valid, report on the other, and read test once for the chosen weights."""
    settings = stage.params.tune_fusion
    folder = stage.input("select_model") / "predictions"
    schema = Schema.load(folder.parent / "schema.json")
    valid = load(folder / "valid.parquet", schema)
    in_tuning = tuning_window(valid.groups, settings.window)
    tuning, report = valid.take(in_tuning), valid.take(~in_tuning)

    fitted = fit(tuning, folder / "valid.parquet", settings)
    kinds = reported_metrics(valid, settings, folder / "valid.parquet")
    judges = {name: Judge(table, fitted, kinds, settings.k)
              for name, table in (("tuning", tuning), ("report", report))}
    check_windows(judges, folder / "valid.parquet")
    with stage.timed("search"):
        tuned = search(tuning, fitted, settings, folder / "valid.parquet", stage.scratch / "trials.log")
    spec = fitted.with_weights(tuned.chosen.fusion(), tuned.chosen.weights)

    judges["test"] = Judge(load(folder / "test.parquet", schema), fitted, kinds, settings.k)
    held_out = ("report", "test")
    values = {w: {name: judges[w].intervals(p) for name, p in tuned.orders.items()} for w in held_out}
    gains = {w: judges[w].gains(tuned.chosen, tuned.orders["equal_weights"]) for w in held_out}
    front = front_table(tuned, judges)
    document = describe(tuned, spec, front, judges, values["report"], gains["report"], settings)
    (stage.out / "fusion.json").write_text(json.dumps(document, indent=1) + "\n")
    pq.write_table(pa.Table.from_pylist(front), stage.out / "front.parquet", compression="zstd")
    log.info("%s", document["reason"])
    record(stage, tuned, spec, judges["report"], values, gains)
    draw(stage, tuned, spec, judges["report"], values, gains)
    stage.facts |= {"schema_hash": schema.hash, "rows": len(front)}


# --- reading and checking -------------------------------------------------------------------------------


def load(path: Path, schema: Schema) -> ScoreTable:
    """A role's predictions.

    Raises:
        InputError: the file is not readable, a score is absent, or one is no finite number.
    """
    table = Predictions.load(path, schema)
    names = [score_name(o) for o in schema.objectives]
    for name in names:
        if name not in table.scores:
            raise InputError(path, f"score.{name}", "absent", "an objective without a score on all rows",
                             "run the stage `retrain` again")
        broken = ~np.isfinite(table.scores[name])
        if broken.any():
            raise InputError(path, f"score.{name}", float(table.scores[name][broken][0]),
                             f"{broken.sum()} scores are no finite numbers", "lower training.learning_rate")
    scores = np.stack([table.scores[n] for n in names], axis=1)
    model = fingerprint(path.parents[1] / WEIGHTS)
    return ScoreTable(schema.objectives, scores.astype(np.float64), table.labels.astype(np.float64), table.group, model)


def fit(tuning: ScoreTable, source: Path, settings: TuneFusion) -> FusionSpec:
    """Normalisers of every score from the tuning window, with equal weights.

    Raises:
        InputError: an objective has one class only in the window, or a constant score.
    """
    fitted = []
    for i, objective in enumerate(tuning.objectives):
        try:
            fitted.append(tuning.fit(i, NORMALISERS[settings.calibration]))
        except ValueError as error:
            raise InputError(source, f"label.{objective.name}", tuning.positives(i), f"{error} in the tuning window",
                             "raise tune_fusion.window or data.split.valid") from None
    return FusionSpec(FUNCTIONS[settings.functions[0]](), tuple(fitted), {
        "role": "valid", "window": "tuning", "rows": len(tuning.groups), "lists": tuning.lists,
        "predictions": manifest.sha256(source)})


def reported_metrics(valid: ScoreTable, settings: TuneFusion, source: Path) -> tuple[Metric, ...]:
    """The tuned metric and, for logs with lists, the other one where it is defined.

    Raises:
        InputError: NDCG is asked for and a label is negative.
    """
    if valid.lists < 2:
        log.info("the log has no groups: orders are judged by their AUC over all rows")
        return (settings.metric,)
    negative = [o.name for i, o in enumerate(valid.objectives) if (valid.labels[:, i] < 0).any()]
    if negative and settings.metric == "ndcg":
        raise InputError(source, f"label.{negative[0]}", "below 0", "NDCG has no gain for negative labels",
                         "set tune_fusion.metric: gauc")
    others: tuple[Metric, ...] = () if negative else ("ndcg", "gauc")
    return (settings.metric, *(m for m in others if m != settings.metric))


def check_windows(judges: Mapping[str, Judge], source: Path) -> None:
    """Every objective can be judged in every window.

    Raises:
        InputError: no list of a window has what the metric needs.
    """
    for window, judge in judges.items():
        for i in judge.tuned.undefined():
            raise InputError(source, f"label.{judge.table.objectives[i].name}", judge.table.positives(i),
                             f"no list of the {window} window has a positive (and, for gauc, a negative)",
                             "move tune_fusion.window, raise data.split.valid or drop the objective")


# --- tuning -----------------------------------------------------------------------------------------------


def search(tuning: ScoreTable, fitted: FusionSpec, settings: TuneFusion, source: Path, storage: Path) -> Tuned:
    """Every function's points and each score alone, judged on the tuning window.

    Trials of an attempt that was interrupted are read from ``storage``.
    """
    names = [o.name for o in tuning.objectives]
    judge = Judge(tuning, fitted, (settings.metric,), settings.k)
    window = Window(judge.normalised, judge.tuned, tuning.groups)
    screen = None
    if tuning.lists > settings.lists:
        some = Judge(tuning.sample(settings.lists, settings.seed), fitted, (settings.metric,), settings.k)
        check_windows({"sampled tuning": some}, source)
        screen = Window(some.normalised, some.tuned, some.table.groups)
    functions = [FUNCTIONS[name]() for name in settings.functions]
    points = corners(functions[0], window)
    rule = goal(points, names.index(settings.primary or names[0]), settings.floor)
    tuner = TUNERS[settings.tuner]()
    for function in functions:
        points += tune(function, window, rule, settings.trials, settings.seed, screen, tuner, storage)
    return Tuned(tuning.objectives, tuple(points), rule)


# --- telling ------------------------------------------------------------------------------------------------


def record(stage: Stage, tuned: Tuned, spec: FusionSpec, report: Judge,
           values: Mapping[str, Mapping[str, Mapping[str, Interval]]],
           gains: Mapping[str, Mapping[str, Interval]]) -> None:
    """Metrics: weights, every order's worth on both held-out sets, the gain, calibration and the front."""
    stage.metrics(tuned.weights(tuned.chosen), "weight.")
    stage.metric("feasible", not tuned.rule.shortfall(tuned.chosen.metrics))
    for window, orders in values.items():
        for order, found in orders.items():
            prefix = f"{window}." if order == "recommended" else f"{window}.{order}."
            for name, value in found.items():
                stage.metrics({name: value.mean, f"{name}.se": value.error}, prefix)
        for name, gain in gains[window].items():
            stage.metrics({name: gain.mean, f"{name}.low": gain.low, f"{name}.high": gain.high}, f"{window}.gain.")
    for i, (objective, score) in enumerate(zip(tuned.objectives, spec.scores, strict=True)):
        if objective.kind == "binary":
            raw, labels = report.table.known(i)
            stage.metrics({"raw": metrics.ece(labels, raw), "calibrated": metrics.ece(labels, score.normaliser(raw))},
                          f"report.ece.{objective.name}.")
    stage.metric("front.points", sum(tuned.front))
    if 1 < len(tuned.objectives) <= MOST_DIMENSIONS:
        baselines = [p.metrics for p in tuned.points if p.source in ("equal", "corner")]
        stage.metric("front.hypervolume",
                     hypervolume(np.array([p.metrics for p in tuned.points]), np.min(baselines, axis=0)))


def draw(stage: Stage, tuned: Tuned, spec: FusionSpec, report: Judge,
         values: Mapping[str, Mapping[str, Mapping[str, Interval]]],
         gains: Mapping[str, Mapping[str, Interval]]) -> None:
    """The stage's figures."""
    metric, x = report.tuned.name, tuned.rule.primary
    for y in range(len(tuned.objectives)):
        if y != x:
            stage.figure(figures.front(tuned, metric, y))
    stage.figure(figures.weights(tuned.best_by_function, tuned.objectives))
    for window, orders in values.items():
        stage.figure(figures.objectives_by_order(orders, metric, tuned.objectives, window))
    stage.figure(figures.gains(gains))
    calibration = figures.calibration(report.table, spec)
    if calibration is not None:
        stage.figure(calibration)


if __name__ == "__main__":
    main("tune_fusion", run)
