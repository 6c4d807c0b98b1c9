"""Rows as fixed-width records: one opaque block of bytes per row, which Spark only has to sort.

A record is a structured NumPy dtype whose members are named like the column files, so that taking the records
apart again is one slice per column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctrmodels.data import PADDING, Schema
from tasks.counts import CHUNK_ROWS, chunks
from tasks.encoding.vocabulary import Lookup, Vocabulary

CHUNK_BYTES = 2**28
SPARK_SCHEMA = "_role string, _time bigint, _row bigint, record binary"


@dataclass(frozen=True)
class Number:
    """How a numeric field is encoded, by statistics of train.

    Attributes:
        mean, deviation: of its finite values; a field that never varies has deviation 0.
        edges: float64, rising: bucket ``i`` holds ``edges[i-1] < x <= edges[i]``.
    """

    mean: float
    deviation: float
    edges: np.ndarray

    @property
    def size(self) -> int:
        """Number of ids: the buckets, and one for a missing value."""
        return len(self.edges) + 2

    def encode(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float64 [n] (NaN or infinite = missing) → bucket ids int32 [n], z-scores float32 [n] (missing → 0)."""
        known = np.isfinite(values)
        ids = np.where(known, np.searchsorted(self.edges, values, side="left"), self.size - 1)
        centred = np.where(known, values, self.mean) - self.mean
        scaled = centred / self.deviation if self.deviation > 0 else np.zeros_like(centred)
        return ids.astype(np.int32), scaled.astype(np.float32)


def edges(quantiles: np.ndarray, buckets: int) -> np.ndarray:
    """Inner edges of ``buckets`` buckets of equal mass, fewer where a value is more frequent than a bucket.

    Args:
        quantiles: float64 [Q+1] at the shares 0, 1/Q, …, 1; NaN for a field without a value.
        buckets: how many are wanted.
    """
    steps = np.round(np.arange(1, buckets) * (len(quantiles) - 1) / buckets).astype(int)
    inner = np.unique(quantiles[steps])
    return inner[inner < quantiles[-1]]


def layout(schema: Schema) -> np.dtype:
    """The record's dtype: a member per column file of a role, in the shape of that file's rows."""
    return np.dtype([
        ("ids", "<i4", (len(schema.id_fields),)),
        ("numeric", "<f4", (len(schema.numeric_fields),)),
        *((f"sequence.{f.name}", "<i4", (f.max_length,)) for f in schema.sequence_fields),
        ("labels", "<f4", (len(schema.objectives),)),
        ("position", "<i4"), ("propensity", "<f8"), ("group", "<i8"), ("time", "<i8"), ("row", "<i8"),
    ])


@dataclass(frozen=True)
class RecordEncoder:
    """Turns Arrow batches of rows into records; a function for Spark's ``mapInArrow``.

    Attributes:
        schema: the encoded log's description.
        vocabularies: by field that owns an id space of values.
        numbers: by numeric field.
        joined: the vocabularies too large for a lookup; their values have been replaced by ids before.
    """

    schema: Schema
    vocabularies: Mapping[str, Vocabulary]
    numbers: Mapping[str, Number]
    joined: frozenset[str]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Encode ``batches`` (with ``_group`` already a 64-bit hash) to the columns of ``SPARK_SCHEMA``."""
        lookups: dict[str, Any] = {
            name: _as_it_is if name in self.joined else Lookup(v) for name, v in self.vocabularies.items()}
        rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // layout(self.schema).itemsize))
        for chunk in chunks(batches, rows):
            keys = {name: chunk[name].combine_chunks() for name in ("_role", "_time", "_row")}
            yield pa.record_batch({**keys, "record": blocks(self.encode(chunk, lookups))})

    def encode(self, chunk: pa.Table, lookups: Mapping[str, Any]) -> np.ndarray:
        """Structured array [n] of :func:`layout` from a table of rows."""
        records = np.zeros(len(chunk), layout(self.schema))
        position = 0
        for i, field in enumerate(self.schema.id_fields):
            column = chunk[field.name].combine_chunks()
            if field.kind == "numeric":
                values = pc.fill_null(column, float("nan")).to_numpy()
                ids, records["numeric"][:, position] = self.numbers[field.name].encode(values)
                position += 1
            else:
                ids = lookups[field.name](column)
            records["ids"][:, i] = ids
        for field in self.schema.sequence_fields:
            records[f"sequence.{field.name}"] = _matrix(
                chunk[field.name].combine_chunks(), lookups[field.of or field.name], field.max_length)
        for i, objective in enumerate(self.schema.objectives):
            labels = pc.fill_null(chunk[objective.name].cast(pa.float64()), float("nan"))
            records["labels"][:, i] = labels.to_numpy()
        for name in ("position", "propensity", "group", "time", "row"):
            records[name] = chunk[f"_{name}"].to_numpy()
        return records


def _as_it_is(ids: pa.Array) -> np.ndarray:
    return ids.to_numpy()


def _matrix(lists: pa.ListArray, lookup: Any, length: int) -> np.ndarray:
    """Ids of the first ``length`` steps of every list, int32 [n, length], padded on the right."""
    matrix = np.full((len(lists), length), PADDING, np.int32)
    row = pc.list_parent_indices(lists).to_numpy()
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    column = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = column < length
    matrix[row[kept], column[kept]] = lookup(pc.list_flatten(lists))[kept]
    return matrix


def blocks(records: np.ndarray) -> pa.Array:
    """Structured array [n] → Arrow binary [n], without a copy per row."""
    offsets = np.arange(len(records) + 1, dtype=np.int64) * records.dtype.itemsize
    return pa.Array.from_buffers(pa.binary(), len(records), [
        None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(records.tobytes())])


def records(column: pa.BinaryArray, dtype: np.dtype) -> np.ndarray:
    """The inverse of :func:`blocks`, as a view of the column's bytes."""
    _, offsets, data = column.buffers()
    first = np.frombuffer(offsets, np.int32)[column.offset]
    return np.frombuffer(data, dtype, count=len(column), offset=int(first))
