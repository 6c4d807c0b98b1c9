"""Ingest: types, labels, system columns, reading order; and every bad log refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_logs
from pyspark.sql import SparkSession
from raw_logs import data, log, parquet, run

from ctrmodels.errors import InputError

pytestmark = pytest.mark.usefixtures("spark")


def refused(root: Path, section: dict[str, Any]) -> str:
    """The one line with which ingest refuses ``section``."""
    with pytest.raises(InputError) as caught:
        run(root, section)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what comes out ---------------------------------------------------------------------------------------


def test_columns_are_typed_and_ordered_as_described(tmp_path: Path) -> None:
    stored = pd.DataFrame({
        "user": [7, 8, None, 7] * 10, "price": [1.5, np.nan, 3.0, 4.0] * 10, "flag": [True, False, None, True] * 10,
        "tags": [["a", None, "b", "c"], [], None, ["d"]] * 10, "click": [1.0, 0.0, None, 1.0] * 10,
        "watch": [0.5, 1.5, None, 2.0] * 10, "chance": [0.5, 1.0, None, 1e-9] * 10,
        "ts": pd.Timestamp("2024-05-01 10:00:00.25") + pd.to_timedelta(
            np.arange(40), unit="h"), "rank": [1, 2, None, 3] * 10,
    }).astype({"user": "Int64", "rank": "Int64"})
    section = data(
        parquet(tmp_path / "log.parquet", stored),
        fields=[{"name": "user", "kind": "categorical"}, {"name": "flag", "kind": "categorical"},
                {"name": "price", "kind": "numeric"}, {"name": "tags", "kind": "sequence", "max_length": 2}],
        objectives=[{"name": "click", "label": "click"}, {"name": "dwell", "kind": "regression", "label": "watch"}],
        timestamp="ts", group="user", position="rank", propensity="chance", split={"by": "time"})
    found = run(tmp_path, section)
    assert found.table.schema.names == ["user", "flag", "price", "tags", "click", "dwell",
                                        "_row", "_role", "_day", "_time", "_group", "_position", "_propensity"]
    assert [str(t) for t in found.table.schema.types] == [
        "string", "string", "double", "list<element: string>", "int8", "double",
        "int64", "string", "string", "int64", "string", "int32", "double"]
    first = {name: found.column(name)[:4] for name in found.table.schema.names}
    assert first["user"] == first["_group"] == ["7", "8", None, "7"]
    assert first["flag"] == ["true", "false", None, "true"]
    assert first["price"] == [1.5, None, 3.0, 4.0]
    assert first["tags"] == [["a", "b"], [], [], ["d"]]
    assert first["click"] == [1, 0, None, 1]
    assert first["dwell"] == [0.5, 1.5, None, 2.0]
    assert first["_position"] == [1, 2, 0, 3]
    assert first["_propensity"] == [0.5, 1.0, 0.0, 1e-9]
    assert first["_time"][:2] == [1_714_557_600, 1_714_561_200]
    assert found.column("_day")[0] == "2024-05-01" and found.column("_day")[-1] == "2024-05-03"
    assert found.column("_row") == list(range(40))


def test_metrics_count_rows_days_and_known_labels(tmp_path: Path) -> None:
    stored = log().assign(click=lambda f: f.click.where(f.index % 5 != 0))
    found = run(tmp_path, data(parquet(tmp_path / "log.parquet", stored), timestamp="ts", split={"by": "time"}))
    roles = pd.Series(found.column("_role"))
    assert found.metrics["rows"] == 200
    assert {role: found.metrics[f"rows.{role}"] for role in roles.unique()} == roles.value_counts().to_dict()
    assert found.metrics["days"] == len(set(found.column("_day")))
    assert found.metrics["positive_rate.click"] == pytest.approx(stored.click.mean())
    for role in ("train", "arch", "valid", "test"):
        known = stored.click[roles == role]
        assert found.metrics[f"positive_rate.click.{role}"] == pytest.approx(known.mean())


def test_same_log_gives_the_same_bytes_under_stable_names(tmp_path: Path) -> None:
    for part in range(5):
        parquet(tmp_path / "log" / f"{part}.parquet", log(seed=part))
    section = data(
        tmp_path / "log", timestamp="ts", group="user", split={"by": "group_time"},
        fields=[{"name": "item", "kind": "categorical"},
                {"name": "recent", "kind": "sequence", "of": "item", "max_length": 3,
                 "build": {"by": "user", "order": "ts", "where": "click = 1"}}])
    first, second = (run(tmp_path / name, section) for name in ("first", "second"))
    assert raw_logs.folders(first.folder) == [f"log/part-{i:05d}.parquet" for i in range(3)]
    assert [(first.folder / name).read_bytes() for name in raw_logs.folders(first.folder)] == [
        (second.folder / name).read_bytes() for name in raw_logs.folders(second.folder)]


def test_rows_are_numbered_by_file_name_and_place(tmp_path: Path) -> None:
    sizes = {"b": 50, "a": 400, "c": 1}  # Spark itself would start with the largest file
    for name, rows in sizes.items():
        parquet(tmp_path / "log" / f"{name}.parquet", log(rows=max(rows, 4)).head(rows).assign(
            user=[f"{name}{i}" for i in range(rows)]))
    found = run(tmp_path, data(tmp_path / "log"))
    assert found.column("_row") == list(range(451))
    assert found.column("user") == [f"{name}{i}" for name in "abc" for i in range(sizes[name])]


def test_awkward_column_names_are_taken_as_they_are(tmp_path: Path) -> None:
    stored = log().rename(columns={"user": "user id.hash", "price": "price (`€`)"})
    section = data(parquet(tmp_path / "log.parquet", stored),
                   fields=[{"name": "user", "kind": "categorical", "value": "user id.hash"},
                           {"name": "price", "kind": "numeric", "value": "price (`€`)"},
                           {"name": "initial", "kind": "categorical", "value": "substring(`user id.hash`, 1, 1)"}])
    found = run(tmp_path, section)
    assert found.column("user") == list(stored["user id.hash"])
    assert found.column("price") == list(stored["price (`€`)"])
    assert set(found.column("initial")) == {"u"}


def test_text_lists_are_split_at_the_delimiter_as_it_stands(tmp_path: Path) -> None:
    stored = log(40).assign(tags=["a|b||c", "|", None, " d | e "] * 10)
    section = data(parquet(tmp_path / "log.parquet", stored), fields=[
        {"name": "user", "kind": "categorical"},
        {"name": "tags", "kind": "sequence", "delimiter": "|", "max_length": 2}])
    assert run(tmp_path, section).column("tags")[:4] == [["a", "b"], [], [], ["d", "e"]]


def test_labels_may_be_expressions_booleans_and_unknown(tmp_path: Path) -> None:
    stored = log().assign(rating=lambda f: [5.0, 3.0, 4.0, None] * (len(f) // 4))
    section = data(parquet(tmp_path / "log.parquet", stored), objectives=[
        {"name": "like", "label": "rating >= 4"}, {"name": "love", "label": "rating = 5", "after": "like"}])
    found = run(tmp_path, section)
    assert found.column("like")[:4] == [1, 0, 1, None]
    assert found.column("love")[:4] == [1, 0, 0, None]


def test_day_partitions_name_the_day_and_are_no_data_of_the_files(tmp_path: Path) -> None:
    for day in ("2024-01-02", "2024-01-01"):
        parquet(tmp_path / "log" / f"day={day}" / "x.parquet", log())
    found = run(tmp_path, data(tmp_path / "log"))
    assert found.column("_day") == ["2024-01-01"] * 200 + ["2024-01-02"] * 200
    assert found.metrics["days"] == 2
    assert run(tmp_path / "glob", data(tmp_path / "log" / "day=*-02")).metrics["rows"] == 200


def test_one_day_called_all_without_partition_and_time(tmp_path: Path) -> None:
    found = run(tmp_path, data(parquet(tmp_path / "log.parquet", log())))
    assert set(found.column("_day")) == {"all"} and set(found.column("_time")) == {0}
    assert set(found.column("_group")) == {None} and set(found.column("_position")) == {0}


@pytest.mark.parametrize("stored", [
    pd.Series(["2024-02-03 04:05:06"] * 200),
    pd.Series([pd.Timestamp("2024-02-03 04:05:06").date()] * 200),
    pd.Series([1_706_933_106] * 200), pd.Series([1_706_933_106.9] * 200), pd.Series(["1706933106"] * 200),
], ids=["text", "date", "seconds", "fractions", "text of seconds"])
def test_times_are_read_in_any_usual_form(tmp_path: Path, stored: pd.Series) -> None:
    found = run(tmp_path, data(parquet(tmp_path / "log.parquet", log().assign(ts=stored)), timestamp="ts"))
    assert set(found.column("_day")) == {"2024-02-03"}
    assert set(found.column("_time")) <= {1_706_933_106, 1_706_918_400}


def test_simulated_log_comes_with_its_truth_beside_the_rows(tmp_path: Path) -> None:
    section = data(tmp_path, source="simulated", files=None, simulated={"rows": 3000, "days": 3},
                   fields=[{"name": "item_id", "kind": "categorical"}],
                   timestamp="timestamp", group="request_id", position="position", propensity="position_propensity",
                   split={"by": "time"})
    found = run(tmp_path, section)
    assert 0 < sum(p > 0 for p in found.column("_propensity")) <= 3000 and max(found.column("_propensity")) < 1
    assert found.metrics["rows"] == 3000 and found.metrics["days"] == 3
    assert (found.folder / "truth" / "truth.json").is_file()
    rows = sum(pq.read_metadata(p).num_rows for p in (found.folder / "truth").rglob("*.parquet"))
    assert rows == 3000


# --- what is refused --------------------------------------------------------------------------------------


def test_field_that_is_not_in_the_log(tmp_path: Path) -> None:
    section = data(parquet(tmp_path / "log.parquet", log()), fields=[{"name": "usr", "kind": "categorical"}])
    line = refused(tmp_path, section)
    assert "log.parquet: usr = 'usr'" in line and "user, item, price, ts, click" in line


@pytest.mark.parametrize(("key", "expression", "says"), [
    ("objectives", "clicks = 1", "clicks"), ("objectives", "click ==== 1", "Syntax error"),
    ("objectives", "sum(click) > 1", ""), ("objectives", "no_function(click)", "no_function"),
    ("timestamp", "then", "no such column"),
])
def test_expression_that_the_log_cannot_answer(tmp_path: Path, key: str, expression: str, says: str) -> None:
    value = [{"name": "click", "label": expression}] if key == "objectives" else expression
    line = refused(tmp_path, data(parquet(tmp_path / "log.parquet", log()), **{key: value}))
    assert repr(expression) in line and says in line


@pytest.mark.parametrize("chance", [0.0, -0.5, 1.01])
def test_propensities_that_are_no_chances(tmp_path: Path, chance: float) -> None:
    stored = log().assign(p=[0.5, chance] * 100, place=1)
    line = refused(tmp_path, data(parquet(tmp_path / "log.parquet", stored), group="user", position="place",
                                  propensity="p"))
    assert f"data.propensity = '{chance}': not a chance above 0 and up to 1" in line


def test_expression_that_makes_several_rows_of_one(tmp_path: Path) -> None:
    section = data(parquet(tmp_path / "log.parquet", log()),
                   fields=[{"name": "user", "kind": "categorical", "value": "explode(array(user, user))"}])
    assert "explode" in refused(tmp_path, section)


def test_expression_that_meets_a_value_it_cannot_take(tmp_path: Path) -> None:
    stored = log().assign(rating=["4.5"] * 200)
    section = data(parquet(tmp_path / "log.parquet", stored), objectives=[{"name": "click", "label": "rating >= 4"}])
    line = refused(tmp_path, section)
    assert "4.5" in line and "try_cast" in line


def test_label_outside_its_domain_is_shown_by_one_value(tmp_path: Path) -> None:
    stored = log().assign(click=[0, 1, 2, 3] * 50)
    line = refused(tmp_path, data(parquet(tmp_path / "log.parquet", stored)))
    assert "click = '2.0'" in line and "3.0" not in line


@pytest.mark.parametrize(("label", "says"), [
    ("click = 7", "never positive in train"), ("click >= 0", "always positive in train"),
    ("if(click < 0, 1, null)", "without a known label in train"),
])
def test_objective_that_cannot_be_learned(tmp_path: Path, label: str, says: str) -> None:
    section = data(parquet(tmp_path / "log.parquet", log()), objectives=[{"name": "click", "label": label}])
    line = refused(tmp_path, section)
    assert says in line and "data.objectives.click.label" in line


def test_objective_that_is_never_positive_in_test_alone(tmp_path: Path) -> None:
    stored = log().sort_values("ts", ignore_index=True).assign(click=lambda f: (f.index % 2) * (f.index < 150))
    section = data(parquet(tmp_path / "log.parquet", stored), timestamp="ts", split={"by": "time", "test": 0.2})
    assert "never positive in test (40 rows)" in refused(tmp_path, section)


@pytest.mark.parametrize(("kind", "says"), [
    ("numeric", "not a finite number"), ("sequence", "not a list")])
def test_field_of_another_kind_than_declared(tmp_path: Path, kind: str, says: str) -> None:
    field = {"name": "user", "kind": kind} | ({"max_length": 3} if kind == "sequence" else {})
    other = {"name": "item", "kind": "categorical"}
    line = refused(tmp_path, data(parquet(tmp_path / "log.parquet", log()), fields=[other, field]))
    assert says in line and "user" in line


def test_infinite_number(tmp_path: Path) -> None:
    stored = log().assign(price=lambda f: np.where(f.index == 3, np.inf, f.price))
    assert "price = 'Infinity'" in refused(tmp_path, data(parquet(tmp_path / "log.parquet", stored)))


@pytest.mark.parametrize(("factor", "value"), [(1000, "1700000000000"), (10**9, "1700000000000000000")])
def test_time_in_milliseconds_or_nanoseconds(tmp_path: Path, factor: int, value: str) -> None:
    stored = log().assign(ts=1_700_000_000 * factor)
    section = data(parquet(tmp_path / "log.parquet", stored), timestamp="ts")
    line = refused(tmp_path, section)
    assert value in line and "`ts / 1000`" in line


def test_row_without_a_time(tmp_path: Path) -> None:
    stored = log().assign(ts=lambda f: f.ts.where(f.index != 3))
    assert "ts" in refused(tmp_path, data(parquet(tmp_path / "log.parquet", stored), timestamp="ts"))


@pytest.mark.parametrize("stored", [log(rows=4).head(0), None], ids=["no rows", "no files"])
def test_empty_log(tmp_path: Path, stored: pd.DataFrame | None) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    if stored is not None:
        parquet(folder / "a.parquet", stored)
    assert ("the log is empty" if stored is not None else "without files") in refused(tmp_path, data(folder))


def test_split_whose_test_has_no_rows(tmp_path: Path) -> None:
    section = data(parquet(tmp_path / "log.parquet", log(20)), timestamp="ts", split={"by": "time", "test": 0.01})
    assert "data.split.test = 0.01: the role test has no rows" in refused(tmp_path, section)


def test_role_that_no_row_may_have(tmp_path: Path) -> None:
    stored = log().assign(part=["train", "valid", "test", "dev"] * 50)
    section = data(parquet(tmp_path / "log.parquet", stored), split={"by": "column", "column": "part"})
    assert "'dev': not one of train, arch, valid, test" in refused(tmp_path, section)


def test_column_of_a_reserved_name(tmp_path: Path) -> None:
    stored = log().assign(_row=1)
    assert "_row" in refused(tmp_path, data(parquet(tmp_path / "log.parquet", stored)))


def test_nothing_is_written_for_a_refused_log(tmp_path: Path, spark: SparkSession) -> None:
    from tasks import config, ingest
    from tasks.runtime import stage

    section = data(parquet(tmp_path / "log.parquet", log()), fields=[{"name": "usr", "kind": "categorical"}])
    params = config.parse({"data": section, **raw_logs.OTHER_SECTIONS}, "params.yaml")
    with pytest.raises(InputError):
        stage.execute(stage.Stage("ingest", None, params, tmp_path), ingest.run)
    assert not any((tmp_path / "outputs").iterdir())


def test_wrong_type_of_a_list_is_refused_by_type(tmp_path: Path) -> None:
    table = pa.table({"user": ["a", "b"] * 20, "price": [[1.0]] * 40, "click": [0, 1] * 20})
    pq.write_table(table, tmp_path / "log.parquet")
    assert "array<double>, not a number" in refused(tmp_path, data(tmp_path / "log.parquet"))
