"""Vocabularies ranked by frequency, and the two ways from a value to its id.

Ranking is Spark's distributed sort. Its result is then read once, in order and a batch at a time, to number the
values; neither the driver nor a single task ever holds a vocabulary. A row's values are looked up in Arrow
where the vocabulary is small enough to be held by every worker (:class:`Lookup`); the others are joined by
Spark (:func:`join_values`, :func:`join_steps`), which shuffles the rows but has no limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from tasks import counts
from tasks.runtime.spark import write_parquet

LOOKUP_VALUES = 500_000
BATCH_ROWS = 2**16
SCHEMA = pa.schema([("value", pa.string()), ("id", pa.int32()), ("count", pa.int64())])


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one field's values.

    Attributes:
        name: the field.
        path: parquet with ``value``, ``id``, ``count``, by rising id; null may be a value.
        size: number of ids, one more than there are rows in ``path``.
        digest: sha256 over the values in the order of their ids.
    """

    name: str
    path: Path
    size: int
    digest: str

    @property
    def unknown(self) -> int:
        """The id of every value that has none of its own."""
        return self.size - 1


# --- ranking ------------------------------------------------------------------------------------------


def rank(table: DataFrame, steps: Sequence[str], min_count: int, folder: Path,
         partitions: int) -> None:
    """Write every field's values seen at least ``min_count`` times on train, the most frequent first.

    Ties are broken by the value (by its UTF-8 bytes, null first).

    Args:
        table: counts as :func:`tasks.counts.read` gives them.
        steps: sequence fields, in whose counts null is no value but an empty sequence.
        min_count: least number of rows on train.
        folder: receives ``field=NAME/part-*.parquet``; the parts follow one another.
        partitions: into how many the sort divides the values, of all fields together.
    """
    train = table.where((F.col("role") == "train") & ~(F.col("field").isin(list(steps)) & F.isnull("value")))
    totals = train.groupBy("field", "value").agg(F.sum("count").alias("count"))
    order = (F.asc("field"), F.desc("count"), F.asc_nulls_first("value"))
    ranked = totals.where(F.col("count") >= min_count).repartitionByRange(partitions, *order)
    write_parquet(ranked.sortWithinPartitions(*order), folder, by="field")


def number(ranked: Path, name: str, path: Path) -> Vocabulary:
    """Give the values that :func:`rank` wrote for field ``name`` their ids, written to ``path``."""
    parts = sorted((ranked / f"field={name}").glob("part-*.parquet"))
    batches = (b for p in parts for b in pq.ParquetFile(p).iter_batches(BATCH_ROWS, columns=["value", "count"]))
    # Two digests, of lengths and of bytes, so that the result does not depend on where batches end.
    lengths, text = hashlib.sha256(), hashlib.sha256()
    first = 0
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for table in _regroup(batches, BATCH_ROWS):
            ids = pa.array(np.arange(first, first + len(table), dtype=np.int32))
            values = table["value"].combine_chunks()
            writer.write_table(pa.table([values, ids, table["count"]], schema=SCHEMA))
            lengths.update(pc.fill_null(pc.binary_length(values), -1).to_numpy().astype("<i4").tobytes())
            text.update(b"".join(v for v in values.cast(pa.binary()).to_pylist() if v is not None))
            first += len(table)
    digest = hashlib.sha256(lengths.digest() + text.digest()).hexdigest()
    return Vocabulary(name, path, first + 1, digest)


def _regroup(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``rows`` rows (the last one may be smaller): files then repeat exactly."""
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        while sum(map(len, pending)) >= rows:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, rows)
            pending = table.slice(rows).to_batches()
    if pending:
        yield pa.Table.from_batches(pending)


# --- values to ids ------------------------------------------------------------------------------------


class Lookup:
    """Ids of values from a vocabulary held in memory."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.unknown = vocabulary.unknown
        self.values = pq.read_table(vocabulary.path, columns=["value"])["value"].combine_chunks()

    def __call__(self, values: pa.Array) -> np.ndarray:
        """int32 [n] ids of ``values``."""
        found = pc.index_in(values.cast(pa.string()), value_set=self.values)
        return pc.fill_null(found, self.unknown).to_numpy().astype(np.int32, copy=False)


def join_values(frame: DataFrame, vocabulary: Vocabulary) -> DataFrame:
    """``frame`` with the values of the vocabulary's field replaced by their ids."""
    name = vocabulary.name
    ids = _table(frame, vocabulary)
    joined = frame.join(ids, F.col(name).eqNullSafe(ids["_value"]), "left")
    return joined.withColumn(name, F.coalesce("_id", F.lit(vocabulary.unknown))).drop("_value", "_id")


def join_steps(frame: DataFrame, name: str, vocabulary: Vocabulary) -> DataFrame:
    """``frame`` with the steps of sequence ``name`` replaced by their ids in ``vocabulary``."""
    ids = _table(frame, vocabulary)
    steps = frame.select("_row", F.posexplode(name).alias("_at", "_step"))
    found = steps.join(ids, F.col("_step") == ids["_value"], "left").select(
        "_row", F.struct("_at", F.coalesce("_id", F.lit(vocabulary.unknown)).alias("id")).alias("_step"))
    lists = found.groupBy("_row").agg(F.sort_array(F.collect_list("_step"))["id"].alias("_ids"))
    joined = frame.join(lists, "_row", "left")
    return joined.withColumn(name, F.coalesce("_ids", F.array().cast("array<int>"))).drop("_ids")


def _table(frame: DataFrame, vocabulary: Vocabulary) -> DataFrame:
    read = frame.sparkSession.read.schema("value string, id int").parquet(counts.uri(vocabulary.path))
    return read.select(F.col("value").alias("_value"), F.col("id").alias("_id"))
