"""Calibrates the chosen model's scores, tunes the weights that fuse them, and traces the Pareto front."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ctrmodels import metrics
from ctrmodels.errors import InputError
from ctrmodels.fusion import (
    NORMALISERS,
    TUNERS,
    FusionFunction,
    FusionSpec,
    Judge,
    RandomSearch,
    ScoreTable,
    WeightedSum,
    Window,
    corners,
    equal,
    goal,
    hypervolume,
    hypervolumes,
    tune,
    tuning_window,
)
from ctrmodels.fusion.evaluator import Metric
from ctrmodels.metrics import Interval
from tasks.config import TuneFusion
from tasks.fusion import figures
from tasks.fusion.decision import FACTORS, Decision, Orders
from tasks.fusion.document import describe, front_table
from tasks.fusion.exposure import estimate
from tasks.fusion.functions import functions
from tasks.fusion.inputs import Sources, columns
from tasks.fusion.outcome import MOST_DIMENSIONS, Tuned
from tasks.fusion.recommendation import Incumbent, Referee
from tasks.fusion.segmented import segmented
from tasks.runtime import manifest
from tasks.runtime.stage import Stage, main

log = logging.getLogger("ctrmodels")
Values = Mapping[str, Orders]


def run(stage: Stage) -> None:
    """Tune on one window of valid, report on the other, and read test once for the chosen weights."""
    settings = stage.params.tune_fusion
    chosen = stage.input("select_model")
    in_use = in_service_of(settings, stage.root)
    sources = Sources(chosen, stage.input("encode"),
                      {o: stage.input("retrain", model) for o, model in settings.scorers.items()},
                      columns(settings, in_use))
    path = chosen / "predictions" / "valid.parquet"
    valid = sources.read("valid", settings)
    check_lists(valid.table, settings)
    in_tuning = tuning_window(valid.table.groups, settings.window)
    tuning, report = valid.take(in_tuning), valid.take(~in_tuning)
    incumbent = None if in_use is None else Incumbent.of(str(settings.incumbent), in_use, valid.table)

    fitted = fit(tuning.table, path, settings)
    kinds = reported_metrics(valid.table, settings, path)
    judges = {name: Judge(logged.table, fitted, kinds, settings.k)
              for name, logged in (("tuning", tuning), ("report", report))}
    check_windows(judges, path)
    with stage.timed("search"):
        tuned = search(tuning.table, fitted, settings, path, stage.scratch / "trials.log")
    if incumbent is None:
        equal = tuned.orders["equal_weights"]
        incumbent = Incumbent("equal weights", fitted.with_weights(equal.fusion(), equal.weights))
    in_service = incumbent.fuse(report.table)
    referee = Referee(report, judges["report"], in_service, fitted, tuned.rule.primary, settings)
    options = referee.options(tuned)
    exposure = estimate(tuning, report, {"recommended": judges["report"].fuse(tuned.chosen), "incumbent": in_service},
                        settings)
    by_segment = None if settings.segments is None else segmented(
        settings.segments, tuned, (tuning, judges["tuning"]), (report, judges["report"]), settings)

    judges["test"] = Judge(sources.scores("test"), fitted, kinds, settings.k)
    proposal = fitted.with_weights(tuned.chosen.fusion(), tuned.chosen.weights)
    decision = Decision(tuned, judges, proposal, incumbent, options, exposure, by_segment)
    held_out = ("report", "test")
    values = {w: {name: judges[w].intervals(p) for name, p in tuned.orders.items()} for w in held_out}
    gains = {w: judges[w].gains(tuned.chosen, tuned.orders["equal_weights"]) for w in held_out}
    front = front_table(tuned, judges, decision.options)
    document = describe(decision, values["report"], gains["report"], settings)
    (stage.out / "fusion.json").write_text(json.dumps(document, indent=1) + "\n")
    pq.write_table(pa.Table.from_pylist(front), stage.out / "front.parquet", compression="zstd")
    log.info("%s", document["reason"])
    record(stage, decision, values, gains)
    draw(stage, decision, values, gains)
    stage.facts |= {"schema_hash": sources.schema.hash, "rows": len(front)}


# --- reading and checking -------------------------------------------------------------------------------


def in_service_of(settings: TuneFusion, root: Path) -> FusionSpec | None:
    """The order that ``tune_fusion.incumbent`` names, compared with the digest of the run's plan; ``None`` = none.

    DVC does not know the file: its digest among the parameters is what tells a result of it from one of the file that
    lay there before, so it must be that of the bytes that are used.

    Raises:
        InputError: the file is absent or holds no order, or it changed since the run was planned.
    """
    if settings.incumbent is None:
        return None
    content = settings.read_incumbent(root)
    found = hashlib.sha256(content).hexdigest()
    if settings.incumbent_digest is not None and found != settings.incumbent_digest:
        raise InputError("params.yaml", "tune_fusion.incumbent_digest", settings.incumbent_digest,
                         f"{settings.incumbent} changed since this run was planned (its digest is {found})",
                         "start a new run, or remove the key to compare with the file as it is now")
    try:
        return FusionSpec.from_json(json.loads(content)["spec"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise settings.unreadable_incumbent(error) from error


def check_lists(valid: ScoreTable, settings: TuneFusion) -> None:
    """Segments are compared by their lists.

    Raises:
        InputError: there are segments and no lists.
    """
    if valid.lists < 2:
        for key, fields in (("segments", settings.segments), ("guardrails.segments", settings.guardrails.segments)):
            if fields:
                raise InputError("params.yaml", f"tune_fusion.{key}", fields, "segments are made of lists, and the log "
                                 "has none", "name data.group, or leave the segments out")


def fit(tuning: ScoreTable, source: Path, settings: TuneFusion) -> FusionSpec:
    """Normalisers of every score, and of the columns beside them, from the tuning window.

    Raises:
        InputError: an objective has one class only in the window, or a score or column is constant there.
    """
    fitted = []
    for i, objective in enumerate(tuning.objectives):
        try:
            fitted.append(tuning.fit(i, NORMALISERS[settings.calibration]))
        except ValueError as error:
            raise InputError(source, f"label.{objective.name}", tuning.positives(i), f"{error} in the tuning window",
                             "raise tune_fusion.window or data.split.valid") from None
    for part, name in settings.columns.items():
        try:
            fitted.append(tuning.fit_logged(name, part))
        except ValueError:
            raise InputError(source, name, float(f"{tuning.logged[name][0]:.6g}"),
                             f"the {part} is the same on every row of the tuning window",
                             "take its function out of tune_fusion.functions") from None
    return FusionSpec(WeightedSum(), tuple(fitted), {
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
    screen: Callable[[FusionFunction], Window] | None = None
    if tuning.lists > settings.lists:
        some = Judge(tuning.sample(settings.lists, settings.seed), fitted, (settings.metric,), settings.k)
        check_windows({"sampled tuning": some}, source)
        screen = some.window
    candidates = functions(settings, fitted, tuning.objectives)
    points = corners(candidates[0], judge.window(candidates[0]))
    rule = goal(points, names.index(settings.primary or names[0]), settings.floor)
    tuner, equals = TUNERS[settings.tuner](), {}
    for function in candidates:
        window, some_lists = judge.window(function), screen and screen(function)
        tried = tune(function, window, rule, settings.trials, settings.seed, some_lists, tuner, storage)
        equals[function.id] = tried[0] if tried[0].source == "equal" else equal(function, window)
        points += tried
    found = Tuned(tuning.objectives, tuple(points), rule, {}, equals, settings.columns)
    if not 1 < len(names) <= MOST_DIMENSIONS:
        return found

    function = next(f for f in candidates if f.id == found.chosen.function)
    seen = (screen or judge.window)(function)
    worst = np.min([p.metrics for p in corners(function, seen)], axis=0)
    volumes: dict[str, list[float]] = {}
    for name, searcher, kept in ((settings.tuner, tuner, storage),  # whose trials are only read again
                                 ("random", RandomSearch(), storage.with_name("random.log"))):
        tried = tune(function, seen, rule, settings.trials, settings.seed, None, searcher, kept)
        reached = np.array([p.metrics for p in tried])
        volumes[name] = hypervolumes(reached, np.minimum(worst, reached[0])).tolist()
    return replace(found, volumes=volumes)


# --- telling ------------------------------------------------------------------------------------------------


def record(stage: Stage, decision: Decision, values: Values, gains: Mapping[str, Mapping[str, Interval]]) -> None:
    """Metrics: weights, every order's worth on both held-out sets, gains, guard-rails, calibration and the front."""
    tuned, report = decision.tuned, decision.judges["report"]
    stage.metrics(tuned.weights(tuned.chosen), "weight.")
    stage.metric("feasible", not tuned.rule.shortfall(tuned.chosen.metrics))
    stage.metric("withheld", decision.withheld)
    for window, orders in values.items():
        for order, found in orders.items():
            prefix = f"{window}." if order == "recommended" else f"{window}.{order}."
            for name, value in found.items():
                stage.metrics({name: value.mean, f"{name}.se": value.error}, prefix)
        _intervals(stage, gains[window], f"{window}.gain.")
        stage.metrics(decision.kept(orders), f"{window}.kept.")
    _intervals(stage, decision.chosen.changes, "report.change.")
    stage.metrics({check.name: check.value for check in decision.chosen.verdict.checks}, "guardrail.")
    stage.metric("optimism", decision.optimism)
    for name, changes in decision.sensitivity.items():
        stage.metric(f"sensitivity.{name}", max(0.0, *(-changes[FACTORS.index(f)] for f in (0.5, 2.0))))
    if decision.segmented is not None:
        _intervals(stage, decision.segmented.gains, "report.segments.gain.")
    for i, (objective, score) in enumerate(zip(tuned.objectives, decision.proposal.predicted, strict=True)):
        if objective.kind == "binary" and not score.normaliser.relative:
            raw, labels = report.table.known(i)
            stage.metrics({"raw": metrics.ece(labels, raw), "calibrated": metrics.ece(labels, score.normaliser(raw))},
                          f"report.ece.{objective.name}.")
    stage.metric("front.points", sum(tuned.front))
    if tuned.volumes:
        baselines = [p.metrics for p in tuned.points if p.source in ("equal", "corner")]
        stage.metric("front.hypervolume",
                     hypervolume(np.array([p.metrics for p in tuned.points]), np.min(baselines, axis=0)))
        stage.metrics({name: volumes[-1] for name, volumes in tuned.volumes.items()}, "trials.hypervolume.")


def _intervals(stage: Stage, found: Mapping[str, Interval], prefix: str) -> None:
    for name, value in found.items():
        stage.metrics({name: value.mean, f"{name}.low": value.low, f"{name}.high": value.high}, prefix)


def draw(stage: Stage, decision: Decision, values: Values, gains: Mapping[str, Mapping[str, Interval]]) -> None:
    """The stage's figures."""
    tuned, x = decision.tuned, decision.tuned.rule.primary
    for y in range(len(tuned.objectives)):
        if y != x:
            stage.figure(figures.front(tuned, decision.judges["tuning"], y))
    stage.figure(figures.weights(tuned))
    for window, orders in values.items():
        stage.figure(figures.objectives_by_order(orders, decision.metric, tuned.objectives, window))
    stage.figure(figures.gains(gains))
    stage.figure(figures.kept(decision, values, stage.params.tune_fusion.floor))
    stage.figure(figures.options(decision))
    stage.figure(figures.guardrails(decision))
    if len(tuned.chosen.weights) > 1:
        stage.figure(figures.curse(decision))
        stage.figure(figures.sensitivity(decision))
    if tuned.volumes:
        stage.figure(figures.volume(tuned))
    if decision.exposure.lines:
        stage.figure(figures.exposure(decision.exposure))
    if decision.segmented is not None:
        stage.figure(figures.segments(decision.segmented, tuned.objectives))
    calibration = figures.calibration(decision.judges["report"].table, decision.proposal)
    if calibration is not None:
        stage.figure(calibration)


if __name__ == "__main__":
    main("tune_fusion", run)
