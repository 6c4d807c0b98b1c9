"""The figures of multi-objective models, for the stages that train and compare them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctrmodels.data.schema import Schema
from ctrmodels.metrics import reliability
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
