"""Reading files: formats, roles, side tables, digest; broken and absent files refused in one line."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from raw_logs import data, log, parquet, run

from ctrmodels.errors import InputError
from tasks import config
from tasks.sources import files


def described(path: Any, **keys: Any) -> config.Files:
    return config.Files(path=path if isinstance(path, dict) else str(path), **keys)


def rows(spark: SparkSession, description: config.Files, scratch: Path) -> list[dict[str, Any]]:
    """The log's rows in reading order."""
    return [row.asDict() for row in files.read(spark, description, scratch).frame.orderBy("_row").collect()]


def test_csv_keeps_text_as_it_is_and_reads_nothing_as_null(tmp_path: Path, spark: SparkSession) -> None:
    (tmp_path / "log.csv").write_text('id,title,zip\n1,"a, ""b""",02460\n2,,NA\n')
    found = rows(spark, described(tmp_path / "log.csv", format="csv", null_value="NA"), tmp_path)
    assert found == [{"id": "1", "title": 'a, "b"', "zip": "02460", "_row": 0},
                     {"id": "2", "title": None, "zip": None, "_row": 1}]


def test_packed_and_plain_files_with_and_without_header_give_one_log(tmp_path: Path, spark: SparkSession) -> None:
    (tmp_path / "a.tsv").write_bytes("x\ty\n1\tä\n".encode("latin-1"))
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress("2\tö\n".encode("latin-1")))
    (tmp_path / "c.tsv.xz").write_bytes(lzma.compress("3\tü\n".encode("latin-1")))
    found = rows(spark, described(tmp_path / "*.tsv*", format="csv", delimiter="\t", header="auto", columns=["x", "y"],
                                  encoding="latin-1"), tmp_path / "scratch")
    assert [(r["_row"], r["x"], r["y"]) for r in found] == [(0, "1", "ä"), (1, "2", "ö"), (2, "3", "ü")]


def test_xz_files_of_the_same_name_keep_their_days(tmp_path: Path, spark: SparkSession) -> None:
    for day in ("2024-01-01", "2024-01-02"):
        (tmp_path / "log" / f"day={day}").mkdir(parents=True)
        (tmp_path / "log" / f"day={day}" / "part.csv.xz").write_bytes(lzma.compress(f"x\n{day}!\n".encode()))
    found = rows(spark, described(tmp_path / "log", format="csv"), tmp_path / "scratch")
    assert [(r["x"], r["day"]) for r in found] == [("2024-01-01!", "2024-01-01"), ("2024-01-02!", "2024-01-02")]


def test_files_that_play_roles(tmp_path: Path) -> None:
    for role, size in (("test", 30), ("train", 100), ("valid", 20)):
        parquet(tmp_path / f"{role}.parquet", log(size))
    parquet(tmp_path / "train2.parquet", log(50))
    paths = {"test": str(tmp_path / "test.parquet"), "valid": str(tmp_path / "valid.parquet"),
             "train": [str(tmp_path / "train2.parquet"), str(tmp_path / "train.parquet")]}
    found = run(tmp_path, data(paths, split={"by": "file", "arch": 0.3}, timestamp="ts"))
    roles = pd.Series(found.column("_role"))
    assert roles.value_counts().to_dict() == {"train": 105, "arch": 45, "test": 30, "valid": 20}
    assert set(roles[:150]) == {"train", "arch"} and set(roles[150:170]) == {"valid"}
    time = pd.Series(found.column("_time"))
    assert time[roles == "train"].max() <= time[roles == "arch"].min()  # arch is the latest part of train


def test_side_tables_are_joined_and_gaps_are_null(tmp_path: Path, spark: SparkSession) -> None:
    pd.DataFrame({"user": [1, 2, 3], "n": [10, 20, 30]}).to_parquet(tmp_path / "log.parquet")
    (tmp_path / "users.csv").write_text("1;F\n2;M\n;X\n;Y\n")
    join = {"path": str(tmp_path / "users.csv"), "key": "user", "delimiter": ";", "header": False,
            "columns": ["user", "gender"]}
    found = rows(spark, described(tmp_path / "log.parquet", join=[join]), tmp_path)
    assert [(r["user"], r["n"], r["gender"]) for r in found] == [(1, 10, "F"), (2, 20, "M"), (3, 30, None)]


@pytest.mark.parametrize(("text", "key", "says"), [
    ("user,gender\n1,F\n1,M\n", "user", "more than one row with this key"),
    ("user,n\n1,F\n", "user", "the log has a column of that name"),
    ("id,gender\n1,F\n", "user", "no such column among id, gender"),
])
def test_side_tables_that_do_not_fit(tmp_path: Path, spark: SparkSession, text: str, key: str, says: str) -> None:
    pd.DataFrame({"user": [1, 2], "n": [10, 20]}).to_parquet(tmp_path / "log.parquet")
    (tmp_path / "users.csv").write_text(text)
    description = described(tmp_path / "log.parquet", join=[{"path": str(tmp_path / "users.csv"), "key": key}])
    with pytest.raises(InputError, match=says):
        rows(spark, description, tmp_path)


def test_a_side_table_that_is_not_there_is_told_by_its_own_key(tmp_path: Path) -> None:
    pd.DataFrame({"user": [1]}).to_parquet(tmp_path / "log.parquet")
    description = described(tmp_path / "log.parquet", join=[{"path": str(tmp_path / "users.csv"), "key": "user"}])
    for read in (files.digest, files.size):
        with pytest.raises(InputError, match=r"data\.files\.join = '.*users\.csv'.*no such file"):
            read(description)


def test_relative_path_starts_at_the_data_folder(tmp_path: Path, spark: SparkSession,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "logs" / "a.parquet", log(4))
    monkeypatch.setenv("CTRMODELS_DATA", str(tmp_path))
    assert len(rows(spark, described("logs/a.parquet"), tmp_path)) == 4
    monkeypatch.delenv("CTRMODELS_DATA")
    with pytest.raises(InputError, match=r"CTRMODELS_DATA = None: not set, and data.files.path = 'logs/a.parquet'"):
        rows(spark, described("logs/a.parquet"), tmp_path)


def test_absent_file(tmp_path: Path, spark: SparkSession) -> None:
    with pytest.raises(InputError, match=r"nowhere.parquet': no such file"):
        rows(spark, described(tmp_path / "nowhere.parquet"), tmp_path)


@pytest.mark.parametrize("content", [b"user,click\n1,0\n", b"PAR1 cut off", b""], ids=["text", "cut", "empty"])
def test_file_that_is_not_parquet(tmp_path: Path, spark: SparkSession, content: bytes) -> None:
    parquet(tmp_path / "log" / "a.parquet", log(4))
    (tmp_path / "log" / "b.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"b.parquet: format = 'parquet': not a whole parquet file"):
        rows(spark, described(tmp_path / "log"), tmp_path)


def test_truncated_parquet_file(tmp_path: Path, spark: SparkSession) -> None:
    path = parquet(tmp_path / "log.parquet", log())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"log.parquet: format = 'parquet': not a whole parquet file"):
        rows(spark, described(path), tmp_path)


def test_parquet_file_with_a_broken_page(tmp_path: Path, spark: SparkSession) -> None:
    path = parquet(tmp_path / "log.parquet", log())
    start = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start:start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        run(tmp_path, data(path, fields=[{"name": "item", "kind": "categorical"}]))
    assert "log.parquet" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("odd", "column"), [
    (log(4).drop(columns="price"), "price"), (log(4).assign(price="x"), "price"), (log(4).assign(more=1), "more")])
def test_parquet_files_of_different_columns(tmp_path: Path, spark: SparkSession, odd: pd.DataFrame,
                                            column: str) -> None:
    parquet(tmp_path / "log" / "a.parquet", log(4))
    parquet(tmp_path / "log" / "b.parquet", odd)
    with pytest.raises(InputError, match=f"b.parquet: column = '{column}'"):
        rows(spark, described(tmp_path / "log"), tmp_path)


@pytest.mark.parametrize("line", ["3", "4,5,6"], ids=["too few", "too many"])
def test_csv_line_of_another_width(tmp_path: Path, spark: SparkSession, line: str) -> None:
    (tmp_path / "log.csv").write_text(f"x,y\n1,2\n{line}\n")
    with pytest.raises(InputError, match=r"log.csv: file = .*more or fewer columns than described"):
        rows(spark, described(tmp_path / "log.csv", format="csv"), tmp_path)


def test_csv_file_with_another_header(tmp_path: Path, spark: SparkSession) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("y,x\n2,1\n")
    with pytest.raises(InputError, match=r"b.csv: .*header does not conform"):
        rows(spark, described(tmp_path / "*.csv", format="csv"), tmp_path)


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_truncated_packed_file(tmp_path: Path, spark: SparkSession, suffix: str, pack: Any) -> None:
    packed = pack(b"x,y\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(5000)))
    (tmp_path / f"log.csv.{suffix}").write_bytes(packed[:len(packed) // 2])
    with pytest.raises(InputError, match=f"log.csv.{suffix}: "):
        rows(spark, described(tmp_path / f"log.csv.{suffix}", format="csv"), tmp_path / "scratch")


def test_encoding_that_spark_does_not_know(tmp_path: Path, spark: SparkSession) -> None:
    (tmp_path / "log.csv").write_text("x\n1\n")
    with pytest.raises(InputError, match="encoding = 'klingon'"):
        rows(spark, described(tmp_path / "log.csv", format="csv", encoding="klingon"), tmp_path)


def test_digest_changes_with_the_files_and_not_with_their_place(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("here", "there"):
        os.utime(parquet(tmp_path / place / "log" / "a.parquet", log()), ns=(1, 1))
    monkeypatch.setenv("CTRMODELS_DATA", str(tmp_path / "here"))
    first = files.digest(described("log"))
    monkeypatch.setenv("CTRMODELS_DATA", str(tmp_path / "there"))
    assert files.digest(described("log")) == first
    os.utime(tmp_path / "there" / "log" / "a.parquet", ns=(2, 2))
    assert files.digest(described("log")) != first
    os.utime(tmp_path / "there" / "log" / "a.parquet", ns=(1, 1))
    parquet(tmp_path / "there" / "log" / "b.parquet", log())
    assert files.digest(described("log")) != first


def test_log_that_changed_since_the_run_was_planned(tmp_path: Path) -> None:
    path = parquet(tmp_path / "log.parquet", log())
    section = data(path, files={"path": str(path), "digest": files.digest(described(path))})
    assert run(tmp_path / "unchanged", section).metrics["rows"] == 200
    os.utime(path, ns=(5, 5))
    with pytest.raises(InputError, match=r"data.files.digest = .*the log changed since this run was planned"):
        run(tmp_path / "changed", section)
