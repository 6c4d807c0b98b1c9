"""Schema and Dataset: what is saved is read back, roles are guarded, broken columns are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrmodels.data import PADDING, ROLES, Dataset, Field, Objective, Rows, Scale, Schema
from ctrmodels.data.planted import planted_funnel
from ctrmodels.errors import InputError, RoleError


@pytest.fixture
def schema() -> Schema:
    return Schema(
        fields=(Field("user", "categorical", 5, "user"), Field("recent", "sequence", 7, "user", "item", 3),
                Field("item", "categorical", 7, "item"), Field("price", "numeric", 4),
                Field("tags", "sequence", 3, max_length=2)),
        objectives=(Objective("click"), Objective("buy", after="click"), Objective("dwell", "regression")),
        rows={"train": 6, "arch": 1, "valid": 2, "test": 2}, vocab_hash="v", roles_hash="r")


def rows_of(schema: Schema, n: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(f.vocab, size=n) for f in schema.id_fields], axis=1).astype(np.int32)
    sequences = {f.name: rng.integers(PADDING, f.vocab, (n, f.max_length)).astype(np.int32)
                 for f in schema.sequence_fields}
    labels = rng.integers(0, 2, (n, 3)).astype(np.float32)
    return Rows.of(schema, ids, rng.standard_normal((n, 1)).astype(np.float32), sequences, labels,
                np.arange(n, dtype=np.int32), np.zeros(n, np.int64), np.arange(n, dtype=np.int64))


@pytest.fixture
def folder(tmp_path: Path, schema: Schema) -> Path:
    schema.save(tmp_path / "schema.json")
    np.save(tmp_path / "counts.npy", np.arange(schema.total_vocab))
    for seed, role in enumerate(ROLES):
        rows = rows_of(schema, schema.rows[role], seed)
        (tmp_path / role).mkdir()
        for name in ("ids", "numeric", "labels", "position", "group", "time"):
            np.save(tmp_path / role / f"{name}.npy", getattr(rows, name))
        for name, steps in rows.sequences.items():
            np.save(tmp_path / role / f"sequence.{name}.npy", steps)
    return tmp_path


# --- schema -------------------------------------------------------------------------------------------


def test_a_schema_survives_saving(tmp_path: Path, schema: Schema) -> None:
    schema.save(tmp_path / "schema.json")
    loaded = Schema.load(tmp_path / "schema.json")
    assert loaded == schema and loaded.hash == schema.hash


def test_scales_of_numbers_are_saved_and_tell_a_value_from_its_standardised_copy(tmp_path: Path,
                                                                                 schema: Schema) -> None:
    scaled = replace(schema, scales={"price": Scale(12.5, 4.0)})
    scaled.save(tmp_path / "schema.json")
    loaded = Schema.load(tmp_path / "schema.json")
    assert loaded == scaled and loaded.hash == schema.hash  # the scale is a part of vocab_hash
    assert loaded.scales["price"].raw(np.array([0.0, -1.0, 2.5])).tolist() == [12.5, 8.5, 22.5]
    assert loaded.numeric_index("price") == 0
    with pytest.raises(KeyError, match="item"):
        loaded.numeric_index("item")


def test_id_spaces_lie_end_to_end_and_sequences_share_their_fields_space(schema: Schema) -> None:
    assert [f.name for f in schema.id_fields] == ["user", "item", "price"]
    assert [f.name for f in schema.numeric_fields] == ["price"]
    assert schema.offsets == {"user": 0, "item": 5, "price": 12, "tags": 16, "recent": 5}
    assert schema.total_vocab == 19
    assert schema.id_index("price") == 2 and schema.objective_index("buy") == 1
    with pytest.raises(KeyError):
        schema.id_index("recent")
    with pytest.raises(KeyError):
        schema.objective_index("like")


def test_an_objectives_sample_space_is_its_parent_or_all(schema: Schema) -> None:
    assert [o.space for o in schema.objectives] == ["all", "click", "all"]


@pytest.mark.parametrize(("objectives", "message"), [
    ((Objective("buy", after="click"),), r"objectives\.buy\.after = 'click': no objective before.*list the binary"),
    ((Objective("buy", after="click"), Objective("click")), r"objectives\.buy\.after = 'click': no objective before"),
    ((Objective("a", after="c"), Objective("b", after="a"), Objective("c", after="b")),
     r"objectives\.a\.after = 'c'.*take out a link by which an objective would follow itself"),
    ((Objective("a"), Objective("b", after="b")), r"objectives\.b\.after = 'b': no objective before"),
    ((Objective("dwell", "regression"), Objective("buy", after="dwell")), "a regression, which nothing can follow")])
def test_objectives_without_an_order_are_refused(schema: Schema, objectives: tuple[Objective, ...],
                                                 message: str) -> None:
    """Along a chain that leads back to itself every search for the first objective would run for ever."""
    with pytest.raises(InputError, match=message) as caught:
        replace(schema, objectives=objectives)
    assert "\n" not in str(caught.value)


def test_the_hash_follows_fields_and_objectives_only(schema: Schema) -> None:
    wider = replace(schema, fields=(replace(schema.fields[0], vocab=6), *schema.fields[1:]))
    assert wider.hash != schema.hash
    assert replace(schema, objectives=schema.objectives[:1]).hash != schema.hash
    assert replace(schema, rows={"train": 1}).hash == schema.hash


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fields": 3}', '{"fields": [{"name": "a", "colour": 1}]}'])
def test_what_is_no_schema_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(text)
    with pytest.raises(InputError, match="encode") as caught:
        Schema.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_absent_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"schema\.json"):
        Dataset(tmp_path, ("train",))


# --- dataset ------------------------------------------------------------------------------------------


def test_roles_are_read_as_written_and_mapped_not_copied(folder: Path, schema: Schema) -> None:
    rows = Dataset(folder, ROLES).role("train")
    expected = rows_of(schema, 6)
    assert len(rows) == 6 and isinstance(rows.ids, np.memmap)
    np.testing.assert_array_equal(rows.ids, expected.ids)
    np.testing.assert_array_equal(rows.labels, expected.labels)
    for name, steps in expected.sequences.items():
        np.testing.assert_array_equal(rows.sequences[name], steps)
    np.testing.assert_array_equal(Dataset(folder, ("train",)).counts(), np.arange(19))


def test_roles_asked_for_together_come_one_after_the_other(folder: Path) -> None:
    data = Dataset(folder, ("train", "arch"))
    both = data.role("train", "arch")
    assert len(both) == 7
    np.testing.assert_array_equal(both.ids[:6], data.role("train").ids)
    np.testing.assert_array_equal(both.sequences["recent"][6:], data.role("arch").sequences["recent"])


def test_a_search_cannot_read_test_rows(folder: Path) -> None:
    data = Dataset(folder, ("train", "arch", "valid"))
    with pytest.raises(RoleError, match="test"):
        data.role("test")
    with pytest.raises(RoleError, match="test"):
        data.role("train", "test")
    with pytest.raises(ValueError, match="unknown roles"):
        Dataset(folder, ("train", "holdout"))


@pytest.mark.parametrize("column", ["ids", "labels", "sequence.recent"])
@pytest.mark.parametrize("damage", ["truncate", "empty", "remove", "text"])
def test_a_broken_column_is_refused_by_name(folder: Path, column: str, damage: str) -> None:
    path = folder / "train" / f"{column}.npy"
    whole = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"truncate": whole[:-5], "empty": b"", "text": b"not an array"}[damage])
    with pytest.raises(InputError, match="encode") as caught:
        Dataset(folder, ("train",)).role("train")
    assert caught.value.key == column and "\n" not in str(caught.value)


def test_pickled_objects_are_never_loaded(folder: Path) -> None:
    np.save(folder / "train" / "ids.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        Dataset(folder, ("train",)).role("train")


def test_planted_rows_can_be_saved_and_opened_like_encoded_ones(tmp_path: Path) -> None:
    planted = planted_funnel(0, rows=2_000)
    planted.save(tmp_path / "encode")
    data = Dataset(tmp_path / "encode", ROLES)
    assert data.schema == planted.schema
    np.testing.assert_array_equal(data.counts(), planted.counts)
    for role, rows in planted.roles.items():
        np.testing.assert_array_equal(data.role(role).ids, rows.ids)
        np.testing.assert_array_equal(data.role(role).labels, rows.labels)
    assert json.loads((tmp_path / "encode" / "schema.json").read_text())["rows"] == dict(planted.schema.rows)


# --- batches ------------------------------------------------------------------------------------------


def test_batches_in_order_cover_every_row_once(schema: Schema) -> None:
    rows = rows_of(schema, 10)
    batches = list(rows.batches(4))
    assert [len(b) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([b.ids for b in batches]), torch.from_numpy(rows.ids))
    first = batches[0]
    assert first.ids.dtype == torch.int32 and first.labels.shape == (4, 3)
    assert first.sequences["recent"].shape == (4, 3) and first.numeric.shape == (4, 1)
    assert first.to("cpu").position.tolist() == [0, 1, 2, 3]


def test_batches_end_where_a_role_ends(schema: Schema) -> None:
    rows = Rows.concatenate([rows_of(schema, 5), rows_of(schema, 3)])
    assert [len(b) for b in rows.batches(4)] == [4, 1, 3]
    assert len(rows) == len(rows.labels) == len(rows.ids) == 8
