from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.multitask import MODELS, DBMTLOptions, ESM2Options, ModelConfig, build_model, load_model
from ctrmodels.multitask.checkpoint import WEIGHTS, save_description, save_weights
from ctrmodels.multitask.predictions import Predictions
from ctrmodels.multitask.spaces import score_names
from ctrmodels.training import predict

CONFIG = ModelConfig(bottom=(8, 4), tower=(6,), dropout=0.1, loss_weights={"click": 2.0})


@pytest.fixture
def saved(tmp_path: Path, rows: Rows) -> Path:
    torch.manual_seed(0)
    spec = ArchSpec.dense(rows.schema, 4)
    model = build_model("mmoe", rows.schema, spec, CONFIG)
    model.fit_targets(rows.labels)
    save_description(tmp_path, "mmoe", rows.schema, spec, CONFIG)
    save_weights(tmp_path / WEIGHTS, model)
    return tmp_path


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_scores_as_before_to_the_last_bit(name: str, tmp_path: Path, make_rows) -> None:
    config, rows = CONFIG, make_rows()
    if name == "esm2":
        rows = make_rows((Objective("click"), *(Objective(o, after="click") for o in ("cart", "buy"))))
        config = replace(CONFIG, options=ESM2Options("cart"))
    if name == "dbmtl":
        config = replace(CONFIG, options=DBMTLOptions({"hide": ("click", "buy")}))
    spec = ArchSpec.dense(rows.schema, 4)
    model = build_model(name, rows.schema, spec, config)
    model.fit_targets(rows.labels)
    save_description(tmp_path, name, rows.schema, spec, config)
    save_weights(tmp_path / WEIGHTS, model)
    again = load_model(tmp_path)
    assert again.loss_weights == {"click": 2.0} and not again.training
    for score, expected in zip(predict(again, rows).values(), predict(model, rows).values(), strict=True):
        np.testing.assert_array_equal(score, expected)


def test_equal_weights_give_equal_bytes(saved: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "again.safetensors", load_model(saved))
    assert (tmp_path / "again.safetensors").read_bytes() == (saved / WEIGHTS).read_bytes()


def test_damaged_or_foreign_weights_are_refused(saved: Path, rows: Rows) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="retrain"):
        load_model(saved)
    other = build_model("esmm", rows.schema, ArchSpec.dense(rows.schema, 4), CONFIG)
    save_weights(saved / WEIGHTS, other)
    with pytest.raises(InputError, match="not the weights of this model"):
        load_model(saved)
    (saved / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.json"):
        load_model(saved)


def test_predictions_come_back_as_written_and_equal_ones_have_equal_bytes(tmp_path: Path, rows: Rows) -> None:
    rng = np.random.default_rng(0)
    scores = {name: rng.random(len(rows)).astype(np.float32) for name in score_names(rows.schema)}
    table = Predictions.of(rows.schema, np.arange(len(rows)), rows.group, rows.position, rows.labels, scores)
    table.save(tmp_path / "a.parquet", rows.schema)
    table.save(tmp_path / "b.parquet", rows.schema)
    again = Predictions.load(tmp_path / "a.parquet", rows.schema)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    np.testing.assert_array_equal(again.labels, table.labels)
    np.testing.assert_array_equal(again.row, table.row)
    assert list(again.scores) == list(scores)
    for name, values in scores.items():
        np.testing.assert_array_equal(again.scores[name], values)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="predictions"):
        Predictions.load(tmp_path / "a.parquet", rows.schema)
