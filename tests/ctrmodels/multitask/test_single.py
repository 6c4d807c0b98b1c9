"""Single networks: nothing of one objective reaches another; trained together, each is what it would be alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.multitask import ModelConfig, MultiObjectiveModel, build_model
from ctrmodels.training import TrainConfig
from ctrmodels.training.trainer import Trainer

CONFIG = ModelConfig(bottom=(8,), tower=(6,))


def build(rows: Rows, config: ModelConfig = CONFIG, name: str = "single") -> MultiObjectiveModel:
    torch.manual_seed(0)
    return build_model(name, rows.schema, ArchSpec.dense(rows.schema, 4), config)


def network(model: MultiObjectiveModel, k: int) -> list[torch.nn.Parameter]:
    """All that objective k is made of."""
    return [p for part in (model.encoder.encoders, model.wide.heads, model.towers) for p in part[k].parameters()]


def reached(model: MultiObjectiveModel, rows: Rows, name: str) -> list[bool]:
    """By objective, whether its network takes a gradient from the loss ``name``."""
    batch = rows.take(slice(0, 200))
    model.zero_grad()
    model.losses(model(batch), batch.labels)[name].backward()
    return [any(p.grad is not None and p.grad.to_dense().any() for p in network(model, k)) for k in range(5)]


def test_a_loss_reaches_its_own_network_and_no_other(rows: Rows) -> None:
    model = build(rows)
    for k, name in enumerate(("click@all", "cart@click", "buy@cart", "hide@all")):
        k += name.startswith("hide")  # the regression between them
        assert reached(model, rows, name) == [j == k for j in range(5)], name
    assert sum(len(network(model, k)) for k in range(5)) == len(list(model.parameters()))
    assert model.shared_parameters() == []


def test_a_shared_embedding_is_what_the_test_above_would_catch(rows: Rows) -> None:
    model = build(rows, name="esmm")
    batch = rows.take(slice(0, 200))
    model.losses(model(batch), batch.labels)["hide@all"].backward()
    shared = [p for p in model.shared_parameters() if p.grad is not None and p.grad.to_dense().any()]
    assert shared


def test_trained_together_each_becomes_what_it_becomes_alone(rows: Rows) -> None:
    """Bit for bit: the other objectives' losses may be switched off without a change."""
    weights = {}
    for others in (1.0, 0.0):
        weight = dict.fromkeys(("cart", "buy", "dwell", "hide"), others)
        model = build(rows, replace(CONFIG, l2=1e-3, loss_weights=weight))
        model.fit_targets(rows.labels)
        trainer = Trainer(model, TrainConfig(batch_size=100, learning_rate=0.01, device="cpu"))
        for _ in trainer.epoch(trainer.loader(rows), 0):
            pass
        weights[others] = [p.detach().clone() for p in network(model, 0)]
    assert all(torch.equal(a, b) for a, b in zip(weights[1.0], weights[0.0], strict=True))
