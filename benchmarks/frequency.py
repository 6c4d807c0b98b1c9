"""How fast frequency counts a log, beside the other ways to count it in Spark, in one run.

    python -m benchmarks.frequency --rows 10000000

A log of 26 fields with Zipf-distributed string values is generated in bounded memory into a temporary folder.
Every form counts values, by day and role with positives, except ``groupBy(field).count()``, which leaves out day,
role and positives: the least that any count costs. Forms take turns, so that a busy machine slows all alike; the
medians of wall and processor time are printed, and the ratio of ours to each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from tasks import counts
from tasks.runtime import spark

FIELDS = 26
FILES = 8
BLOCK_ROWS = 250_000
EXPONENT = 1.05
DAY = "2024-01-01"
ROLES = ("train", "valid", "test")
# As in display advertising logs: a few huge fields, many small ones; about a million values together.
SIZES = np.geomspace(4, 300_000, FIELDS).astype(int)


def generate(folder: Path, rows: int) -> None:
    """Write the log, one block of rows in memory at a time."""
    folder.mkdir(parents=True)
    shares = [np.cumsum(p / p.sum()) for p in (np.arange(1, n + 1) ** -EXPONENT for n in SIZES)]
    names = [pa.array([f"{i:x}{v:07x}" for v in range(n)]) for i, n in enumerate(SIZES)]
    per_file = -(-rows // FILES)
    for number in range(FILES):
        left = max(min(per_file, rows - number * per_file), 0)
        rng = np.random.default_rng([7, number])
        writer = None
        while left:
            n = min(left, BLOCK_ROWS)
            block = _block(rng, n, shares, names)
            writer = writer or pq.ParquetWriter(folder / f"part-{number:05d}.parquet", block.schema)
            writer.write_table(block)
            left -= n
        if writer is not None:
            writer.close()


def _block(rng: np.random.Generator, rows: int, shares: list[np.ndarray], names: list[pa.Array]) -> pa.Table:
    columns = {f"c{i}": names[i].take(pa.array(np.searchsorted(share, rng.random(rows)).clip(max=len(share) - 1)))
               for i, share in enumerate(shares)}
    columns["_day"] = pa.array(np.full(rows, DAY))
    columns["_role"] = pa.array(rng.choice(ROLES, rows, p=[0.8, 0.1, 0.1]))
    columns["click"] = pa.array((rng.random(rows) < 0.1).astype(np.int8))
    return pa.table(columns)


def plan() -> counts.Plan:
    """What is counted: all fields, and the positives of one objective."""
    return counts.Plan(tuple(f"c{i}" for i in range(FIELDS)), (), ("click",), {}, ())


def ours(log: DataFrame) -> None:
    """The pass over dictionary codes that frequency takes."""
    folder = Path(log.inputFiles()[0].removeprefix("file:")).parent
    sink(counts.count(log.sparkSession, folder, plan(), [(DAY, role) for role in ROLES]))


def one_pass(log: DataFrame) -> None:
    """One mapInArrow pass over Spark's rows: value counts of every batch by pyarrow, added up by Spark."""
    names = plan().values

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for chunk in counts.chunks(batches, BLOCK_ROWS):
            rows = pa.table({"day": chunk["_day"], "role": chunk["_role"],
                             "click": pc.equal(chunk["click"], 1).cast(pa.int64())})
            for name in names:
                found = rows.append_column("value", chunk[name]).group_by(
                    ["day", "role", "value"], use_threads=False).aggregate([([], "count_all"), ("click", "sum")])
                yield from pa.table({
                    "field": pa.array([name] * len(found)), "day": found["day"], "role": found["role"],
                    "value": found["value"], "count": found["count_all"],
                    "positive_click": found["click_sum"]}).combine_chunks().to_batches()

    columns = log.select("_day", "_role", "click", *names)
    sink(counts.merge(columns.mapInArrow(count, counts.table_schema(["click"]))))


def per_field(log: DataFrame) -> None:
    """26 × groupBy(field, day, role)."""
    for name in plan().values:
        sink(log.groupBy(name, "_day", "_role").agg(F.count(F.lit(1)), F.count_if(F.col("click") == 1)))


def least(log: DataFrame) -> None:
    """26 × groupBy(field).count(), without day, role and positives."""
    for name in plan().values:
        sink(log.groupBy(name).count())


def stacked(log: DataFrame) -> None:
    """All fields stacked into (field, value) rows, then one groupBy."""
    rows = log.unpivot(["_day", "_role", "click"], list(plan().values), "field", "value")
    sink(rows.groupBy("field", "value", "_day", "_role").agg(F.count(F.lit(1)), F.count_if(F.col("click") == 1)))


def sink(frame: DataFrame) -> None:
    """Compute every row and keep none, so that forms are compared by their counting alone."""
    frame.write.format("noop").mode("overwrite").save()


FORMS: dict[str, Callable[[DataFrame], None]] = {
    "ours": ours, "mapInArrow": one_pass, "groupBy per field": per_field, "groupBy(field).count()": least,
    "unpivot": stacked}


def processor_seconds() -> float:
    """Processor time of this process and all its descendants (the JVM and its Python workers)."""
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since it was listed
        parents[int(stat.parent.name)] = int(fields[1])
        used[int(stat.parent.name)] = sum(map(int, fields[11:15]))
    total, this = 0, os.getpid()
    for process in used:
        ancestor = process
        while ancestor not in (this, 0) and ancestor in parents:
            ancestor = parents[ancestor]
        total += used[process] if ancestor == this else 0
    return total / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Generate, count in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="after one that only warms up")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--partitions", type=int, default=4)
    arguments = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arguments.forms}
    with tempfile.TemporaryDirectory() as folder, spark.session("benchmark", arguments.partitions) as session:
        generate(Path(folder) / "log", arguments.rows)
        log = session.read.parquet(counts.uri(Path(folder) / "log"))
        for turn in range(arguments.rounds + 1):
            for name in arguments.forms:
                wall, processor = time.perf_counter(), processor_seconds()
                FORMS[name](log)
                if turn:
                    seconds[name].append((time.perf_counter() - wall, processor_seconds() - processor))
    medians = {name: tuple(statistics.median(s) for s in zip(*found, strict=True))
               for name, found in seconds.items()}
    print(f"{arguments.rows:,} rows x {FIELDS} fields, median of {arguments.rounds} rounds")
    print(f"{'form':<24}{'wall s':>9}{'cpu s':>9}{'ours / form, wall':>20}{'cpu':>7}")
    for name, (wall, processor) in medians.items():
        base = medians.get("ours", (float("nan"), float("nan")))
        print(f"{name:<24}{wall:>9.2f}{processor:>9.2f}{base[0] / wall:>20.2f}{base[1] / processor:>7.2f}")


if __name__ == "__main__":
    main()
