from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import planted_workspace as workspace
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Dataset
from ctrmodels.data.planted import planted_funnel, planted_interests, planted_pairs
from ctrmodels.errors import InputError
from ctrmodels.multitask import load_model
from ctrmodels.training import TrainConfig, predict
from tasks import config, retrain
from tasks.runtime import manifest
from tasks.runtime.figure import Figure
from tasks.training import train_config


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds run one after the other in this process, and nothing is sent anywhere."""
    monkeypatch.setenv("CTRMODELS_WORKERS", "1")
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with ``retrain@mmoe`` done."""
    root = tmp_path_factory.mktemp("retrain")
    workspace.prepare(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTRMODELS_WORKERS", "1")
        patch.setenv("WANDB_MODE", "disabled")
        workspace.run_retrain(root, "mmoe")
    return root


def out(root: Path, model: str = "mmoe") -> Path:
    return root / "outputs" / "retrain" / model


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_predictions_hold_every_row_of_valid_and_test_with_labels_and_scores(trained: Path) -> None:
    for role in ("valid", "test"):
        table = pq.read_table(out(trained) / "predictions" / f"{role}.parquet")
        encoded = trained / "outputs" / "encode" / role
        assert table.column_names == ["row", "group", "position", "label.click", "label.conversion",
                                      "score.click@all", "score.conversion@all", "score.conversion@click"]
        np.testing.assert_array_equal(table["row"], np.load(encoded / "row.npy"))
        np.testing.assert_array_equal(table["label.conversion"], np.load(encoded / "labels.npy")[:, 1])
        np.testing.assert_array_equal(table["group"], np.load(encoded / "group.npy"))


def test_predictions_are_those_of_the_saved_model(trained: Path) -> None:
    model = load_model(out(trained))
    rows = Dataset(trained / "outputs" / "encode", ("test",)).role("test")
    table = pq.read_table(out(trained) / "predictions" / "test.parquet")
    for name, score in predict(model, rows).items():
        np.testing.assert_allclose(table[f"score.{name}"], score, rtol=1e-5)


def test_metrics_are_means_over_the_seeds_of_valid_alone(trained: Path) -> None:
    metrics, seeds = read(out(trained) / "metrics.json"), read(out(trained) / "seeds.json")
    assert [s["seed"] for s in seeds] == [0, 1]
    for name in ("auc.click@all", "auc.conversion@all", "auc.conversion@click", "gauc.click@all",
                 "logloss.conversion@all", "ne.click@all", "calibration.conversion@click", "ece.click@all"):
        values = [s["metrics"][name] for s in seeds]
        assert metrics[f"valid.{name}"] == pytest.approx(np.mean(values))
        assert metrics[f"valid.{name}.sd"] == pytest.approx(np.std(values, ddof=1))
    assert not any("test" in name for name in metrics)
    assert "seconds" not in json.dumps(seeds)


def test_the_best_seed_on_valid_is_the_one_that_is_kept(trained: Path) -> None:
    seeds, metrics = read(out(trained) / "seeds.json"), read(out(trained) / "metrics.json")
    mean = [np.mean([s["metrics"]["auc.click@all"], s["metrics"]["auc.conversion@all"]]) for s in seeds]
    best = int(np.argmax(mean))
    assert metrics["best_seed"] == best
    kept = (out(trained) / "model.safetensors").read_bytes()
    assert kept == (out(trained) / "weights" / f"seed={best}.safetensors").read_bytes()
    table = pq.read_table(out(trained) / "predictions" / "valid.parquet")
    assert roc_auc_score(table["label.click"], table["score.click@all"]) == pytest.approx(
        seeds[best]["metrics"]["auc.click@all"])


def test_figures_show_training_calibration_and_the_use_of_experts(trained: Path) -> None:
    figures = {p.stem: Figure.load(p) for p in (out(trained) / "figures").glob("*.json")}
    assert set(figures) == {"training_curves", "calibration", "gates"}
    assert len(figures["training_curves"].series) == 2
    assert {s.name for s in figures["calibration"].series} == {
        "click@all", "conversion@all", "conversion@click", "perfect"}
    assert figures["gates"].rows == ["click", "conversion"] and len(figures["gates"].columns) == 3
    np.testing.assert_allclose(np.sum(figures["gates"].values, axis=1), 1.0, atol=1e-5)


def test_costs_are_those_of_the_model_on_the_chosen_architecture(trained: Path) -> None:
    metrics = read(out(trained) / "metrics.json")
    cost = load_model(out(trained)).cost()
    assert {k: metrics[k] for k in vars(cost)} == vars(cost) and metrics["parameters"] == cost.parameters
    chosen = ArchSpec.load(trained / "outputs" / "select_interaction" / "spec")
    assert ArchSpec.load(out(trained) / "spec").id == chosen.id


def test_histories_are_read_as_params_yaml_says(tmp_path: Path) -> None:
    """In every seed's training, in the predictions and in the model that comes out."""
    workspace.prepare(tmp_path, planted_interests(0, rows=3000, users=200))
    raw = workspace.raw_params()
    raw["data"] |= {"fields": [{"name": "item_id", "kind": "categorical", "side": "item"},
                               {"name": "seen", "kind": "sequence", "of": "item_id", "max_length": 15}],
                    "objectives": [{"name": "click", "label": "click"}]}
    raw["retrain"]["history"] = "din"
    folder = workspace.run_retrain(tmp_path, "shared_bottom", raw)
    assert read(folder / "model.json")["config"]["history"] == "din"
    model, rows = load_model(folder), Dataset(tmp_path / "outputs" / "encode", ("test",)).role("test")
    assert [name for name, _ in model.named_parameters() if name.startswith("encoder.interests.0.")]
    metrics, table = read(folder / "metrics.json"), pq.read_table(folder / "predictions" / "test.parquet")
    assert metrics["flops"] == model.cost().flops
    np.testing.assert_allclose(table["score.click@all"], predict(model, rows)["click@all"], rtol=1e-5)


def test_the_same_inputs_give_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "outputs" / "encode", tmp_path / "outputs" / "encode")
    shutil.copytree(trained / "outputs" / "select_interaction", tmp_path / "outputs" / "select_interaction")
    again = workspace.run_retrain(tmp_path, "mmoe")
    assert workspace.contents(again) == workspace.contents(out(trained))


@pytest.mark.slow
def test_seeds_side_by_side_give_the_same_bytes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRMODELS_WORKERS", "2")
    workspace.prepare(tmp_path)
    assert workspace.contents(workspace.run_retrain(tmp_path, "mmoe")) == workspace.contents(out(trained))


def test_a_killed_attempt_leaves_nothing_and_its_finished_seeds_are_not_trained_again(
        trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.prepare(tmp_path)
    real, tried = retrain.train, []

    def dies_in_the_second_seed(*args: Any) -> Any:
        training: TrainConfig = args[3]
        tried.append(training.seed)
        if tried == [0, 1]:
            raise RuntimeError("killed")
        return real(*args)

    monkeypatch.setattr(retrain, "train", dies_in_the_second_seed)
    with pytest.raises(RuntimeError, match="killed"):
        workspace.run_retrain(tmp_path, "mmoe")
    assert not out(tmp_path).exists()
    again = workspace.run_retrain(tmp_path, "mmoe")
    assert tried == [0, 1, 1]
    assert workspace.contents(again) == workspace.contents(out(trained))


def test_a_balanced_model_records_its_weights_and_is_built_again_without_the_balancer(tmp_path: Path) -> None:
    workspace.prepare(tmp_path)
    folder = workspace.run_retrain(tmp_path, "mmoe-pcgrad")
    figure = Figure.load(folder / "figures" / "loss_weights.json")
    assert [s.name for s in figure.series] == ["click@all", "conversion@click"]
    assert "pairs of gradients" in figure.caption
    best = read(folder / "metrics.json")["best_seed"]
    history = read(folder / "seeds.json")[int(best)]["history"]
    assert figure.series[1].y == pytest.approx([epoch["weight.conversion@click"] for epoch in history])
    assert read(folder / "model.json")["model"] == "mmoe"
    rows = Dataset(tmp_path / "outputs" / "encode", ("test",)).role("test")
    scores = pq.read_table(folder / "predictions" / "test.parquet")
    np.testing.assert_allclose(scores["score.click@all"], predict(load_model(folder), rows)["click@all"], rtol=1e-5)


def test_options_and_loss_weights_reach_the_balancers_that_read_them() -> None:
    raw = workspace.raw_params()
    raw["retrain"] |= {"models": ["mmoe", "mmoe-fixed", "mmoe-decay", "mmoe-uncertainty", "mmoe-random"],
                       "loss_weights": {"click": 2.0},
                       "balancers": {"decay": {"factors": {"click": 0.9}}, "uncertainty": {"max_weight": 9}}}
    params = config.parse(raw, "params.yaml")
    weights = {key: retrain.model_config(params, key).loss_weights for key in params.retrain.models}
    assert weights == {"mmoe": {}, "mmoe-fixed": {"click": 2.0}, "mmoe-decay": {"click": 2.0},
                       "mmoe-uncertainty": {}, "mmoe-random": {}}
    found = {key: retrain.balancing_of(params, key) for key in params.retrain.models}
    assert found["mmoe"] is None and found["mmoe-fixed"] is None
    assert found["mmoe-decay"].options.factors == {"click": 0.9}
    assert found["mmoe-uncertainty"].options.max_weight == 9 and found["mmoe-random"].options is None


def test_every_balancer_of_params_yaml_exists() -> None:
    assert set(config.BALANCERS) == {"fixed", *retrain.BALANCER_KINDS}


def test_a_factor_for_an_objective_that_the_log_lacks_is_refused_before_any_training(tmp_path: Path) -> None:
    workspace.prepare(tmp_path)
    raw = workspace.raw_params()
    raw["retrain"] |= {"models": ["mmoe-decay"], "balancers": {"decay": {"factors": {"share": 0.9}}}}
    with pytest.raises(InputError, match=r"retrain\.balancers\.decay\.factors = 'share': no such objective"):
        workspace.run_retrain(tmp_path, "mmoe-decay", raw)
    assert not out(tmp_path, "mmoe-decay").exists()


def test_no_search_or_training_may_read_test(trained: Path, tmp_path: Path) -> None:
    """Rows of ``test`` that no reader could open do not disturb the training of a seed."""
    root = tmp_path
    workspace.prepare(root)
    encoded = root / "outputs" / "encode"
    (encoded / "test" / "ids.npy").write_bytes(b"unreadable")
    params = config.parse(workspace.raw_params(), "params.yaml")
    found = retrain.train_seed(encoded, root / "outputs" / "select_interaction" / "spec", "mmoe",
                               retrain.model_config(params, "mmoe"), train_config(params.training), 1000, root / "seed")
    assert found["metrics"] == read(out(trained) / "seeds.json")[0]["metrics"]


def test_esmm_on_a_log_without_a_chain_is_refused_before_any_training(tmp_path: Path) -> None:
    workspace.prepare(tmp_path, planted_pairs(0, rows=500, fields=2, pairs=1))
    with pytest.raises(InputError, match=r"data\.objectives.*after:") as caught:
        workspace.run_retrain(tmp_path, "esmm")
    assert "\n" not in str(caught.value) and not out(tmp_path, "esmm").exists()


@pytest.mark.parametrize(("role", "message"), [("valid", "one class only on valid"),
                                               ("train", r"one class only on train \+ arch")])
def test_an_objective_with_one_class_is_refused_before_any_training(tmp_path: Path, role: str, message: str) -> None:
    data = planted_funnel(0, rows=2000, users=40, items=40)
    for name in ("train", "arch") if role == "train" else (role,):
        data.roles[name].labels[:, 1] = 0.0
    workspace.prepare(tmp_path, data)
    with pytest.raises(InputError, match=message):
        workspace.run_retrain(tmp_path, "shared_bottom")


def test_an_architecture_of_another_log_is_refused(tmp_path: Path) -> None:
    workspace.prepare(tmp_path)
    folder = tmp_path / "outputs" / "select_interaction"
    ArchSpec.dense(planted_funnel(1, rows=2000, users=40, items=40).schema, 4).save(folder / "spec")
    manifest.write(folder)
    with pytest.raises(InputError, match="hash"):
        workspace.run_retrain(tmp_path, "shared_bottom")
