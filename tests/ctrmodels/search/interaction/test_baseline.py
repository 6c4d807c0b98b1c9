"""Plain models stand beside the searches and are never chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ctrmodels.data.planted import planted_pairs
from ctrmodels.search import AllPairs, AutoFIS, Baseline, Host, SearchRows
from ctrmodels.search.choose import choose
from ctrmodels.search.run import run_search
from ctrmodels.training import TrainConfig
from ctrmodels.zoo import HOSTS, MODELS
from tasks import config

HOST = Host("click", dim=4, hidden=(8,), gate_init=0.6, train=TrainConfig(epochs=8, batch_size=500, learning_rate=1e-2))


def test_the_better_model_is_seen_and_not_chosen(tmp_path: Path) -> None:
    planted_pairs(0, rows=16_000).save(tmp_path / "encode")
    found = {}
    for method in (AllPairs(), Baseline("lr"), Baseline("fm")):
        host = replace(HOST, model=method.name) if method.kind == "baseline" else HOST
        candidates, _ = run_search(method, tmp_path / "encode", host, [0], tmp_path / "scratch" / method.name,
                                   _made(tmp_path / method.name), workers=1)
        found |= {c.name: c for c in candidates}
    assert {c.name: c.kind for c in found.values()} == {"all_pairs": "control", "lr": "baseline", "fm": "baseline"}
    assert found["fm"].valid["auc"][0] > found["lr"].valid["auc"][0] + 0.02  # the planted pairs
    assert found["lr"].costs[0].parameters_embedding == 0
    assert choose(list(found.values()), "auc", 1.0).candidate.name == "all_pairs"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_search_of_interactions_needs_gated_ones() -> None:
    log = planted_pairs(0, rows=500)
    with pytest.raises(ValueError, match="autodeepfm or autoipnn, not dcnv2"):
        AutoFIS().search(SearchRows(log.roles["train"], log.roles["arch"]), replace(HOST, model="dcnv2"), 0)


def test_params_know_the_models_there_are() -> None:
    assert tuple(MODELS) == config.BASELINES and set(config.HOSTS) == set(HOSTS)
