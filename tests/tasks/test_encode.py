"""Ids are frequency ranks on train, whatever way a value found its id, and train alone decides them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ingested
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from ctrmodels.data import Dataset
from ctrmodels.errors import InputError
from tasks import encode, frequency
from tasks.encoding import records, vocabulary
from tasks.encoding.arrays import ArrayFile
from tasks.encoding.records import Number

MIN_COUNT = 2
BUCKETS = 8


def encoded(root: Path, frame: pd.DataFrame) -> Path:
    raw = ingested.raw_params(encode={"min_count": MIN_COUNT, "buckets": BUCKETS})
    ingested.write(root, frame)
    ingested.run(root, frequency, raw)
    return ingested.run(root, encode, raw)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return ingested.log()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame, spark: SparkSession) -> Path:
    return encoded(tmp_path_factory.mktemp("encode"), frame)


def ranked(values: pd.Series) -> dict[str | None, int]:
    """value → id by pandas: falling count, then value, null first; rare values left out."""
    found = values.value_counts(dropna=False)
    kept = [(-n, v is not None and v == v, v) for v, n in found.items() if n >= MIN_COUNT]
    return {v if present else None: i for i, (_, present, v) in enumerate(sorted(kept, key=lambda k: (
        k[0], k[1], k[2] if k[1] else "")))}


def rows_of(frame: pd.DataFrame, role: str) -> pd.DataFrame:
    return frame[frame["_role"] == role].sort_values(["_time", "_row"])


@pytest.mark.parametrize("role", ingested.ROLES)
def test_categorical_ids_are_frequency_ranks_on_train(output: Path, frame: pd.DataFrame, role: str) -> None:
    data = Dataset(output, ingested.ROLES)
    for name in ("user", "item"):
        ids = ranked(frame[frame["_role"] == "train"][name])
        assert data.schema.fields[data.schema.id_index(name)].vocab == len(ids) + 1
        expected = [ids.get(v, len(ids)) for v in rows_of(frame, role)[name]]
        assert data.role(role).ids[:, data.schema.id_index(name)].tolist() == expected


@pytest.mark.parametrize("role", ingested.ROLES)
@pytest.mark.parametrize(("name", "source", "length"), [("tags", "tags", 4), ("history", "item", 6)])
def test_sequence_steps_get_ids_oldest_first_padded_on_the_right(
        output: Path, frame: pd.DataFrame, role: str, name: str, source: str, length: int) -> None:
    ids = ranked(frame[frame["_role"] == "train"][source].explode() if source == "item"
                 else frame[frame["_role"] == "train"]["tags"].explode().dropna())
    expected = [([ids.get(s, len(ids)) for s in steps] + [-1] * length)[:length]
                for steps in rows_of(frame, role)[name]]
    assert Dataset(output, ingested.ROLES).role(role).sequences[name].tolist() == expected


@pytest.mark.parametrize("role", ingested.ROLES)
def test_numbers_are_standardised_and_bucketed_by_train(output: Path, frame: pd.DataFrame, role: str) -> None:
    data = Dataset(output, ingested.ROLES)
    train, price = (rows_of(frame, r)["price"].to_numpy() for r in ("train", role))
    known = train[~np.isnan(train)]
    score = np.nan_to_num((price - known.mean()) / known.std(), nan=0.0)
    rows = data.role(role)
    assert rows.numeric[:, 0] == pytest.approx(score, abs=1e-5)
    raw = data.schema.scales["price"].raw(rows.numeric[:, 0].astype(float))
    assert raw == pytest.approx(np.where(np.isnan(price), known.mean(), price), rel=1e-5, abs=1e-5)
    assert not rows.numeric[:, 1].any()
    edges = np.unique(np.quantile(known, np.arange(1, BUCKETS) / BUCKETS, method="inverted_cdf"))
    expected = np.where(np.isnan(price), len(edges) + 1, np.searchsorted(edges, price))
    assert rows.ids[:, data.schema.id_index("price")].tolist() == expected.tolist()


@pytest.mark.parametrize("role", ingested.ROLES)
def test_rows_are_in_the_order_of_time_and_reading(output: Path, frame: pd.DataFrame, role: str) -> None:
    rows, expected = Dataset(output, ingested.ROLES).role(role), rows_of(frame, role)
    assert np.load(output / role / "row.npy").tolist() == expected["_row"].tolist()
    assert rows.time.tolist() == expected["_time"].tolist()
    assert rows.position.tolist() == expected["_position"].tolist()
    assert np.load(output / role / "propensity.npy").tolist() == expected["_propensity"].tolist()
    labels = expected[["click", "buy", "dwell"]].astype(float).to_numpy(dtype=np.float32)
    np.testing.assert_array_equal(rows.labels, labels)


def test_groups_are_hashes_and_zero_where_unknown(output: Path, frame: pd.DataFrame) -> None:
    groups, values = Dataset(output, ["test"]).role("test").group, rows_of(frame, "test")["_group"]
    hashes = pd.Series(groups).groupby(values.fillna("").to_numpy())
    assert (hashes.nunique() == 1).all() and len(set(groups)) == values.nunique(dropna=False)
    assert set(groups[values.isna().to_numpy()]) == {0}


def test_files_have_the_declared_types_and_are_memory_mappable(output: Path, frame: pd.DataFrame) -> None:
    kinds = {"ids": np.int32, "numeric": np.float32, "sequence.tags": np.int32, "sequence.history": np.int32,
             "labels": np.float32, "position": np.int32, "propensity": np.float64, "group": np.int64, "time": np.int64,
             "row": np.int64}
    for role in ingested.ROLES:
        assert {p.stem for p in (output / role).iterdir()} == set(kinds)
        for name, kind in kinds.items():
            array = np.load(output / role / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            assert isinstance(array, np.memmap) and array.dtype == kind
            assert len(array) == (frame["_role"] == role).sum()


def test_counts_tell_how_often_each_id_occurs_on_train(output: Path) -> None:
    data = Dataset(output, ["train"])
    rows, offsets = data.role("train"), data.schema.offsets
    for i, f in enumerate(data.schema.id_fields):
        found = data.counts()[offsets[f.name]:offsets[f.name] + f.vocab]
        assert found.tolist() == np.bincount(rows.ids[:, i], minlength=f.vocab).tolist()
    tags = rows.sequences["tags"]
    found = data.counts()[offsets["tags"]:]
    assert found.tolist() == np.bincount(tags[tags >= 0], minlength=len(found)).tolist()


def test_vocabularies_list_values_by_id(output: Path, frame: pd.DataFrame) -> None:
    table = pq.read_table(output / "vocab" / "item.parquet")
    train = frame[frame["_role"] == "train"]["item"]
    assert table["id"].to_pylist() == list(range(len(table)))
    assert table["value"].to_pylist() == list(ranked(train))
    assert table["count"].to_pylist() == [int(train.isna().sum() if v is None else (train == v).sum())
                                          for v in ranked(train)]


def test_rates_of_unknown_values_are_reported(output: Path, frame: pd.DataFrame) -> None:
    metrics = json.loads((output / "metrics.json").read_text())
    known = set(ranked(frame[frame["_role"] == "train"]["item"]))
    test = [None if v != v else v for v in frame[frame["_role"] == "test"]["item"]]
    assert metrics["oov.test.item"] == pytest.approx(np.mean([v not in known for v in test]))
    price = frame[frame["_role"] == "test"]["price"]
    assert metrics["missing.test.price"] == pytest.approx(price.isna().mean())


def test_a_second_run_repeats_every_byte(tmp_path: Path, output: Path, frame: pd.DataFrame,
                                         spark: SparkSession) -> None:
    assert ingested.contents(encoded(tmp_path, frame)) == ingested.contents(output)


def test_joins_by_spark_give_the_ids_of_the_lookup(tmp_path: Path, output: Path, frame: pd.DataFrame,
                                                   spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "LOOKUP_VALUES", 25)
    joined: list[str] = []
    monkeypatch.setattr(vocabulary, "join_values", _spy(vocabulary.join_values, joined))
    monkeypatch.setattr(vocabulary, "join_steps", _spy(vocabulary.join_steps, joined))
    monkeypatch.setattr(encode, "SORT_ROWS", 1000)
    assert ingested.contents(encoded(tmp_path, frame)) == ingested.contents(output)
    assert sorted(joined) == ["join_steps", "join_values", "join_values"]


def _spy(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        calls.append(function.__name__)
        return function(*arguments)
    return call


def test_only_train_decides_what_is_learned(tmp_path: Path, output: Path, frame: pd.DataFrame,
                                            spark: SparkSession) -> None:
    """Other values, numbers and labels outside train change no vocabulary, mean, edge or train row."""
    changed = frame.copy()
    outside = changed["_role"] != "train"
    changed.loc[outside, "item"] = "only later"
    changed.loc[outside, "price"] = 1e6
    changed["tags"] = [["new"] if out else tags for out, tags in zip(outside, changed["tags"], strict=True)]
    other = encoded(tmp_path, changed)
    before, after = ingested.contents(output), ingested.contents(other)
    learned = [n for n in before if n.startswith(("vocab/", "train/")) or n == "counts.npy"]
    assert learned and all(before[n] == after[n] for n in learned)
    old, new = Dataset(output, ["test"]), Dataset(other, ["test"])
    assert new.schema.vocab_hash == old.schema.vocab_hash
    item = new.schema.id_index("item")
    assert (new.role("test").ids[:, item] == new.schema.id_fields[item].vocab - 1).all()


def test_hashes_tell_other_vocabularies_and_roles_apart(tmp_path: Path, output: Path, frame: pd.DataFrame,
                                                        spark: SparkSession) -> None:
    schema = Dataset(output, []).schema
    renamed = frame.assign(user=frame["user"].map(lambda u: u and f"{u}x"))
    other = Dataset(encoded(tmp_path / "a", renamed), []).schema
    assert other.vocab_hash != schema.vocab_hash and other.roles_hash == schema.roles_hash
    swapped = frame.assign(_role=frame["_role"].replace({"arch": "valid", "valid": "arch"}))
    other = Dataset(encoded(tmp_path / "b", swapped), []).schema
    assert other.vocab_hash == schema.vocab_hash and other.roles_hash != schema.roles_hash


def test_more_ids_than_an_int32_numbers_are_refused(tmp_path: Path, frame: pd.DataFrame, spark: SparkSession,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "INT32", 10)
    with pytest.raises(InputError, match=r"encode.min_count = \d+: more ids than an int32"):
        encoded(tmp_path, frame)
    assert not (tmp_path / "outputs" / "encode").exists()


def test_a_number_equal_to_an_edge_falls_below_it() -> None:
    ids, _ = Number(0.0, 1.0, np.array([1.0, 2.0])).encode(np.array([-np.inf, 0.0, 1.0, 1.5, 2.0, 3.0, np.nan]))
    assert ids.tolist() == [3, 0, 0, 1, 1, 2, 3]


def test_buckets_that_a_frequent_value_swallows_are_left_out() -> None:
    assert records.edges(np.sort(np.r_[np.zeros(700), np.arange(1, 326)]), 4).tolist() == [0.0, 69.0]
    assert records.edges(np.full(1025, np.nan), 4).size == 0


def test_records_survive_their_way_through_arrow() -> None:
    array = np.zeros(5, np.dtype([("a", "<i4", (3,)), ("b", "<f4", (0,)), ("c", "<i8")]))
    array["a"], array["c"] = np.arange(15).reshape(5, 3), np.arange(5)
    column = pa.concat_arrays([records.blocks(array[:2]), records.blocks(array[2:])]).slice(1)
    np.testing.assert_array_equal(records.records(column, array.dtype), array[1:])


def test_an_array_file_refuses_other_types_and_missing_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 2"), ArrayFile(tmp_path / "a.npy", np.dtype("<i4"), (3, 2)) as file:
        with pytest.raises(ValueError, match="not int64"):
            file.append(np.zeros((2, 2), np.int64))
        file.append(np.zeros((2, 2), np.int32))
