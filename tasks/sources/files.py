"""Logs in files: parquet, CSV and TSV, whole folders, globs and ``day=`` partitions, plain, ``.gz`` or ``.xz``.

Local files are looked at before Spark starts on them, so that a missing, truncated or changed file is refused
at once. A path with a scheme (``s3a://…``, ``hdfs://…``) goes to Spark as it is.
"""

from __future__ import annotations

import codecs
import hashlib
import lzma
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from ctrmodels.data import ROLES
from ctrmodels.errors import InputError
from tasks.config import Data, Files, Join

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

ROOT = "CTRMODELS_DATA"
PATH, JOIN = "data.files.path", "data.files.join"  # keys of params.yaml
RESERVED = ("_row", "_role", "_day", "_time", "_group", "_position", "_propensity")
PARTITION = "day="
ENCODINGS = {"utf-8": "utf-8", "ascii": "us-ascii", "iso8859-1": "iso-8859-1", "utf-16": "utf-16",
             "utf-16-le": "utf-16le", "utf-16-be": "utf-16be"}  # Python's names and Spark's


@dataclass(frozen=True)
class Log:
    """A log as Spark sees it.

    Attributes:
        frame: the columns as they are stored (text where a file holds text) and ``_row``, 0 … rows-1 in
            reading order; ``_role`` beside them where the files give the role.
        rows: number of rows.
        partitioned: whether the column ``day`` comes from ``day=`` folders.
        where: what to call the log in an error.
    """

    frame: DataFrame
    rows: int
    partitioned: bool
    where: str


def prepare(data: Data, scratch: Path, out: Path) -> Files:
    """The files are where ``data.files`` says; compare them with the digest of the run's plan.

    Raises:
        InputError: they changed since the run was planned.
    """
    assert data.files is not None  # data.source: files has them, checked by tasks.config
    if data.files.digest is not None and (found := digest(data.files)) != data.files.digest:
        raise InputError("params.yaml", "data.files.digest", data.files.digest,
                         f"the log changed since this run was planned (its digest is {found})",
                         "start a new run, or remove the key to read the log as it is now")
    return data.files


def digest(files: Files) -> str:
    """sha256 over the listing of the log and its side tables: role, path, size and modification time (ns).

    Contents are not read, so that a log of any size is pinned at once. A path below the folder that
    CTRMODELS_DATA names counts relative to it; a path with a scheme counts by its name alone.

    Raises:
        InputError: a path matches no file.
    """
    lines, root = [], Path(os.environ.get(ROOT) or "/").resolve()
    for role, path, key in _everything(files):
        for found in _list(path, key):
            facts = None if _remote(found) else Path(found).stat()
            name = Path(found).relative_to(root) if facts and Path(found).is_relative_to(root) else found
            lines.append(f"{role} {name}" + (f" {facts.st_size} {facts.st_mtime_ns}" if facts else ""))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def size(files: Files) -> int | None:
    """Bytes of the log and its side tables; ``None`` if some of them are not on this machine.

    Raises:
        InputError: a path matches no file.
    """
    found = [file for _, path, key in _everything(files) for file in _list(path, key)]
    return None if any(map(_remote, found)) else sum(Path(file).stat().st_size for file in found)


def read(spark: SparkSession, files: Files, scratch: Path) -> Log:
    """The log with its side tables joined and its rows numbered.

    Rows are numbered by role, file name and place in the file, whatever the number of cores.

    Args:
        scratch: where ``.xz`` files are unpacked, which Spark cannot read.

    Raises:
        InputError: a path, a file or a column does not fit the description.
    """
    where = files.path if isinstance(files.path, str) else PATH
    frame, order = None, []
    for part, (role, path) in enumerate(_by_role(files)):
        paths = _unpacked(_list(path, PATH), scratch / f"part-{part}")
        piece = _scan(spark, files, paths, role, part)
        order += paths
        frame = piece if frame is None else _append(frame, piece, where)
    assert frame is not None  # a mapping of roles without an entry is refused by _by_role
    partitioned = any(f"/{PARTITION}" in path for path in frame.inputFiles())
    numbered, rows = _number(spark, frame, order, where)
    for number, join in enumerate(files.join):
        numbered = _join(spark, numbered, join, number, scratch, where)
    return Log(numbered, rows, partitioned, where)


def quoted(name: str) -> str:
    """A column name as Spark's functions take it: names with dots, blanks or quotes stay whole."""
    escaped = name.replace("`", "``")
    return f"`{escaped}`"


# --- finding files --------------------------------------------------------------------------------------


def _by_role(files: Files) -> list[tuple[str | None, str]]:
    """(role, path) in a fixed order; the role is ``None`` where the files do not give it."""
    if isinstance(files.path, str):
        return [(None, files.path)]
    pairs: list[tuple[str | None, str]] = []
    for role in sorted(files.path, key=ROLES.index):
        paths = files.path[role]
        pairs += [(role, path) for path in ([paths] if isinstance(paths, str) else paths)]
    if not pairs:
        raise InputError("params.yaml", PATH, files.path, "names no file", "give a path per role")
    return pairs


def _everything(files: Files) -> list[tuple[str | None, str, str]]:
    """(role, path, key of params.yaml) of the log and its side tables, whose role is ``join``."""
    joined = [("join", join.path, JOIN) for join in files.join]
    return [*((role, path, PATH) for role, path in _by_role(files)), *joined]


def _remote(path: str) -> bool:
    return "://" in path


def _list(path: str, key: str) -> list[str]:
    """Files that ``path`` (file, folder or glob) stands for, sorted; a path with a scheme stays as it is."""
    if _remote(path):
        return [path]
    if not Path(path).is_absolute():
        root = os.environ.get(ROOT)
        if not root:
            raise InputError("environment", ROOT, None, f"not set, and {key} = {path!r} is relative to it",
                             f"set {ROOT} to the folder of your logs, or give an absolute path")
        path = str(Path(root, path))
    path = str(Path(path).resolve())  # Spark reports files by such paths
    anchor = Path(path).anchor
    matches = sorted(Path(anchor).glob(path.removeprefix(anchor))) or [Path(path)]
    found = [file for match in matches for file in ([match] if match.is_file() else sorted(match.rglob("*")))
             if file.is_file() and not any(_hidden(p) for p in file.relative_to(match).parts)]
    if not found:
        raise InputError("params.yaml", key, path, "no such file, or a folder without files", "mend the path")
    return [str(file) for file in dict.fromkeys(found)]


def _hidden(part: str) -> bool:
    """Markers, checksums and unfinished files, as Spark names them."""
    return part.startswith((".", "_"))


def _unpacked(paths: Sequence[str], folder: Path) -> list[str]:
    """``paths``, with the content of each ``.xz`` file in ``folder`` in its place, under the same ``day=`` folder."""
    found = []
    for number, path in enumerate(paths):
        if path.endswith(".xz") and not _remote(path):
            day = Path(path).parent.name
            target = folder / (day if day.startswith(PARTITION) else "") / f"{number:05d}-{Path(path).stem}"
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with lzma.open(path) as packed, target.open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
            except (lzma.LZMAError, EOFError) as error:
                raise InputError(path, "format", type(error).__name__, "not a whole .xz file",
                                 "restore the file") from error
            path = str(target)
        found.append(path)
    return found


# --- reading --------------------------------------------------------------------------------------------


def _scan(spark: SparkSession, files: Files | Join, paths: Sequence[str], role: str | None, part: int) -> DataFrame:
    """The rows of ``paths`` and where each comes from: ``_part``, ``_file``, ``_start`` and ``_id``.

    ``_id`` grows in reading order inside each contiguous piece of a file, which starts at byte ``_start``.
    """
    from pyspark.sql import functions as F

    frame = _load(spark, files, paths)
    taken = sorted(set(frame.columns) & {*RESERVED, "_part", "_file", "_start", "_id"})
    if taken:
        raise InputError(paths[0], "column", taken[0], "a name that ingest uses itself", "rename the column")
    origin = [F.lit(part).alias("_part"), F.col("_metadata.file_path").alias("_file"),
              F.col("_metadata.file_block_start").alias("_start")]
    role_column = [] if role is None else [F.lit(role).alias("_role")]
    return frame.select("*", *origin, *role_column).withColumn("_id", F.monotonically_increasing_id())


def _load(spark: SparkSession, files: Files | Join, paths: Sequence[str]) -> DataFrame:
    from pyspark.errors import PySparkException

    from tasks.runtime.spark import explain

    stored = _check_parquet(paths) if files.format == "parquet" else None
    options = _options(files, paths)
    try:
        if files.format == "parquet":
            frame = _with_times(spark.read.options(**options).parquet(*paths), stored)
        else:
            schema = None if files.columns is None else ", ".join(f"{quoted(c)} string" for c in files.columns)
            frame = spark.read.options(**options).csv(list(paths), schema=schema)
            if files.header == "auto":
                frame = frame.where(~_is_header(files.columns or ()))
    except PySparkException as error:
        raise InputError(paths[0], "data.files", files.format, explain(error), "mend the path or format") from error
    return frame


def _options(files: Files | Join, paths: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    partition = next((p for p in paths if f"/{PARTITION}" in p), None)
    if partition is not None:
        options["basePath"] = partition[:partition.index(f"/{PARTITION}")]
    if files.format == "csv":
        options |= {"sep": files.delimiter, "header": files.header is True, "encoding": _encoding(files.encoding),
                    "quote": files.quote, "escape": files.quote, "mode": "FAILFAST", "enforceSchema": False}
        if isinstance(files, Files) and files.null_value is not None:
            options["nullValue"] = files.null_value
    return options


def _encoding(name: str) -> str:
    try:
        return ENCODINGS[codecs.lookup(name).name]
    except LookupError as error:
        raise InputError("params.yaml", "encoding", name, "not an encoding that Spark reads",
                         f"use one of {', '.join(ENCODINGS)}") from error


def _is_header(columns: Sequence[str]) -> Column:
    """Whether every value of a row is its column's name."""
    from functools import reduce

    from pyspark.sql import functions as F

    return reduce(lambda a, b: a & b, (F.col(quoted(c)).eqNullSafe(F.lit(c)) for c in columns))


def _check_parquet(paths: Sequence[str]) -> pa.Schema | None:
    """Read the footer of every local file: it must be whole, with the columns of the first; returns these."""
    first: pa.Schema | None = None
    for path in paths:
        if _remote(path):
            continue
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(path, "format", "parquet", f"not a whole parquet file ({type(error).__name__})",
                             "restore the file, or set data.files.format") from error
        first = first or schema
        if not schema.equals(first):
            odd = next((c for c in [*first.names, *schema.names] if c not in schema.names or c not in first.names
                        or schema.field(c).type != first.field(c).type), schema.names[0])
            raise InputError(path, "column", odd, f"absent or of another type than in {paths[0]}",
                             "read files of one schema only")
    return first


def _with_times(frame: DataFrame, stored: pa.Schema | None) -> DataFrame:
    """``frame`` with times stored in nanoseconds, as pandas does, which Spark reads as whole numbers."""
    from pyspark.sql import functions as F

    nano = [field.name for field in stored or ()
            if pa.types.is_timestamp(field.type) and field.type.unit == "ns"]
    return frame.withColumns({name: F.timestamp_micros(F.floor(F.col(quoted(name)) / 1000)) for name in nano})


def _append(frame: DataFrame, piece: DataFrame, where: str) -> DataFrame:
    odd = sorted(set(frame.columns) ^ set(piece.columns))
    if odd:
        raise InputError(where, "column", odd[0], "not in the files of every role", "give all files the same columns")
    return frame.unionByName(piece)


def _number(spark: SparkSession, frame: DataFrame, order: Sequence[str], where: str) -> tuple[DataFrame, int]:
    """Replace the columns of origin by ``_row``; returns the frame and the number of rows.

    One pass counts the rows of each contiguous piece of a file; the driver sees these counts only. A row's
    number is then its place inside its piece plus the rows of all pieces before.
    """
    from pyspark.sql import functions as F

    from tasks.runtime.spark import reading

    with reading(where):
        pieces = frame.groupBy("_part", "_file", "_start").agg(
            F.min("_id").alias("first"), F.count("*").alias("count")).collect()
    rank = {path: i for i, path in enumerate(order)}

    def place(piece: Any) -> tuple[Any, ...]:
        local = unquote(urlsplit(piece["_file"]).path)
        return piece["_part"], rank.get(local, len(rank)), piece["_file"], piece["_start"]

    rows, shifts = 0, []
    for piece in sorted(pieces, key=place):
        shifts.append((piece["_part"], piece["_file"], piece["_start"], rows - piece["first"]))
        rows += piece["count"]
    if rows == 0:
        raise InputError(where, "rows", 0, "the log is empty", "mend the path, or wait until the log has rows")
    keys = ["_part", "_file", "_start"]
    table = spark.createDataFrame(shifts, "_part int, _file string, _start bigint, _shift bigint")
    joined = frame.join(F.broadcast(table), keys)
    return joined.withColumn("_row", F.col("_id") + F.col("_shift")).drop(*keys, "_id", "_shift"), rows


def _join(spark: SparkSession, frame: DataFrame, join: Join, number: int, scratch: Path,
          where: str) -> DataFrame:
    """``frame`` with the columns of a side table, null where it has no row for the key."""
    from pyspark.sql import functions as F

    from tasks.runtime.spark import reading

    paths = _unpacked(_list(join.path, JOIN), scratch / f"join-{number}")
    side = _load(spark, join, paths)
    for place, columns in ((where, frame.columns), (join.path, side.columns)):
        if join.key not in columns:
            raise InputError(place, "data.files.join.key", join.key, f"no such column among {', '.join(columns)}",
                             "name a column that the log and the side table share")
    both = sorted((set(frame.columns) & set(side.columns)) - {join.key})
    if both:
        raise InputError(join.path, "column", both[0], "the log has a column of that name", "rename one of them")
    with reading(join.path):
        known = side.where(F.col(quoted(join.key)).isNotNull())
        twice = known.groupBy(quoted(join.key)).agg(F.count("*").alias("_rows")).where("_rows > 1").limit(1).collect()
    if twice:
        raise InputError(join.path, join.key, twice[0][0], "more than one row with this key", "leave one row per key")
    side = side.withColumn("_key", F.col(quoted(join.key)).cast("string")).drop(join.key)
    return frame.withColumn("_key", F.col(quoted(join.key)).cast("string")).join(side, "_key", "left").drop("_key")
