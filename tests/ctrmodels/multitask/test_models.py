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
from ctrmodels.multitask import (
    DCRNN,
    DUPN,
    PLE,
    Identity,
    MMoE,
    ModelConfig,
    MultiObjectiveModel,
    OMoE,
    SharedBottom,
    build_model,
)
from ctrmodels.multitask import MODELS as EVERY_MODEL
from ctrmodels.multitask.models.nmtr import UserItem
from ctrmodels.multitask.models.own_layers import OwnLayers
from ctrmodels.multitask.models.single import Split
from ctrmodels.multitask.models.youtube import SharedThenMMoE
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


def counts_its_own_rows_alone(model: MultiObjectiveModel, rows: Rows) -> None:
    """A batch's loss of each objective equals that of its own rows alone."""
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


@pytest.mark.parametrize("name", MODELS)
def test_unknown_labels_and_rows_outside_the_space_have_no_part_in_a_loss(name: str, rows: Rows) -> None:
    counts_its_own_rows_alone(build(name, rows).eval(), rows)


def does_not_grow_with_the_batch(model: MultiObjectiveModel, rows: Rows) -> None:
    """A batch with every row twice costs what it costs once, so that the learning rate means the same in both."""
    once, twice = (rows.take(np.tile(np.arange(100), times)) for times in (1, 2))
    expected = model.losses(model(once), once.labels)
    for name, value in model.losses(model(twice), twice.labels).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("name", MODELS)
def test_a_loss_is_a_mean_over_its_rows(name: str, rows: Rows) -> None:
    does_not_grow_with_the_batch(build(name, rows).eval(), rows)


def test_sums_and_means_over_the_whole_batch_fail(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are in published code."""
    model = build("esmm", rows).eval()

    def total(values: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, values, 0.0).sum()

    for wrong, check in ((total, does_not_grow_with_the_batch),
                         (lambda values, mask: total(values, mask) / len(mask), counts_its_own_rows_alone)):
        monkeypatch.setattr("ctrmodels.multitask.model.masked_mean", wrong)
        with pytest.raises(AssertionError):
            check(model, rows)


IN_SPACES = ("click@all", "cart@click", "buy@cart", "hide@all")
ON_ALL = ("click@all", "cart@all", "buy@all", "hide@all")
PARTS = {"single": (Split, IN_SPACES), "shared_bottom": (SharedBottom, IN_SPACES), "omoe": (OMoE, IN_SPACES),
         "mmoe": (MMoE, IN_SPACES), "cgc": (PLE, IN_SPACES), "ple": (PLE, IN_SPACES), "esmm": (Identity, ON_ALL),
         "mmoe_esmm": (MMoE, ON_ALL), "dbmtl": (OwnLayers, IN_SPACES), "aitm": (OwnLayers, ON_ALL),
         "youtube": (SharedThenMMoE, IN_SPACES), "dupn": (DUPN, IN_SPACES), "deepmcp": (SharedBottom, IN_SPACES),
         "nmtr": (UserItem, ON_ALL), "dcrnn": (DCRNN, IN_SPACES)}


def is_of_its_name(model: MultiObjectiveModel, name: str) -> bool:
    return (type(model.trunk), model.chain.supervised) == PARTS[name]


@pytest.mark.parametrize("name", MODELS)
def test_a_key_builds_the_model_of_its_name(name: str, rows: Rows) -> None:
    """A published bench runs ESMM where it says MMoE, which is the stub."""
    model = build(name, rows)
    assert is_of_its_name(model, name)
    assert not is_of_its_name(build("esmm" if name != "esmm" else "mmoe", rows), name)
    if isinstance(model.trunk, PLE):
        assert len(model.trunk.levels) == (1 if name == "cgc" else 2)


def test_mmoe_esmm_is_mmoe_but_for_the_chain_and_has_esmms(rows: Rows) -> None:
    both, mmoe, esmm = (build(name, rows).eval() for name in ("mmoe_esmm", "mmoe", "esmm"))
    both.load_state_dict(mmoe.state_dict())
    batch = rows.take(slice(0, 200))
    assert both.chain == esmm.chain and torch.equal(both(batch), mmoe(batch))
    assert one_loss(both, batch, "buy@all") != one_loss(mmoe, batch, "buy@cart")
    both.chain = mmoe.chain
    assert torch.equal(both.loss(batch), mmoe.loss(batch))


def scores_a_row_by_itself(model: MultiObjectiveModel, rows: Rows) -> None:
    """The same as among others."""
    among, alone = model.predict(rows.take(slice(0, 20))), model.predict(rows.take(slice(7, 8)))
    for name, score in alone.items():
        assert score.shape == (1,)
        torch.testing.assert_close(score, among[name][7:8])


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_may_have_a_single_row(name: str, rows: Rows) -> None:
    model = build(name, rows)
    model.fit_targets(rows.labels)
    scores_a_row_by_itself(model.eval(), rows)


def test_a_trunk_that_squeezes_a_single_row_away_fails(rows: Rows) -> None:
    """As a published PLE does."""
    model = build("ple", rows).eval()
    represent = model.trunk.represent
    model.trunk.represent = lambda encoded: [h.squeeze() for h in represent(encoded)]  # type: ignore[method-assign]
    model.predict(rows.take(slice(0, 20)))
    with pytest.raises((AssertionError, IndexError)):
        scores_a_row_by_itself(model, rows)


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


@pytest.mark.parametrize("name", MODELS)
def test_an_objective_whose_parent_is_unknown_where_it_happened_is_refused(name: str, make_rows: MakeRows) -> None:
    """Its rows cannot be told from others, and a loss on them would teach that it never happens."""
    rows = make_rows((CLICK, BUY))
    rows.labels[rows.labels[:, 1] == 1, 0] = np.nan
    config = TrainConfig(epochs=1, device="cpu")
    model = build(name, rows)
    if "buy@click" not in model.chain.supervised:  # learned on all rows, it needs no parent
        train(model, rows, rows, config)
        return
    with pytest.raises(InputError, match=r"click = 'not 1 on the \d+ rows with buy'.*mend the `label:` of click"):
        train(model, rows, rows, config)


def test_a_regression_whose_parent_is_unknown_is_refused(make_rows: MakeRows) -> None:
    rows = make_rows((CLICK, Objective("dwell", "regression", after="click")))
    rows.labels[:, 0] = np.where(np.arange(len(rows)) % 2, np.nan, 0.0)
    with pytest.raises(InputError, match=r"dwell = 'no value': .*on its own rows.*mend its `label:`"):
        train(build("mmoe", rows), rows, rows, TrainConfig(epochs=1, device="cpu"))


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
