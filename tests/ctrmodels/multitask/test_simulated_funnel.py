"""Chains and the position tower on the generated shop log (docs/simulator.md), whose probabilities are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import rankdata

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.schema import Objective
from ctrmodels.data.simulator import SimulatorConfig
from ctrmodels.multitask import ESM2Options, ModelConfig, MultiObjectiveModel, YouTubeOptions, build_model
from ctrmodels.multitask.train import train
from ctrmodels.training import TrainConfig, predict, seed_everything
from tests.support.simulated_shop import OBJECTIVES, Shop, simulated_shop

BESIDE = (*OBJECTIVES[:2], Objective("purchase", after="click"), OBJECTIVES[3])
"""The same log, its purchase declared beside the cart, as ESM² has it."""
LISTS = SimulatorConfig(rows=150_000, seed=0, items=400, temperature=0.3, position_bias=1.0)
"""Lists that the old ranker nearly sorts by what it likes, and that users look down on quickly; few items, so that a
small log shows each of them often."""


@cache
def shop(beside: bool = False) -> Shop:
    return simulated_shop(SimulatorConfig(rows=150_000, seed=0, items=400), BESIDE if beside else OBJECTIVES)


def trained(data: Shop, name: str, options: object = None, blind: bool = False) -> MultiObjectiveModel:
    """Stopped by the last tenth of the training requests."""
    cut = len(data.train) // 100 * 90
    rows, valid = (Rows(data.train.schema, [part]) for part in _cut(data.train, cut))
    seed_everything(0)
    config = ModelConfig((32,), (16,), l2=1e-3, options=options)
    model = build_model(name, rows.schema, ArchSpec.dense(rows.schema, 8), config)
    model.side = None if blind else model.side
    train(model, rows, valid, TrainConfig(epochs=4, batch_size=512, learning_rate=3e-3, device="cpu"))
    return model


def _cut(rows: Rows, at: int) -> list:
    c = rows.parts[0]
    names = ("ids", "numeric", "labels", "position", "group", "time")
    return [replace(c, **{n: getattr(c, n)[part] for n in names}) for part in (slice(0, at), slice(at, None))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["esmm", "mmoe_esmm", "esm2"])
def test_joint_probabilities_are_calibrated_on_all_rows(name: str) -> None:
    data = shop(name == "esm2")
    scores = predict(trained(data, name, ESM2Options("cart") if name == "esm2" else None), data.test)
    truth = data.truth["p_click"] * data.truth["p_cart_given_click"]
    planted = {"click": data.truth["p_click"], "cart": truth, "purchase": truth * data.truth["p_purchase_given_cart"]}
    for k, (objective, p) in enumerate(planted.items()):
        score = scores[f"{objective}@all"]
        assert 0.9 <= score.sum() / data.test.labels[:, k].sum() <= 1.1, (objective, score.sum())
        assert np.corrcoef(score, p)[0, 1] >= 0.35, objective
    cart = data.test.labels[:, 1]
    wrong = scores["cart@click"]  # what is true of clicked rows is not what it is of all
    assert not 0.9 <= wrong.sum() / cart.sum() <= 1.1


def within_lists(a: np.ndarray, b: np.ndarray) -> float:
    ra, rb = (rankdata(v.reshape(-1, LISTS.list_size), axis=1) for v in (a, b))
    ra, rb = (r - r.mean(1, keepdims=True) for r in (ra, rb))
    return float(((ra * rb).sum(1) / np.sqrt((ra**2).sum(1) * (rb**2).sum(1))).mean())


@pytest.mark.slow
def test_the_position_tower_recovers_the_curve_and_the_order_of_relevance() -> None:
    """The curve is planted as a factor of the probability; the tower's logits are compared with its logarithm."""
    data = simulated_shop(LISTS, (OBJECTIVES[0], OBJECTIVES[3]))
    options = YouTubeOptions(shared=(32,), experts=2, positions=LISTS.list_size)
    with_tower, without = trained(data, "youtube", options), trained(data, "youtube", options, blind=True)
    assert with_tower.side is not None
    curve = with_tower.side.bias.detach().numpy()[:, 0, 0]  # type: ignore[operator, union-attr]
    assert np.corrcoef(curve, np.log(data.curve))[0, 1] >= 0.95, curve
    relevance = data.truth["relevance"]
    found, blind = (within_lists(predict(m, data.test)["click@all"], relevance) for m in (with_tower, without))
    assert found >= blind + 0.06, (found, blind)
