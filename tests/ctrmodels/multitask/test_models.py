from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.multitask import MODELS as EVERY_MODEL
from ctrmodels.multitask import ModelConfig, MultiObjectiveModel, build_model
from ctrmodels.multitask.models.dupn import DUPN
from ctrmodels.multitask.parts import Pass
from ctrmodels.multitask.spaces import score_names
from ctrmodels.multitask.train import train
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.training import TrainConfig, predict

MakeRows = Callable[..., Rows]
MODELS = [name for name in EVERY_MODEL if name != "esm2"]  # which needs another funnel: test_esm2.py
CONFIG = ModelConfig(bottom=(8,), tower=(6,))
CLICK, BUY = Objective("click"), Objective("buy", after="click")
MARGINAL = ("nmtr", "aitm")  # each joint event has a score of its own, and nothing holds it below its parent's
HELPED = ("deepmcp",)  # further losses, in training only


def build(name: str, rows: Rows, config: ModelConfig = CONFIG) -> MultiObjectiveModel:
    torch.manual_seed(0)
    return build_model(name, rows.schema, ArchSpec.dense(rows.schema, 4), config)


def gradients(model: MultiObjectiveModel, loss: Tensor, part: torch.nn.Module) -> float:
    """Largest absolute gradient of ``loss`` in ``part``."""
    model.zero_grad()
    loss.backward()
    return max((p.grad.abs().max().item() for p in part.parameters() if p.grad is not None), default=0.0)


def encoders(model: MultiObjectiveModel) -> list[FeatureEncoder]:
    return [m for m in model.modules() if isinstance(m, FeatureEncoder)]


def one_loss(model: MultiObjectiveModel, batch: Batch, name: str) -> Tensor:
    return model.losses(model(batch), batch.labels)[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_scores_every_objective_in_every_space_it_has(name: str, rows: Rows) -> None:
    model = build(name, rows)
    model.fit_targets(rows.labels)
    model.eval()
    scores = model.predict(rows.take(slice(0, 50)))
    assert set(scores) == set(score_names(rows.schema)) == {
        "click@all", "cart@all", "cart@click", "buy@all", "buy@cart", "dwell@all", "dwell@click", "hide@all"}
    for name_, score in scores.items():
        assert score.shape == (50,) and (score >= 0).all()
        assert name_.startswith("dwell") or (score <= 1).all()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in MARGINAL])
def test_joint_scores_never_exceed_the_parents(name: str, rows: Rows) -> None:
    model = build(name, rows).eval()
    s = model.predict(rows.take(slice(0, 200)))
    assert (s["buy@all"] <= s["cart@all"]).all() and (s["cart@all"] <= s["click@all"]).all()
    torch.testing.assert_close(s["dwell@all"], s["click@all"] * s["dwell@click"])


@pytest.mark.parametrize("name", [name for name in MODELS if name not in HELPED])
def test_the_loss_is_the_weighted_sum_of_the_objectives_losses(name: str, rows: Rows) -> None:
    batch = rows.take(slice(0, 64))
    model = build(name, rows, replace(CONFIG, loss_weights={"buy": 3.0, "dwell": 0.5})).eval()
    parts = model.losses(model(batch), batch.labels)
    assert {n.partition("@")[0] for n in parts} == {"click", "cart", "buy", "dwell", "hide"}
    weights = {"buy": 3.0, "dwell": 0.5}
    expected = sum(weights.get(n.partition("@")[0], 1.0) * value for n, value in parts.items())
    encoded, outputs = model.encoder(batch), model(batch)
    done = Pass(batch, encoded, outputs, dict(zip(model.heads, outputs.unbind(1), strict=True)))
    expected = expected + sum(value for a in model.auxiliaries for value in a(done).values())
    torch.testing.assert_close(model.loss(batch), torch.as_tensor(expected))


def test_the_penalty_of_the_embeddings_is_part_of_the_loss(rows: Rows) -> None:
    batch = rows.take(slice(0, 64))
    plain, with_l2 = build("mmoe", rows).eval(), build("mmoe", rows, replace(CONFIG, l2=10.0)).eval()
    assert with_l2.loss(batch) > plain.loss(batch)


@pytest.mark.parametrize("name", MODELS)
def test_unknown_labels_and_rows_outside_the_space_have_no_part_in_a_loss(name: str, rows: Rows) -> None:
    """A batch's loss of each objective equals that of its own rows alone."""
    model = build(name, rows).eval()
    everything = rows.take(slice(0, 200))
    labels = everything.labels
    of = rows.schema.objective_index
    inside = {"hide": ~labels[:, of("hide")].isnan(), "dwell": labels[:, of("click")] == 1}
    if "cart@click" in model.chain.supervised:
        inside |= {"cart": labels[:, of("click")] == 1, "buy": labels[:, of("cart")] == 1}
    for loss_name, value in model.losses(model(everything), labels).items():
        objective = loss_name.partition("@")[0]
        if objective in inside:
            index = np.flatnonzero(inside[objective].numpy())
            assert 0 < len(index) < 200
            alone = rows.take(index)
            torch.testing.assert_close(one_loss(model, alone, loss_name), value)


def test_an_objective_without_rows_in_the_batch_adds_nothing(rows: Rows) -> None:
    model = build("shared_bottom", rows).eval()
    unclicked = rows.take(np.flatnonzero(rows.labels[:, 0] == 0))
    parts = model.losses(model(unclicked), unclicked.labels)
    assert parts["cart@click"] == 0 and parts["buy@cart"] == 0 and parts["dwell@click"] == 0
    assert torch.isfinite(model.loss(unclicked))


def test_an_objectives_loss_reaches_the_shared_bottom_but_no_other_tower(make_rows: MakeRows) -> None:
    rows = make_rows((CLICK, Objective("hide")))
    model, batch = build("shared_bottom", rows), rows.take(slice(0, 64))
    assert gradients(model, one_loss(model, batch, "click@all"), model.trunk) > 0
    assert gradients(model, one_loss(model, batch, "click@all"), model.towers[0]) > 0
    assert gradients(model, one_loss(model, batch, "click@all"), model.towers[1]) == 0


def test_a_shared_bottom_with_one_objective_is_the_single_network(make_rows: MakeRows) -> None:
    """Same weights, same outputs as bottom and tower laid end to end beside the wide part."""
    rows = make_rows((CLICK,))
    model, batch = build("shared_bottom", rows).eval(), rows.take(slice(0, 64))
    encoded = model.encoder(batch)
    single = torch.nn.Sequential(*model.trunk.bottom, *model.towers[0])  # type: ignore[misc]
    logit = (single(encoded.flat) + model.wide(encoded)).squeeze(1)
    torch.testing.assert_close(model.predict(batch)["click@all"], logit.sigmoid())
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.labels[:, 0])
    torch.testing.assert_close(model.loss(batch), expected)


def test_in_esmm_an_unclicked_row_teaches_the_conversion_tower(make_rows: MakeRows) -> None:
    """The entire-space idea; a conversion head on clicked rows learns nothing from it."""
    rows = make_rows((CLICK, BUY))
    unclicked = rows.take(np.flatnonzero(rows.labels[:, 0] == 0)[:2])
    esmm, masked = build("esmm", rows), build("shared_bottom", rows)
    assert gradients(esmm, esmm.loss(unclicked), esmm.towers[1]) > 0
    assert gradients(masked, masked.loss(unclicked), masked.towers[1]) == 0


def test_in_esmm_the_conversion_head_has_no_loss_of_its_own(make_rows: MakeRows) -> None:
    rows = make_rows((CLICK, BUY))
    model, batch = build("esmm", rows), rows.take(slice(0, 64))
    assert set(model.losses(model(batch), batch.labels)) == {"click@all", "buy@all"}


def test_with_a_certain_conversion_esmms_joint_score_is_the_click(make_rows: MakeRows) -> None:
    rows = make_rows((CLICK, BUY))
    model = build("esmm", rows).eval()
    model.wide.bias.data[1] = 1e4
    scores = model.predict(rows.take(slice(0, 64)))
    assert torch.equal(scores["buy@all"], scores["click@all"])


def test_gates_are_there_on_request_and_only_where_a_trunk_has_them(rows: Rows) -> None:
    batch = rows.take(slice(0, 32))
    gates = build("mmoe", rows).gates(batch)
    assert gates is not None and gates.shape == (32, 5, 4)
    assert build("shared_bottom", rows).gates(batch) is None and build("esmm", rows).gates(batch) is None


def test_shared_parameters_leave_out_towers_and_gates(rows: Rows) -> None:
    model = build("mmoe", rows)
    shared = {id(p) for p in model.shared_parameters()}
    names = {name.split(".")[0] + ("." + name.split(".")[1] if name.startswith("trunk") else "")
             for name, p in model.named_parameters() if id(p) in shared}
    assert names == {"encoder", "trunk.experts"}


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_every_loss_and_scores_regressions_by_their_mean(name: str, make_rows: MakeRows) -> None:
    rows = make_rows((CLICK, BUY, Objective("dwell", "regression", after="click")), n=2000)
    model = build(name, rows)
    batch = rows.take(slice(0, len(rows)))
    model.fit_targets(rows.labels)
    before = model.losses(model.eval()(batch), batch.labels)
    train(model, rows, rows, TrainConfig(epochs=12, patience=12, batch_size=128, learning_rate=5e-3, device="cpu"))
    after = model.losses(model(batch), batch.labels)
    assert all(after[k] < before[k] for k in before)
    clicked = rows.labels[:, 0] == 1
    scored = predict(model, rows)["dwell@click"][clicked]
    assert scored.mean() == pytest.approx(rows.labels[clicked, 2].mean(), rel=0.15)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_in_half_precision_too(name: str, rows: Rows) -> None:
    """Losses and gradients are near those of full precision."""
    batch, found = rows.take(slice(0, 64)), []
    for half in (False, True):
        model = build(name, rows)
        model.fit_targets(rows.labels)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(batch)
        loss.backward()
        gradients = [p.grad for p in model.towers.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in gradients)
        found.append(loss.item())
    assert found[1] == pytest.approx(found[0], rel=0.02)


def test_a_regression_with_negative_values_is_refused(make_rows: MakeRows) -> None:
    rows = make_rows((CLICK, Objective("profit", "regression")))
    rows.labels[3, 1] = -2.0
    with pytest.raises(InputError, match=r"profit = -2\.0"):
        build("mmoe", rows).fit_targets(rows.labels)


def test_bad_names_are_refused_in_one_line(rows: Rows) -> None:
    with pytest.raises(InputError, match=r"retrain\.models = 'star'.*shared_bottom"):
        build("star", rows)
    with pytest.raises(InputError, match=r"retrain\.loss_weights = 'share'.*click"):
        build("mmoe", rows, replace(CONFIG, loss_weights={"share": 2.0}))


def test_esmm_on_a_log_without_a_chain_is_refused(make_rows: MakeRows) -> None:
    with pytest.raises(InputError, match="after:"):
        build("esmm", make_rows((CLICK, Objective("hide"))))


@pytest.mark.parametrize("name", MODELS)
def test_cost_counts_every_served_parameter_once(name: str, rows: Rows) -> None:
    model = build(name, rows)
    cost = model.cost()
    helpers = sum(p.numel() for p in model.auxiliaries.parameters())
    assert (helpers > 0) == (name in HELPED)
    training_only = helpers + (0 if model.side is None else sum(p.numel() for p in model.side.parameters()))
    assert cost.parameters == sum(p.numel() for p in model.parameters()) - training_only
    assert cost.parameters_embedding == rows.schema.total_vocab * 4 * len(encoders(model))
    assert cost.bytes == 4 * cost.parameters and cost.flops > 0


def test_operations_of_the_dense_part_are_those_torch_counts(rows: Rows, torch_alone: None) -> None:
    """Up to the pairs, which torch does not see one by one: its Gram matrix holds every pair twice; and up to an LSTM,
    which it does not see at all."""
    from torch.utils.flop_counter import FlopCounterMode

    for name in MODELS:
        model = build(name, rows).eval()
        with FlopCounterMode(display=False) as counter:
            model(rows.take(slice(0, 10)))
        dim, ours, theirs = 4, model.cost().flops, counter.get_total_flops() / 10
        for encoder in encoders(model):
            ours -= 2 * dim * encoder.n_products
            theirs -= 2 * dim * encoder.n_fields**2  # its Gram matrix
        if isinstance(model.trunk, DUPN):
            ours -= model.trunk.lstm.flops(4)
        assert theirs == ours - 5 * encoder.n_fields, name
