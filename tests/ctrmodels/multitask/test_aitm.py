"""AITM: attention along the funnel, heads that are joint events, and a penalty that keeps them in order.

The order is planted so that it can fail: the second step follows the first in 97 % of the cases. With rates well apart
no model would score a later step above an earlier one, and the penalty would have nothing to do. The weights of the
attention are no measure of how much a step depends on the one before; nothing is asserted of them but that they are a
distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted_numeric import planted_steps
from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.multitask import ModelConfig, MultiObjectiveModel, build_model
from ctrmodels.multitask.evaluation import evaluate_scores
from ctrmodels.multitask.models.aitm import AITMOptions, AttentionTransfer, OrderPenalty, TransferStep
from ctrmodels.multitask.parts import Pass
from ctrmodels.multitask.train import train
from ctrmodels.training import TrainConfig, predict, seed_everything

H = 6


class Outcome(NamedTuple):
    violations: float  # share of the rows whose second step is scored above the first
    auc: float  # mean of the two steps on all rows


def outcome(seed: int, penalty: float) -> Outcome:
    data = planted_steps(seed)
    seed_everything(seed)
    model = build_model("aitm", data.schema, ArchSpec.dense(data.schema, 2),
                        ModelConfig((16,), (8,), options=AITMOptions(penalty)))
    train(model, Rows.concatenate([data.roles["train"], data.roles["arch"]]), data.roles["valid"],
          TrainConfig(epochs=8, patience=8, batch_size=256, learning_rate=3e-3, device="cpu", seed=seed))
    test = data.roles["test"]
    scores = predict(model, test)
    found = evaluate_scores(data.schema, test.labels, scores, test.group)
    return Outcome(float((scores["buy@all"] > scores["click@all"]).mean()),
                   (found["auc.click@all"] + found["auc.buy@all"]) / 2)


def ordered(found: Outcome, free: Outcome) -> bool:
    """What the penalty promises beside a training without it."""
    return found.violations <= 0.5 * free.violations and found.auc >= free.auc - 0.005


def test_the_penalty_halves_the_scores_out_of_order_and_costs_no_auc() -> None:
    free = outcome(0, 0.0)
    assert free.violations > 0.1, free
    assert ordered(outcome(0, 0.6), free)
    assert not ordered(outcome(0, 0.01), free), "a penalty that is hardly there must fail"


@pytest.mark.slow
def test_the_penalty_does_so_on_every_seed() -> None:
    for seed in range(5):
        free, penalised = outcome(seed, 0.0), outcome(seed, 0.6)
        assert ordered(penalised, free), (seed, free, penalised)
        assert penalised.violations > 0, "the rule is soft: violations become rarer, they do not vanish"


@pytest.fixture
def states() -> list[torch.Tensor]:
    return list(torch.randn(3, 16, H, generator=torch.Generator().manual_seed(1)).unbind())


def transfer() -> AttentionTransfer:
    torch.manual_seed(0)
    return AttentionTransfer(H, {1: 0, 2: 1})


def test_a_step_is_the_papers_attention(states: list[torch.Tensor]) -> None:
    step = TransferStep(H)
    before, own = states[:2]
    pair = [step.hand_on(before), own]
    scores = torch.stack([(step.key(u) * step.query(u)).sum(1) / H**0.5 for u in pair], 1)
    weights = scores.softmax(1)
    expected = sum(weights[:, i, None] * step.value(u) for i, u in enumerate(pair))
    torch.testing.assert_close(step(before, own), expected)


def test_the_two_weights_of_a_row_sum_to_one(states: list[torch.Tensor]) -> None:
    """A softmax over another axis, a common mistake, passes every check of shapes."""
    step = TransferStep(H)
    torch.testing.assert_close(step.weights(step.pair(states[0], states[1])).sum(1), torch.ones(16))


def test_a_step_hands_on_what_it_was_handed(states: list[torch.Tensor]) -> None:
    """The third step must hear of the first through z of the second; with its bottom q alone it would not."""
    moved = transfer()
    before = moved(states)
    moved.steps["1"].hand_on[0].bias.data += 1.0
    after = moved(states)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1]) and not torch.allclose(before[2], after[2])


def test_every_step_has_maps_of_its_own() -> None:
    """Published code shares one attention among all steps."""
    steps = transfer().steps
    one, other = ({id(p) for p in steps[k].parameters()} for k in ("1", "2"))
    assert not one & other and len(one) == 8


def test_deaf_to_the_step_before_it_is_its_own_tower(states: list[torch.Tensor]) -> None:
    step = TransferStep(H)
    with torch.no_grad():
        only_own = step.value(states[1])
        for layer in (step.key, step.query):  # the own vector's inner product is far above the handed one's
            layer.weight.zero_()
        step.hand_on[0].weight.zero_()
        step.hand_on[0].bias.zero_()
        step.key.weight.copy_(torch.eye(H))
        step.query.weight.copy_(torch.eye(H) * 1e6)
        step.key.bias.zero_()
        step.query.bias.zero_()
        torch.testing.assert_close(step(states[0], states[1]), only_own)


def build(rows: Rows, penalty: float = 0.6) -> MultiObjectiveModel:
    torch.manual_seed(0)
    return build_model("aitm", rows.schema, ArchSpec.dense(rows.schema, 4),
                       ModelConfig((8,), (6,), options=AITMOptions(penalty)))


def reaches_all_bottoms_before(model: MultiObjectiveModel, rows: Rows) -> None:
    batch = rows.take(slice(0, 200))
    for name, reached in (("click@all", [True, False, False]), ("cart@all", [True, True, False]),
                          ("buy@all", [True, True, True])):
        model.zero_grad()
        model.losses(model(batch), batch.labels)[name].backward()
        bottoms = [layers[0].weight.grad for layers in model.trunk.layers]
        assert [g is not None and bool(g.any()) for g in bottoms] == [*reached, False, False]


def test_a_later_loss_reaches_all_bottoms_before_it_and_an_earlier_one_none_behind(rows: Rows) -> None:
    reaches_all_bottoms_before(build(rows), rows)


def test_a_transfer_that_stops_gradients_fails_that(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the default of published code, and not what the paper trains."""
    pair = TransferStep.pair
    monkeypatch.setattr(TransferStep, "pair", lambda self, before, own: pair(self, before.detach(), own))
    with pytest.raises(AssertionError):
        reaches_all_bottoms_before(build(rows), rows)


def test_heads_are_joint_events_trained_on_all_rows(rows: Rows) -> None:
    model, batch = build(rows).eval(), rows.take(slice(0, 200))
    scores, outputs = model.predict(batch), model(batch)
    torch.testing.assert_close(scores["buy@all"], outputs[:, 2].sigmoid())
    quotient = (outputs[:, 2].sigmoid() / outputs[:, 1].sigmoid()).clamp(max=1.0)
    torch.testing.assert_close(scores["buy@cart"], quotient)
    assert set(model.losses(outputs, batch.labels)) == {"click@all", "cart@all", "buy@all", "hide@all", "dwell@click"}


def test_the_penalty_is_the_mean_excess_of_later_over_earlier_steps(rows: Rows) -> None:
    batch = rows.take(slice(0, 3))
    logits = {"a": [0.0, 2.0, -1.0], "b": [1.0, 0.0, -2.0], "c": [2.0, 1.0, 0.0]}
    heads = {name: torch.tensor(values) for name, values in logits.items()}
    p = {name: h.sigmoid() for name, h in heads.items()}
    expected = ((p["b"] - p["a"])[0] + (p["c"] - p["b"]).sum()) / 3
    done = Pass(batch, None, None, heads)  # type: ignore[arg-type]
    found = OrderPenalty([("b", "a"), ("c", "b")], 0.5)(done)
    torch.testing.assert_close(found["order_penalty"], 0.5 * expected)


def test_the_penalty_is_in_the_loss_and_in_no_score(rows: Rows) -> None:
    batch = rows.take(slice(0, 100))
    with_it, without = build(rows), build(rows, 0.0)
    for model in (with_it, without):
        model.wide.bias.data[1] = 3.0  # the cart far above the click
    assert with_it.loss(batch) > without.loss(batch)
    assert torch.equal(with_it.eval()(batch), without.eval()(batch)) and with_it.cost() == without.cost()


def test_a_log_without_a_chain_is_refused(make_rows) -> None:
    with pytest.raises(InputError, match=r"aitm needs a binary objective with `after:`.*declare which"):
        build(make_rows((Objective("click"), Objective("hide"))))


def test_scores_out_of_order_are_those_without_a_parent_above(rows: Rows) -> None:
    """Where the later step is scored likelier, the score in the parent's space is 1, never more."""
    model = build(rows).eval()
    model.wide.bias.data[1] = 9.0
    scores = model.predict(rows.take(slice(0, 100)))
    assert np.all(scores["cart@click"].detach().numpy() == 1.0)
