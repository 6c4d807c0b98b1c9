"""Stage ``encode``: values to ids by falling frequency on train, numbers standardised, columns per role.

Writes ``schema.json``, ``counts.npy``, ``vocab/FIELD.parquet`` and, for every role, the memory-mappable columns
that :class:`ctrmodels.data.Dataset` reads, rows in the order of time and reading. Spark encodes and sorts the
rows; the stage then copies the sorted records into the columns, a batch at a time. Everything learned from the
log (ids, means, bucket edges) is learned on ``train`` alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from ctrmodels.data import ROLES, Field, Objective, Scale, Schema
from ctrmodels.errors import InputError
from tasks import counts
from tasks.config import Data
from tasks.encoding import records, vocabulary
from tasks.encoding.arrays import ArrayFile
from tasks.encoding.records import Number, RecordEncoder
from tasks.encoding.vocabulary import Vocabulary
from tasks.runtime import spark
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, main

INT32 = 2**31 - 1
BATCH_ROWS = 2**16
SORT_ROWS = 4_000_000


def run(stage: Stage) -> None:
    """Encode the ingested log."""
    work = stage.scratch / "encode"
    shutil.rmtree(work, ignore_errors=True)  # of an attempt that was killed
    work.mkdir(parents=True)
    try:
        _encode_log(stage, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # as large as the log, and no later attempt reads it


def _encode_log(stage: Stage, work: Path) -> None:
    """The stage's outputs, by way of the folder ``work``."""
    data = stage.params.data
    ingested, counted = stage.input("ingest"), stage.input("frequency")
    with spark.session("encode", stage.params.ingest.partitions, spark.folder_bytes(ingested)) as session:
        with stage.timed("vocabulary"):
            vocabularies = _vocabularies(stage, session, counted, work)
        numbers = _numbers(data, counted, stage.params.encode.buckets)
        rows: dict[str, int] = json.loads((counted / "summary.json").read_text())["roles"]
        schema = _schema(data, vocabularies, numbers, rows)
        with stage.timed("rows"):
            log = session.read.parquet(counts.uri(ingested / "log"))
            joined = frozenset(n for n, v in vocabularies.items() if v.size > vocabulary.LOOKUP_VALUES)
            encoder = RecordEncoder(schema, vocabularies, numbers, joined)
            spark.write_parquet(_encode(log, encoder), work / "encoded")
            # From a file, since Spark looks at what it sorts twice: once to find the partitions' bounds.
            encoded = session.read.parquet(counts.uri(work / "encoded"))
            keys = ("_role", "_time", "_row")
            ordered = encoded.repartitionByRange(1 + sum(rows.values()) // SORT_ROWS, *keys)
            spark.write_parquet(ordered.sortWithinPartitions(*keys), work / "rows", by="_role")
    with stage.timed("columns"):
        tallies = {role: _write_columns(work / "rows", role, schema, stage.out) for role in ROLES}
    digest = hashlib.sha256("".join(t.roles.hexdigest() for t in tallies.values()).encode()).hexdigest()
    schema = replace(schema, roles_hash=digest)
    schema.save(stage.out / "schema.json")
    _write_counts(stage.out / "counts.npy", schema, vocabularies, tallies["train"])
    stage.facts |= {"rows": sum(rows.values()), "schema_hash": schema.hash}
    _record(stage, schema, tallies)


# --- what is learned on train -------------------------------------------------------------------------


def _vocabularies(stage: Stage, session: SparkSession, counted: Path, work: Path) -> dict[str, Vocabulary]:
    data = stage.params.data
    plan = counts.Plan.of(data)
    (stage.out / "vocab").mkdir()
    if not plan.values and not plan.steps:
        return {}
    table = counts.read(session, counted / "counts", plan.binary)
    summary = json.loads((counted / "summary.json").read_text())["fields"]
    partitions = 1 + sum(summary[name]["distinct_train"] for name in (*plan.values, *plan.steps)) // SORT_ROWS
    vocabulary.rank(table, plan.steps, stage.params.encode.min_count, work / "ranked", partitions)
    return {name: vocabulary.number(work / "ranked", name, stage.out / "vocab" / f"{name}.parquet")
            for name in (*plan.values, *plan.steps)}


def _numbers(data: Data, counted: Path, buckets: int) -> dict[str, Number]:
    moments = pd.read_parquet(counted / "moments.parquet")
    train = counts.combine(moments[moments["role"] == "train"], ["name"]).set_index("name")
    grid = np.load(counted / "quantiles.npy", allow_pickle=False)
    numbers = {}
    for name, quantiles in zip((f.name for f in data.fields if f.kind == "numeric"), grid, strict=True):
        m = train.loc[name]
        known = max(m["rows"] - m["missing"] - m["infinite"], 1)
        numbers[name] = Number(float(m["total"] / known), float(np.sqrt(m["m2"] / known)),
                               records.edges(quantiles, buckets))
    return numbers


def _schema(data: Data, vocabularies: dict[str, Vocabulary], numbers: dict[str, Number],
            rows: dict[str, int]) -> Schema:
    sizes = {name: v.size for name, v in vocabularies.items()} | {name: n.size for name, n in numbers.items()}
    fields = tuple(Field(f.name, f.kind, sizes[f.of or f.name], f.side, f.of, f.max_length) for f in data.fields)
    objectives = tuple(Objective(o.name, o.kind, o.after) for o in data.objectives)
    content = hashlib.sha256()
    for name, v in vocabularies.items():
        content.update(f"{name} {v.size} {v.digest}\n".encode())
    for name, n in numbers.items():
        content.update(f"{name} {n.mean!r} {n.deviation!r} {n.edges.tolist()}\n".encode())
    schema = Schema(fields, objectives, rows, content.hexdigest(), "",
                    {name: Scale(n.mean, n.deviation) for name, n in numbers.items()})
    if schema.total_vocab > INT32:
        raise InputError("params.yaml", "encode.min_count", schema.total_vocab,
                         f"more ids than an int32 numbers ({INT32})",
                         "raise min_count, or leave out the field with the largest vocabulary")
    return schema


# --- rows ---------------------------------------------------------------------------------------------


def _encode(log: DataFrame, encoder: RecordEncoder) -> DataFrame:
    """``log`` as records with their sort keys, in no order."""
    schema = encoder.schema
    columns = [f.name for f in schema.fields] + [o.name for o in schema.objectives]
    group = F.when(F.isnull("_group"), 0).otherwise(F.xxhash64("_group")).alias("_group")
    frame = log.select(*columns, "_role", "_time", "_row", "_position", "_propensity", group)
    for f in schema.fields:
        owner = f.of or f.name
        if owner in encoder.joined:
            source = encoder.vocabularies[owner]
            frame = (vocabulary.join_steps(frame, f.name, source) if f.kind == "sequence"
                     else vocabulary.join_values(frame, source))
    return frame.mapInArrow(encoder, records.SPARK_SCHEMA)


@dataclass
class Tally:
    """What is counted while a role's columns are written.

    Attributes:
        rows: number of rows.
        unknown: by id field and sequence, how many values have the last id (numeric: are missing).
        values: by id field and sequence, how many values there are.
        buckets: by numeric field, int64 [size] rows per id.
        roles: digest over the role's name and its rows' numbers.
    """

    rows: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    buckets: dict[str, np.ndarray] = field(default_factory=dict)
    roles: Any = field(default_factory=hashlib.sha256)

    def add(self, schema: Schema, batch: np.ndarray) -> None:
        """Count a batch of records."""
        self.rows += len(batch)
        self.roles.update(batch["row"].tobytes())
        for i, f in enumerate(schema.id_fields):
            ids = batch["ids"][:, i]
            self._count(f, ids)
            if f.kind == "numeric":
                found = np.bincount(ids, minlength=f.vocab)
                self.buckets[f.name] = self.buckets.get(f.name, 0) + found
        for f in schema.sequence_fields:
            steps = batch[f"sequence.{f.name}"]
            self._count(f, steps[steps >= 0])

    def _count(self, f: Field, ids: np.ndarray) -> None:
        self.unknown[f.name] = self.unknown.get(f.name, 0) + int((ids == f.vocab - 1).sum())
        self.values[f.name] = self.values.get(f.name, 0) + ids.size


def _write_columns(rows: Path, role: str, schema: Schema, out: Path) -> Tally:
    """Copy a role's sorted records into its columns ``out/ROLE/COLUMN.npy``."""
    dtype = records.layout(schema)
    folder = out / role
    folder.mkdir()
    tally = Tally()
    tally.roles.update(role.encode())
    with ExitStack() as stack:
        files = {}
        for name in dtype.names or ():
            base, shape = dtype[name].subdtype or (dtype[name], ())
            files[name] = stack.enter_context(
                ArrayFile(folder / f"{name}.npy", base, (schema.rows[role], *shape)))
        for part in sorted((rows / f"_role={role}").glob("part-*.parquet")):
            for batch in pq.ParquetFile(part).iter_batches(BATCH_ROWS, columns=["record"]):
                decoded = records.records(batch.column(0), dtype)
                tally.add(schema, decoded)
                for name, file in files.items():
                    file.append(decoded[name])
    return tally


def _write_counts(path: Path, schema: Schema, vocabularies: dict[str, Vocabulary], train: Tally) -> None:
    """How often each id occurs on train, all id spaces end to end."""
    with ArrayFile(path, np.dtype("<i8"), (schema.total_vocab,)) as file:
        for f in schema.id_spaces:
            if f.kind == "numeric":
                file.append(train.buckets[f.name].astype("<i8"))
                continue
            for batch in pq.ParquetFile(vocabularies[f.name].path).iter_batches(BATCH_ROWS, columns=["count"]):
                file.append(batch.column(0).to_numpy())
            file.append(np.array([train.unknown.get(f.name, 0)], "<i8"))


# --- results ------------------------------------------------------------------------------------------


def _record(stage: Stage, schema: Schema, tallies: dict[str, Tally]) -> None:
    stage.metric("vocab", schema.total_vocab)
    for role, count in schema.rows.items():
        stage.metric(f"rows.{role}", count)
    for f in schema.fields:
        stage.metric(f"vocab.{f.name}", f.vocab)
        for role, tally in tallies.items():
            if tally.values.get(f.name):
                kind = "missing" if f.kind == "numeric" else "oov"
                stage.metric(f"{kind}.{role}.{f.name}", tally.unknown[f.name] / tally.values[f.name])
    owners = schema.id_spaces
    stage.figure(Figure(
        "vocabulary", "Ids of each field", "bar",
        "Ids after rare values were merged into one; the length of the embedding table is their sum.",
        Axis("field"), Axis("ids", "log"), [Series("ids", [f.name for f in owners], [f.vocab for f in owners])]))
    named = [f for f in schema.fields if f.kind != "numeric"]
    stage.figure(Figure(
        "unknown", "Values without an id of their own", "bar",
        "Share of values that are rare on train or absent from it. What train shows of them is all a model can "
        "know, so a share that rises towards test marks fields that age.",
        Axis("field"), Axis("share of values"),
        [Series(role, [f.name for f in named],
                [t.unknown.get(f.name, 0) / max(t.values.get(f.name, 0), 1) for f in named])
         for role, t in tallies.items()]))


if __name__ == "__main__":
    main("encode", run)
