"""Histories equal those of a loop over all earlier rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession

from tasks.log import history
from tasks.log.history import History


def log(rows: int, moments: int, seed: int) -> pd.DataFrame:
    """Few users and moments, so that ties abound; missing users, times and steps."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({
        "_row": np.arange(rows), "user id": rng.choice(["a", "b", "c", "d"], rows),
        "at": rng.integers(0, moments, rows).astype(float), "item": [f"i{v}" for v in rng.integers(0, 50, rows)],
        "good": rng.random(rows) < 0.5, "bad": rng.random(rows) < 0.02,
    })
    for column in ("user id", "at", "item"):
        frame.loc[rng.random(rows) < 0.05, column] = None
    return frame


def by_loop(frame: pd.DataFrame, where: str, length: int) -> list[list[str]]:
    found = []
    for row in frame.to_dict("records"):
        earlier = frame[(frame["user id"] == row["user id"]) & (frame["at"] < row["at"]) & frame[where]
                        & frame["item"].notna()]
        found.append(list(earlier.sort_values(["at", "_row"])["item"].tail(length)))
    return found


def built(spark: SparkSession, frame: pd.DataFrame, **lengths: int) -> pd.DataFrame:
    types = "_row bigint, `user id` string, at double, item string, good boolean, bad boolean"
    records = frame.astype(object).where(frame.notna(), None).values.tolist()
    wanted = [History(f"last_{where}", "user id", "at", "item", where, n) for where, n in lengths.items()]
    found: Any = history.add(spark.createDataFrame(records, types).repartition(3), wanted, 4)
    return found.toPandas().sort_values("_row", ignore_index=True)


@pytest.mark.parametrize(("moments", "length"), [(3, 2), (40, 5), (40, 1), (1000, 500)])
def test_history_is_exact(spark: SparkSession, moments: int, length: int) -> None:
    frame = log(300, moments, seed=moments + length)
    found = built(spark, frame, good=length, bad=length + 1)
    assert set(found.columns) == {*frame.columns, "last_good", "last_bad"}
    assert [list(steps) for steps in found["last_good"]] == by_loop(frame, "good", length)
    assert [list(steps) for steps in found["last_bad"]] == by_loop(frame, "bad", length + 1)


def test_rows_of_one_moment_do_not_see_each_other(spark: SparkSession) -> None:
    frame = log(50, 1, seed=0).assign(good=True)
    assert all(len(steps) == 0 for steps in built(spark, frame, good=5)["last_good"])
