"""What ingest reports of the log it wrote, and what it refuses to hand on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ctrmodels.data import ROLES
from ctrmodels.errors import InputError
from tasks.config import Data
from tasks.runtime.figure import Axis, Figure, Series
from tasks.sources.files import Log

Counts = Mapping[tuple[str, str], Mapping[str, float]]


@dataclass(frozen=True)
class Summary:
    """Metrics and figures of an ingested log."""

    metrics: dict[str, float]
    figures: list[Figure]


def summarise(written: DataFrame, data: Data, log: Log) -> Summary:
    """Count rows, known labels and label sums by role and day; the driver sees these counts only.

    Raises:
        InputError: rows were lost or added, a role has no rows, or a binary objective is never or always
            positive in train, valid or test.
    """
    counts = _count(written, data)
    total = int(sum(c["rows"] for c in counts.values()))
    if total != log.rows:
        raise InputError("params.yaml", "data", total, f"an expression changed the number of rows from {log.rows}",
                         "use no expression that makes several rows of one, such as explode")
    by_role = _total(counts, 0)
    _refuse_empty_roles(by_role, data)
    _refuse_constant_labels(by_role, data)

    metrics: dict[str, float] = {"rows": total, "days": len({day for _, day in counts})}
    metrics |= {f"rows.{role}": by_role[role]["rows"] for role in ROLES}
    for objective in data.objectives:
        rate = "positive_rate" if objective.kind == "binary" else "mean"
        for scope, groups in [("", list(by_role.values())), *((f".{role}", [by_role[role]]) for role in ROLES)]:
            known = sum(g[f"known.{objective.name}"] for g in groups)
            if known:
                metrics[f"{rate}.{objective.name}{scope}"] = sum(g[f"sum.{objective.name}"] for g in groups) / known
    return Summary(metrics, _figures(by_role, data))


def _count(written: DataFrame, data: Data) -> Counts:
    names = [o.name for o in data.objectives]
    # A sum of doubles depends on the order of its parts; a sum of decimals does not.
    exact = [F.sum(F.col(name).cast("decimal(38,9)")).alias(f"sum.{name}") for name in names]
    found = written.groupBy("_role", "_day").agg(
        F.count("*").alias("rows"),
        *(F.count(name).alias(f"known.{name}") for name in names),
        *exact).collect()
    keys = ["rows", *(f"{kind}.{name}" for kind in ("known", "sum") for name in names)]
    return {(row["_role"], row["_day"]): {key: float(row[key] or 0) for key in keys}
            for row in sorted(found, key=lambda r: (r["_role"], r["_day"]))}


def _total(counts: Counts, part: int) -> dict[str, dict[str, float]]:
    """Sums by role (``part`` 0) or by day (``part`` 1)."""
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for key, values in counts.items():
        for name, value in values.items():
            totals[key[part]][name] += value
    return totals


def _refuse_empty_roles(by_role: Mapping[str, Mapping[str, float]], data: Data) -> None:
    split = data.split
    for role in ROLES:
        if role in by_role:
            continue
        if role == "arch" or (role != "train" and split.by in ("time", "group_time", "random")):
            key, value = f"split.{role}", getattr(split, role)
        else:
            key, value = ("split.column", split.column) if split.by == "column" else ("split.by", split.by)
        raise InputError("params.yaml", f"data.{key}", value, f"the role {role} has no rows",
                         f"give {role} a larger share or more data; every role needs rows")


def _refuse_constant_labels(by_role: Mapping[str, Mapping[str, float]], data: Data) -> None:
    for objective in data.objectives:
        if objective.kind != "binary":
            continue
        for role in ("train", "valid", "test"):
            known, positive = (by_role[role][f"{kind}.{objective.name}"] for kind in ("known", "sum"))
            if positive in (0, known):
                says = "without a known label" if not known else "always positive" if positive else "never positive"
                raise InputError("params.yaml", f"data.objectives.{objective.name}.label", objective.label,
                                 f"{says} in {role} ({int(by_role[role]['rows'])} rows)",
                                 "mend the label's expression, or choose another split")


def _figures(by_role: Mapping[str, Mapping[str, float]], data: Data) -> list[Figure]:
    binary: Sequence[str] = [o.name for o in data.objectives if o.kind == "binary"]
    rates = Figure(
        id="positive_rate", title="Positive rate by role", kind="bar", x=Axis("role"), y=Axis("share of known labels"),
        caption="Rates that differ between roles point to a split that does not resemble serving.",
        series=[Series(name, ROLES, [by_role[r][f"sum.{name}"] / max(by_role[r][f"known.{name}"], 1) for r in ROLES])
                for name in binary])
    return [rates]
