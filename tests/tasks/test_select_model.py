from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import planted_workspace as workspace
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from ctrmodels.data.schema import Field, Objective, Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask import load_model
from ctrmodels.multitask.predictions import Predictions
from tasks import select_model
from tasks.runtime.figure import Figure
from tasks.select_model import Candidate, choose, intervals


def candidate(name: str, values: tuple[float, ...], parameters: int, flops: int = 1) -> Candidate:
    return Candidate(name, Path(name), values, {"parameters": parameters, "flops": flops})


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


def test_the_best_mean_wins_when_nothing_is_within_its_spread() -> None:
    best, cheap = candidate("mmoe", (0.800, 0.802), 100), candidate("esmm", (0.790, 0.792), 10)
    found, reason = choose([cheap, best], "auc")
    assert found is best and reason == "mmoe has the best valid auc, 0.8010 ± 0.0014"


def test_a_tie_inside_the_seeds_spread_goes_to_fewer_parameters() -> None:
    best, cheap = candidate("mmoe", (0.80, 0.82), 100), candidate("esmm", (0.80, 0.80), 10)
    found, reason = choose([best, cheap], "auc")
    assert found is cheap and "within one standard deviation (0.0141) of the best, mmoe" in reason


def test_a_tie_does_not_go_to_a_dearer_model() -> None:
    best, dear = candidate("esmm", (0.80, 0.82), 10), candidate("mmoe", (0.80, 0.80), 100)
    assert choose([dear, best], "auc")[0] is best


def test_a_tie_between_balancers_of_one_model_goes_to_the_plain_sum() -> None:
    best, plain = candidate("mmoe-pcgrad", (0.80, 0.82), 100), candidate("mmoe", (0.80, 0.80), 100)
    found, reason = choose([best, plain], "auc")
    assert found is plain and "the best, mmoe-pcgrad (0.8100), and adds its losses up as they are" in reason
    clear = candidate("mmoe-pcgrad", (0.82, 0.82), 100)
    assert choose([plain, clear], "auc")[0] is clear


def test_one_seed_has_no_spread_and_only_equal_means_tie() -> None:
    best, near = candidate("mmoe", (0.8001,), 100), candidate("esmm", (0.8,), 10)
    assert choose([best, near], "auc")[0] is best
    assert choose([candidate("mmoe", (0.8,), 100), near], "auc")[0] is near


def test_of_logloss_less_is_better() -> None:
    low, high = candidate("mmoe", (0.3, 0.3), 100), candidate("esmm", (0.4, 0.4), 10)
    assert choose([high, low], "logloss")[0] is low


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
    assert read_files == [(read(out(chosen) / "choice.json")["candidate"], "test.parquet")]
    assert workspace.contents(out(chosen)) == before


def test_figures_show_the_comparison_the_calibration_and_the_metrics_with_their_spaces(chosen: Path) -> None:
    figures = {p.stem: Figure.load(p) for p in (out(chosen) / "figures").glob("*.json")}
    assert set(figures) == {"leaderboard", "calibration", "metrics"}
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


def test_intervals_widen_when_rows_come_in_groups() -> None:
    """Twenty copies of each row by one user are no more evidence than the row."""
    rng = np.random.default_rng(0)
    schema = Schema((Field("user", "categorical", 3),), (Objective("click"),), {}, "v", "r")
    label = (rng.random(200) < 0.4).astype(np.float32)
    score = (label + rng.normal(0, 1.5, 200)).astype(np.float32)
    copied = np.repeat(np.arange(200), 20)

    def width(group: np.ndarray) -> float:
        zeros = np.zeros(len(copied), np.int32)
        table = Predictions(zeros, group, zeros, label[copied, None], {"click@all": score[copied]})
        found = intervals(schema, table)["auc.click@all"]
        assert found.low < found.mean < found.high
        return found.high - found.low

    assert width(copied) > 3 * width(np.zeros(len(copied), np.int64))
