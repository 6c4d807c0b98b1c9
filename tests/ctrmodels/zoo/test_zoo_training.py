"""Every model learns what it can express, in any precision, and touches no more of its tables than the batch does."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from every_kind import SCHEMA, build, draw
from torch.utils.flop_counter import FlopCounterMode

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted import Planted, planted_pairs
from ctrmodels.nn.table import tables
from ctrmodels.training import TrainConfig, fit, predict, seed_everything
from ctrmodels.zoo import MODELS

EVERY = pytest.mark.parametrize("name", MODELS)
INTERACTIONS = [name for name in MODELS if name not in ("lr", "din")]  # DIN needs a history: test_din.py


@cache
def pairs() -> Planted:
    return planted_pairs(0, rows=8000, fields=5, values=6, pairs=4)


def auc(scores: dict[str, np.ndarray], rows: Rows) -> float:
    return metrics.auc(rows.labels[:, 0], scores["click@all"])


@cache
def trained(name: str) -> float:
    """AUC on the test rows."""
    log = pairs()
    seed_everything(0)
    model = MODELS[name](log.schema, ArchSpec.dense(log.schema, 8), "click")
    config = TrainConfig(epochs=10, patience=10, batch_size=200, learning_rate=1e-2, device="cpu")
    fit(model, log.roles["train"], log.roles["valid"], config, auc)
    return auc(predict(model, log.roles["test"]), log.roles["test"])


def test_a_logistic_regression_learns_the_part_that_is_additive() -> None:
    assert 0.6 < trained("lr") < 0.7


@pytest.mark.parametrize("name", INTERACTIONS)
def test_planted_interactions_are_learned(name: str) -> None:
    test, probability = pairs().roles["test"], pairs().truth["probability"]["test"]
    assert trained(name) > max(trained("lr") + 0.1, metrics.auc(test.labels[:, 0], probability) - 0.06)


@EVERY
def test_a_rows_prediction_does_not_depend_on_the_other_rows(name: str) -> None:
    model, batch = build(name).eval(), draw(64)
    together = model.predict(batch)["click@all"]
    assert not torch.allclose(together, together.mean(), atol=0.1)
    for part in (torch.tensor([5]), torch.arange(63, -1, -2)):
        assert torch.allclose(model.predict(batch.select(part))["click@all"], together[part], atol=1e-6)


@EVERY
def test_a_bf16_step_has_finite_gradients(name: str) -> None:
    model, batch = build(name), draw(64)
    exact = model.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


@EVERY
def test_gradients_of_tables_hold_the_touched_rows_only(name: str) -> None:
    model, batch = build(name), draw(2)
    model.loss(batch).backward()
    touched = {SCHEMA.offsets[f.name] + int(v) for i, f in enumerate(SCHEMA.id_fields) for v in batch.ids[:, i]}
    touched |= {SCHEMA.offsets[n] + int(v) for n, steps in batch.sequences.items() for v in steps.flatten() if v >= 0}
    assert len(touched) < SCHEMA.total_vocab
    for table in tables(model):
        assert table.weight.grad.is_sparse
        assert set(table.weight.grad.coalesce().indices()[0].tolist()) == touched


@EVERY
def test_an_exported_graph_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(name).eval(), draw(64)
    eager = model(batch)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.allclose(model(batch), eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dcnv2", "xdeepfm", "autoint", "fibinet", "din"])
def test_operations_are_those_that_torch_counts_and_a_few_more(name: str, torch_alone: None) -> None:
    """The counter sees matrix products only, and on a CPU not those inside an attention."""
    model, batch = build(name).eval(), draw(16)
    batch.sequences = {name: torch.zeros_like(steps) for name, steps in batch.sequences.items()}  # no padding
    with FlopCounterMode(display=False) as counter:
        model(batch)
    assert 1 < model.cost().flops / (counter.get_total_flops() / len(batch)) < 1.1


def test_operations_of_a_field_weighted_machine() -> None:
    """Five fields of width 4, two numbers: 5 weights and 2 products, ten pairs of 4 products and a weight each."""
    assert build("fwfm").cost().flops == 5 + 2 * 2 + 10 * (2 * 4 + 2)
