"""Compares the multi-objective models on ``valid``, chooses one, and reads its ``test`` metrics once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctrmodels import metrics
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.checkpoint import FILES
from ctrmodels.multitask.evaluation import evaluate_scores, mean_over_objectives
from ctrmodels.multitask.predictions import Predictions
from ctrmodels.multitask.spaces import space_mask
from tasks import model_figures
from tasks.config import model_and_balancer
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, main

HIGHER_IS_BETTER = {"auc": True, "gauc": True, "logloss": False}
COSTS = ("parameters", "parameters_embedding", "flops", "bytes")


@dataclass(frozen=True)
class Candidate:
    """One retrained model.

    Attributes:
        name: its key.
        folder: its outputs.
        values: the choosing metric, mean over the binary objectives on ``valid``, per seed.
        recorded: its ``metrics.json``.
    """

    name: str
    folder: Path
    values: tuple[float, ...]
    recorded: dict[str, float]

    @property
    def balanced(self) -> bool:
        """Whether a balancer was at work."""
        return model_and_balancer(self.name)[1] is not None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def sd(self) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0


def run(stage: Stage) -> None:
    """Write the leaderboard, the choice, the winner's files, and its test metrics."""
    metric = stage.params.select_model.metric
    candidates = [load(name, stage.input("retrain", name), metric) for name in stage.params.retrain.models]
    chosen, reason = choose(candidates, metric)
    rule = (f"best mean valid {metric}@all over the binary objectives and seeds; ties within the best one's "
            "standard deviation over the seeds go to fewer parameters, then to the plain sum of losses")
    board = {"metric": metric, "rule": rule, "reason": reason, "rows": rows(candidates, chosen, metric)}
    write(stage.out / "leaderboard.json", board)
    write(stage.out / "choice.json", {"candidate": chosen.name, "reason": reason, "rule": rule})
    copy(chosen.folder, stage.out)

    schema = Schema.load(chosen.folder / "schema.json")
    test = Predictions.load(chosen.folder / "predictions" / "test.parquet", schema)
    values = evaluate_scores(schema, test.labels, test.scores, test.group)
    bounds = intervals(schema, test)
    stage.metrics(values, "test.")
    for name, bound in bounds.items():
        stage.metrics({f"{name}.low": bound.low, f"{name}.high": bound.high}, "test.")
    stage.metrics({f"valid.{metric}": chosen.mean, f"valid.{metric}.sd": chosen.sd,
                   **{cost: chosen.recorded[cost] for cost in COSTS}})
    stage.figure(leaderboard_figure(candidates, metric))
    stage.figure(model_figures.calibration(schema, test, f"Calibration of {chosen.name} on test"))
    stage.figure(metrics_table(chosen, values, bounds))
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
        values = tuple(mean_over_objectives(schema, s["metrics"], metric) for s in seeds)
    except (KeyError, TypeError) as error:
        raise InputError("params.yaml", "select_model.metric", metric, f"undefined for {name}",
                         "choose another metric; gauc needs data.group and lists with both classes") from error
    return Candidate(name, folder, values, recorded)


def choose(candidates: Sequence[Candidate], metric: str) -> tuple[Candidate, str]:
    """The best mean; a model within the best one's standard deviation and with fewer parameters goes first, or, of
    the same size, one whose losses are not balanced: a balancer costs time in every training to come.

    Returns:
        The chosen candidate and the reason in a sentence.
    """
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    best = max(candidates, key=lambda c: (sign * c.mean, -c.recorded["parameters"]))
    tied = [c for c in candidates if sign * (best.mean - c.mean) <= best.sd]
    chosen = min(tied, key=lambda c: (c.recorded["parameters"], c.recorded["flops"], c.balanced, -sign * c.mean))
    if chosen is best:
        return best, f"{best.name} has the best valid {metric}, {best.mean:.4f} ± {best.sd:.4f}"
    advantage = "has fewer parameters" if chosen.recorded["parameters"] < best.recorded["parameters"] else (
        "adds its losses up as they are" if best.balanced and not chosen.balanced else "is no dearer")
    return chosen, (f"{chosen.name} (valid {metric} {chosen.mean:.4f}) is within one standard deviation "
                    f"({best.sd:.4f}) of the best, {best.name} ({best.mean:.4f}), and {advantage}")


def rows(candidates: Sequence[Candidate], chosen: Candidate, metric: str) -> list[dict[str, Any]]:
    """The leaderboard's rows, best first."""
    sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
    return [{"candidate": c.name, "kind": "model", "valid": c.mean, "valid_sd": c.sd, "seeds": len(c.values),
             "chosen": c is chosen, **{cost: c.recorded[cost] for cost in COSTS},
             **{k: v for k, v in c.recorded.items() if k.startswith("valid.")}}
            for c in sorted(candidates, key=lambda c: -sign * c.mean)]


def intervals(schema: Schema, table: Predictions) -> dict[str, metrics.Interval]:
    """95 % intervals of ``auc.OBJECTIVE@SPACE`` by resampling groups: a user's rows are not independent.

    Where the log has no groups, single rows are resampled.
    """
    _, unit = np.unique(table.group, return_inverse=True)
    if not unit.any():
        unit = np.arange(len(table.group))
    bootstrap = metrics.Bootstrap(int(unit.max()) + 1)
    found = {}
    for name, score in table.scores.items():
        objective, _, space = name.partition("@")
        index = schema.objective_index(objective)
        if schema.objectives[index].kind == "binary":
            mask = space_mask(schema, table.labels, objective, space)
            parts = metrics.auc_contributions(table.labels[mask, index], score[mask])
            weight = np.bincount(unit[mask], minlength=unit.max() + 1)
            total = np.bincount(unit[mask], parts, unit.max() + 1)
            means = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
            found[f"auc.{name}"] = metrics.interval(float(parts.mean()), bootstrap.means(means, weight))
    return found


def copy(source: Path, out: Path) -> None:
    """Put the winner's model and predictions into ``out``."""
    for name in (*FILES, "predictions"):
        if (source / name).is_dir():
            shutil.copytree(source / name, out / name)
        else:
            shutil.copyfile(source / name, out / name)


def leaderboard_figure(candidates: Sequence[Candidate], metric: str) -> Figure:
    """The choosing metric and its parts, per model."""
    names = [c.name for c in candidates]
    parts = [k.removeprefix("valid.") for k in candidates[0].recorded
             if k.startswith(f"valid.{metric}.") and not k.endswith(".sd")]
    series = [Series("mean of the binary objectives @all", names, [c.mean for c in candidates],
                     error=[c.sd for c in candidates])]
    for part in parts:
        series.append(Series(part.removeprefix(f"{metric}."), names,
                             [c.recorded[f"valid.{part}"] for c in candidates],
                             error=[c.recorded[f"valid.{part}.sd"] for c in candidates]))
    return Figure(id="leaderboard", title="Models on valid", kind="bar", x=Axis("model"), y=Axis(metric),
                  series=series, caption="Bars are means over the seeds, whiskers one standard deviation.")


def metrics_table(chosen: Candidate, values: dict[str, float], bounds: dict[str, metrics.Interval]) -> Figure:
    """The winner's metrics with their sample spaces: valid (mean ± sd over seeds) beside test (best seed)."""
    lines = []
    for name in sorted(values, key=lambda n: (n.partition(".")[2], n)):
        metric, _, scored = name.partition(".")
        bound = bounds.get(name)
        span = "" if bound is None else f"[{bound.low:.4f}, {bound.high:.4f}]"
        lines.append([*scored.split("@"), metric, chosen.recorded[f"valid.{name}"],
                      chosen.recorded[f"valid.{name}.sd"], values[name], span])
    return Figure(id="metrics", title=f"Metrics of {chosen.name}", kind="table", values=lines,
                  columns=["objective", "sample space", "metric", "valid", "sd over seeds", "test",
                           "95 % interval"],
                  caption="Test was read once, for this model alone. Intervals resample whole groups.")


def write(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` as JSON."""
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main("select_model", run)
