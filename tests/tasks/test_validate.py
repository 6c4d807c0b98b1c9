"""A log that keeps its promises passes; each broken promise is found, and a critical one stops the run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import ingested
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from ctrmodels.errors import DataContractError, InputError
from tasks import counts, expectations, facts, frequency, validate
from tasks.config import parse

CANARY = "canary-5e9f"
LIMITS: dict[str, Any] = {"keys": ["user", "item", "_row"], "psi": [0.1, 0.25]}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """A good log of three days of 1000 rows and more; its most frequent user is the canary."""
    frame = ingested.log(3600).replace({"user": {"u1": CANARY}, "_group": {"u1": CANARY}})
    return frame


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame, spark: SparkSession) -> Path:
    """A workspace in which the good log has been counted."""
    root = tmp_path_factory.mktemp("validate")
    ingested.write(root, frame)
    ingested.run(root, frequency, ingested.raw_params())
    return root


@pytest.fixture(scope="module")
def output(workspace: Path) -> Path:
    return ingested.run(workspace, validate, ingested.raw_params(validate=LIMITS))


def variant(workspace: Path, target: Path, frame: pd.DataFrame, **types: pa.DataType) -> Path:
    """The workspace with another log, as if it had changed after it was counted."""
    shutil.copytree(workspace / "outputs" / "frequency", target / "outputs" / "frequency")
    ingested.write(target, frame, **types)
    return target


def verdicts(output: Path) -> dict[str, dict[str, Any]]:
    results = json.loads((output / "results.json").read_text())["expectations"]
    return {f"{v['name']} {v['severity']}": v for v in results}


def test_a_good_log_keeps_every_promise(output: Path) -> None:
    found = verdicts(output)
    assert [name for name, v in found.items() if not v["passed"]] == []
    assert {"columns critical", "type.history critical", "domain.click critical", "implies.buy.click critical",
            "implies.dwell.click warning", "rows.test critical", "repeated.rows critical",
            "repeated.keys critical", "leakage.test critical", "null_rate.user critical",
            "infinite.price critical", "distinct.item warning", "unseen.test.item warning",
            "positive_rate.buy critical", "known.dwell critical", "psi.item warning", "psi.item critical",
            "psi.price warning", "day_rows.most info"} <= set(found)
    assert (output / "data_docs" / "index.html").is_file()


def test_no_value_of_the_log_is_in_any_result(tmp_path: Path, workspace: Path, frame: pd.DataFrame) -> None:
    """Not even where a promise is broken by rows that hold it."""
    broken = frame.assign(dwell=np.where(frame["user"] == CANARY, 3.0, frame["dwell"]))
    output = ingested.run(variant(workspace, tmp_path, broken), validate, ingested.raw_params(validate=LIMITS))
    assert not verdicts(output)["implies.dwell.click warning"]["passed"]
    assert (frame["user"] == CANARY).sum() > 500
    assert [name for name, data in ingested.contents(output).items() if CANARY.encode() in data] == []


def test_a_second_run_repeats_every_byte(tmp_path: Path, workspace: Path, output: Path) -> None:
    shutil.copytree(workspace / "outputs" / "ingest", tmp_path / "outputs" / "ingest")
    shutil.copytree(workspace / "outputs" / "frequency", tmp_path / "outputs" / "frequency")
    again = ingested.run(tmp_path, validate, ingested.raw_params(validate=LIMITS))
    assert ingested.contents(again) == ingested.contents(output)


def test_broken_critical_promises_stop_the_run_in_one_line(tmp_path: Path, workspace: Path, frame: pd.DataFrame,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    bad = frame.copy()
    bad.loc[bad.index[:5], "click"] = 2
    bad.loc[bad.index[5:12], ["click", "buy"]] = [0, 1]
    bad.loc[bad.index[12:15], ["click", "dwell"]] = [1, -2.5]
    bad.loc[bad.index[20], "_row"] = 0
    bad.loc[bad.index[-1], "_time"] = 0
    root = variant(workspace, tmp_path, bad.assign(unforeseen="value"))
    with caplog.at_level(logging.WARNING), pytest.raises(DataContractError) as stopped:
        ingested.run(root, validate, ingested.raw_params(validate={"keys": ["_row"]}))
    assert "\n" not in str(stopped.value)
    assert "columns = 'unexpected unforeseen': expected the columns (and" in str(stopped.value)
    told = caplog.text
    for promise in ("domain.click = 5", "domain.dwell = 3", "implies.buy.click = 7", "repeated.rows = 1",
                    "repeated.keys = 1", "leakage.test = 1"):
        assert f"critical: {promise}" in told
    assert not (root / "outputs" / "validate").exists()


def test_a_wrong_type_is_found(tmp_path: Path, workspace: Path, frame: pd.DataFrame) -> None:
    root = variant(workspace, tmp_path, frame.assign(price=frame["price"].astype(str)), price=pa.string())
    with pytest.raises(DataContractError, match=r"type\.price = 'StringType': expected DoubleType; mend the log"):
        ingested.run(root, validate, ingested.raw_params())


def test_limits_of_the_facts_are_those_of_params(tmp_path: Path, workspace: Path, frame: pd.DataFrame,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    """Warnings pass and are told; the same fact above a critical limit stops."""
    for folder in ("ingest", "frequency"):
        shutil.copytree(workspace / "outputs" / folder, tmp_path / "outputs" / folder)
    strict = {"max_unseen_rate": 0.0, "psi": [0.0, None]}
    with caplog.at_level(logging.WARNING):
        output = ingested.run(tmp_path, validate, ingested.raw_params(validate=strict))
    metrics = json.loads((output / "metrics.json").read_text())
    broken = [name for name, v in verdicts(output).items() if not v["passed"] and v["severity"] == "warning"]
    assert metrics["broken.warning"] == len(broken) and "psi.item warning" in broken
    assert "warning: psi." in caplog.text
    for section, message in (({"null_rates": {"user": 0.01}}, "null_rate.user = 0.05"),
                             ({"positive_rate": [0.5, 0.9]}, "positive_rate.click = 0."),
                             ({"psi": [0.0, 0.0]}, "psi.")):
        with pytest.raises(DataContractError, match=message):
            ingested.run(tmp_path, validate, ingested.raw_params(validate=section))


def test_keys_and_days_that_the_log_does_not_have_are_refused(workspace: Path) -> None:
    for section, message in (({"keys": ["usr"]}, "validate.keys = 'usr': no field has this name; use some of user"),
                             ({"null_rates": {"usr": 0.1}}, "validate.null_rates = 'usr'"),
                             ({"reference_day": "2001-01-01"}, "the log has no such day; choose one between")):
        with pytest.raises(InputError, match=message):
            ingested.run(workspace, validate, ingested.raw_params(validate=section))


def test_keys_may_name_what_the_log_calls_its_time_or_group(workspace: Path) -> None:
    """Ingest stores these columns under system names; a key is written as the log's owner knows it."""
    with pytest.raises(DataContractError, match=r"repeated\.keys"):
        ingested.run(workspace, validate, ingested.raw_params(validate={"keys": ["time"]}))


def test_facts_of_counts_equal_those_of_pandas(workspace: Path, output: Path, frame: pd.DataFrame) -> None:
    found = verdicts(output)
    train = set(frame[frame["_role"] == "train"]["item"].dropna())
    test = frame[frame["_role"] == "test"]["item"].dropna()
    assert found["unseen.test.item warning"]["observed"] == pytest.approx((~test.isin(train)).mean())
    assert found["null_rate.user critical"]["observed"] == pytest.approx(frame["user"].isna().mean())
    assert found["positive_rate.click critical"]["observed"] == pytest.approx(frame["click"].mean())
    assert found["positive_rate.buy critical"]["observed"] == pytest.approx(
        frame["buy"].sum() / frame["click"].sum())


def test_leakage_counts_groups_in_which_a_role_begins_too_early(tmp_path: Path, spark: SparkSession) -> None:
    rows = [("a", "train", 1), ("a", "valid", 2), ("a", "test", 2),
            ("b", "train", 5), ("b", "test", 4), ("c", "test", 0)]
    log = spark.createDataFrame(rows, "_group string, _role string, _time long")
    assert facts.leakage(log, by_group=True) == {"leakage.arch": 0, "leakage.valid": 0, "leakage.test": 1}
    assert facts.leakage(log, by_group=False) == {"leakage.arch": 0, "leakage.valid": 1, "leakage.test": 1}


def test_bins_of_a_day_hold_all_its_rows(workspace: Path, frame: pd.DataFrame, spark: SparkSession) -> None:
    table = counts.read(spark, workspace / "outputs" / "frequency" / "counts", ("click", "buy"))
    reference = frame["_day"].min()
    bins = facts.value_bins(table, reference)
    users = bins[bins["field"] == "user"].groupby("day")["count"].sum()
    assert users.to_dict() == frame["_day"].value_counts().to_dict()
    first = bins[(bins["field"] == "user") & (bins["day"] == reference) & (bins["bin"] == 1)]["count"].item()
    assert first == frame[frame["_day"] == reference]["user"].value_counts(dropna=False).iloc[0]
    log = spark.read.parquet(counts.uri(workspace / "outputs" / "ingest" / "log"))
    quantiles = np.load(workspace / "outputs" / "frequency" / "quantiles.npy")
    numbers = facts.number_bins(log, ["price", "constant"], quantiles)
    price = numbers[numbers["field"] == "price"]
    assert price.groupby("day")["count"].sum().to_dict() == frame["_day"].value_counts().to_dict()
    missing = price[price["bin"] == 0].set_index("day")["count"].to_dict()
    assert missing == frame["price"].isna().groupby(frame["_day"]).sum().to_dict()


def _bins(days: dict[str, list[int]]) -> pd.DataFrame:
    return pd.DataFrame([{"field": "f", "day": d, "bin": i, "count": n}
                         for d, counts_ in days.items() for i, n in enumerate(counts_)])


def test_the_stability_index_is_that_of_its_formula() -> None:
    bins = _bins({"1": [60_000, 40_000], "2": [40_000, 60_000], "3": [1, 1]})
    found = facts.drift(bins, "1")
    assert found["day"].tolist() == ["2"]
    assert found["psi"].item() == pytest.approx(2 * 0.2 * np.log(1.5), abs=1e-3)


def test_days_that_differ_by_chance_alone_have_no_drift() -> None:
    """The raw index of 50 bins and 2000 rows averages .049; what is left of it here is a tenth of that."""
    rng = np.random.default_rng(0)
    days = {f"{d:03}": rng.multinomial(2000, np.full(50, 0.02)).tolist() for d in range(101)}
    found = facts.drift(_bins(days), "000")
    assert len(found) == 100
    assert found["psi"].mean() < 0.02


def test_fields_of_users_are_judged_by_the_number_of_users() -> None:
    """Twenty users make a day of many rows, but say little of how users are distributed."""
    bins = _bins({"1": [60_000, 40_000], "2": [40_000, 60_000]})
    assert facts.drift(bins, "1", {"f": pd.Series({"1": 20, "2": 20})}).empty
    few = facts.drift(bins, "1", {"f": pd.Series({"1": 2000, "2": 2000})})
    assert few["psi"].item() == pytest.approx(2 * 0.2 * np.log(1.5) - 2 / 2000, abs=1e-5)


def test_a_log_of_one_day_has_no_drift_to_judge(frame: pd.DataFrame) -> None:
    data = parse(ingested.raw_params(), "params.yaml").data
    day = pd.DataFrame({"name": ["click"], "day": ["all"], "role": ["train"], "rows": [10], "missing": [0],
                        "infinite": [0], "total": [4.0]})
    day = pd.concat([day.assign(name=o.name) for o in data.objectives])
    assert facts.reference_day({"days": ["all"]}, day, data, None) is None


def test_the_suites_are_a_function_of_params() -> None:
    params = parse(ingested.raw_params(validate=LIMITS), "params.yaml")
    bounds = expectations.limits(params.data, params.validate_)
    assert len({(b.fact, b.severity) for b in bounds}) == len(bounds)
    again = expectations.limits(params.data, params.validate_)
    assert bounds == again
    suite = expectations.log_suite(params.data)
    assert {e.meta["name"] for e in suite.expectations} >= {"columns", "domain.click", "domain.dwell",
                                                          "implies.buy.click"}
