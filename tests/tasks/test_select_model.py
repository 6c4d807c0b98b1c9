from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted_workspace as workspace
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask import load_model
from ctrmodels.multitask.choice import Contender
from ctrmodels.multitask.predictions import Predictions
from tasks import config, model_figures, select_model
from tasks.runtime import manifest
from tasks.runtime.figure import Figure
from tasks.select_model import Candidate


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with all models retrained and one selected."""
    root = tmp_path_factory.mktemp("select")
    workspace.prepare(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTRMODELS_WORKERS", "1")
        patch.setenv("WANDB_MODE", "disabled")
        for model in workspace.MODELS:
            workspace.run_retrain(root, model)
        workspace.run_select(root)
    return root


def out(root: Path) -> Path:
    return root / "outputs" / "select_model"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_leaderboard_and_choice_say_what_was_compared_and_why(chosen: Path) -> None:
    board, choice = read(out(chosen) / "leaderboard.json"), read(out(chosen) / "choice.json")
    assert [r["candidate"] for r in board["rows"] if r["chosen"]] == [choice["candidate"]]
    assert {r["candidate"] for r in board["rows"]} == set(workspace.MODELS)
    assert board["reason"] == choice["reason"] and board["rule"] == choice["rule"]
    means = [r["valid"] for r in board["rows"]]
    assert means == sorted(means, reverse=True)
    for row in board["rows"]:
        recorded = read(chosen / "outputs" / "retrain" / row["candidate"] / "metrics.json")
        assert row["kind"] == "model" and row["seeds"] == 2
        mean = (recorded["valid.auc.click@all"] + recorded["valid.auc.conversion@all"]) / 2
        assert row["valid"] == pytest.approx(mean)
        assert {"valid_sd", "parameters", "flops", "bytes", "valid.auc.conversion@click"} <= set(row)
    assert not any("test" in key for row in board["rows"] for key in row)


def test_the_winners_model_and_predictions_are_handed_on(chosen: Path) -> None:
    winner = chosen / "outputs" / "retrain" / read(out(chosen) / "choice.json")["candidate"]
    for name in ("model.safetensors", "model.json", "schema.json", "spec/archspec.json",
                 "predictions/valid.parquet", "predictions/test.parquet"):
        assert (out(chosen) / name).read_bytes() == (winner / name).read_bytes()
    assert load_model(out(chosen)).names == ["click", "conversion"]


def test_test_metrics_are_those_of_the_winner_with_intervals_around_them(chosen: Path) -> None:
    metrics = read(out(chosen) / "metrics.json")
    table = pq.read_table(out(chosen) / "predictions" / "test.parquet").to_pandas()
    clicked = table[table["label.click"] == 1]
    assert metrics["test.auc.click@all"] == pytest.approx(roc_auc_score(table["label.click"], table["score.click@all"]))
    assert metrics["test.auc.conversion@click"] == pytest.approx(
        roc_auc_score(clicked["label.conversion"], clicked["score.conversion@click"]))
    for name in ("click@all", "conversion@all", "conversion@click"):
        low, high = metrics[f"test.auc.{name}.low"], metrics[f"test.auc.{name}.high"]
        assert low < metrics[f"test.auc.{name}"] < high


def test_test_is_read_once_and_for_the_winner_alone(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    read_files, real = [], Predictions.load

    def load(path: Path, schema: Schema) -> Predictions:
        read_files.append((path.parents[1].name, path.name))
        return real(path, schema)

    monkeypatch.setattr(select_model.Predictions, "load", load)
    before = workspace.contents(out(chosen))
    workspace.run_select(chosen)
    assert read_files == [*((name, "valid.parquet") for name in workspace.MODELS),
                          (read(out(chosen) / "choice.json")["candidate"], "test.parquet")]
    assert workspace.contents(out(chosen)) == before


def test_figures_show_the_comparison_the_calibration_and_the_metrics_with_their_spaces(chosen: Path) -> None:
    figures = {p.stem: Figure.load(p) for p in (out(chosen) / "figures").glob("*.json")}
    assert set(figures) == {"leaderboard", "comparison", "calibrations", "gate_use", "calibration", "metrics"}
    assert {s.name for s in figures["leaderboard"].series} == {
        "mean of the binary objectives @all", "click@all", "conversion@all", "conversion@click"}
    spaces = {(row[0], row[1]) for row in figures["metrics"].values}
    assert spaces == {("click", "all"), ("conversion", "all"), ("conversion", "click")}


def test_a_metric_that_the_log_does_not_allow_is_refused(chosen: Path, tmp_path: Path) -> None:
    folder = tmp_path / "esmm"
    folder.mkdir()
    source = chosen / "outputs" / "retrain" / "esmm"
    for name in ("schema.json", "metrics.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    seeds = read(source / "seeds.json")
    for seed in seeds:
        seed["metrics"] = {k: v for k, v in seed["metrics"].items() if not k.startswith("gauc")}
    (folder / "seeds.json").write_text(json.dumps(seeds))
    with pytest.raises(InputError, match=r"select_model\.metric = 'gauc'.*data\.group"):
        select_model.load("esmm", folder, "gauc")


def test_every_model_has_an_interval_and_a_paired_difference_to_the_best(chosen: Path) -> None:
    rows = read(out(chosen) / "leaderboard.json")["rows"]
    assert [row["to_best"] is None for row in rows] == [True, False, False]
    for row in rows:
        own = row["best_seed"]
        assert own["low"] < own["valid"] < own["high"]
        seeds = read(chosen / "outputs" / "retrain" / row["candidate"] / "seeds.json")
        means = [(s["metrics"]["auc.click@all"] + s["metrics"]["auc.conversion@all"]) / 2 for s in seeds]
        assert own["valid"] == pytest.approx(max(means), abs=1e-6)
    for row in rows[1:]:
        apart, own = row["to_best"], row["best_seed"]
        assert apart["valid"] == pytest.approx(own["valid"] - rows[0]["best_seed"]["valid"])
        assert apart["low"] < apart["valid"] < apart["high"]
    table = Figure.load(out(chosen) / "figures" / "comparison.json")
    assert [line[0] for line in table.values] == [row["candidate"] for row in rows]
    assert [line[5] for line in table.values].count("the best") == 1


def test_calibration_of_every_model_objective_and_space(chosen: Path) -> None:
    lines = Figure.load(out(chosen) / "figures" / "calibrations.json").values
    assert [line[:3] for line in lines] == [
        [model, *name] for model in workspace.MODELS
        for name in (("click", "all"), ("conversion", "all"), ("conversion", "click"))]
    recorded = read(chosen / "outputs" / "retrain" / "esmm" / "metrics.json")
    found = next(line for line in lines if line[:3] == ["esmm", "conversion", "click"])
    assert found[3:] == [recorded[f"valid.{metric}.conversion@click{sd}"]
                         for metric in ("calibration", "ece") for sd in ("", ".sd")]


def test_use_of_the_experts_of_gated_models_alone(chosen: Path) -> None:
    lines = Figure.load(out(chosen) / "figures" / "gate_use.json").values
    assert [line[:3] for line in lines] == [["mmoe", "click", 3], ["mmoe", "conversion", 3]]
    for _, _, experts, used, entropy, divergence in lines:
        assert 1 <= used <= experts and 0 <= entropy <= 1 and divergence >= 0


def test_without_single_the_multi_task_gain_is_absent_and_says_why(chosen: Path) -> None:
    board = read(out(chosen) / "leaderboard.json")
    assert any("retrain.models does not have single" in note for note in board["notes"])
    assert all(row["gain"] == {} for row in board["rows"])


def candidate(name: str, recorded: dict[str, float], size: float = 100) -> Candidate:
    spread = {f"{key}.sd": 0.003 for key in recorded}
    return Candidate(name, Path(name), {**recorded, **spread, "parameters_other": size},
                     Contender(name, {"click": (0.8,)}, size, 1))


def test_the_gain_is_against_single_per_score_and_less_logloss_is_a_gain(chosen: Path) -> None:
    schema = Schema.load(out(chosen) / "schema.json")
    single = candidate("single", {"valid.auc.click@all": 0.70, "valid.auc.conversion@click": 0.60,
                                  "valid.logloss.click@all": 0.50})
    model = candidate("mmoe", {"valid.auc.click@all": 0.72, "valid.auc.conversion@click": 0.59,
                               "valid.auc.conversion@all": 0.8, "valid.logloss.click@all": 0.48})
    sd = pytest.approx(0.003 * 2 ** 0.5)
    found = select_model.gains(schema, [single, model], "auc")
    assert found == {"mmoe": {"click@all": (pytest.approx(0.02), sd), "conversion@click": (pytest.approx(-0.01), sd)}}
    assert select_model.gains(schema, [single, model], "logloss") == {
        "mmoe": {"click@all": (pytest.approx(0.02), sd)}}
    figure = model_figures.gains(found, "auc")
    assert [(s.name, list(s.x)) for s in figure.series] == [("click@all", ["mmoe"]), ("conversion@click", ["mmoe"])]
    assert not any("gain" in note for note in select_model.notes([single, model], found))
    assert "only single was trained" in select_model.notes([single], {})[0]


def test_parameters_are_matched_or_the_difference_is_told() -> None:
    close = [candidate("a", {}, 100), candidate("b", {}, 104)]
    assert select_model.notes(close, {"b": {}})[-1].startswith("Parameters beside the embedding are matched")
    far = [candidate("a", {}, 1000), candidate("b", {}, 104)]
    assert "from 104 (b) to 1,000 (a)" in select_model.notes(far, {"b": {}})[-1]


def obeys_floors(root: Path) -> None:
    """A primary that one model is best in, and a floor of the other objective that this model does not keep."""
    board = read(out(root) / "leaderboard.json")
    best = {o: max(row[f"valid.auc.{o}@all"] for row in board["rows"]) for o in ("click", "conversion")}
    floor = board_floor(board, best)
    chosen = next(row for row in board["rows"] if row["chosen"])
    assert best["conversion"] - chosen["valid.auc.conversion@all"] <= floor
    outside = [r["candidate"] for r in board["rows"] if best["conversion"] - r["valid.auc.conversion@all"] > floor]
    assert outside and {r["candidate"] for r in board["rows"] if r["below_floor"]} == set(outside)
    assert all(name in board["reason"] for name in outside)


def board_floor(board: Any, best: dict[str, float]) -> float:
    """Half-way between the second best and the worst model's distance to the best in conversions."""
    behind = sorted(best["conversion"] - row["valid.auc.conversion@all"] for row in board["rows"])
    return (behind[1] + behind[2]) / 2


@pytest.fixture
def floored(chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """A copy of the workspace, and params that make the model that is worst in conversions the primary's best."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shutil.copytree(chosen / "outputs", tmp_path / "outputs")
    board = read(out(chosen) / "leaderboard.json")
    best = {"conversion": max(row["valid.auc.conversion@all"] for row in board["rows"])}
    worst = min(board["rows"], key=lambda row: row["valid.auc.conversion@all"])["candidate"]
    folder = tmp_path / "outputs" / "retrain" / worst
    seeds = read(folder / "seeds.json")
    for seed in seeds:
        seed["metrics"]["auc.click@all"] = 0.999
    (folder / "seeds.json").write_text(json.dumps(seeds))
    (folder / "MANIFEST.json").unlink()
    manifest.write(folder)
    return tmp_path, workspace.raw_params(select_model={"primary": "click", "floors": {
        "conversion": board_floor(board, best)}})


def test_the_stage_obeys_primary_and_floors(floored: tuple[Path, dict[str, Any]]) -> None:
    root, raw = floored
    workspace.run_select(root, raw)
    obeys_floors(root)
    board = read(out(root) / "leaderboard.json")
    assert "auc of click" in board["rule"] and "conversion at most" in board["rule"]
    assert board["rows"][0]["below_floor"] and not board["rows"][0]["chosen"]
    leaderboard = Figure.load(out(root) / "figures" / "leaderboard.json")
    assert leaderboard.series[0].name == "click, which decides"


def test_a_rule_that_forgets_the_floors_fails_that_test(floored: tuple[Path, dict[str, Any]],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    root, raw = floored
    real = select_model.Rule
    monkeypatch.setattr(select_model, "Rule", lambda metric, primary, floors: real(metric, primary))
    workspace.run_select(root, raw)
    with pytest.raises(AssertionError):
        obeys_floors(root)


def test_floors_that_no_model_keeps_are_refused_with_the_remedy(floored: tuple[Path, dict[str, Any]]) -> None:
    root, raw = floored
    raw["select_model"] = {"floors": {"click": 0.0, "conversion": 0.0}}
    with pytest.raises(InputError, match=r"select_model\.floors.*no model keeps all floors.*allow more"):
        workspace.run_select(root, raw)


@pytest.mark.parametrize(("section", "message"), [
    ({"primary": "buy"}, "select_model.primary = 'buy' is not a binary objective"),
    ({"floors": {"buy": 0.1}}, "select_model.floors = 'buy' is not a binary objective"),
    ({"primary": "click", "floors": {"click": 0.1}}, "the primary, which is maximised"),
    ({"floors": {"click": -0.1}}, "greater than or equal to 0"),
    ({"floor": {"click": 0.1}}, "unknown key"),
])
def test_bad_settings_are_refused_when_params_are_read(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.parse(workspace.raw_params(select_model=section), "params.yaml")


def test_models_judged_on_different_rows_are_refused(floored: tuple[Path, dict[str, Any]]) -> None:
    root, _ = floored
    folder = root / "outputs" / "retrain" / "mmoe"
    schema = Schema.load(folder / "schema.json")
    table = Predictions.load(folder / "predictions" / "valid.parquet", schema)
    replace(table, row=table.row[::-1].copy()).save(folder / "predictions" / "valid.parquet", schema)
    (folder / "MANIFEST.json").unlink()
    manifest.write(folder)
    with pytest.raises(InputError, match=r"not the rows of shared_bottom.*retrain@mmoe"):
        workspace.run_select(root)
