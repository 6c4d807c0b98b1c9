"""What is measured of a log before it is judged: one number per fact.

Most facts are read off the tables of ``frequency``. Four jobs read the log itself: the order of roles in time,
repeated row numbers, repeated keys, and numeric fields by day. A fact that the log cannot give (drift on a log of
one day) is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from ctrmodels.data import ROLES
from ctrmodels.errors import InputError
from tasks.config import Data
from tasks.frequency import rows_by_day

TOP = 20
BINS = 10
DAY_DRAWS = 1000


def of_summary(data: Data, summary: dict, moments: pd.DataFrame) -> dict[str, float]:
    """Row counts, null rates, infinite values, distinct values, known labels and positive rates."""
    facts: dict[str, float] = {f"rows.{role}": summary["roles"][role] for role in ROLES}
    for name, field in summary["fields"].items():
        facts[f"null_rate.{name}"] = field["null_rate"]
        if "infinite" in field and field["kind"] == "numeric":
            facts[f"infinite.{name}"] = field["infinite"]
        if "distinct_train" in field:
            facts[f"distinct.{name}"] = field["distinct_train"]
    rows = rows_by_day(moments, data).drop(columns=["day", "role"]).sum()
    for o in data.objectives:
        facts[f"known.{o.name}"] = rows[f"known_{o.name}"]
        space = rows[f"total_{o.after}"] if o.after else rows[f"known_{o.name}"]
        if o.kind == "binary" and space:
            facts[f"positive_rate.{o.name}"] = rows[f"total_{o.name}"] / space
    days = rows_by_day(moments, data).groupby("day")["rows"].sum()
    if len(days) > 1:
        facts["day_rows.fewest"] = days.min() / days.median()
        facts["day_rows.most"] = days.max() / days.median()
    return {name: float(value) for name, value in facts.items()}


def repeated(log: DataFrame, columns: Sequence[str]) -> int:
    """Rows whose ``columns`` another, earlier counted row has too."""
    found = log.groupBy(*columns).count().agg(F.sum(F.col("count") - 1)).first()
    return int(found[0] or 0) if found else 0


def leakage(log: DataFrame, by_group: bool) -> dict[str, float]:
    """For every role but the first: groups in which it begins before an earlier role has ended.

    Args:
        log: the ingested log.
        by_group: whether roles follow one another inside each group; else the log is one group.
    """
    bounds = [f(F.when(F.col("_role") == role, F.col("_time"))).alias(f"{name}_{role}")
              for role in ROLES for name, f in (("first", F.min), ("last", F.max))]
    groups = log.groupBy("_group").agg(*bounds) if by_group else log.agg(*bounds)
    broken = []
    for i, role in enumerate(ROLES[1:], start=1):
        ends = [F.col(f"last_{earlier}") for earlier in ROLES[:i]]
        end = F.greatest(*ends) if len(ends) > 1 else ends[0]
        broken.append(F.count_if(F.col(f"first_{role}") < end).alias(role))
    found = groups.agg(*broken).first()
    return {f"leakage.{role}": float(found[role]) for role in ROLES[1:]} if found else {}


def unseen(table: DataFrame) -> dict[str, float]:
    """Share of each role's values that train does not have, by field; null is no value here.

    Args:
        table: counts as :func:`tasks.counts.read` gives them.
    """
    def of(role: str) -> list:
        return [F.sum(F.when(F.col("role") == role, F.col("count")).otherwise(0)).alias(role)]

    values = table.where(F.col("value").isNotNull()).groupBy("field", "value").agg(*(c for r in ROLES for c in of(r)))
    shares = values.groupBy("field").agg(*(
        F.try_divide(F.sum(F.when(F.col("train") == 0, F.col(role)).otherwise(0)), F.sum(role)).alias(role)
        for role in ROLES[1:]))
    return {f"unseen.{role}.{row['field']}": float(row[role])
            for row in sorted(shares.collect(), key=lambda r: r["field"])
            for role in ROLES[1:] if row[role] is not None}


# --- drift --------------------------------------------------------------------------------------------


def reference_day(summary: dict, moments: pd.DataFrame, data: Data, wanted: str | None) -> str | None:
    """The day that others are compared with: ``wanted``, or the first with 1000 rows; ``None`` without such a day.

    Raises:
        InputError: the log does not have the day ``wanted``.
    """
    if wanted is not None and wanted not in summary["days"]:
        days = summary["days"]
        raise InputError("params.yaml", "validate.reference_day", wanted, "the log has no such day",
                         f"choose one between {days[0]} and {days[-1]}, or leave the key out")
    rows = rows_by_day(moments, data).groupby("day")["rows"].sum()
    large = rows[rows >= DAY_DRAWS].index.tolist()
    return wanted if wanted is not None else (large[0] if large else None)


def drift(bins: pd.DataFrame, reference: str, units: Mapping[str, pd.Series] | None = None) -> pd.DataFrame:
    """Population stability index of every field on every sufficiently large day, against ``reference``.

    The index is Σ (q − p) ln(q / p) over the bins' shares p on the reference day and q on the other, each
    count raised by ½ so that an empty bin has a logarithm. Where nothing drifts it still averages about
    (B − 1)(1/N + 1/M) for B bins and days of N and M independent draws (Yurdakul and Naranjo 2020); that is
    taken off. Days of fewer than 1000 draws are not judged.

    Args:
        bins: ``field``, ``day``, ``bin``, ``count``.
        reference: the day to compare with.
        units: field → draws by day, where these are not the rows: all rows of a user repeat what is known of
            that user, so that fields of users are drawn once per user.

    Returns:
        ``field``, ``day``, ``psi`` for every other such day.
    """
    found = []
    for name, part in bins.groupby("field", sort=True):
        wide = part.pivot_table(index="day", columns="bin", values="count", aggfunc="sum", fill_value=0)
        draws = (units or {}).get(str(name), wide.sum(axis=1))
        large = [day for day in wide.index if draws[day] >= DAY_DRAWS]
        if reference not in large:
            continue
        shares = (wide + 0.5).div((wide + 0.5).sum(axis=1), axis=0)
        p = shares.loc[reference]
        for day in large:
            if day != reference:
                q = shares.loc[day]
                noise = (wide.shape[1] - 1) * (1 / draws[reference] + 1 / draws[day])
                found.append({"field": name, "day": day,
                              "psi": max(float(((q - p) * np.log(q / p)).sum()) - noise, 0.0)})
    return pd.DataFrame(found, columns=["field", "day", "psi"])


def value_bins(table: DataFrame, reference: str) -> pd.DataFrame:
    """Rows per day and bin of fields with values: the 20 most frequent of the reference day, and all others."""
    days = table.groupBy("field", "day", "value").agg(F.sum("count").alias("count"))
    order = Window.partitionBy("field").orderBy(F.desc("count"), F.asc_nulls_first("value"))
    top = (days.where(F.col("day") == reference).withColumn("bin", F.row_number().over(order))
           .where(F.col("bin") <= TOP).select(F.col("field").alias("_field"), F.col("value").alias("_value"), "bin"))
    same = (F.col("field") == F.col("_field")) & F.col("value").eqNullSafe(F.col("_value"))
    binned = days.join(F.broadcast(top), same, "left").withColumn("bin", F.coalesce("bin", F.lit(0)))
    return binned.groupBy("field", "day", "bin").agg(F.sum("count").alias("count")).toArrow().to_pandas()


def number_bins(log: DataFrame, numeric: Sequence[str], quantiles: np.ndarray) -> pd.DataFrame:
    """Rows per day and bin of numeric fields: the deciles of train, and one bin for missing values."""
    steps = np.linspace(0, quantiles.shape[1] - 1, BINS + 1).round().astype(int)[1:-1]
    edges = {name: np.unique(row[steps][np.isfinite(row[steps])])
             for name, row in zip(numeric, quantiles, strict=True)}
    above = [F.count_if((F.col(n) > float(e)) & ~F.isnan(n)).alias(f"{n}.{i}")
             for n in numeric for i, e in enumerate(edges[n])]
    known = [F.count_if(F.col(n).isNotNull() & ~F.isnan(n)).alias(f"{n}.known") for n in numeric]
    days = log.groupBy("_day").agg(F.count(F.lit(1)).alias(".rows"), *known, *above).toArrow().to_pandas()
    found = []
    for name in numeric:
        at_least = np.stack([days[f"{name}.known"], *(days[f"{name}.{i}"] for i in range(len(edges[name])))])
        sizes = [days[".rows"] - at_least[0], *(-np.diff(at_least, axis=0)), at_least[-1]]
        found += [pd.DataFrame({"field": name, "day": days["_day"], "bin": i, "count": size})
                  for i, size in enumerate(sizes)]
    return pd.concat(found, ignore_index=True)


def worst_day(drifted: pd.DataFrame) -> pd.DataFrame:
    """The day with the largest index, by field."""
    return drifted.loc[drifted.groupby("field")["psi"].idxmax()].reset_index(drop=True)


def of_drift(table: DataFrame, log: DataFrame, data: Data, quantiles: np.ndarray, reference: str) -> pd.DataFrame:
    """:func:`drift` of all fields that are counted by value or numeric."""
    users = [f.name for f in data.fields if f.side == "user"]
    units = {}
    if users and data.group is not None:
        groups = log.groupBy("_day").agg(F.count_distinct("_group").alias("groups")).toArrow().to_pandas()
        units = dict.fromkeys(users, groups.set_index("_day")["groups"])
    numeric = [f.name for f in data.fields if f.kind == "numeric"]
    bins = [value_bins(table, reference)]
    if numeric:
        bins.append(number_bins(log, numeric, quantiles))
    return drift(pd.concat(bins, ignore_index=True), reference, units)
