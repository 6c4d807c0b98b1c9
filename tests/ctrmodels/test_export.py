"""Exported files score as the model does, hold no pruned value, and appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch.onnx._internal.exporter import _onnx_program

from ctrmodels.archspec import Alloc, ArchSpec, ValueMask
from ctrmodels.data import Field, Objective, Schema
from ctrmodels.errors import InputError
from ctrmodels.export import export_onnx, export_package, export_split
from ctrmodels.multitask import DUPN, MultiObjectiveModel
from ctrmodels.multitask.parts import History
from ctrmodels.multitask.regression import TARGETS
from ctrmodels.multitask.spaces import score_names
from ctrmodels.multitask.split import ItemHalf, UserHalf
from ctrmodels.serving import Scorer
from ctrmodels.zoo import DNN
from tests.support.served_models import ALLOCS, DIM, SCHEMA, build, draw, eager, histories

# Where a mask's values start makes no other graph: one model shows it.
SINGLE = [("deepfm", "mask_with_init"), *((name, alloc) for name in ("deepfm", "dcnv2", "autodeepfm")
                                          for alloc in ("uniform", "per_field", "mask"))]
SINGLE += [("deepfm", "per_bucket"), ("autodeepfm", "shared_rare"), ("dcnv2", "field_dims"), ("deepfm", "central"),
           ("autodeepfm", "central_attention")]
MULTI = [("single", "per_field"), ("dbmtl", "uniform"), ("aitm", "uniform"), ("youtube", "mask"),
         ("shared_bottom", "uniform"), ("esmm", "per_field"), ("mmoe", "mask"), ("dupn", "per_bucket"),
         ("deepmcp", "uniform"), ("nmtr", "field_dims"), ("dcrnn", "shared_rare")]


QUICK = {"shared_bottom", "esmm", "mmoe", "youtube", "dupn"}


def slow_unless(quick: bool, *values: str | bool):
    """An export takes seconds: by default one model stands for those whose graphs are alike."""
    return pytest.param(*values, marks=[] if quick else [pytest.mark.slow])


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, score in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], score, rtol=1e-5, atol=1e-5, err_msg=name)


def same_user(n: int) -> dict[str, np.ndarray]:
    """n items for one user, whose history has a step."""
    rows = draw(n)
    who = int(np.flatnonzero(rows["seen"][:, 0] >= 0)[0])
    rows["ids"][:, 0], rows["numeric"][:, 1] = rows["ids"][who, 0], rows["numeric"][who, 1]
    rows["seen"][:] = rows["seen"][who]
    return rows


Inputs = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]


def halves_of(rows: dict[str, np.ndarray]) -> tuple[Inputs, Inputs]:
    """Inputs of the user's half and of the items'."""
    t = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in rows.items()}
    return ((t["ids"][:, :1].contiguous(), t["numeric"][:, 1:].contiguous(), {"seen": t["seen"]}),
            (t["ids"][:, 1:].contiguous(), t["numeric"][:, :1].contiguous(), {"tags": t["tags"]}))


def as_arrays(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    ids, numeric, sequences = inputs
    return ids.numpy(), numeric.numpy(), {name: steps.numpy() for name, steps in sequences.items()}


def test_every_allocation_is_exported() -> None:
    assert {alloc for _, alloc in SINGLE} == set(ALLOCS)
    assert {type(alloc) for alloc in ALLOCS.values()} == set(get_args(Alloc))


@pytest.mark.parametrize(("name", "alloc"), [
    *SINGLE, *(slow_unless(name in QUICK, name, alloc) for name, alloc in MULTI), ("din", "mask"),
    *(slow_unless(False, "din", alloc) for alloc in ("per_bucket", "field_dims", "central")), ("mmoe", "central")])
def test_onnx_scores_as_the_model_does(name: str, alloc: str, tmp_path: Path) -> None:
    model = build(name, alloc)
    export_onnx(model, SCHEMA, tmp_path / "export")
    scorer = Scorer(tmp_path / "export")
    for n in (1, 7, 4096):
        rows = draw(n)
        found = scorer.score(rows["ids"], rows["numeric"], histories(rows))
        assert_equal(found, eager(model, rows))
    assert set(found) == ({"click@all"} if name not in dict(MULTI) else set(score_names(SCHEMA)))
    assert all(np.ptp(score) > 0.01 for score in found.values())


@pytest.mark.parametrize(("name", "alloc", "history"), [
    ("shared_bottom", "mask", "din_softmax"), *(slow_unless(False, name, alloc, "din") for name, alloc in (
        ("mmoe", "per_bucket"), ("single", "per_field"), ("nmtr", "field_dims"), ("dupn", "central"),
        ("bpr", "uniform")))])
def test_target_attention_is_exported(name: str, alloc: str, history: History, tmp_path: Path) -> None:
    model = build(name, alloc, history=history)
    export_onnx(model, SCHEMA, tmp_path / "onnx")
    export_package(model, SCHEMA, tmp_path / "package")
    scorer, package = Scorer(tmp_path / "onnx"), torch.export.load(tmp_path / "package" / "model.pt2").module()
    for n in (1, 300):
        rows = draw(n)
        expected = eager(model, rows)
        assert_equal(scorer.score(rows["ids"], rows["numeric"], histories(rows)), expected)
        tensors = {key: torch.from_numpy(values) for key, values in rows.items()}
        found = package(tensors.pop("ids"), tensors.pop("numeric"), tensors)
        assert_equal({key: score.numpy() for key, score in found.items()}, expected)


@pytest.mark.parametrize("name", ["bpr", "jrc"])
def test_models_of_one_score_are_exported(name: str, tmp_path: Path) -> None:
    """A loss of each width and scale; the others differ in training only."""
    model, rows = build(name, "uniform"), draw(300)
    export_onnx(model, SCHEMA, tmp_path / "onnx")
    found = Scorer(tmp_path / "onnx").score(rows["ids"], rows["numeric"], histories(rows))
    assert_equal(found, eager(model, rows))
    assert list(found) == ["click@all", "buy@all", "dwell@all"] and np.ptp(found["click@all"]) > 0.01
    export_package(model, SCHEMA, tmp_path / "package")


@pytest.mark.parametrize("target", [slow_unless(name == "ziln", name) for name in TARGETS if name != "log"])
def test_every_regression_target_is_exported(target: str, tmp_path: Path) -> None:
    model, rows = build("shared_bottom", "uniform", target=target), draw(300)
    export_onnx(model, SCHEMA, tmp_path / "onnx")
    found = Scorer(tmp_path / "onnx").score(rows["ids"], rows["numeric"], histories(rows))
    assert_equal(found, eager(model, rows))
    assert np.ptp(found["dwell@click"]) > 0.01
    export_package(model, SCHEMA, tmp_path / "package")


@pytest.mark.parametrize("name", [slow_unless(name == "autodeepfm", name) for name in (
    "autodeepfm", "autoipnn", "mmoe", "dupn")])
def test_searched_interactions_are_exported(name: str, tmp_path: Path) -> None:
    """Of every operation and order, and groups, on embeddings of their own, in single- and multi-objective models."""
    model, rows = build(name, "uniform", grown=True), draw(700)
    export_onnx(model, SCHEMA, tmp_path / "onnx")
    assert_equal(Scorer(tmp_path / "onnx").score(rows["ids"], rows["numeric"], histories(rows)), eager(model, rows))
    export_package(model, SCHEMA, tmp_path / "package")
    assert model.cost() == build(name, "uniform", grown=True).cost()


@pytest.mark.parametrize(("name", "alloc"), [
    ("deepfm", "mask"), ("esmm", "per_field"), ("dnn", "per_bucket"), ("dnn", "central_attention"), ("dupn", "mask"),
    slow_unless(False, "deepmcp", "uniform"), slow_unless(False, "nmtr", "uniform"),
    slow_unless(False, "dcrnn", "uniform")])
def test_a_package_scores_as_the_model_does(name: str, alloc: str, tmp_path: Path) -> None:
    model = build(name, alloc)
    export_package(model, SCHEMA, tmp_path / "export")
    scores = torch.export.load(tmp_path / "export" / "model.pt2").module()
    for n in (1, 7, 4096):
        rows = {key: torch.from_numpy(values) for key, values in draw(n).items()}
        found = scores(rows.pop("ids"), rows.pop("numeric"), rows)
        assert_equal({key: score.numpy() for key, score in found.items()}, eager(model, draw(n)))


@pytest.mark.parametrize("history", ["mean", "din", "din_softmax"])
@pytest.mark.parametrize(("alloc", "grown"), [*((alloc, False) for alloc in ALLOCS), ("uniform", True)])
def test_a_split_model_scores_as_the_whole_one(alloc: str, grown: bool, history: History) -> None:
    """A thousand items of one request, for every allocation, and with searched interactions between user and item."""
    model = build("dupn", alloc, grown=grown, history=history)
    assert isinstance(model, MultiObjectiveModel) and isinstance(model.trunk, DUPN)
    rows = same_user(1000)
    expected, passes = eager(model, rows), []
    model.trunk.lstm.register_forward_hook(lambda *_: passes.append(1))
    one, items = halves_of({name: values[:1] for name, values in rows.items()})[0], halves_of(rows)[1]
    with torch.no_grad():
        state = UserHalf(model, SCHEMA)(*one)
        found = ItemHalf(model, SCHEMA)(state, *items)
    assert len(passes) == 1 and state["state.user"].shape == (1, 128)
    assert list(found) == list(expected)
    relative = 3e-6 if grown else 1e-6  # micro-networks normalise small embeddings, and their rounding with them
    for name, score in expected.items():
        np.testing.assert_allclose(found[name].numpy(), score, rtol=relative, atol=1e-6, err_msg=name)
        assert np.ptp(score) > 0.01


@pytest.mark.parametrize(("alloc", "grown", "history"), [
    ("uniform", True, "mean"), ("mask", False, "din"), slow_unless(False, "uniform", True, "din")])
def test_exported_halves_score_as_the_whole_model(alloc: str, grown: bool, history: History, tmp_path: Path) -> None:
    model = build("dupn", alloc, grown=grown, history=history)
    assert isinstance(model, MultiObjectiveModel)
    export_split(model, SCHEMA, tmp_path / "split")
    user, items = Scorer(tmp_path / "split" / "user"), Scorer(tmp_path / "split" / "items")
    rows = same_user(1000)
    one, others = halves_of({name: values[:1] for name, values in rows.items()})[0], halves_of(rows)[1]
    state = user.score(*as_arrays(one))
    assert_equal(items.score(*as_arrays(others), state), eager(model, rows))
    with pytest.raises(ValueError, match=r"state\.user"):
        items.score(*as_arrays(others), {**state, "state.user": state["state.user"] * np.nan})
    many = halves_of(draw(5))[0]  # of several requests at once, to keep their users
    assert user.score(*as_arrays(many))["state.user"].shape == (5, 128)


def test_a_state_holds_a_historys_steps_where_items_weigh_them_and_not_otherwise() -> None:
    one, _ = halves_of(same_user(7))
    held = {}
    for history in ("mean", "din"):
        model = build("dupn", "uniform", history=history)
        assert isinstance(model, MultiObjectiveModel)
        with torch.no_grad():
            state = UserHalf(model, SCHEMA)(one[0][:1], one[1][:1], {"seen": one[2]["seen"][:1]})
        held[history] = {name: tuple(values.shape) for name, values in state.items()}
    assert held["din"].items() - held["mean"].items() == {
        ("state.steps.seen", (1, 4, DIM)), ("state.there.seen", (1, 4))}
    assert state["state.there.seen"].tolist() == (one[2]["seen"][:1] >= 0).float().tolist()


def test_a_model_that_knows_no_user_by_itself_has_no_halves(tmp_path: Path) -> None:
    model = build("mmoe", "uniform")
    assert isinstance(model, MultiObjectiveModel)
    with pytest.raises(InputError, match=r"model = 'MMoE'.*export dupn"):
        export_split(model, SCHEMA, tmp_path / "split")


def test_subnets_of_training_are_in_no_file(tmp_path: Path) -> None:
    model = build("deepmcp", "uniform")
    export_package(model, SCHEMA, tmp_path / "export")
    stored = torch.export.load(tmp_path / "export" / "model.pt2").state_dict
    assert {name for name, _ in model.named_parameters() if "auxiliaries" in name}
    assert not [name for name in stored if "auxiliaries" in name]


def test_the_folder_holds_all_that_serving_needs(tmp_path: Path) -> None:
    export_onnx(build("dnn", "uniform"), SCHEMA, tmp_path / "export")
    assert {p.name for p in (tmp_path / "export").iterdir()} == {
        "model.onnx", "signature.json", "schema.json", "serving.py"}
    assert Schema.load(tmp_path / "export" / "schema.json") == SCHEMA
    signature = json.loads((tmp_path / "export" / "signature.json").read_text())
    assert signature["inputs"] == [
        {"name": "ids", "dtype": "int32", "shape": ["batch", 3], "fields": ["user", "price", "item"],
         "vocabulary": [40, 5, 30], "lowest": 0},
        {"name": "numeric", "dtype": "float32", "shape": ["batch", 2], "fields": ["price", "age"]},
        {"name": "sequence.seen", "dtype": "int32", "shape": ["batch", 4], "fields": ["seen"], "vocabulary": [30],
         "lowest": -1},
        {"name": "sequence.tags", "dtype": "int32", "shape": ["batch", 3], "fields": ["tags"], "vocabulary": [6],
         "lowest": -1}]
    assert signature["outputs"] == [{"name": "click@all", "dtype": "float32", "shape": ["batch"]}]
    assert list(signature["sha256"]) == ["model.onnx"]


def test_a_log_of_ids_alone_needs_nothing_else(tmp_path: Path) -> None:
    schema = Schema((Field("user", "categorical", 9), Field("item", "categorical", 5)), (Objective("click"),),
                    {"train": 1}, "v", "r")
    model = DNN(schema, ArchSpec.dense(schema, 4), "click")
    export_onnx(model, schema, tmp_path / "export")
    rows = draw(7, schema)
    assert_equal(Scorer(tmp_path / "export").score(rows["ids"]), eager(model, rows))


@pytest.mark.parametrize(("export", "file"), [(export_onnx, "model.onnx"), (export_package, "model.pt2")])
def test_equal_models_give_equal_bytes_and_no_path_of_this_machine(export, file: str, tmp_path: Path) -> None:
    for folder in ("one", "other"):
        export(build("dnn", "mask"), SCHEMA, tmp_path / folder)
    one = (tmp_path / "one" / file).read_bytes()
    assert one == (tmp_path / "other" / file).read_bytes()
    assert b".py" not in one
    assert (tmp_path / "one" / "signature.json").read_bytes() == (tmp_path / "other" / "signature.json").read_bytes()


def test_the_model_goes_on_training_as_before(tmp_path: Path) -> None:
    model = build("deepfm", "mask")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_package(model, SCHEMA, tmp_path / "export")
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("export", "file"), [(export_onnx, "model.onnx"), (export_package, "model.pt2")])
def test_pruned_values_take_no_room_in_the_file(export, file: str, tmp_path: Path) -> None:
    vocab, dim = 20_000, 16
    schema = Schema((Field("user", "categorical", vocab), Field("item", "categorical", 5)), (Objective("click"),),
                    {"train": 1}, "v", "r")
    mask = np.random.default_rng(0).random((schema.total_vocab, dim)) < 0.2
    dense, pruned = ArchSpec.dense(schema, dim), ArchSpec.of(schema, "test", dim, alloc=ValueMask(mask))
    sizes = {}
    for name, spec in (("dense", dense), ("pruned", pruned)):
        export(DNN(schema, spec, "click", hidden=(8,)), schema, tmp_path / name)
        sizes[name] = (tmp_path / name / file).stat().st_size
    values = vocab * dim
    table = 4 * 0.2 * values + values / 8 + 4 * vocab
    assert sizes["dense"] - 4 * values < 100_000
    assert abs(sizes["dense"] - sizes["pruned"] - (4 * values - table)) < 0.02 * table + 30_000


def test_a_graph_is_folded_into_a_plain_table(tmp_path: Path) -> None:
    for alloc in ("uniform", "central"):
        export_package(build("dnn", alloc), SCHEMA, tmp_path / alloc)
    tables = {}
    for alloc in ("uniform", "central"):
        stored = torch.export.load(tmp_path / alloc / "model.pt2").state_dict
        tables[alloc] = {name: value.shape for name, value in stored.items() if "embedding" in name}
    assert tables["central"] == tables["uniform"]


def test_weights_beyond_the_limit_of_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    model, rows = build("dnn", "uniform"), draw(7)
    export_onnx(model, SCHEMA, tmp_path / "export")
    assert_equal(Scorer(tmp_path / "export").score(rows["ids"], rows["numeric"], histories(rows)), eager(model, rows))
    beside = tmp_path / "export" / "model.onnx.data"
    beside.write_bytes(beside.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match=r"model\.onnx\.data: sha256 = .*export the model again"):
        Scorer(tmp_path / "export")


@pytest.mark.parametrize("export", [export_onnx, export_package])
def test_a_model_that_scores_otherwise_is_not_handed_out(export, tmp_path: Path) -> None:
    model = build("dnn", "uniform")
    with torch.no_grad():
        model.encoder.embedding.table.weight[0] = torch.nan
    with pytest.raises(InputError, match=r"click@all = nan: .* not finite"):
        export(model, SCHEMA, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_what_lies_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    model = build("dnn", "uniform")
    (tmp_path / "notes.txt").write_text("mine")
    for export in (export_onnx, export_package):
        with pytest.raises(InputError, match=r"not empty; delete it, or export to another one"):
            export(model, SCHEMA, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    export_package(model, SCHEMA, tmp_path / "empty")
    assert (tmp_path / "empty" / "signature.json").exists()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ctrmodels\[export\]'"):
        export_onnx(build("dnn", "uniform"), SCHEMA, tmp_path / "export")
