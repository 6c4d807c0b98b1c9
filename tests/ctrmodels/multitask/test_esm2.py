"""ESM² on purchases whose two ways, by the cart and without it, are planted.

That the heads of the two ways are near the truth is not asserted beyond their order: only the cart's label tells them
apart, and few purchases go without one.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted import Planted
from ctrmodels.data.planted_numeric import planted_action
from ctrmodels.data.schema import Objective, Schema
from ctrmodels.errors import InputError
from ctrmodels.export import export_onnx, export_package
from ctrmodels.multitask import Chain, ModelConfig, MultiObjectiveModel, build_model, esmm
from ctrmodels.multitask.evaluation import evaluate_scores
from ctrmodels.multitask.models.esm2 import ESM2Options, behaviour_graph
from ctrmodels.multitask.spaces import score_names
from ctrmodels.multitask.train import train
from ctrmodels.serving import Scorer
from ctrmodels.training import TrainConfig, predict, seed_everything
from tests.support import served_models

OBJECTIVES = (Objective("click"), Objective("cart", after="click"), Objective("buy", after="click"),
              Objective("dwell", "regression", after="click"), Objective("return", after="buy"))
TRUE = {"click": "click", "cart": "cart@click", "buy": "buy@cart", "buy without cart": "buy without cart"}


def heads(n: int = 500) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 3 * torch.randn(n, generator=generator, dtype=torch.float64) for name in (*TRUE, "return")}


def graph() -> Chain:
    return behaviour_graph(OBJECTIVES, "cart", ("buy",))


class Outcome(NamedTuple):
    auc: float  # of the purchase on all rows
    calibration: float  # sum of its scores over purchases
    mean: dict[str, float]  # of a head's probability, over that of its true one
    correlation: dict[str, float]  # of a head's probability with the true one
    ratio: float  # mean of the head after the cart over that without it


def outcome(data: Planted, seed: int, name: str = "esm2", chain: Chain | None = None) -> Outcome:
    seed_everything(seed)
    options = ESM2Options("cart") if name == "esm2" else None
    model = build_model(name, data.schema, ArchSpec.dense(data.schema, 2), ModelConfig((16,), (), options=options))
    model.chain = chain or model.chain
    train(model, Rows.concatenate([data.roles["train"], data.roles["arch"]]), data.roles["valid"],
          TrainConfig(epochs=6, patience=6, batch_size=512, learning_rate=4e-3, device="cpu", seed=seed))
    test = data.roles["test"]
    found = evaluate_scores(data.schema, test.labels, predict(model, test), test.group)
    with torch.no_grad():
        p = dict(zip(model.heads, model(test.take(slice(None))).sigmoid().numpy().T, strict=True))
    truth = {head: data.truth["probability"][TRUE[head]]["test"] for head in p}
    return Outcome(found["auc.buy@all"], found["calibration.buy@all"],
                   {h: float(p[h].mean() / truth[h].mean()) for h in p},
                   {h: float(np.corrcoef(p[h], truth[h])[0, 1]) for h in p},
                   float(p["buy"].mean() / p["buy without cart"].mean()) if len(p) == 4 else np.nan)


def learned(found: Outcome) -> bool:
    """Whether click and cart are near the truth and the purchases are as many as they are."""
    near = all(abs(found.mean[h] - 1) <= 0.1 and found.correlation[h] >= 0.9 for h in ("click", "cart"))
    return near and 0.8 <= found.calibration <= 1.2


def holds(found: Outcome) -> bool:
    """What the graph promises here, with the purchase clearly likelier after the cart."""
    return learned(found) and found.ratio > 2


def swapped() -> Chain:
    """The graph with its two ways in each other's place."""
    objectives = OBJECTIVES[:3]
    names = {"buy": "buy without cart", "buy without cart": "buy"}
    chain = behaviour_graph(objectives, "cart", ("buy",))
    events = tuple(type(e)(e.objective, e.space, tuple(
        tuple(type(f)(names.get(f.head, f.head), f.complement) for f in factors) for factors in e.products))
        for e in chain.events)
    return Chain(events, chain.supervised)


def test_the_graph_finds_the_two_ways_and_a_swapped_one_does_not() -> None:
    data = planted_action(0)
    found = outcome(data, 0)
    assert holds(found), found
    assert found.auc >= outcome(data, 0, "esmm").auc + 0.001
    assert not holds(outcome(data, 0, chain=swapped()))


@pytest.mark.slow
@pytest.mark.parametrize("kept", [1.0, 0.2])
def test_the_cart_helps_the_purchase_over_five_seeds(kept: float) -> None:
    """Against ESMM, whose purchase knows nothing of the cart; with a fifth of the purchases it helps too."""
    gains, ratios = [], []
    for seed in range(5):
        data = planted_action(seed, kept=kept)
        found = outcome(data, seed)
        gains.append(found.auc - outcome(data, seed, "esmm").auc)
        ratios.append(found.ratio)
        assert kept < 1 or learned(found), (seed, found)
    assert np.mean(gains) >= 0.001, gains
    assert kept < 1 or np.mean(ratios) > 2, ratios  # a single seed may lie at 1.7


@pytest.mark.slow
def test_a_cart_that_means_nothing_brings_nothing() -> None:
    """The gain above is the cart's: without its effect there is none."""
    data = [planted_action(seed, branches=False) for seed in range(3)]
    gains = [outcome(d, seed).auc - outcome(d, seed, "esmm").auc for seed, d in enumerate(data)]
    assert np.mean(gains) < 0.001, gains


def test_scores_are_those_of_the_graph() -> None:
    y = {name: logit.sigmoid() for name, logit in heads().items()}
    p = {name: value.exp() for name, value in graph().log_probabilities(heads()).items()}
    conversion = y["cart"] * y["buy"] + (1 - y["cart"]) * y["buy without cart"]
    torch.testing.assert_close(p["click@all"], y["click"])
    torch.testing.assert_close(p["cart@all"], y["click"] * y["cart"])
    torch.testing.assert_close(p["buy@click"], conversion)
    torch.testing.assert_close(p["buy@all"], y["click"] * conversion)
    torch.testing.assert_close(p["return@all"], y["click"] * conversion * y["return"])
    assert (p["cart@all"] <= p["click@all"]).all() and (p["buy@all"] <= p["click@all"]).all()
    assert graph().supervised == ("click@all", "cart@all", "buy@all", "return@all")


def test_with_equal_ways_it_is_esmm() -> None:
    logits = heads()
    logits["buy without cart"] = logits["buy"]
    expected = esmm(OBJECTIVES).log_probabilities(logits)
    found = graph().log_probabilities(logits)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)


def build(make_rows, objectives: tuple[Objective, ...] = OBJECTIVES[:4]) -> tuple[MultiObjectiveModel, Rows]:
    rows = make_rows(objectives)
    torch.manual_seed(0)
    return build_model("esm2", rows.schema, ArchSpec.dense(rows.schema, 4),
                       ModelConfig((8,), (6,), options=ESM2Options("cart"))), rows


def test_an_unclicked_row_teaches_all_four_towers(make_rows) -> None:
    model, rows = build(make_rows, OBJECTIVES[:3])
    assert model.heads == ["click", "cart", "buy", "buy without cart"]
    model.loss(rows.take(np.flatnonzero(rows.labels[:, 0] == 0)[:4])).backward()
    for tower in model.towers:
        assert all(p.grad is not None and p.grad.any() for p in tower.parameters())


def test_cost_counts_the_further_head(make_rows) -> None:
    model, rows = build(make_rows)
    assert len(model.towers) == 5 and model.cost().parameters == sum(p.numel() for p in model.parameters())
    assert set(model.predict(rows.take(slice(0, 9)))) == set(score_names(rows.schema))


def test_exported_it_scores_alike(tmp_path: Path) -> None:
    schema = Schema(served_models.SCHEMA.fields, OBJECTIVES[:4], {"train": 1}, "v", "r")
    model = served_models.build("esm2", "mask", schema, options=ESM2Options("cart"))
    rows = served_models.draw(300, schema)
    export_onnx(model, schema, tmp_path / "onnx")
    export_package(model, schema, tmp_path / "package")
    found = Scorer(tmp_path / "onnx").score(rows["ids"], rows["numeric"], served_models.histories(rows))
    for name, score in served_models.eager(model, rows).items():
        np.testing.assert_allclose(found[name], score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("action", "objectives", "message"), [
    (None, OBJECTIVES, "needs the binary objective that is the action.*name one of click, cart"),
    ("dwell", OBJECTIVES, "'dwell'.*name one of click, cart, buy, return"),
    ("click", OBJECTIVES, "no `after:`.*declare what it follows"),
    ("cart", (Objective("click"), Objective("cart", after="click"), Objective("buy", after="cart")),
     "declare the purchase `after: click`, or use esmm")])
def test_what_is_missing_is_told_in_one_line(action, objectives, message: str, make_rows) -> None:
    rows = make_rows(objectives)
    with pytest.raises(InputError, match=message) as caught:
        build_model("esm2", rows.schema, ArchSpec.dense(rows.schema, 4), ModelConfig(options=ESM2Options(action)))
    assert "retrain.esm2.action" in str(caught.value) and "\n" not in str(caught.value)
