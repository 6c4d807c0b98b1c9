"""Spark sessions that compute the same rows in the same order on any machine, and parquet with stable names.

Local by default. Two environment variables put a cluster in its place without a change of code:

* ``CTRMODELS_SPARK_MASTER``: a master URL; default ``local[*]``.
* ``CTRMODELS_SPARK_CONF``: further settings, one ``key=value`` per line; they win over the ones below.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ctrmodels.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

GIB = 2**30
ROW_GROUP = 2**17  # rows
SMALL_BYTES = 2**28
# What Spark does to rows: never dependent on the machine. Split sizes and partition counts are fixed, since
# they decide the order in which rows are read; adaptive execution would merge partitions by their bytes.
SEMANTICS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.ansi.enabled": "true",
    "spark.sql.caseSensitive": "true",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.files.minPartitionNum": "8",
    "spark.sql.files.maxPartitionBytes": str(128 * 2**20),
    "spark.sql.leafNodeDefaultParallelism": "8",
    "spark.sql.adaptive.coalescePartitions.enabled": "false",
    "spark.sql.adaptive.skewJoin.enabled": "false",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # what pandas writes; Spark has no such timestamp
    "spark.sql.csv.parser.columnPruning.enabled": "false",  # pruned rows would not be checked for their width
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.pyspark.fallback.enabled": "false",
}
LOCAL = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
}
# A failed job reaches Python as an exception with its Java stack trace; the log would only repeat it.
QUIET = {"spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}
# What an innermost error condition means to the user; a record's own text stays out of messages.
READ_PROBLEMS = {
    "MALFORMED_CSV_RECORD": "a line has more or fewer columns than described",
    "MALFORMED_RECORD_IN_PARSING": "a line has more or fewer columns than described",
}
VALUE_PROBLEMS = ("CAST_INVALID_INPUT", "CAST_OVERFLOW", "ARITHMETIC_OVERFLOW", "DIVIDE_BY_ZERO", "INVALID_ARRAY_INDEX",
                  "CANNOT_PARSE_TIMESTAMP", "NUMERIC_VALUE_OUT_OF_RANGE")


@contextmanager
def session(name: str, partitions: int = 4, input_bytes: int | None = None) -> Iterator[SparkSession]:
    """A Spark session for the block; a session that is already running is used and left running.

    Args:
        name: the application's name.
        partitions: number of partitions after a shuffle.
        input_bytes: about how much it will read; ``None`` if unknown. A small local job spends most of its time
            compiling itself, so that its virtual machine is told not to optimise.

    Raises:
        InputError: no suitable Java, or a line of CTRMODELS_SPARK_CONF is not ``key=value``.
    """
    from pyspark.sql import SparkSession

    logging.getLogger("py4j").setLevel(logging.WARNING)
    for noisy in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):  # they print what is raised anyway
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    running = SparkSession.getActiveSession()
    if running is None:
        _require_java()
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    builder = SparkSession.builder.appName(name)
    for key, value in _configuration(partitions, running is None, input_bytes).items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        if running is None:
            spark.stop()


def write_parquet(frame: DataFrame, folder: Path, by: str | None = None) -> int:
    """Write ``frame`` as ``folder/part-00000.parquet`` …, one file per non-empty partition, in their order.

    Equal rows give equal bytes: Spark's own writer puts random ids into file names, and lists a column's
    encodings in an order that each Java process picks anew, so each task writes its file with pyarrow.
    ``folder`` must lie where both the driver and the executors, as the same user, can write.

    Args:
        frame: the rows; ``by`` needs those of one value to follow one another within a partition.
        folder: where to write.
        by: a column whose values become folders ``BY=VALUE`` with files of their own, and which is left out
            of the files.

    Returns:
        The number of files.
    """
    from pyspark.sql.pandas.types import to_arrow_schema

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as partial:
        frame.mapInArrow(_partition_writer(partial, ROW_GROUP, by), "file string").write.format("noop").mode(
            "overwrite").save()
        parts = sorted(Path(partial).rglob("*.parquet"))
        if not parts and by is None:
            parts = [Path(partial) / "empty.parquet"]
            pq.write_table(to_arrow_schema(frame.schema).empty_table(), parts[0])
        folder.mkdir(parents=True, exist_ok=True)
        numbers: Counter[Path] = Counter()
        for part in parts:
            target = folder / part.parent.relative_to(partial)
            target.mkdir(exist_ok=True)
            part.replace(target / f"part-{numbers[target]:05d}.parquet")
            numbers[target] += 1
    return len(parts)


def _partition_writer(folder: str, group: int, by: str | None,
                      ) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What each task does with its partition. It travels to the executors by value: they need no ctrmodels."""

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from itertools import groupby
        from pathlib import Path

        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
        from pyspark import TaskContext

        task = TaskContext.get()
        assert task is not None  # this runs inside a task

        def pieces() -> Iterator[tuple[str, pa.RecordBatch]]:
            for batch in batches:
                if by is None:
                    yield "", batch
                    continue
                value, start = batch[by], 0
                bare = batch.drop_columns([by])
                changes = pc.indices_nonzero(pc.not_equal(value[1:], value[:-1])).to_pylist() if len(value) else []
                for end in [*(c + 1 for c in changes), len(value)]:
                    yield f"{by}={value[start]}", bare.slice(start, end - start)
                    start = end

        for name, run in groupby(pieces(), key=lambda piece: piece[0]):
            home = Path(folder) / name
            home.mkdir(exist_ok=True)
            # A second attempt at the same partition writes a file of its own; renaming it is atomic.
            partial = home / f"{task.partitionId():05d}.{task.taskAttemptId()}.partial"
            writer, waiting, rows = None, [], 0
            for _, batch in run:
                writer = writer or pq.ParquetWriter(partial, batch.schema)
                waiting.append(batch)
                rows += batch.num_rows
                if rows >= group:
                    writer.write_table(pa.Table.from_batches(waiting), row_group_size=rows)
                    waiting, rows = [], 0
            if writer is not None:
                if rows:
                    writer.write_table(pa.Table.from_batches(waiting), row_group_size=rows)
                writer.close()
                partial.replace(home / f"{task.partitionId():05d}.parquet")
        yield from ()

    return write


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn a Spark failure that the data cause into one line.

    Args:
        where: what to call the data when the failure names no file.

    Raises:
        InputError: a file is broken or not as described, or an expression met a value it cannot take.
    """
    from py4j.protocol import Py4JJavaError
    from pyspark.errors import PySparkException

    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        causes = list(_causes(error))
        condition, message = causes[-1]
        for outer, text in causes:
            if outer.startswith("FAILED_READ_FILE"):
                path = re.search(r"reading file (\S+?)\.?( |$)", text)
                raise InputError(path[1] if path else where, "file", condition or "unreadable",
                                 READ_PROBLEMS.get(condition, message),
                                 "mend the file, or its description in data.files") from error
        if condition in VALUE_PROBLEMS:
            raise InputError(where, "expression", condition, message,
                             "mend the expression, e.g. with try_cast(column as double)") from error
        raise


def explain(error: Exception) -> str:
    """The innermost message of a Spark failure, on one line."""
    return list(_causes(error))[-1][1]


def _causes(error: Exception) -> Iterator[tuple[str, str]]:
    """(condition, message) from the outermost to the innermost cause; the condition is empty where there is none."""
    from py4j.java_gateway import is_instance_of
    from pyspark import SparkContext

    cause = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    context = SparkContext._active_spark_context
    if cause is None or context is None:
        yield "", " ".join(str(error).split())
        return
    while cause is not None:
        known = is_instance_of(context._gateway, cause, "org.apache.spark.SparkThrowable")
        condition = cause.getCondition() if known else None
        text = str(cause.getMessage() or cause.getClass().getSimpleName()).split("SQLSTATE")[0]
        yield str(condition or ""), " ".join(text.split())
        cause = cause.getCause()


def folder_bytes(folder: Path) -> int:
    """Size of all files below ``folder``."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _configuration(partitions: int, fresh: bool, input_bytes: int | None) -> dict[str, str]:
    """All settings; those of the virtual machine only for a ``fresh`` session, the others cannot change later."""
    conf = {**SEMANTICS, "spark.sql.shuffle.partitions": str(partitions)}
    if not fresh:
        return conf
    master = os.environ.get("CTRMODELS_SPARK_MASTER", "local[*]")
    conf |= {"spark.master": master, "spark.sql.warehouse.dir": Path(tempfile.gettempdir()).as_uri(), **QUIET}
    if master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        conf |= {**LOCAL, "spark.driver.memory": f"{_heap()}m"}
        if input_bytes is not None and input_bytes < SMALL_BYTES:
            conf["spark.driver.extraJavaOptions"] = "-XX:TieredStopAtLevel=1"
    return conf | _user_settings(os.environ.get("CTRMODELS_SPARK_CONF", ""))


def _user_settings(text: str) -> dict[str, str]:
    settings = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            raise InputError("environment", "CTRMODELS_SPARK_CONF", line, "not a setting",
                             "write one key=value per line")
        settings[key.strip()] = value.strip()
    return settings


def _heap() -> int:
    """MiB for the driver: a quarter of the memory this process may have, between 1 and 16 GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return min(max(memory // 4, GIB), 16 * GIB) // 2**20


def _require_java() -> None:
    """Refuse a machine without Java 17 or newer, or with one that lacks the module Spark's vectors need."""
    remedy = "type `sudo apt install openjdk-17-jre-headless` (Java 17 or 21), or set JAVA_HOME to one"
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None or not Path(java).is_file():
        raise InputError("environment", "JAVA_HOME" if home else "java", java, "Spark needs Java; none found",
                         remedy)
    asked = subprocess.run([java, "--add-modules=jdk.incubator.vector", "-version"],
                           capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', asked.stderr)
    if asked.returncode != 0 or found is None or int(found[1]) < 17:
        said = next(iter((asked.stderr or asked.stdout).splitlines()), "nothing")
        raise InputError("environment", "java", said, f"{java} is not a Java that Spark can use", remedy)
