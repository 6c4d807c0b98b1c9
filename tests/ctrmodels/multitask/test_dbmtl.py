"""DBMTL: a rarely known objective learns from the one it depends on, and only if it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted_numeric import planted_consequence
from ctrmodels.data.schema import Objective
from ctrmodels.data.simulator import expected_auc
from ctrmodels.errors import InputError
from ctrmodels.multitask import MMoE, ModelConfig, MultiObjectiveModel, Transfer, build_model
from ctrmodels.multitask.models.dbmtl import DBMTLOptions
from ctrmodels.multitask.train import train
from ctrmodels.training import TrainConfig, predict, seed_everything

LINK = {"share": ("click",)}
PROMISED = 0.002
"""Gain in AUC by the link, mean and median over five seeds, and the most that there may be without a cause. Measured:
.0129 and .0048, without a cause .0002 and -.0002. The median is there since one seed in five may do for the mean."""


class Deaf(Transfer):
    """The same parts with the same weights at the start, but the child hears zeros in place of its parent."""

    def __init__(self, relations: Transfer) -> None:
        super().__init__()
        self.links = relations.links

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        own = states[1]
        return [states[0], self.links["1"](torch.cat([own, torch.zeros_like(own)], 1))]  # type: ignore[index, operator]


def child_auc(seed: int, deaf: bool, linked: bool) -> float:
    """Of the child on all rows of test, judged by its true probabilities.

    The bottom is too narrow for what the click depends on and the towers are wide, so that the click is understood in
    its tower, where only a link leads; the state handed on is narrow, since few rows teach the child to read it; and
    the child, which knows its label on 1,200 rows, leaves its parent's tower alone. All of this was chosen on seeds 10
    to 13 (gains .0015 to .0064, without a cause -.0013 to .0008). With a bottom of 8, towers of 32 and a third of the
    rows, the bottom itself told the child of the click: .0057 on seeds 0 to 4 came from two of them, and nine runs of
    seeds 10 to 12 gained nothing. Beside a model without the relation layer, that layer alone brought .0015.
    """
    data = planted_consequence(seed, rows=90_000, linked=linked, known=0.02)
    seed_everything(seed)
    config = ModelConfig((6,), (64, 8), options=DBMTLOptions(LINK, detach_parents=True))
    model = build_model("dbmtl", data.schema, ArchSpec.dense(data.schema, 2), config)
    if deaf:
        assert model.transfer is not None
        model.transfer = Deaf(model.transfer)
    train(model, Rows.concatenate([data.roles["train"], data.roles["arch"]]), data.roles["valid"],
          TrainConfig(epochs=8, patience=8, batch_size=512, learning_rate=3e-3, device="cpu", seed=seed))
    return expected_auc(predict(model, data.roles["test"])["share@all"], data.truth["probability"]["share"]["test"])


def gains(linked: bool) -> list[float]:
    """What hearing the parent brings, on each of five seeds."""
    return [child_auc(seed, False, linked) - child_auc(seed, True, linked) for seed in range(5)]


@pytest.mark.slow
def test_the_link_helps_a_child_that_depends_on_its_parent() -> None:
    found = gains(linked=True)
    assert min(np.mean(found), np.median(found)) >= PROMISED, found


@pytest.mark.slow
def test_the_link_brings_nothing_to_a_child_that_does_not() -> None:
    """The stub of the test above: a parent without information."""
    found = gains(linked=False)
    assert max(abs(np.mean(found)), abs(np.median(found))) < PROMISED, found


def build(rows: Rows, parents: Mapping[str, Sequence[str]] | None = None, detach: bool = False,
          experts: int = 1) -> MultiObjectiveModel:
    torch.manual_seed(0)
    options = DBMTLOptions(parents, experts, detach)
    return build_model("dbmtl", rows.schema, ArchSpec.dense(rows.schema, 4), ModelConfig((8,), (6,), options=options))


def reached(model: MultiObjectiveModel, rows: Rows, name: str) -> list[bool]:
    """By objective, whether its tower takes a gradient from the loss ``name``."""
    batch = rows.take(slice(0, 200))
    model.zero_grad()
    model.losses(model(batch), batch.labels)[name].backward()
    return [any(p.grad is not None and p.grad.any() for p in layers.parameters()) for layers in model.trunk.layers]


def test_a_childs_loss_reaches_its_ancestors_towers_and_no_other(rows: Rows) -> None:
    model = build(rows)  # the graph is that of `after:`
    assert reached(model, rows, "buy@cart") == [True, True, True, False, False]
    assert reached(model, rows, "click@all") == [True, False, False, False, False]


def test_detached_it_reaches_its_own_tower_alone(rows: Rows) -> None:
    assert reached(build(rows, detach=True), rows, "buy@cart") == [False, False, True, False, False]


def test_a_child_reads_its_parents_state_whatever_the_order_of_the_objectives(rows: Rows) -> None:
    """``click`` comes first in the log and last in this graph; a parent of a parent is heard too."""
    model, batch = build(rows, {"click": ["hide"], "hide": ["dwell"]}).eval(), rows.take(slice(0, 50))
    before = model(batch)
    for parameter in model.trunk.layers[3].parameters():
        parameter.data += 0.5
    changed = (model(batch) - before).abs().amax(0) > 1e-4
    assert changed.tolist() == [True, False, False, True, True]


def test_a_relation_is_a_layer_on_the_towers_side_by_side(rows: Rows) -> None:
    model, batch = build(rows, {"buy": ["click", "hide"]}).eval(), rows.take(slice(0, 50))
    own = model.trunk(model.encoder(batch).flat)
    expected = model.transfer.links["2"](torch.cat([own[2], own[0], own[4]], 1))  # type: ignore[union-attr, index]
    found = model.transfer(own)  # type: ignore[misc]
    torch.testing.assert_close(found[2], expected)
    assert all(torch.equal(found[k], own[k]) for k in (0, 1, 3, 4))


def test_labels_are_never_read_by_the_model(rows: Rows) -> None:
    """A child that is fed its parent's label in training has nothing to read when serving."""
    model, batch = build(rows), rows.take(slice(0, 50))
    before = model(batch)
    batch.labels = torch.full_like(batch.labels, torch.nan)
    assert torch.equal(model(batch), before)


def test_a_mixture_may_lie_below_the_towers(rows: Rows) -> None:
    model = build(rows, experts=3)
    gates = model.gates(rows.take(slice(0, 20)))
    assert isinstance(model.trunk.below, MMoE) and gates is not None and gates.shape == (20, 5, 3)
    assert {id(p) for p in model.trunk.shared_parameters()} == {id(p) for p in model.trunk.below.experts.parameters()}


@pytest.mark.parametrize(("parents", "message"), [
    ({"buy": ["shar"]}, "'shar': no such objective; use click, cart, buy, dwell, hide"),
    ({"shar": ["buy"]}, "'shar': no such objective"),
    ({"cart": ["buy"], "buy": ["hide"], "hide": ["cart"]}, "→.*take one of these links out"),
    ({"buy": ["buy"]}, "'buy → buy'.*take one of these links out"),
    ({}, "needs a link.*or use shared_bottom")])
def test_a_graph_that_cannot_be_is_refused(parents: dict[str, list[str]], message: str, rows: Rows) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(rows, parents)
    assert "retrain.dbmtl.parents" in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_chain_in_the_log_the_graph_must_be_given(make_rows) -> None:
    rows = make_rows((Objective("click"), Objective("hide")))
    with pytest.raises(InputError, match="declare `after:`"):
        build(rows)
    assert reached(build(rows, {"hide": ["click"]}), rows, "hide@all") == [True, True]
