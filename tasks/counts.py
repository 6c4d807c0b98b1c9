"""Counting a log: how often every value of every field occurs, with its positives, by day and role.

The tables are exact and merge by summation (:func:`merge`), so a new day is counted alone and its tables are
laid beside the older ones. Values stay in Spark: no vocabulary ever reaches the driver.

Parquet stores a column as codes into a dictionary, so most of the counting needs no value at all: each Spark task
reads the columns of some row groups one by one, as they are stored, counts codes by day and role, and sends on one
row per distinct value; Spark adds these up. Every column's bytes are read once. Grouping in Spark from the start
decodes and hashes a string per row and field instead (``benchmarks/frequency.py`` compares).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from tasks.config import Data
from tasks.runtime.spark import write_parquet

KEYS = ("field", "day", "role", "value")
CHUNK_ROWS = 250_000
PIECE_ROWS = 1_000_000
BATCH_ROWS = 2**16
SPARSE = 16
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


def count(session: SparkSession, folder: Path, plan: Plan, slots: Sequence[tuple[str, str]]) -> DataFrame:
    """Count the values of all fields of ``plan``.

    Args:
        session: the Spark session.
        folder: parquet files of an ingested log, readable by the executors.
        plan: what to count.
        slots: the (day, role) pairs that occur.

    Returns:
        Counts with the columns of :func:`table_schema`, each key once.
    """
    pieces = _pieces(folder)
    fields = [*plan.values, *plan.steps]
    positives = "".join(f", positive_{name} bigint" for name in plan.binary)
    partial = session.range(len(pieces), numPartitions=len(pieces)).mapInArrow(
        _counter(pieces, plan.values, plan.steps, plan.binary, list(slots)),
        f"field int, slot int, value string, `count` bigint{positives}")
    # Numbers for field, day and role: Spark then hashes one string per row instead of four.
    numbered = partial.groupBy("field", "slot", "value").agg(
        *(F.sum(c).alias(c) for c in ("count", *(f"positive_{name}" for name in plan.binary))))
    days, roles = ([slot[i] for slot in slots] for i in (0, 1))
    names = {"field": F.element_at(F.lit(fields), F.col("field") + 1),
             "day": F.element_at(F.lit(days), F.col("slot") + 1),
             "role": F.element_at(F.lit(roles), F.col("slot") + 1)}
    return numbered.select(*(c.alias(n) for n, c in names.items()), "value", "count",
                           *(f"positive_{name}" for name in plan.binary))


def _pieces(folder: Path) -> list[tuple[str, list[int]]]:
    """Files and runs of their row groups, each run of about ``PIECE_ROWS`` rows."""
    found: list[tuple[str, list[int]]] = []
    for path in sorted(folder.glob("*.parquet")):
        metadata, rows = pq.read_metadata(path), PIECE_ROWS
        for group in range(metadata.num_row_groups):
            if rows >= PIECE_ROWS:
                found.append((str(path.absolute()), []))
                rows = 0
            found[-1][1].append(group)
            rows += metadata.row_group(group).num_rows
    return found


def merge(tables: DataFrame) -> DataFrame:
    """One table from tables counted apart: counts and positives of the same key are summed."""
    sums = [c for c in tables.columns if c not in KEYS]
    return tables.groupBy(*KEYS).agg(*(F.sum(c).alias(c) for c in sums))


def _counter(pieces: Sequence[tuple[str, Sequence[int]]], values: Sequence[str], steps: Sequence[str],
             binary: Sequence[str], slots: Sequence[tuple[str, str]],
             ) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """A function for ``mapInArrow`` over numbers of ``pieces`` (file, row groups)."""
    number = {slot: i for i, slot in enumerate(slots)}

    def count_pieces(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for piece in batch["id"].to_pylist():
                yield from count_piece(*pieces[piece])

    def count_piece(path: str, groups: Sequence[int]) -> Iterator[pa.RecordBatch]:
        file = pq.ParquetFile(path, read_dictionary=["_day", "_role", *values])

        def read(name: str) -> pa.Array:
            column = file.read_row_groups(groups, [name], use_threads=False)[name]
            return column.unify_dictionaries().combine_chunks()

        days, roles = read("_day"), read("_role")
        table = np.array([[number.get((day, role), -1) for role in roles.dictionary.to_pylist()]
                          for day in days.dictionary.to_pylist()])
        present, slot = np.unique(table[days.indices.to_numpy(), roles.indices.to_numpy()], return_inverse=True)
        hits = [pc.fill_null(pc.equal(read(name), 1), False).to_numpy(zero_copy_only=False) for name in binary]
        for field, name in enumerate((*values, *steps)):
            column, rows = read(name), None
            if name in steps:
                parents, column = explode(column)
                rows = parents.to_numpy()
            yield from count_column(field, column, present, slot, hits, rows)

    def count_column(field: int, column: pa.Array, present: np.ndarray, slot: np.ndarray,
                     hits: Sequence[np.ndarray], rows: np.ndarray | None) -> Iterator[pa.RecordBatch]:
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        if rows is not None:
            slot, hits = slot[rows], [hit[rows] for hit in hits]
        null = len(column.dictionary)
        cells = pc.fill_null(column.indices, null).to_numpy().astype(np.int64) * len(present) + slot
        size, names = (null + 1) * len(present), None
        if size > SPARSE * len(cells):  # many values on many days: only few of the pairs occur
            names, cells = np.unique(cells, return_inverse=True)
            size = len(names)
        total = np.bincount(cells, minlength=size)
        found = np.flatnonzero(total)
        where = found if names is None else names[found]
        code = where // len(present)
        columns = {"field": pa.array(np.full(len(found), field, np.int32)),
                   "slot": pa.array(present[where % len(present)].astype(np.int32)),
                   "value": column.dictionary.take(pa.array(code, mask=code == null)).cast(pa.string()),
                   "count": pa.array(total[found])}
        columns |= {f"positive_{name}": pa.array(np.bincount(cells[hit], minlength=size)[found])
                    for name, hit in zip(binary, hits, strict=True)}
        yield from pa.table(columns).to_batches(max_chunksize=BATCH_ROWS)

    return count_pieces


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


def explode(lists: pa.ListArray) -> tuple[pa.Array, pa.Array]:
    """Row numbers and steps of a list column; a list that is empty or null gives one null step."""
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


def quantiles(log: DataFrame, plan: Plan, rows: int, sample_rows: int) -> np.ndarray:
    """Quantiles of the numeric fields on ``train`` at the shares 0, 1/1024, …, 1.

    Exact up to ``sample_rows`` rows; of a larger log, those of a sample of about that many rows, drawn by a
    hash of the row's number, so that every run draws the same. The standard error of a share p is then
    √(p(1 − p) / n): 0.04 percentage points or less for two million rows.

    Args:
        log: the ingested log.
        plan: names the numeric fields.
        rows: number of rows of ``log``.
        sample_rows: how many of them to draw.

    Returns:
        float64 [N, 1025], each a value of the log (inverted distribution function); NaN for a field without
        a finite value.
    """
    every = max(-(-rows // sample_rows), 1)
    sample = log.where((F.col("_role") == "train") & (F.pmod(F.xxhash64("_row"), F.lit(every)) == 0))
    drawn = sample.select(*plan.numeric).toArrow().to_pandas().to_numpy(dtype=float)
    grid = np.full((len(plan.numeric), QUANTILES + 1), np.nan)
    for i, column in enumerate(drawn.T):
        finite = column[np.isfinite(column)]
        if len(finite):
            grid[i] = np.quantile(finite, np.linspace(0, 1, QUANTILES + 1), method="inverted_cdf")
    return grid
