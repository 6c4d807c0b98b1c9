"""A workspace in which everything before ``retrain`` has run, on a planted funnel; and its stages run there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.planted import Planted, planted_funnel
from tasks import config, retrain, select_model
from tasks.runtime import manifest
from tasks.runtime.stage import Stage, execute

MODELS = ("shared_bottom", "esmm", "mmoe")


def raw_params(**sections: Any) -> dict[str, Any]:
    """A params.yaml, read, for small and quick models."""
    data = {"source": "simulated",
            "fields": [{"name": "user_id", "kind": "categorical"}, {"name": "item_id", "kind": "categorical"}],
            "objectives": [{"name": "click", "label": "click"},
                           {"name": "conversion", "label": "conversion", "after": "click"}],
            "split": {"by": "random"}}
    return {"data": data, "training": {"embedding_dim": 4, "epochs": 2, "batch_size": 256, "device": "cpu"},
            "search_embedding": {"methods": ["uniform"], "autodim": {"candidates": [2, 4]}},
            "search_interaction": {"methods": ["all_pairs"]},
            "retrain": {"models": list(MODELS), "seeds": 2, "bottom": [8], "tower": [6], "mmoe": {"experts": 3}},
            **sections}


def prepare(root: Path, data: Planted | None = None) -> Planted:
    """Write the outputs of ``encode`` and ``select_interaction`` into the workspace ``root``."""
    data = data or planted_funnel(0, rows=6000, users=40, items=40)
    data.save(root / "outputs" / "encode")
    for role, rows in data.roles.items():  # what the log's policy leaves unknown
        np.save(root / "outputs" / "encode" / role / "propensity.npy", np.full(len(rows), np.nan))
    ArchSpec.dense(data.schema, 4).save(root / "outputs" / "select_interaction" / "spec")
    for name in ("encode", "select_interaction"):
        manifest.write(root / "outputs" / name)
    return data


def run_retrain(root: Path, model: str, raw: dict[str, Any] | None = None) -> Path:
    """Run ``retrain@model`` in ``root``; returns its output folder."""
    stage = Stage("retrain", model, config.parse(raw or raw_params(), "params.yaml"), root)
    execute(stage, retrain.run)
    return stage.final


def run_select(root: Path, raw: dict[str, Any] | None = None) -> Path:
    """Run ``select_model`` in ``root``; returns its output folder."""
    stage = Stage("select_model", None, config.parse(raw or raw_params(), "params.yaml"), root)
    execute(stage, select_model.run)
    return stage.final


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
