"""The default log through ingest: 70/10/20 by time inside each user, histories from the past alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from raw_logs import Ingested, run

from ctrmodels.errors import InputError
from tasks.sources import movielens

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, spark: object) -> Ingested:
    try:
        movielens.wheel()
    except InputError as error:
        pytest.skip(f"no package index: {error}")
    return run(tmp_path_factory.mktemp("movielens"), yaml.safe_load(PARAMS.read_text())["data"])


def test_counts_and_rates(ingested: Ingested) -> None:
    assert ingested.metrics["rows"] == 100_000 and ingested.metrics["rows.test"] == 20_000
    assert ingested.metrics["positive_rate.like"] == pytest.approx(0.55375)
    assert ingested.metrics["positive_rate.love"] == pytest.approx(0.21201)


def test_no_user_is_tested_before_being_trained_on(ingested: Ingested) -> None:
    frame = ingested.table.select(["_group", "_role", "_time"]).to_pandas()
    first_test = frame[frame["_role"] == "test"].groupby("_group")["_time"].min()
    last_train = frame[frame["_role"].isin(["train", "arch"])].groupby("_group")["_time"].max()
    assert set(first_test.index) == set(last_train.index) and len(first_test) == 943
    assert (last_train <= first_test).all()


def test_histories_of_some_users_equal_those_of_a_loop(ingested: Ingested) -> None:
    frame = ingested.table.select(["user_id", "item_id", "_time", "_row", "like", "recent_liked",
                                   "recent_disliked"]).to_pandas()
    for _, rows in frame[frame["user_id"].isin(["1", "13", "405", "942"])].groupby("user_id"):
        rows = rows.sort_values(["_time", "_row"])
        for column, label in (("recent_liked", 1), ("recent_disliked", 0)):
            chosen = rows[rows["like"] == label]
            for time, steps in zip(rows["_time"], rows[column], strict=True):
                assert list(steps) == list(chosen[chosen["_time"] < time]["item_id"].tail(20))


def test_every_attribute_is_joined(ingested: Ingested) -> None:
    nulls = pd.Series({name: ingested.table[name].null_count for name in ingested.table.column_names})
    assert nulls.drop("release_year").sum() == 0
