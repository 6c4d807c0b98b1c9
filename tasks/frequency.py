"""Stage ``frequency``: how often every value of every field occurs, by day and role, with positives.

Writes ``counts/days=FIRST_LAST/field=NAME/part-*.parquet`` (``day``, ``role``, ``value``, ``count``,
``positive_OBJECTIVE`` …; see :mod:`tasks.counts`), ``moments.parquet`` (numbers and labels by day and role),
``quantiles.npy`` (numeric fields on train) and ``summary.json``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from ctrmodels.data import ROLES
from tasks import counts
from tasks.config import Data
from tasks.runtime import spark
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, main

POINTS = 50
FILE_ROWS = 20_000_000


def run(stage: Stage) -> None:
    """Count the ingested log."""
    data, folder = stage.params.data, stage.input("ingest")
    with spark.session("frequency", stage.params.ingest.partitions, spark.folder_bytes(folder)) as session:
        log = session.read.parquet(counts.uri(folder / "log"))
        plan = counts.Plan.of(data)
        with stage.timed("moments"):
            moments = counts.moments(log, plan)
        with stage.timed("values"):
            rows = rows_by_day(moments, data)
            days = sorted(rows["day"].unique())
            span = days[0] if len(days) == 1 else f"{days[0]}_{days[-1]}"
            total = int(rows["rows"].sum())
            if plan.values or plan.steps:
                slots = list(rows[["day", "role"]].itertuples(index=False, name=None))
                table = counts.count(session, folder / "log", plan, slots)
                files = 1 + total // FILE_ROWS
                counts.write(table.repartition(files, "field", "value"), stage.out / "counts", span)
        with stage.timed("quantiles"):
            grid = counts.quantiles(log, plan, total, stage.params.frequency.quantile_rows)
        with stage.timed("spectra"):
            spectra = spectrum(counts.read(session, stage.out / "counts", plan.binary))
    moments.to_parquet(stage.out / "moments.parquet", index=False)
    np.save(stage.out / "quantiles.npy", grid)
    summary = summarise(data, rows, moments, spectra)
    (stage.out / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    stage.facts["rows"] = total
    _record(stage, summary, rows, moments, spectra, grid)


def rows_by_day(moments: pd.DataFrame, data: Data) -> pd.DataFrame:
    """One row per ``day`` and ``role``: ``rows``, and ``known_NAME`` and ``total_NAME`` of every objective.

    The total of a binary objective is its number of positives.
    """
    columns = []
    for objective in data.objectives:
        part = moments[moments["name"] == objective.name].set_index(["day", "role"])
        known = part["rows"] - part["missing"] - part["infinite"]
        columns += [known.rename(f"known_{objective.name}"), part["total"].rename(f"total_{objective.name}")]
    rows = moments[moments["name"] == data.objectives[0].name].set_index(["day", "role"])["rows"]
    return pd.concat([rows, *columns], axis=1).sort_index().reset_index()


def spectrum(table: DataFrame) -> pd.DataFrame:
    """How many values occur how often: all that the frequency curves need, and small for any vocabulary.

    Returns:
        One row per ``field``, ``train`` (count on train) and ``null`` (whether it is the null value):
        ``values`` with that count on train and ``total``, their count in all roles.
    """
    values = table.groupBy("field", "value").agg(
        F.sum(F.when(F.col("role") == "train", F.col("count")).otherwise(0)).alias("train"),
        F.sum("count").alias("total"))
    spectra = values.groupBy("field", "train", F.isnull("value").alias("null")).agg(
        F.count(F.lit(1)).alias("values"), F.sum("total").alias("total"))
    return spectra.toArrow().to_pandas().sort_values(["field", "train", "null"], ascending=[True, False, True],
                                          ignore_index=True)


def curve(spectra: pd.DataFrame, field: str) -> pd.DataFrame:
    """``rank``, ``count`` and ``coverage`` (share of train's values at this rank or before) at about 50 ranks."""
    part = spectra[(spectra["field"] == field) & (spectra["train"] > 0) & ~spectra["null"]]
    if part.empty:
        return pd.DataFrame({"rank": [], "count": [], "coverage": []})
    counts_, values = part["train"].to_numpy(), part["values"].to_numpy()
    last = values.cumsum()
    rank = np.unique(np.geomspace(1, last[-1], POINTS).round().astype(np.int64))
    step = np.searchsorted(last, rank)
    mass = (counts_ * values).cumsum()
    coverage = (mass[step] - (last[step] - rank) * counts_[step]) / mass[-1]
    return pd.DataFrame({"rank": rank, "count": counts_[step], "coverage": coverage})


def summarise(data: Data, rows: pd.DataFrame, moments: pd.DataFrame, spectra: pd.DataFrame) -> dict[str, Any]:
    """The log in numbers: ``rows``, ``roles``, ``days``, ``objectives`` and ``fields``."""
    total = int(rows["rows"].sum())
    objectives = {}
    for o in data.objectives:
        known = int(rows[f"known_{o.name}"].sum())
        mean = rows[f"total_{o.name}"].sum() / known if known else float("nan")
        objectives[o.name] = {"known": known, "mean": mean}
    fields: dict[str, dict[str, Any]] = {}
    described = counts.combine(moments, ["name"]).set_index("name")
    for f in data.fields:
        if f.name in described.index:
            m = described.loc[f.name]
            known = int(m["rows"] - m["missing"] - m["infinite"])
            fields[f.name] = {
                "kind": f.kind, "null_rate": m["missing"] / total, "infinite": int(m["infinite"]),
                "mean": m["total"] / known if known else float("nan"),
                "deviation": float(np.sqrt(m["m2"] / known)) if known else float("nan"),
                "low": m["low"], "high": m["high"]}
        else:
            part = spectra[spectra["field"] == f.name]
            seen = part[~part["null"]]
            fields[f.name] = {
                "kind": f.kind, "null_rate": int(part[part["null"]]["total"].sum()) / total,
                "distinct": int(seen["values"].sum()),
                "distinct_train": int(seen[seen["train"] > 0]["values"].sum()),
                "once_train": int(seen[seen["train"] == 1]["values"].sum())}
    by_role = rows.groupby("role")["rows"].sum()
    return {"rows": total, "roles": {r: int(by_role.get(r, 0)) for r in ROLES},
            "days": sorted(rows["day"].unique()), "objectives": objectives, "fields": fields}


def _record(stage: Stage, summary: dict[str, Any], rows: pd.DataFrame, moments: pd.DataFrame,
            spectra: pd.DataFrame, grid: np.ndarray) -> None:
    data = stage.params.data
    stage.metric("rows", summary["rows"])
    stage.metric("days", len(summary["days"]))
    for name, objective in summary["objectives"].items():
        stage.metric(f"mean.{name}", objective["mean"])
    counted = [name for name, f in summary["fields"].items() if "distinct" in f]
    for name, f in summary["fields"].items():
        stage.metric(f"null_rate.{name}", f["null_rate"])
    for name in counted:
        stage.metric(f"distinct.{name}", summary["fields"][name]["distinct"])
        stage.metric(f"distinct_train.{name}", summary["fields"][name]["distinct_train"])
    curves = {name: curve(spectra, name) for name in counted}
    for figure in (_frequency_figure(curves), _coverage_figure(curves), _fields_figure(summary),
                   _rows_figure(rows), _positives_figure(rows, data)):
        stage.figure(figure)
    numeric = [f.name for f in data.fields if f.kind == "numeric"]
    if numeric:
        stage.figure(_numbers_figure(summary, numeric, grid))


def _frequency_figure(curves: dict[str, pd.DataFrame]) -> Figure:
    return Figure(
        "frequency", "How often each value occurs", "line",
        "Values of each field from the most to the least frequent on train. A straight line is a power law; "
        "where it ends low and far right, most values are seen too rarely to learn much about.",
        Axis("rank of the value", "log"), Axis("rows on train", "log"),
        [Series(name, c["rank"].tolist(), c["count"].tolist()) for name, c in curves.items()])


def _coverage_figure(curves: dict[str, pd.DataFrame]) -> Figure:
    return Figure(
        "coverage", "How much of the log the frequent values cover", "line",
        "Share of all occurrences on train that the most frequent values account for.",
        Axis("number of most frequent values", "log"), Axis("share of occurrences"),
        [Series(name, c["rank"].tolist(), c["coverage"].tolist()) for name, c in curves.items()])


def _fields_figure(summary: dict[str, Any]) -> Figure:
    values = [[name, f["kind"], f.get("distinct"), f.get("distinct_train"), f.get("once_train"), f["null_rate"]]
              for name, f in summary["fields"].items()]
    return Figure(
        "fields", "Fields", "table",
        "Distinct values in all roles and on train, values that train has once, and the share of rows without "
        "a value (of a sequence: with no step).",
        columns=["field", "kind", "distinct", "distinct on train", "once on train", "missing"], values=values)


def _rows_figure(rows: pd.DataFrame) -> Figure:
    wide = rows.pivot(index="day", columns="role", values="rows").fillna(0)
    return Figure(
        "rows_by_day", "Rows by day and role", "bar", "How the log is spread over days and split into roles.",
        Axis("day"), Axis("rows"),
        [Series(r, wide.index.tolist(), wide[r].tolist()) for r in ROLES if r in wide])


def _positives_figure(rows: pd.DataFrame, data: Data) -> Figure:
    days = rows.drop(columns="role").groupby("day").sum()
    binary = [o.name for o in data.objectives if o.kind == "binary"]
    return Figure(
        "positives_by_day", "Positive rate by day", "line",
        "Share of rows with a known label that are positive.", Axis("day"), Axis("positive rate"),
        [Series(o, days.index.tolist(), (days[f"total_{o}"] / days[f"known_{o}"]).tolist()) for o in binary])


def _numbers_figure(summary: dict[str, Any], numeric: list[str], grid: np.ndarray) -> Figure:
    values = []
    for name, quantiles in zip(numeric, grid, strict=True):
        f = summary["fields"][name]
        middle = counts.QUANTILES // 2
        values.append([name, f["mean"], f["deviation"], f["low"], quantiles[middle], f["high"], f["null_rate"]])
    return Figure(
        "numbers", "Numeric fields", "table", "The median is that of train, the rest is over all roles.",
        columns=["field", "mean", "standard deviation", "least", "median", "greatest", "missing"],
        values=values)


if __name__ == "__main__":
    main("frequency", run)
