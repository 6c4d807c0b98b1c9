"""Models of one score through the stages: a relative one is judged and fused inside lists only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctrmodels.data.planted import planted_funnel
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.fusion import FusionSpec
from ctrmodels.multitask.predictions import Predictions
from tasks import config, tune_fusion
from tasks.runtime.stage import Stage, execute
from tests.tasks import planted_workspace as workspace

MODELS = ("bpr", "weighted")


@pytest.fixture(autouse=True)
def without_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def params(**retrain: Any) -> dict[str, Any]:
    raw = workspace.raw_params(select_model={"metric": "gauc"}, tune_fusion={"trials": 2, "k": 5})
    raw["training"]["batch_size"] = 512
    raw["retrain"] |= {"models": list(MODELS), "seeds": 1, "weighted": {"actions": {"conversion": 5.0}}, **retrain}
    return raw


def test_relative_scores_go_through_choice_and_fusion_by_their_rank(tmp_path: Path) -> None:
    workspace.prepare(tmp_path)
    folders = {name: workspace.run_retrain(tmp_path, name, params()) for name in MODELS}
    metrics = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in folders.items()}
    assert "valid.auc.click@all" in metrics["weighted"] and "valid.gauc.click@all" in metrics["weighted"]
    assert "valid.auc.click@all" not in metrics["bpr"] and "valid.gauc.click@all" in metrics["bpr"]
    figures = {name: {p.stem for p in (folder / "figures").glob("*.json")} for name, folder in folders.items()}
    assert figures == {"bpr": {"training_curves"}, "weighted": {"training_curves", "calibration"}}
    for name, folder in folders.items():
        table = Predictions.load(folder / "predictions" / "valid.parquet", Schema.load(folder / "schema.json"))
        assert table.relative == (name == "bpr") and set(table.scores) == {"click@all", "conversion@all"}

    workspace.run_select(tmp_path, params(models=["bpr"]))
    stage = Stage("tune_fusion", None, config.parse(params(models=["bpr"]), "params.yaml"), tmp_path)
    execute(stage, tune_fusion.run)
    spec = FusionSpec.load(stage.final / "fusion.json")
    assert [s.normaliser.kind for s in spec.scores] == ["rank_in_list"] * 2


def test_choosing_by_a_metric_that_relative_scores_do_not_have_is_refused(tmp_path: Path) -> None:
    workspace.prepare(tmp_path)
    raw = params(models=["bpr"]) | {"select_model": {"metric": "auc"}}
    workspace.run_retrain(tmp_path, "bpr", raw)
    with pytest.raises(InputError, match=r"select_model\.metric = 'auc'.*undefined for bpr; choose another metric"):
        workspace.run_select(tmp_path, raw)


def test_a_list_longer_than_the_batch_stops_the_stage(tmp_path: Path) -> None:
    workspace.prepare(tmp_path, planted_funnel(0, rows=6000, users=8, items=40))
    with pytest.raises(InputError, match=r"training\.batch_size = 512: the longest list has \d+ rows"):
        workspace.run_retrain(tmp_path, "bpr", params())
