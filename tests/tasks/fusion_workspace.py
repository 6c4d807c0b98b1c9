"""A workspace in which ``tune_fusion`` can run: predictions whose best weights are known, and their encoded rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file
from scipy.special import expit, logit

from ctrmodels.data.schema import Field, Objective, Scale, Schema
from ctrmodels.multitask.checkpoint import WEIGHTS
from ctrmodels.multitask.predictions import Predictions
from tasks import config, tune_fusion
from tasks.runtime import manifest
from tasks.runtime.stage import Stage, execute

OBJECTIVES = (Objective("click"), Objective("buy", after="click"))
LISTS, LENGTH = 240, 20
ITEMS, DEVICES = 40, 2
NUMBERS = {"seconds": np.random.default_rng(1).lognormal(3, 1, ITEMS).round(),
           "price": np.random.default_rng(2).lognormal(2, 1, ITEMS).round(2)}
"""By numeric field, each item's value."""
SCALES = {name: Scale(float(values.mean()), float(values.std())) for name, values in NUMBERS.items()}


def predictions(seed: int, first_group: int, lists: int = LISTS) -> Predictions:
    """A funnel click → buy whose two probabilities pull apart; the scores are right but for their calibration."""
    rng = np.random.default_rng(seed)
    taste, price = rng.normal(size=(2, lists * LENGTH))
    click, buy = expit(1.5 * taste - 1), expit(1.5 * price - 0.5 * taste - 0.5)
    clicked = rng.random(len(click)) < click
    bought = clicked & (rng.random(len(buy)) < buy)
    group = rng.permutation(np.repeat(first_group + np.arange(lists), LENGTH)) * 7919
    scores = {"click@all": expit(2 * logit(click) + 1), "buy@click": buy, "buy@all": click * buy / 3}
    return Predictions(
        row=np.arange(len(click)), group=group, position=np.zeros(len(click), np.int32),
        labels=np.stack([clicked, bought], axis=1).astype(np.float32),
        scores={k: v.astype(np.float32) for k, v in scores.items()})


def workspace(root: Path, change: Callable[[Predictions], Predictions] = lambda p: p,
              objectives: tuple[Objective, ...] = OBJECTIVES, lists: int = LISTS) -> Path:
    """Write the outputs of ``select_model`` that the stage reads, after ``change``."""
    folder = root / "outputs" / "select_model"
    (folder / "predictions").mkdir(parents=True)
    schema = schema_of(objectives)
    schema.save(folder / "schema.json")
    save_file({"weight": np.ones(3, np.float32)}, folder / WEIGHTS)
    for seed, role in enumerate(("valid", "test")):
        table = change(predictions(seed, seed * lists, lists))
        table.save(folder / "predictions" / f"{role}.parquet", schema)
        encoded(root, role, table)
    manifest.write(folder)
    return root


def schema_of(objectives: tuple[Objective, ...] = OBJECTIVES) -> Schema:
    fields = (Field("item", "categorical", ITEMS, "item"), Field("device", "categorical", DEVICES + 1),
              Field("user", "categorical", 2 * LISTS + 1, "user"), *(Field(n, "numeric", 0, "item") for n in NUMBERS))
    return Schema(fields, objectives, {"valid": 1, "test": 1}, "v", "r", SCALES)


def of_items(p: Predictions, name: str) -> np.ndarray:
    """[N] a numeric field of each row's item."""
    return NUMBERS[name][p.row % ITEMS]


def encoded(root: Path, role: str, p: Predictions, propensity: np.ndarray | float = 0.0) -> None:
    """Write what ``encode`` knows of the same rows: an item each with its numbers, a device and a user per list."""
    folder = root / "outputs" / "encode"
    (folder / role).mkdir(parents=True, exist_ok=True)
    (folder / "vocab").mkdir(exist_ok=True)
    unit = np.unique(p.group, return_inverse=True)[1] % (2 * LISTS)
    ids = np.stack([p.row % ITEMS, unit % DEVICES, unit], axis=1)
    numeric = np.stack([(of_items(p, name) - s.mean) / s.deviation for name, s in SCALES.items()], axis=1)
    columns = {"row": p.row, "ids": ids.astype(np.int32), "numeric": numeric.astype(np.float32), "position": p.position,
               "propensity": np.broadcast_to(propensity, p.row.shape).astype(np.float64)}
    for name, values in columns.items():
        np.save(folder / role / f"{name}.npy", values)
    for name, size in (("device", DEVICES), ("user", 2 * LISTS)):
        pq.write_table(pa.table({"value": [f"{name} {i}" for i in range(size)]}), folder / "vocab" / f"{name}.parquet")
    manifest.write(folder)


def run(root: Path, objectives: tuple[Objective, ...] = OBJECTIVES, **settings: Any) -> Path:
    """Run the stage in ``root``; returns its output folder."""
    raw = {"data": {"source": "simulated", "fields": [
        {"name": f.name, "kind": f.kind, "side": f.side} for f in schema_of().fields],
                    "objectives": [{"name": o.name, "kind": o.kind, "label": o.name} for o in objectives],
                    "split": {"by": "random"}},
           "search_embedding": {"methods": ["uniform"]}, "search_interaction": {"methods": ["all_pairs"]},
           "retrain": {"models": ["esmm"]}, "tune_fusion": {"trials": 24, **settings}}
    stage = Stage("tune_fusion", None, config.parse(raw, "params.yaml"), root)
    execute(stage, tune_fusion.run)
    return stage.final


def read(path: Path) -> Any:
    return json.loads(path.read_text())
