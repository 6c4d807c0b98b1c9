"""Counts are exact, merge by summation, and never depend on which form counted them."""

from __future__ import annotations

import json
from pathlib import Path

import ingested
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from tasks import counts, frequency
from tasks.config import parse

BINARY = ("click", "buy")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return ingested.log()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame, spark: SparkSession) -> Path:
    root = tmp_path_factory.mktemp("frequency")
    ingested.write(root, frame)
    return ingested.run(root, frequency, ingested.raw_params())


def table_of(session: SparkSession, folder: Path) -> pd.DataFrame:
    merged = counts.merge(counts.read(session, folder / "counts", BINARY))
    return in_order(merged.toArrow().to_pandas())


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    table = table.astype({"value": object}).where(table.notna(), None)
    return table.sort_values(list(counts.KEYS), na_position="first", ignore_index=True)


def expected(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table by pandas."""
    tables = []
    for name in ("user", "item", "tags"):
        rows = frame.rename(columns={name: "value", "_day": "day", "_role": "role"}).explode("value")
        for objective in BINARY:
            rows[f"positive_{objective}"] = rows[objective].eq(1).astype(int)
        groups = rows.groupby(["day", "role", "value"], dropna=False)
        found = groups[[f"positive_{o}" for o in BINARY]].sum()
        found.insert(0, "count", groups.size())
        tables.append(found.reset_index().assign(field=name))
    return in_order(pd.concat(tables)[[*counts.KEYS, "count", "positive_click", "positive_buy"]])


def test_counts_and_positives_equal_those_of_pandas(output: Path, frame: pd.DataFrame,
                                                    spark: SparkSession) -> None:
    pd.testing.assert_frame_equal(table_of(spark, output), expected(frame), check_dtype=False)


def test_pieces_of_a_file_and_rare_pairs_are_counted_alike(tmp_path: Path, output: Path, frame: pd.DataFrame,
                                                           spark: SparkSession) -> None:
    """Row groups that end anywhere, values without a dictionary, more days than values repeat on."""
    ingested.write(tmp_path, frame, parts=1)
    path = tmp_path / "outputs" / "ingest" / "log" / "part-00000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=170, use_dictionary=["_role"])
    log, plan = path.parent, counts.Plan.of(parse(ingested.raw_params(), "params.yaml").data)
    slots = [(day, role) for day in sorted(frame["_day"].unique()) for role in ingested.ROLES]
    unused = [(f"1999-01-{d:02}", role) for d in range(1, 30) for role in ingested.ROLES]
    found = counts.count(spark, log, plan, unused + slots)
    pd.testing.assert_frame_equal(in_order(found.select(*counts.KEYS, "count", "positive_click", "positive_buy")
                                           .toArrow().to_pandas()), table_of(spark, output))


def test_many_days_of_many_values_are_counted(tmp_path: Path, spark: SparkSession) -> None:
    """Where only few of the pairs of value and day occur, pairs are renumbered before they are counted."""
    frame = ingested.log(600, days=200).assign(user=lambda f: [f"u{i % 500}" for i in range(len(f))])
    ingested.write(tmp_path, frame)
    output = ingested.run(tmp_path, frequency, ingested.raw_params())
    pd.testing.assert_frame_equal(table_of(spark, output), expected(frame), check_dtype=False)


def test_days_counted_apart_merge_to_the_whole(tmp_path: Path, output: Path, frame: pd.DataFrame,
                                               spark: SparkSession) -> None:
    for i, (day, rows) in enumerate(frame.groupby("_day")):
        ingested.write(tmp_path / str(i), rows)
        plan = counts.Plan.of(parse(ingested.raw_params(), "params.yaml").data)
        slots = [(str(day), role) for role in ingested.ROLES]
        table = counts.count(spark, tmp_path / str(i) / "outputs" / "ingest" / "log", plan, slots)
        counts.write(table, tmp_path / "counts", str(day))
    pd.testing.assert_frame_equal(table_of(spark, tmp_path), table_of(spark, output))


def test_a_second_run_repeats_every_byte(tmp_path: Path, output: Path, frame: pd.DataFrame,
                                         spark: SparkSession) -> None:
    ingested.write(tmp_path, frame)
    again = ingested.run(tmp_path, frequency, ingested.raw_params())
    assert ingested.contents(again) == ingested.contents(output)


def test_moments_equal_those_of_pandas(output: Path, frame: pd.DataFrame) -> None:
    moments = pd.read_parquet(output / "moments.parquet")
    by_role = counts.combine(moments, ["name", "role"]).set_index(["name", "role"])
    for role in ingested.ROLES:
        price = frame[frame["_role"] == role]["price"]
        found = by_role.loc[("price", role)]
        assert (found["rows"], found["missing"], found["infinite"]) == (len(price), price.isna().sum(), 0)
        assert found["total"] == pytest.approx(price.sum())
        assert found["m2"] == pytest.approx(price.var(ddof=0) * price.count())
        assert (found["low"], found["high"]) == (price.min(), price.max())
    history = frame["history"].str.len()
    lengths = counts.combine(moments, ["name"]).set_index("name").loc["history"]
    assert (lengths["missing"], lengths["total"]) == ((history == 0).sum(), history.sum())


def test_infinite_numbers_are_counted_and_kept_out_of_the_moments(tmp_path: Path, spark: SparkSession) -> None:
    frame = ingested.log(400)
    price = frame["price"].copy()
    frame.loc[frame.index[:3], "price"] = np.inf
    ingested.write(tmp_path, frame)
    output = ingested.run(tmp_path, frequency, ingested.raw_params())
    found = counts.combine(pd.read_parquet(output / "moments.parquet"), ["name"]).set_index("name").loc["price"]
    assert found["infinite"] == 3
    assert found["total"] == pytest.approx(price[3:].sum())


def test_combining_is_exact_for_numbers_far_from_zero() -> None:
    """Sums of squares would cancel: 1e9 + {0, 1, 2, 3} has a variance of 1.25."""
    part = {"name": "x", "rows": 2, "missing": 0, "infinite": 0, "m2": 0.5, "low": 0.0, "high": 0.0}
    table = pd.DataFrame([{**part, "total": 2e9 + 1}, {**part, "total": 2e9 + 5}])
    assert counts.combine(table, ["name"])["m2"].item() == pytest.approx(5.0)


def test_quantiles_are_those_of_train(output: Path, frame: pd.DataFrame) -> None:
    grid = np.load(output / "quantiles.npy")
    train = frame[frame["_role"] == "train"]["price"].dropna()
    assert grid.shape == (2, counts.QUANTILES + 1)
    assert grid[0, 0] == train.min() and grid[0, -1] == train.max()
    assert grid[0, counts.QUANTILES // 2] == np.quantile(train, 0.5, method="inverted_cdf")


def test_quantiles_of_a_large_log_come_from_a_fair_sample(tmp_path: Path, frame: pd.DataFrame,
                                                          spark: SparkSession) -> None:
    ingested.write(tmp_path, frame)
    log = spark.read.parquet(counts.uri(tmp_path / "outputs" / "ingest" / "log"))
    plan = counts.Plan.of(parse(ingested.raw_params(), "params.yaml").data)
    median = counts.quantiles(log, plan, len(frame), 1000)[0, counts.QUANTILES // 2]
    train = frame[frame["_role"] == "train"]["price"].dropna()
    assert 0.4 < (train <= median).mean() < 0.6


def test_the_summary_tells_rows_roles_days_and_fields(output: Path, frame: pd.DataFrame) -> None:
    summary = json.loads((output / "summary.json").read_text())
    assert summary["rows"] == len(frame)
    assert summary["roles"] == {r: int((frame["_role"] == r).sum()) for r in ingested.ROLES}
    assert summary["days"] == sorted(frame["_day"].unique())
    user = summary["fields"]["user"]
    train = frame[frame["_role"] == "train"]["user"]
    assert user["distinct"] == frame["user"].nunique() and user["distinct_train"] == train.nunique()
    assert user["once_train"] == (train.value_counts() == 1).sum()
    assert user["null_rate"] == frame["user"].isna().mean()
    assert summary["fields"]["tags"]["null_rate"] == (frame["tags"].str.len() == 0).mean()
    assert summary["objectives"]["buy"] == {"known": int(frame["buy"].notna().sum()),
                                            "mean": pytest.approx(frame["buy"].mean())}


def test_the_curve_holds_the_counts_by_rank(output: Path, frame: pd.DataFrame, spark: SparkSession) -> None:
    spectra = frequency.spectrum(counts.read(spark, output / "counts", BINARY))
    curve = frequency.curve(spectra, "item")
    by_rank = frame[frame["_role"] == "train"]["item"].value_counts().to_numpy()
    assert curve["count"].tolist() == by_rank[curve["rank"].to_numpy() - 1].tolist()
    covered = by_rank.cumsum() / by_rank.sum()
    assert curve["coverage"].tolist() == pytest.approx(covered[curve["rank"].to_numpy() - 1].tolist())


def test_no_value_of_the_log_is_in_what_the_report_reads(output: Path, frame: pd.DataFrame) -> None:
    shown = (output / "metrics.json").read_text() + (output / "summary.json").read_text()
    shown += "".join(p.read_text() for p in (output / "figures").glob("*.json"))
    assert not [v for v in frame["user"].dropna().unique() if f'"{v}"' in shown]
