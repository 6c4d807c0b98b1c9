"""Balancers on whole models: what they may touch, and that a training resumes with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.errors import InputError
from ctrmodels.multitask import MODELS as EVERY_MODEL
from ctrmodels.multitask import ModelConfig, MultiObjectiveModel, build_model
from ctrmodels.multitask.balancers import (
    BALANCERS,
    Balancer,
    GradNormOptions,
    ParetoOptions,
    PCGrad,
    Problem,
    build_balancer,
)
from ctrmodels.multitask.balancers.gradients import backward_each
from ctrmodels.training import FitResult, TrainConfig, fit, seed_everything
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer

MODELS = [name for name in EVERY_MODEL if name != "esm2"]  # which needs another funnel
CONFIG = ModelConfig(bottom=(8,), tower=(6,), l2=0.01)
TRAINING = TrainConfig(epochs=3, patience=9, batch_size=80, learning_rate=1e-2, clip_norm=1.0, weight_decay=0.01,
                       device="cpu")
OPTIONS = {"gradnorm": GradNormOptions(initial_steps=3), "pareto": ParetoOptions(initial_steps=3)}
COMBINING = ("pcgrad", "mgda", "pareto")


def build(name: str, rows: Rows, config: ModelConfig = CONFIG) -> MultiObjectiveModel:
    seed_everything(0)
    return build_model(name, rows.schema, ArchSpec.dense(rows.schema, 4), config)


def balance(name: str, model: MultiObjectiveModel) -> Balancer:
    return build_balancer(name, model, OPTIONS.get(name))


def gradients(model: MultiObjectiveModel) -> dict[str, Tensor]:
    return {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


def plain(model: MultiObjectiveModel, rows: Rows) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)  # of hidden positions and sampled negatives
    model.loss(next(iter(rows.batches(100)))).backward()
    return gradients(model)


def balanced(balancer: Balancer, model: MultiObjectiveModel, rows: Rows) -> dict[str, Tensor]:
    model.zero_grad()
    losses, rest = model.terms(next(iter(rows.batches(100))))
    balancer.backward(losses, rest, 100)
    return gradients(model)


@pytest.mark.parametrize("name", MODELS)
def test_the_losses_gradients_add_up_to_the_gradient_of_their_sum(name: str, rows: Rows) -> None:
    model = build(name, rows)
    assert list(model.losses(model(next(iter(rows.batches(100)))), torch.from_numpy(rows.labels[:100]))) == (
        model.loss_names)
    expected = plain(model, rows)
    model.zero_grad()
    torch.manual_seed(0)
    losses, rest = model.terms(next(iter(rows.batches(100))))
    shared = model.shared_parameters()
    backward_each(list(losses.values()), shared, keep_graph=True).put(torch.ones(len(losses)))
    rest.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)


def touches_shared_parameters_only(balancer: Balancer, model: MultiObjectiveModel, rows: Rows) -> None:
    declared = {id(p) for p in model.shared_parameters()}
    expected, found = plain(model, rows), balanced(balancer, model, rows)
    moved = False
    for name, parameter in model.named_parameters():
        if id(parameter) in declared:
            moved |= name in expected and not torch.allclose(found[name], expected[name], rtol=1e-2)
        else:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7, msg=name)
    assert moved


@pytest.mark.parametrize("balancer", COMBINING)
@pytest.mark.parametrize("name", ["shared_bottom", "mmoe", "ple", "esmm"])
def test_gradients_of_parameters_that_are_not_shared_are_those_of_the_sum(
        name: str, balancer: str, rows: Rows) -> None:
    model = build(name, rows)
    touches_shared_parameters_only(balance(balancer, model), model, rows)


def test_a_balancer_that_takes_all_parameters_fails(rows: Rows) -> None:
    model = build("mmoe", rows)
    everything = PCGrad(Problem(tuple(model.loss_names), tuple(model.parameters())))
    with pytest.raises(AssertionError):
        touches_shared_parameters_only(everything, model, rows)


def test_tables_keep_gradients_of_the_touched_rows(rows: Rows) -> None:
    model = build("mmoe", rows)
    batch = next(iter(rows.batches(3)))
    losses, rest = model.terms(batch)
    balance("mgda", model).backward(losses, rest, 0)
    table = model.encoder.embedding.table.weight
    assert table.grad.is_sparse
    touched = set(table.grad.coalesce().indices()[0].tolist())
    assert 0 < len(touched) < len(table) / 2


def test_a_model_that_shares_nothing_has_nothing_to_balance(rows: Rows) -> None:
    model = build("single", rows)
    assert model.shared_parameters() == model.last_shared_layer() == []
    with pytest.raises(InputError, match="share no parameter"):
        balance("gradnorm", model)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "single"])
def test_every_model_has_a_last_shared_layer_that_all_losses_reach(name: str, rows: Rows) -> None:
    model = build(name, rows)
    layer = model.last_shared_layer()
    assert {id(p) for p in layer} <= {id(p) for p in model.shared_parameters()}
    losses, _ = model.terms(next(iter(rows.batches(200))))
    for loss in losses.values():
        found = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.to_dense().abs().sum() > 0 for g in found)


def metric(scores, rows: Rows) -> float:
    return float(scores["click@all"].mean())


def trained(rows: Rows, name: str, checkpoint: Checkpoint | None = None, stop_at: int | None = None,
            broken: bool = False):
    model = build("mmoe", rows)
    model.fit_targets(rows.labels)
    balancer = balance(name, model)
    if broken:  # its state is not kept
        balancer.load_state_dict = lambda state: None
    step = Trainer.step

    def stopping(self, batch):
        if self.taken == stop_at:
            raise KeyboardInterrupt
        return step(self, batch)

    Trainer.step = stopping
    try:
        return model, fit(model, rows, rows, TRAINING, metric, checkpoint, balancer)
    finally:
        Trainer.step = step


@pytest.fixture(scope="module")
def undisturbed() -> Callable[[Rows, str], tuple[MultiObjectiveModel, FitResult]]:
    found: dict[str, tuple[MultiObjectiveModel, FitResult]] = {}

    def once(rows: Rows, name: str) -> tuple[MultiObjectiveModel, FitResult]:
        if name not in found:
            found[name] = trained(rows, name)
        return found[name]

    return once


def resumes_to_the_bit(rows: Rows, path: Path, name: str, undisturbed, broken: bool = False) -> None:
    expected, result = undisturbed(rows, name)
    with pytest.raises(KeyboardInterrupt):
        trained(rows, name, Checkpoint(path, every=3), stop_at=13)  # in the last of three epochs of five steps
    assert path.exists()
    model, again = trained(rows, name, Checkpoint(path, every=3), broken=broken)
    assert again == result and result.steps == 15
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key


@pytest.mark.parametrize("name", BALANCERS)
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
        name: str, rows: Rows, tmp_path: Path, undisturbed) -> None:
    resumes_to_the_bit(rows, tmp_path / "training.safetensors", name, undisturbed)


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "gradnorm", "pareto"])
def test_a_balancer_that_forgets_its_state_does_not(name: str, rows: Rows, tmp_path: Path, undisturbed) -> None:
    with pytest.raises(AssertionError):
        resumes_to_the_bit(rows, tmp_path / "training.safetensors", name, undisturbed, broken=True)


def test_the_weights_of_every_epoch_are_in_the_history(rows: Rows) -> None:
    _, result = trained(rows, "uncertainty")
    names = build("mmoe", rows).loss_names
    for epoch in result.history:
        assert set(epoch) == {"loss", "metric", *(f"{kind}.{n}" for n in names for kind in ("weight", "loss"))}
        assert epoch["loss"] > sum(epoch[f"loss.{n}"] for n in names)  # and the penalty
    assert result.history[0] != result.history[-1]


def test_a_checkpoint_of_another_balancer_is_refused(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(rows, "dwa", Checkpoint(path, every=3), stop_at=9)
    with pytest.raises(InputError, match="balancer"):
        trained(rows, "random", Checkpoint(path, every=3))
    with pytest.raises(InputError, match="balancer"):
        fit(build("mmoe", rows), rows, rows, TRAINING, metric, Checkpoint(path))


def test_log_variances_neither_decay_nor_are_clipped(rows: Rows) -> None:
    """Adam's first step is its learning rate, whatever the norm is clipped to and the layers' decay."""
    model = build("mmoe", rows)
    balancer = balance("uncertainty", model)
    before = copy.deepcopy(balancer.log_variances.data)
    trainer = Trainer(model, TrainConfig(batch_size=100, clip_norm=1e-6, weight_decay=10.0, device="cpu"),
                      balancer=balancer)
    trainer.step(next(iter(rows.batches(100))))
    moved = (balancer.log_variances.data - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=0)


def test_a_model_with_a_single_loss_is_refused(make_rows) -> None:
    from ctrmodels.data.schema import Objective

    model = build("shared_bottom", make_rows((Objective("click"),)))
    with pytest.raises(InputError, match="one loss only"):
        build_balancer("pcgrad", model)
