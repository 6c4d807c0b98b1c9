"""Sessions and parquet files: stable names, and what is missing on the machine told in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from ctrmodels.errors import InputError
from tasks.runtime import spark as runtime


def test_parquet_files_have_stable_names_and_nothing_beside_them(spark: SparkSession, tmp_path: Path) -> None:
    frame = spark.range(30).repartitionById(3, F.floor(F.col("id") / 10).cast("int")).sortWithinPartitions("id")
    assert runtime.write_parquet(frame, tmp_path / "out") == 3
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "out", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert pq.read_table(tmp_path / "out" / "part-00001.parquet")["id"].to_pylist() == list(range(10, 20))


def test_frame_without_rows_gives_one_file_with_its_columns(spark: SparkSession, tmp_path: Path) -> None:
    assert runtime.write_parquet(spark.range(0).withColumn("tags", F.array(F.lit("a"))), tmp_path / "out") == 1
    table = pq.read_table(tmp_path / "out")
    assert table.num_rows == 0 and table.column_names == ["id", "tags"]


def test_long_partitions_become_row_groups(spark: SparkSession, tmp_path: Path) -> None:
    runtime.write_parquet(spark.range(0, 300_000, 1, 1), tmp_path / "out")
    parts = pq.ParquetFile(tmp_path / "out" / "part-00000.parquet")
    assert parts.metadata.num_rows == 300_000 and parts.metadata.num_row_groups == 3
    assert spark.read.parquet(str(tmp_path / "out")).selectExpr("sum(id)").first()[0] == sum(range(300_000))


def test_a_running_session_is_used_and_left_running(spark: SparkSession) -> None:
    with runtime.session("inner", 7) as inner:
        assert inner is spark and inner.conf.get("spark.sql.shuffle.partitions") == "7"
    assert spark.range(3).count() == 3


def test_partitioning_does_not_depend_on_the_cores(spark: SparkSession) -> None:
    for key, value in runtime.SEMANTICS.items():
        assert spark.conf.get(key) == value


@pytest.mark.parametrize("script", [
    None, "exit 1", "echo 'openjdk version \"11.0.2\"' >&2",
    "echo 'Error: Module jdk.incubator.vector not found' >&2; exit 1"], ids=["none", "broken", "old", "no vectors"])
def test_machine_without_a_suitable_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    if script is not None:
        java.write_text(f"#!/bin/sh\n{script}\n")
        java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(InputError, match="sudo apt install openjdk-17-jre-headless") as caught:
        runtime._require_java()
    assert "\n" not in str(caught.value)


def test_settings_come_one_per_line() -> None:
    assert runtime._user_settings(" spark.a = 1 \n\nspark.b=x=y\n") == {"spark.a": "1", "spark.b": "x=y"}
    with pytest.raises(InputError, match=r"CTRMODELS_SPARK_CONF = 'spark.a'"):
        runtime._user_settings("spark.a")


def test_user_settings_and_master_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRMODELS_SPARK_MASTER", "spark://somewhere:7077")
    monkeypatch.setenv("CTRMODELS_SPARK_CONF", "spark.sql.files.minPartitionNum=64")
    found = runtime._configuration(4, True, 1000)
    assert found["spark.master"] == "spark://somewhere:7077" and found["spark.sql.files.minPartitionNum"] == "64"
    assert not any(key in found for key in ("spark.driver.bindAddress", "spark.driver.memory",
                                            "spark.driver.extraJavaOptions"))


@pytest.mark.parametrize(("size", "quick"), [(1000, True), (2**40, False), (None, False)])
def test_a_small_local_job_does_not_optimise_its_own_code(monkeypatch: pytest.MonkeyPatch, size, quick) -> None:
    monkeypatch.delenv("CTRMODELS_SPARK_MASTER", raising=False)
    assert ("spark.driver.extraJavaOptions" in runtime._configuration(4, True, size)) == quick


def test_failures_that_the_data_do_not_cause_stay_as_they_are(spark: SparkSession) -> None:
    def fail(value: int) -> int:
        raise RuntimeError(f"a bug with {value} in {sys.version}")

    with pytest.raises(Exception, match="a bug with 0") as caught, runtime.reading("log"):
        spark.range(1).select(F.udf(fail, "int", useArrow=False)("id")).collect()
    assert not isinstance(caught.value, InputError)
