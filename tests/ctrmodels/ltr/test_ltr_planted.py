"""Lists with a planted order: all losses find it, only a calibrated one keeps probabilities, and heavy users.

3,000 lists of 10 rows, x in R^6, utility ``u = x_0 + 0.7 x_1 x_2``, click ~ sigmoid(u + 2 N(0, 1) per list - 1): the
offset of a list shows in no feature. 2,400 lists are learned from; orders are judged by NDCG@5 of exp(u). Measured
with seeds 0-4: NDCG .979-.992 over all losses; ECE of the cross-entropy .020-.043, of JRC .020-.044, of the naive
sigmoid of a relative loss .123-.149. No loss is asserted to order better than the cross-entropy: an offset that
nobody sees does not disturb the order of a list.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrmodels import metrics
from ctrmodels.ltr import Lists, bpr, jrc, lambdarank, list_mle, listnet
from ctrmodels.nn.towers import MLP

LEAST_NDCG, MOST_ECE, LEAST_BROKEN_ECE = 0.97, 0.05, 0.1
Loss = Callable[[Tensor, Tensor, Lists], Tensor]


def flat(loss: Callable[..., Tensor]) -> Loss:
    return lambda outputs, clicks, lists: loss(outputs[:, 0], clicks, lists)


LOSSES: dict[str, Loss] = {
    "cross_entropy": flat(lambda s, y, _: binary_cross_entropy_with_logits(s, y)),
    "bpr": flat(bpr), "listnet": flat(listnet), "list_mle": flat(list_mle), "lambdarank": flat(lambdarank),
    "jrc": lambda outputs, clicks, lists: jrc(outputs, clicks > 0, lists)}
CALIBRATED, RELATIVE = ("cross_entropy", "jrc"), ("bpr", "listnet", "list_mle", "lambdarank")
# Stubs: the wrong sign, and lists torn apart so that a pair's rows have other offsets and nothing in common.
STUBS: dict[str, Loss] = {"wrong_sign": flat(lambda s, y, lists: bpr(-s, y, lists)),
                          "untrained": flat(lambda s, y, lists: 0.0 * s.sum())}


def trained(loss: Loss, seed: int, epochs: int = 12) -> dict[str, float]:
    """NDCG@5 and ECE on the lists that were held out."""
    rng = np.random.default_rng(seed)
    lists, held_out = 3000, 2400 * 10
    x = rng.standard_normal((lists * 10, 6))
    utility = x[:, 0] + 0.7 * x[:, 1] * x[:, 2]
    clicks = rng.random(lists * 10) < expit(utility + np.repeat(2 * rng.standard_normal(lists), 10) - 1)
    group = np.repeat(np.arange(lists), 10)

    torch.manual_seed(seed)
    model = MLP(6, (32,), width_out=2)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    features, labels = torch.from_numpy(x).float(), torch.from_numpy(clicks).float()
    for _ in range(epochs):
        for some in torch.randperm(2400).split(50):
            rows = (some[:, None] * 10 + torch.arange(10)).flatten()
            optimiser.zero_grad()
            loss(model(features[rows]), labels[rows], Lists(torch.from_numpy(group)[rows])).backward()
            optimiser.step()
    with torch.no_grad():
        outputs = model(features[held_out:]).double().numpy()
    score = outputs[:, 1] - outputs[:, 0] if loss is LOSSES["jrc"] else outputs[:, 0]
    if loss in [LOSSES[name] for name in RELATIVE]:
        score -= score.mean()  # the constant is no loss's business; without it the calibration is a matter of chance
    return {"ndcg": metrics.ndcg(np.exp(utility[held_out:]), score, group[held_out:], 5, gain="linear"),
            "ece": metrics.ece(clicks[held_out:], expit(score))}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    return {name: trained(loss, 0) for name, loss in LOSSES.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_finds_the_order(name: str, found: dict[str, dict[str, float]]) -> None:
    assert found[name]["ndcg"] >= LEAST_NDCG


@pytest.mark.parametrize("name", STUBS)
def test_the_wrong_sign_and_no_training_do_not(name: str) -> None:
    assert trained(STUBS[name], 0, epochs=2)["ndcg"] < LEAST_NDCG


@pytest.mark.parametrize("name", CALIBRATED)
def test_jrc_keeps_a_probability_like_the_cross_entropy(name: str, found: dict[str, dict[str, float]]) -> None:
    assert found[name]["ece"] <= MOST_ECE


@pytest.mark.parametrize("name", RELATIVE)
def test_a_relative_score_is_no_probability(name: str, found: dict[str, dict[str, float]]) -> None:
    """The stub of the calibration: the sigmoid of a score that knows differences only."""
    assert found[name]["ece"] >= LEAST_BROKEN_ECE


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_the_same_holds_for_other_seeds(seed: int) -> None:
    for name, loss in LOSSES.items():
        result = trained(loss, seed)
        assert result["ndcg"] >= LEAST_NDCG
        assert result["ece"] <= MOST_ECE if name in CALIBRATED else result["ece"] >= LEAST_BROKEN_ECE


def weight_of_the_feature(per_list: bool, seed: int) -> float:
    """20 users of 50 rows click by ``sigmoid(-2 x)``, 60 users of 3 rows by ``sigmoid(2 x)``; the slope learned.

    Three quarters of the users like the feature; the others have 97 % of the pairs.
    """
    rng = np.random.default_rng(seed)
    sizes = np.repeat([50, 3], [20, 60])
    group = np.repeat(np.arange(80), sizes)
    x = rng.standard_normal(len(group))
    clicks = rng.random(len(group)) < expit(np.where(group < 20, -2.0, 2.0) * x)
    slope = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.Adam([slope], lr=0.05)
    features, grades = torch.from_numpy(x).float(), torch.from_numpy(clicks).float()
    lists = Lists(torch.from_numpy(group))
    for _ in range(200):
        optimiser.zero_grad()
        bpr(slope * features, grades, lists, per_list=per_list).backward()
        optimiser.step()
    return slope.item()


@pytest.mark.parametrize("seed", range(5))
def test_with_a_weight_per_list_the_majority_of_users_decides(seed: int) -> None:
    """Without it, which is the stub, the few heavy users do."""
    assert weight_of_the_feature(per_list=True, seed=seed) > 0.1
    assert weight_of_the_feature(per_list=False, seed=seed) < -0.1
