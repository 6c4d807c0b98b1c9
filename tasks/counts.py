"""Counting a log: how often every value of every field occurs, with its positives, by day and role.

The tables are exact and merge by summation (:func:`merge`), so a new day is counted alone and its tables are
laid beside the older ones. Values stay in Spark: no vocabulary ever reaches the driver.

Two forms count the same. Parquet is read by column, so on a large log one job per field reads each column's
bytes once and aggregates them at Spark's full speed (:func:`count_field`). On a small log the fixed cost of so
many jobs dominates, and one pass over Arrow batches wins (:func:`count_fields`). Stacking the fields into rows
(``stack``, ``unpivot``) would shuffle rows × fields, and caching the log would copy what parquet already serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from tasks.config import Data
from tasks.runtime.spark import write_parquet

KEYS = ("field", "day", "role", "value")
CHUNK_ROWS = 250_000
SAMPLE_ROWS = 2**18
QUANTILES = 1024


@dataclass(frozen=True)
class Plan:
    """What is counted.

    Attributes:
        values: categorical fields; every row has one value, possibly null.
        steps: sequence fields with values of their own; every step is one, and null stands for an empty
            sequence.
        binary: binary objectives, whose positives are counted along.
        moments: name → how to get a double from a row, for every column described by moments: numeric fields,
            objectives, and the lengths of sequences that share a categorical field's values.
        numeric: numeric fields, whose quantiles are wanted.
    """

    values: tuple[str, ...]
    steps: tuple[str, ...]
    binary: tuple[str, ...]
    moments: dict[str, Column]
    numeric: tuple[str, ...]

    @classmethod
    def of(cls, data: Data) -> Plan:
        """The plan for a log's description. Needs a running Spark session, for the column expressions."""
        shared = [f.name for f in data.fields if f.kind == "sequence" and f.of is not None]
        numeric = tuple(f.name for f in data.fields if f.kind == "numeric")
        moments = {n: F.col(n).cast("double") for n in (*numeric, *(o.name for o in data.objectives))}
        moments |= {n: F.nullif(F.size(n).cast("double"), F.lit(0.0)) for n in shared}
        return cls(
            values=tuple(f.name for f in data.fields if f.kind == "categorical"),
            steps=tuple(f.name for f in data.fields if f.kind == "sequence" and f.of is None),
            binary=tuple(o.name for o in data.objectives if o.kind == "binary"),
            moments=moments,
            numeric=numeric,
        )


def table_schema(binary: Sequence[str]) -> str:
    """Spark schema of a table of counts."""
    positives = "".join(f", positive_{name} bigint" for name in binary)
    return f"field string, day string, role string, value string, `count` bigint{positives}"


# --- values -------------------------------------------------------------------------------------------


def count_field(log: DataFrame, name: str, plan: Plan) -> DataFrame:
    """Count one field's values: the form for large logs."""
    values = F.explode_outer(name) if name in plan.steps else F.col(name)
    rows = log.select(F.col("_day").alias("day"), F.col("_role").alias("role"), values.alias("value"),
                      *((F.col(o) == 1).alias(f"positive_{o}") for o in plan.binary))
    positives = [F.count_if(f"positive_{o}").alias(f"positive_{o}") for o in plan.binary]
    counted = rows.groupBy("day", "role", "value").agg(F.count(F.lit(1)).alias("count"), *positives)
    return counted.select(F.lit(name).alias("field"), "day", "role", "value", "count",
                          *(f"positive_{o}" for o in plan.binary))


def count_fields(log: DataFrame, plan: Plan) -> DataFrame:
    """Count all fields' values in one pass over Arrow batches: the form for small logs."""
    columns = log.select("_day", "_role", *plan.values, *plan.steps, *plan.binary)
    partial = columns.mapInArrow(_counter(plan.values, plan.steps, plan.binary), table_schema(plan.binary))
    return merge(partial)


def merge(tables: DataFrame) -> DataFrame:
    """One table from tables counted apart: counts and positives of the same key are summed."""
    sums = [c for c in tables.columns if c not in KEYS]
    return tables.groupBy(*KEYS).agg(*(F.sum(c).alias(c) for c in sums))


def _counter(values: Sequence[str], steps: Sequence[str], binary: Sequence[str],
             ) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    positives = [f"positive_{name}" for name in binary]

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for chunk in chunks(batches, CHUNK_ROWS):
            hits = {p: pc.fill_null(pc.equal(chunk[o], 1), False).cast(pa.int64())
                    for p, o in zip(positives, binary, strict=True)}
            rows = pa.table({"day": chunk["_day"], "role": chunk["_role"], **hits})
            for name in values:
                yield from table(name, rows.append_column("value", chunk[name].cast(pa.string())))
            for name in steps:
                parent, step = explode(chunk[name])
                yield from table(name, rows.take(parent).append_column("value", step.cast(pa.string())))

    def table(name: str, rows: pa.Table) -> list[pa.RecordBatch]:
        counted = rows.group_by(["day", "role", "value"], use_threads=False).aggregate(
            [([], "count_all"), *((p, "sum") for p in positives)])
        columns = {"field": pa.array([name] * len(counted)), "day": counted["day"], "role": counted["role"],
                   "value": counted["value"], "count": counted["count_all"],
                   **{p: counted[f"{p}_sum"] for p in positives}}
        return pa.table(columns).combine_chunks().to_batches()

    return count


def chunks(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Gather Arrow batches into tables of about ``rows`` rows, each column in one piece."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(map(len, pending)) >= rows:
            yield pa.Table.from_batches(pending).combine_chunks()
            pending = []
    if pending:
        yield pa.Table.from_batches(pending).combine_chunks()


def explode(lists: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """Row numbers and steps of a list column; a list that is empty or null gives one null step."""
    lists = lists.combine_chunks()
    empty = pc.equal(pc.fill_null(pc.list_value_length(lists), 0), 0)
    bare = pc.indices_nonzero(empty).cast(pa.int64())
    steps = pc.list_flatten(lists)
    return (pa.concat_arrays([pc.list_parent_indices(lists).cast(pa.int64()), bare]),
            pa.concat_arrays([steps, pa.nulls(len(bare), steps.type)]))


# --- tables on disk -----------------------------------------------------------------------------------


def write(table: DataFrame, folder: Path, days: str) -> None:
    """Add one counting's table under ``folder``: ``days=FIRST_LAST/field=NAME/part-00000.parquet`` ….

    Rows of a file are in the order of day, falling count, value.
    """
    ordered = table.sortWithinPartitions("field", "day", F.desc("count"), "role", "value")
    write_parquet(ordered, folder / f"days={days}", by="field")


def read(session: SparkSession, folder: Path, binary: Sequence[str]) -> DataFrame:
    """All countings under ``folder`` as one table with the columns of :func:`table_schema`, unmerged."""
    columns = [c.split()[0].strip("`") for c in table_schema(binary).split(", ")]
    return session.read.schema(table_schema(binary)).parquet(uri(folder)).select(columns)


def uri(path: Path) -> str:
    """A path as Spark takes it, whatever its default file system (unlike ``as_uri``, with "=" kept)."""
    return f"file://{path.absolute()}"


# --- numbers ------------------------------------------------------------------------------------------


def moments(log: DataFrame, plan: Plan) -> pd.DataFrame:
    """Moments of every column of ``plan.moments`` by day and role.

    Returns:
        One row per ``name``, ``day``, ``role``: ``rows``; ``missing`` (null; for a length: an empty
        sequence); ``infinite`` (also NaN); and of the other values ``total``, ``m2`` (sum of squared
        deviations from their mean), ``low``, ``high`` (NaN where there are none).
    """
    aggregates = [F.count(F.lit(1)).alias("rows")]
    for i, x in enumerate(plan.moments.values()):
        finite = F.when(~F.isnan(x) & (F.abs(x) < float("inf")), x)
        aggregates += [F.count_if(x.isNull()).alias(f"missing_{i}"), F.count(finite).alias(f"finite_{i}"),
                       F.sum(finite).alias(f"total_{i}"), F.var_pop(finite).alias(f"variance_{i}"),
                       F.min(finite).alias(f"low_{i}"), F.max(finite).alias(f"high_{i}")]
    # Sums of doubles depend on their order, and partial results arrive in any order: they are therefore
    # gathered per partition and added up here in the partitions' order.
    parts = (log.withColumn("_part", F.spark_partition_id()).groupBy("_part", "_day", "_role")
             .agg(*aggregates).toArrow().to_pandas().sort_values(["_part", "_day", "_role"]))
    tables = []
    for i, name in enumerate(plan.moments):
        finite = parts[f"finite_{i}"].to_numpy()
        tables.append(pd.DataFrame({
            "name": name, "day": parts["_day"], "role": parts["_role"], "rows": parts["rows"],
            "missing": parts[f"missing_{i}"],
            "infinite": parts["rows"].to_numpy() - parts[f"missing_{i}"].to_numpy() - finite,
            "total": parts[f"total_{i}"].astype(float).fillna(0.0),
            "m2": parts[f"variance_{i}"].astype(float).fillna(0.0).to_numpy() * finite,
            "low": parts[f"low_{i}"].astype(float), "high": parts[f"high_{i}"].astype(float)}))
    return combine(pd.concat(tables, ignore_index=True), ["name", "day", "role"])


def combine(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Merge rows of :func:`moments` that agree on ``keys`` (Chan, Golub and LeVeque 1979, equation 2.1)."""
    count = table["rows"] - table["missing"] - table["infinite"]
    mean = (table["total"] / count.where(count > 0)).fillna(0.0)
    frame = table.assign(_count=count, _mean=mean)
    groups = frame.groupby(list(keys), sort=True, observed=True)
    merged = groups[["rows", "missing", "infinite", "total", "m2", "_count"]].sum()
    merged["low"], merged["high"] = groups["low"].min(), groups["high"].max()
    merged_mean = (merged["total"] / merged["_count"].where(merged["_count"] > 0)).fillna(0.0)
    deviation = frame["_mean"] - merged_mean.reindex(pd.MultiIndex.from_frame(frame[list(keys)])
                                                     if len(keys) > 1 else frame[keys[0]]).to_numpy()
    between = (deviation**2 * frame["_count"]).groupby([frame[k] for k in keys], sort=True).sum()
    merged["m2"] += between
    return merged.drop(columns="_count").reset_index()


def quantiles(log: DataFrame, plan: Plan, rows: int) -> np.ndarray:
    """Quantiles of the numeric fields on ``train`` at the shares 0, 1/1024, …, 1.

    Exact up to 262,144 rows; of a larger log, those of a sample of about that many rows, drawn by a hash of
    the row's number: a share is then off by 0.1 percentage points (one standard error), and every run draws
    the same rows.

    Args:
        log: the ingested log.
        plan: names the numeric fields.
        rows: number of rows of ``log``.

    Returns:
        float64 [N, 1025], each a value of the log (inverted distribution function); NaN for a field without
        a finite value.
    """
    every = -(-rows // SAMPLE_ROWS)
    sample = log.where((F.col("_role") == "train") & (F.pmod(F.xxhash64("_row"), F.lit(every)) == 0))
    drawn = sample.select(*plan.numeric).toArrow().to_pandas().to_numpy(dtype=float)
    grid = np.full((len(plan.numeric), QUANTILES + 1), np.nan)
    for i, column in enumerate(drawn.T):
        finite = column[np.isfinite(column)]
        if len(finite):
            grid[i] = np.quantile(finite, np.linspace(0, 1, QUANTILES + 1), method="inverted_cdf")
    return grid
