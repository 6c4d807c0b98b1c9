from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.multitask import ModelConfig, build_model
from ctrmodels.multitask.evaluation import evaluate_scores, mean_auc, mean_over_objectives
from ctrmodels.multitask.spaces import score_names
from ctrmodels.training import predict


def scores(rows: Rows) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.random(len(rows)).astype(np.float32) for name in score_names(rows.schema)}


def test_a_conditional_metric_sees_the_parents_rows_only(rows: Rows) -> None:
    s = scores(rows)
    found = evaluate_scores(rows.schema, rows.labels, s, rows.group)
    clicked = rows.labels[:, 0] == 1
    assert found["auc.cart@click"] == pytest.approx(roc_auc_score(rows.labels[clicked, 1], s["cart@click"][clicked]))
    assert found["auc.cart@all"] == pytest.approx(roc_auc_score(rows.labels[:, 1], s["cart@all"]))
    assert found["calibration.cart@click"] == pytest.approx(
        s["cart@click"][clicked].sum() / rows.labels[clicked, 1].sum())


def test_a_value_on_all_rows_counts_zero_where_its_event_did_not_happen(rows: Rows) -> None:
    s = scores(rows)
    found = evaluate_scores(rows.schema, rows.labels, s, rows.group)
    value = np.where(rows.labels[:, 0] == 1, rows.labels[:, 3], 0.0)
    assert found["rmse.dwell@all"] == pytest.approx(np.sqrt(np.mean((s["dwell@all"] - value) ** 2)))


def test_unknown_labels_are_left_out(rows: Rows) -> None:
    s = scores(rows)
    known = ~np.isnan(rows.labels[:, 4])
    found = evaluate_scores(rows.schema, rows.labels, s, rows.group)
    assert found["auc.hide@all"] == pytest.approx(roc_auc_score(rows.labels[known, 4], s["hide@all"][known]))


def test_metrics_of_lists_need_lists(rows: Rows) -> None:
    s = scores(rows)
    with_lists = evaluate_scores(rows.schema, rows.labels, s, rows.group)
    without = evaluate_scores(rows.schema, rows.labels, s, np.zeros(len(rows), np.int64))
    assert "gauc.click@all" in with_lists and not any(k.startswith("gauc") for k in without)


def test_models_are_compared_by_the_mean_of_the_binary_objectives_on_all_rows(rows: Rows) -> None:
    s = scores(rows)
    found = evaluate_scores(rows.schema, rows.labels, s, rows.group)
    mean = np.mean([found[f"auc.{n}@all"] for n in ("click", "cart", "buy", "hide")])
    assert mean_over_objectives(rows.schema, found, "auc") == pytest.approx(mean)
    assert mean_auc(rows.schema)(s, rows) == pytest.approx(mean)


def test_an_auc_is_one_over_all_rows_and_no_mean_over_batches(rows: Rows) -> None:
    """The stub, a mean over batches without those of a single class, as published code has it, is another number."""
    torch.manual_seed(0)
    model = build_model("shared_bottom", rows.schema, ArchSpec.dense(rows.schema, 4), ModelConfig((8,), (6,)))
    in_batches = predict(model, rows, batch_size=8)
    name, k = "buy@all", rows.schema.objective_index("buy")
    found = evaluate_scores(rows.schema, rows.labels, in_batches, rows.group)[f"auc.{name}"]
    assert found == pytest.approx(roc_auc_score(rows.labels[:, k], predict(model, rows)[name]))
    parts = [(rows.labels[i:i + 8, k], in_batches[name][i:i + 8]) for i in range(0, len(rows), 8)]
    of_batches = [roc_auc_score(label, score) for label, score in parts if 0 < label.sum() < len(label)]
    assert 1 < len(of_batches) < len(parts) and abs(np.mean(of_batches) - found) > 0.01
