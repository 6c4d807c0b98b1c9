"""Roles: exact shares, in order of time where asked, the same for the same log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from tasks.config import Split
from tasks.log import roles

ORDER = {"train": 0, "arch": 1, "valid": 2, "test": 3}


def assigned(spark: SparkSession, frame: pd.DataFrame, **split: Any) -> pd.DataFrame:
    """``frame`` with its roles, by row number."""
    given = spark.createDataFrame(frame).repartition(3)
    found = roles.assign(given, Split(**split), len(frame), timed=True).toPandas()
    assert len(found) == len(frame)
    return found.sort_values("_row", ignore_index=True)


def log(rows: int, times: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    moment = (rng.integers(-times, times, rows) * 70_001).astype(float)  # far apart: several radix digits
    return pd.DataFrame({"_row": np.arange(rows), "_moment": moment, "_time": moment.astype(int),
                         "_group": rng.choice(["a", "b", "c", "lone"], rows, p=[0.5, 0.3, 0.19, 0.01])})


@pytest.mark.parametrize(("rows", "times"), [(1000, 400), (1000, 2), (997, 100_000)])
def test_time_split_is_that_of_a_full_sort(spark: SparkSession, rows: int, times: int) -> None:
    found = assigned(spark, log(rows, times), by="time", arch=0.1, valid=0.15, test=0.2)
    test, valid = round(rows * 0.2), int(rows * 0.15 + 0.5)
    arch = round((rows - test - valid) * 0.1)
    expected = np.repeat(list(ORDER), [rows - test - valid - arch, arch, valid, test])
    assert list(found.sort_values(["_time", "_row"])["_role"]) == list(expected)


def test_group_time_split_is_that_of_a_sort_inside_each_group(spark: SparkSession) -> None:
    found = assigned(spark, log(1000, 300), by="group_time", arch=0.1, valid=0.1, test=0.2)
    for _, group in found.groupby("_group"):
        ranked = group.sort_values(["_moment", "_row"])["_role"].map(ORDER)
        assert ranked.is_monotonic_increasing
        n = len(group)
        assert (ranked == 3).sum() == int(n * 0.2 + 0.5) and (ranked == 2).sum() == int(n * 0.1 + 0.5)


def test_random_split_is_near_its_shares_and_blind_to_partitions(spark: SparkSession) -> None:
    frame = log(5000, 100)
    found = assigned(spark, frame, by="random", arch=0.25, valid=0.1, test=0.2)
    shares = found["_role"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.02) and shares["valid"] == pytest.approx(0.1, abs=0.02)
    assert shares["arch"] / (shares["arch"] + shares["train"]) == pytest.approx(0.25, abs=0.02)
    again = assigned(spark, frame.sample(frac=1, random_state=1), by="random", arch=0.25, valid=0.1, test=0.2)
    assert list(found["_role"]) == list(again["_role"])


def test_arch_is_the_latest_part_of_a_given_train(spark: SparkSession) -> None:
    frame = log(400, 100).assign(_role=["train", "train", "valid", "test"] * 100)
    found = assigned(spark, frame, by="column", column="part", arch=0.1)
    assert found["_role"].value_counts().to_dict() == {"train": 180, "arch": 20, "valid": 100, "test": 100}
    kept = found[found["_role"].isin(["train", "arch"])].sort_values(["_time", "_row"])
    assert kept["_role"].map(ORDER).is_monotonic_increasing


def test_given_arch_is_left_alone(spark: SparkSession) -> None:
    frame = log(40, 100).assign(_role=["train", "arch", "valid", "test"] * 10)
    assert list(assigned(spark, frame, by="column", column="part")["_role"]) == list(frame["_role"])
