"""The figures of multi-objective models, for the stages that train and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctrmodels.data.schema import Schema
from ctrmodels.metrics import Interval, reliability
from ctrmodels.multitask.gates import GateReport
from ctrmodels.multitask.predictions import Predictions
from ctrmodels.multitask.spaces import space_mask
from tasks.runtime.figure import Axis, Figure, Series


def training_curves(trials: Sequence[Mapping[str, Any]]) -> Figure:
    """The metric that stops the training, per epoch and seed."""
    return Figure(
        id="training_curves", title="Training", kind="line", x=Axis("epoch"), y=Axis("mean AUC on valid"),
        caption="Mean AUC of the binary objectives on valid after each epoch; the best epoch is kept.",
        series=[Series(f"seed {t['seed']}", list(range(1, len(t["history"]) + 1)),
                       [epoch["metric"] for epoch in t["history"]]) for t in trials])


def loss_weights(trial: Mapping[str, Any]) -> Figure:
    """Mean weight of every loss per epoch, as the balancer of the kept seed chose it."""
    history = trial["history"]
    names = [key.removeprefix("weight.") for key in history[0] if key.startswith("weight.")]
    conflicts = ""
    if "conflicts" in history[0]:
        share = np.mean([epoch["conflicts"] for epoch in history])
        conflicts = f" {100 * share:.0f} % of the pairs of gradients pointed against each other."
    return Figure(
        id="loss_weights", title="Weights of the losses", kind="line", x=Axis("epoch"), y=Axis("mean weight"),
        caption=f"Mean over the steps of an epoch, seed {trial['seed']}; in the plain sum all are 1.{conflicts}",
        series=[Series(name, list(range(1, len(history) + 1)), [epoch[f"weight.{name}"] for epoch in history])
                for name in names])


def calibration(schema: Schema, table: Predictions, title: str) -> Figure:
    """Observed rate against mean prediction in bins of equal mass, for every binary score on its own rows."""
    series, top = [], 0.0
    for name, score in table.scores.items():
        objective, _, space = name.partition("@")
        index = schema.objective_index(objective)
        if schema.objectives[index].kind == "binary":
            mask = space_mask(schema, table.labels, objective, space)
            bins = reliability(table.labels[mask, index], score[mask])
            series.append(Series(name, bins.score.tolist(), bins.rate.tolist()))
            top = max([top, *bins.score, *bins.rate])
    return Figure(
        id="calibration", title=title, kind="line", x=Axis("mean prediction"), y=Axis("observed rate"),
        caption="On the diagonal a prediction is a rate. Every score on the rows of its own space.",
        series=[*series, Series("perfect", [0.0, top], [0.0, top])])


def gates(report: GateReport, objectives: Sequence[str]) -> Figure:
    """Which objective uses which expert."""
    apart = report.divergence[np.triu_indices(len(objectives), 1)]
    between = f" Divergence between gates: {apart.mean():.3f} nats (0 = one gate)." if len(apart) else ""
    entropy = ", ".join(f"{name} {e:.2f}" for name, e in zip(objectives, report.entropy, strict=True))
    return Figure(
        id="gates", title="Use of the experts", kind="heatmap", rows=list(objectives),
        columns=[f"expert {e + 1}" for e in range(report.mean.shape[1])], values=report.mean.tolist(),
        caption=f"Mean gate weight on valid. Entropy (1 = all experts alike): {entropy}.{between}")


def leaderboard(names: Sequence[str], rows: Sequence[Mapping[str, Any]], metric: str, subject: str) -> Figure:
    """What the models are chosen by, and its value for every score, per model."""
    by_name = {row["candidate"]: row for row in rows}
    shown = [by_name[name] for name in names]
    parts = [key for key in shown[0] if key.startswith(f"valid.{metric}.") and not key.endswith(".sd")]
    of = subject.removeprefix(f"valid {metric} of ")
    series = [Series("mean of the binary objectives @all" if of == subject else f"{of}, which decides", list(names),
                     [row["valid"] for row in shown], error=[row["valid_sd"] for row in shown])]
    series += [Series(part.removeprefix(f"valid.{metric}."), list(names), [row[part] for row in shown],
                      error=[row[f"{part}.sd"] for row in shown]) for part in parts]
    return Figure(id="leaderboard", title="Models on valid", kind="bar", x=Axis("model"), y=Axis(metric),
                  series=series, caption="Bars are means over the seeds, whiskers one standard deviation.")


def comparison(rows: Sequence[Mapping[str, Any]], subject: str) -> Figure:
    """Every model beside the best: how sure the difference is, whether it keeps the floors, how large it is."""
    lines = []
    for row in rows:
        behind = ", ".join(f"{name} {loss:.4f} behind" for name, loss in row["below_floor"].items())
        best = row["to_best"]
        lines.append([row["candidate"], row["valid"], row["valid_sd"], _span(row["best_seed"]),
                      None if best is None else best["valid"], "the best" if best is None else _span(best),
                      "chosen" if row["chosen"] else behind or "compared", row["parameters"], row["parameters_other"]])
    return Figure(
        id="comparison", title=f"{subject[0].upper()}{subject[1:]} beside the best model's", kind="table", values=lines,
        columns=["model", "mean", "sd over seeds", "95 % interval", "to the best", "95 % interval of it", "choice",
                 "parameters", "beside the embedding"],
        caption="Intervals and differences are of the best seed's predictions, resampling whole groups: they say what "
                "other users would change, the standard deviation what another seed would. An interval of a difference "
                "that holds 0 leaves open which model is better.")


def gains(gained: Mapping[str, Mapping[str, tuple[float, float]]], metric: str) -> Figure:
    """What every model adds to models of one objective each."""
    series = []
    for name in dict.fromkeys(name for scores in gained.values() for name in scores):
        found = {model: scores[name] for model, scores in gained.items() if name in scores}
        series.append(Series(name, list(found), [mean for mean, _ in found.values()], [sd for _, sd in found.values()]))
    return Figure(
        id="gains", title="Multi-task gain", kind="bar", x=Axis("model"), y=Axis(f"{metric} minus that of single"),
        series=series,
        caption="By how much a model is better than the single-objective models on valid, mean over the seeds, "
                "whiskers one standard deviation of the difference; below 0 the objectives harm each other. "
                "Regressions by XAUC.")


def calibrations(recorded: Mapping[str, Mapping[str, float]]) -> Figure:
    """Predicted over actual and ECE of every model and score, on the rows of the score's own space."""
    lines = []
    for model, metrics in recorded.items():
        for key in metrics:
            name = key.removeprefix("valid.calibration.")
            if name != key and not key.endswith(".sd"):
                lines.append([model, *name.split("@"), metrics[key], metrics[f"{key}.sd"],
                              metrics[f"valid.ece.{name}"], metrics[f"valid.ece.{name}.sd"]])
    return Figure(
        id="calibrations", title="Calibration on valid", kind="table", values=lines,
        columns=["model", "objective", "sample space", "predicted / actual", "sd over seeds", "ECE", "sd of the ECE"],
        caption="Before the calibration that the fusion adds. 1 = the rate is right on average; ECE is the mean gap in "
                "20 bins of equal mass.")


def gate_use(recorded: Mapping[str, Mapping[str, float]]) -> Figure:
    """Use of the experts by every gated model and objective."""
    lines = []
    for model, metrics in recorded.items():
        for key in metrics:
            name = key.removeprefix("gates.used.")
            if name != key:
                lines.append([model, name, metrics["gates.experts"], metrics[key], metrics[f"gates.entropy.{name}"],
                              metrics.get("gates.divergence")])
    return Figure(
        id="gate_use", title="Use of the experts on valid", kind="table", values=lines,
        columns=["model", "objective", "experts", "of these used", "entropy of a row", "between the gates"],
        caption="Used: exponential of the entropy of the mean weights. Entropy of a row's weights: 0 = one expert, 1 = "
                "all alike. Between the gates: mean Jensen-Shannon divergence in nats, 0 = one gate for all.")


def metrics_table(name: str, recorded: Mapping[str, float], values: Mapping[str, float],
                  bounds: Mapping[str, Interval]) -> Figure:
    """The winner's metrics with their sample spaces: valid (mean ± sd over seeds) beside test (best seed)."""
    lines = []
    for key in sorted(values, key=lambda n: (n.partition(".")[2], n)):
        metric, _, scored = key.partition(".")
        bound = bounds.get(key)
        lines.append([*scored.split("@"), metric, recorded[f"valid.{key}"], recorded[f"valid.{key}.sd"], values[key],
                      "" if bound is None else _span(bound._asdict())])
    return Figure(id="metrics", title=f"Metrics of {name}", kind="table", values=lines,
                  columns=["objective", "sample space", "metric", "valid", "sd over seeds", "test",
                           "95 % interval"],
                  caption="Test was read once, for this model alone. Intervals resample whole groups.")


def _span(bounds: Mapping[str, float]) -> str:
    return f"[{bounds['low']:.4f}, {bounds['high']:.4f}]"
