"""The comparison of all models on an encoded log: keeps finished trainings, tells why a model cannot be built."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import models
from ctrmodels.data.planted import planted_funnel
from ctrmodels.errors import InputError
from ctrmodels.multitask import MODELS

PARAMS = {
    "data": {"source": "simulated", "fields": [{"name": "user_id", "kind": "categorical"}],
             "objectives": [{"name": "click", "label": "click"}], "split": {"by": "random"}},
    "training": {"embedding_dim": 4, "epochs": 1, "batch_size": 256, "device": "cpu"},
    "search_embedding": {"methods": ["uniform"], "autodim": {"candidates": [2, 4]}},
    "search_interaction": {"methods": ["all_pairs"]}, "retrain": {"models": ["esmm"], "bottom": [8], "tower": [6]}}


def run(root: Path, *options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["models", "--encoded", str(root / "log"), "--params", str(root / "params.yaml"),
                                    "--results", str(root / "results"), *options])
        models.main()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    planted_funnel(0, rows=3000, users=30, items=30).save(tmp_path / "log")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return tmp_path


def test_a_model_more_or_a_seed_more_leaves_finished_trainings_as_they_are(root: Path) -> None:
    run(root, "--models", "shared_bottom", "--seeds", "1")
    first = root / "results" / "shared_bottom" / "seed=0.json"
    before = first.stat().st_mtime_ns
    run(root, "--models", "shared_bottom", "esmm", "--seeds", "2")
    assert first.stat().st_mtime_ns == before
    found = {str(p.relative_to(root / "results")) for p in (root / "results").rglob("*.json")}
    assert found == {f"{m}/seed={s}.json" for m in ("shared_bottom", "esmm") for s in (0, 1)}
    result = json.loads(first.read_text())
    assert set(result["test"]) == set(result["valid"]) and "auc.conversion@click" in result["test"]


def test_the_table_has_every_metric_with_its_space_and_the_spread_over_seeds(root: Path) -> None:
    run(root, "--models", "shared_bottom", "esmm", "--seeds", "2")
    text = (root / "results" / "table.md").read_text()
    for space in ("click@all", "conversion@click", "conversion@all"):
        assert f"**{space}**" in text and f"auc.{space}" in text
    line = next(line for line in text.splitlines() if line.startswith("| esmm | 2 |"))
    assert line.count("±") == 6  # AUC and GAUC of each
    results = [json.loads((root / "results" / "esmm" / f"seed={s}.json").read_text()) for s in (0, 1)]
    assert f"{sum(r['test']['auc.click@all'] for r in results) / 2:.4f} ±" in line


def test_models_of_one_score_stand_beside_the_others(root: Path) -> None:
    """A relative score has no AUC, and no score but those on all rows; a dash stands where the others have one."""
    run(root, "--models", "shared_bottom", "weighted", "bpr", "--seeds", "2")
    lines = (root / "results" / "table.md").read_text().splitlines()
    head = lines[0].split("|")
    told = {line.split("|")[1].strip(): {key.strip(): "±" in cell for key, cell in
                                         zip(head, line.split("|"), strict=True) if "@" in key} for line in lines[2:5]}
    every = {f"{metric}.{score}" for metric in ("auc", "gauc")
             for score in ("click@all", "conversion@click", "conversion@all")}
    assert told == {"shared_bottom": dict.fromkeys(every, True),
                    "weighted": {key: "@all" in key for key in every},
                    "bpr": {key: key.startswith("gauc") and "@all" in key for key in every}}


def test_a_list_longer_than_a_batch_is_told_in_the_table(root: Path) -> None:
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["training"]["batch_size"] = 16
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    run(root, "--models", "bpr", "weighted", "--seeds", "1")
    text = (root / "results" / "table.md").read_text()
    assert "| bpr | not possible: the longest list has" in text and "| weighted | 1 |" in text


def test_another_recipe_is_refused_before_anything_is_trained(root: Path) -> None:
    run(root, "--models", "esmm", "--seeds", "1")
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["training"]["learning_rate"] = 0.01
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match=r"learning_rate = 0.001: the recipe says 0.01; give another --results"):
        run(root, "--models", "shared_bottom", "esmm", "--seeds", "1")
    assert not (root / "results" / "shared_bottom").exists()


def test_another_log_is_refused(root: Path) -> None:
    run(root, "--models", "esmm", "--seeds", "1")
    shutil.rmtree(root / "log")
    planted_funnel(1, rows=3000, users=31, items=30).save(root / "log")
    with pytest.raises(InputError, match=r"log = .*the log is"):
        run(root, "--models", "esmm", "--seeds", "1")


def test_what_the_log_does_not_have_is_told_in_the_table(root: Path) -> None:
    data = planted_funnel(0, rows=3000, users=30, items=30)
    path = root / "log" / "schema.json"
    assert data.schema.objectives[1].after == "click"
    raw = json.loads(path.read_text())
    for objective in raw["objectives"]:
        objective["after"] = None
    path.write_text(json.dumps(raw))
    run(root, "--models", "esmm", "youtube", "shared_bottom", "--seeds", "1")
    text = (root / "results" / "table.md").read_text()
    assert "| youtube | not possible: no row has a position" in text
    assert "| esmm | not possible: esmm needs a binary objective with `after:`" in text
    assert not (root / "results" / "esmm").exists() and "esmm" in MODELS
