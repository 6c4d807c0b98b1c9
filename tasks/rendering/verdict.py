"""What the run found, in sentences and a few numbers. Every claim says what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tasks.rendering import numbers
from tasks.rendering.evidence import Evidence
from tasks.rendering.page import Tile

HIGHER_IS_BETTER = {"auc": True, "gauc": True, "logloss": False}
Line = Mapping[str, Any]


def chosen(board: Line) -> Line:
    """The row of a leaderboard that its stage chose."""
    return next(row for row in board["rows"] if row["chosen"])


def control(board: Line) -> Line | None:
    """The unsearched model's row."""
    return next((row for row in board["rows"] if row["kind"] == "control"), None)


def random_partner(board: Line, row: Line) -> Line | None:
    """The random control of the same cost as ``row``."""
    return next((r for r in board["rows"] if r["candidate"] == f"random({row['candidate']})"), None)


def sentences(evidence: Evidence) -> list[str]:
    """The verdict, one sentence for each decision of the chain."""
    boards = evidence.boards
    return [
        _search(boards["select_embedding"], "embedding", "parameters_embedding", "embedding values"),
        _search(boards["select_interaction"], "interaction", "flops", "floating-point operations per row"),
        _model(evidence),
        full_stop(evidence.fusion["reason"]),
    ]


def tiles(evidence: Evidence) -> list[Tile]:
    """The head's numbers."""
    board = evidence.boards["select_model"]
    model = evidence.results["select_model"].metrics
    found = [Tile("Model", chosen(board)["candidate"], f"of {len(board['rows'])} compared on valid")]
    for objective in evidence.params.data.objectives:
        name = f"test.auc.{objective.name}@all"
        if model.get(name) is not None:
            found.append(Tile(f"Test AUC, {objective.name}", numbers.metric(model[name]), interval(model, name)))
    for stage, cost, label in (("select_embedding", "parameters_embedding", "Embedding values"),
                               ("select_interaction", "flops", "FLOPs per row")):
        row, base = chosen(evidence.boards[stage]), control(evidence.boards[stage])
        if base:
            found.append(Tile(label, numbers.change(row[cost] / base[cost] - 1),
                              f"{numbers.short(base[cost])} → {numbers.short(row[cost])}, {row['candidate']}"))
    fusion = evidence.fusion
    gain = f"report.gain.{fusion['metric']}.{fusion['primary']}"
    tuned = evidence.results["tune_fusion"].metrics
    if tuned.get(gain) is not None:
        found.append(Tile(f"Fusion gain, {fusion['metric']} of {fusion['primary']}", numbers.difference(tuned[gain]),
                          f"over equal weights, {interval(tuned, gain)}"))
    return found


def interval(metrics: Mapping[str, Any], name: str) -> str:
    """The 95 % interval recorded beside a metric, if there is one."""
    low, high = metrics.get(f"{name}.low"), metrics.get(f"{name}.high")
    return "" if low is None or high is None else f"95 % [{numbers.metric(low)}, {numbers.metric(high)}]"


def _search(board: Line, subject: str, cost: str, unit: str) -> str:
    row, base = chosen(board), control(board)
    metric = board["metric"]
    told = f"valid {metric} {numbers.spread(row['valid'], row['valid_sd'])}"
    if base is None or row is base:
        return (f"No {subject} search earned its place: {row['candidate']}, the unsearched model, stays ({told}); "
                f"{full_stop(board['reason'])}")
    against = [f"{_compared(row, base, metric)} against the unsearched model"]
    partner = random_partner(board, row)
    if partner:
        against.append(f"{_compared(row, partner, metric)} against a random architecture of the same cost")
    return (f"{row['candidate']} decides the {subject}, with {numbers.share(row[cost] / base[cost])} of the "
            f"unsearched model's {unit}; {told}: {', and '.join(against)}.")


def _model(evidence: Evidence) -> str:
    return f"Of the models, {full_stop(evidence.boards['select_model']['reason'])}"


def _compared(row: Line, other: Line, metric: str) -> str:
    """``+0.0021 (better, beyond the seeds' spread)``."""
    difference = row["valid"] - other["valid"]
    if min(len(row["seeds"]), len(other["seeds"])) < 2:
        return f"{numbers.difference(difference)} (one seed, so that the spread is not known)"
    if abs(difference) <= math.hypot(row["valid_sd"], other["valid_sd"]):
        return f"{numbers.difference(difference)} (inside the seeds' spread)"
    better = (difference > 0) == HIGHER_IS_BETTER[metric]
    return f"{numbers.difference(difference)} ({'better' if better else 'worse'}, beyond the seeds' spread)"


def full_stop(text: str) -> str:
    """``text`` as a sentence."""
    return text if text.endswith(".") else f"{text}."
