"""Losses of flat rows equal their definition list by list, and see nothing but the rows of a list."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrmodels.ltr import Lists, bpr, jrc, lambdarank, list_mle, listnet

Loss = Callable[[Tensor, Tensor, Lists], Tensor]


def of_second_logit(scores: Tensor, grades: Tensor, lists: Lists) -> Tensor:
    """JRC of rows whose other logit is a fixed function of the score."""
    return jrc(torch.stack([0.3 * scores.square(), scores], 1), grades > 0, lists)


LOSSES: dict[str, Loss] = {
    "bpr": bpr, "bpr_gain": partial(bpr, weight="gain"), "bpr_per_list": partial(bpr, per_list=True),
    "lambdarank": lambdarank, "listnet": listnet, "listnet_softmax": partial(listnet, temperature=0.7),
    "list_mle": list_mle, "jrc": of_second_logit}
RELATIVE = [name for name in LOSSES if name != "jrc"]


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, grades and lists of 1 to 9 rows, scattered over the batch; in every list all grades differ or none do."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 10, (30,), generator=g)
    group = torch.arange(30).repeat_interleave(sizes) * 7 - 5
    grades = torch.cat([torch.randperm(int(n), generator=g) * float(i % 5 > 0) for i, n in enumerate(sizes)])
    order = torch.randperm(len(group), generator=g)
    return torch.randn(len(group), generator=g)[order], grades[order], group[order]


def by_list(scores: Tensor, grades: Tensor, group: Tensor) -> list[tuple[list[float], list[float]]]:
    return [(scores[group == g].tolist(), grades[group == g].tolist()) for g in group.unique()]


def pairs(r: list[float]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(r)) for j in range(len(r)) if r[i] > r[j]]


def log_softmax(s: list[float]) -> list[float]:
    total = math.log(sum(math.exp(v) for v in s))
    return [v - total for v in s]


def rank_of(values: list[float], i: int) -> int:
    return 1 + sum(v > values[i] for v in values)


def swap(s: list[float], r: list[float], i: int, j: int) -> float:
    ideal = sum((2 ** v - 1) / math.log2(1 + rank_of(r, k)) for k, v in enumerate(r))
    discounts = [1 / math.log2(1 + rank_of(s, k)) for k in (i, j)]
    return abs((2 ** r[i] - 2 ** r[j]) * (discounts[0] - discounts[1])) / ideal


def defined(name: str, lists: list[tuple[list[float], list[float]]]) -> float:
    """A loss by its formula, in plain numbers."""
    told = [(s, r) for s, r in lists if pairs(r)]
    cost = [[(math.log1p(math.exp(s[j] - s[i])), i, j) for i, j in pairs(r)] for s, r in told]
    if name == "bpr":
        return sum(c for of in cost for c, _, _ in of) / sum(map(len, cost))
    if name == "bpr_gain":
        return sum(c * (2 ** r[i] - 2 ** r[j]) for of, (_, r) in zip(cost, told, strict=True)
                   for c, i, j in of) / sum(map(len, cost))
    if name == "bpr_per_list":
        return sum(sum(c for c, _, _ in of) / len(of) for of in cost) / len(told)
    if name == "lambdarank":
        return sum(c * swap(s, r, i, j) for of, (s, r) in zip(cost, told, strict=True) for c, i, j in of) / len(told)
    if name == "listnet":
        return -sum(sum(v / sum(r) * p for v, p in zip(r, log_softmax(s), strict=True)) for s, r in told) / len(told)
    if name == "listnet_softmax":
        return -sum(sum(math.exp(q) * p for q, p in zip(log_softmax([v / 0.7 for v in r]), log_softmax(s), strict=True))
                    for s, r in told) / len(told)
    if name == "list_mle":
        ordered = [[s[i] for i in sorted(range(len(r)), key=lambda k: -r[k])] for s, r in told]
        return sum(-log_softmax(s[j:])[0] for s in ordered for j in range(len(s))) / len(told)
    rows = [(s, 0.3 * s * s, r > 0, p1, p0) for scores, grades in lists
            for s, r, p1, p0 in zip(scores, grades, log_softmax(scores), log_softmax([0.3 * s * s for s in scores]),
                                    strict=True)]
    return sum(0.5 * math.log1p(math.exp(f0 - f1 if y else f1 - f0)) - 0.5 * (p1 if y else p0)
               for f1, f0, y, p1, p0 in rows) / len(rows)


def gradient(loss: Loss, scores: Tensor, grades: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    scores = scores.clone().requires_grad_()
    value = loss(scores, grades, Lists(group))
    value.backward()
    assert scores.grad is not None
    return value.detach(), scores.grad


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_its_formula_list_by_list(name: str) -> None:
    scores, grades, group = draw()
    found = LOSSES[name](scores, grades, Lists(group)).item()
    assert found == pytest.approx(defined(name, by_list(scores, grades, group)), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    scores, grades, group = draw()
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    value, slope = gradient(LOSSES[name], scores, grades, group)
    again, slope_again = gradient(LOSSES[name], scores[order], grades[order], group[order])
    torch.testing.assert_close(again, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope_again, slope[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RELATIVE)
def test_a_constant_per_list_changes_nothing(name: str) -> None:
    scores, grades, group = draw()
    value, slope = gradient(LOSSES[name], scores, grades, group)
    again, slope_again = gradient(LOSSES[name], scores + 3.0 * (group % 4), grades, group)
    torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope_again, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", RELATIVE)
def test_lists_without_a_preference_have_no_part_in_the_mean(name: str) -> None:
    """Here: a list of one row, one of equal grades and one without a positive."""
    scores, grades, group = draw()
    more = torch.tensor([1.0, -2.0, 0.5, 4.0, 0.1])
    value, slope = gradient(LOSSES[name], scores, grades, group)
    again, slope_again = gradient(
        LOSSES[name], torch.cat([scores, more]), torch.cat([grades, torch.tensor([2.0, 1.0, 1.0, 0.0, 0.0])]),
        torch.cat([group, torch.tensor([900, 901, 901, 902, 902])]))
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(slope_again, torch.cat([slope, torch.zeros(5)]))


@pytest.mark.parametrize("name", RELATIVE)
def test_a_batch_without_a_preference_costs_nothing(name: str) -> None:
    value, slope = gradient(LOSSES[name], torch.randn(5), torch.zeros(5), torch.tensor([1, 1, 2, 2, 3]))
    assert value == 0 and not slope.any()


def costs_the_difference(loss: Loss, exactly: bool) -> None:
    value, slope = gradient(loss, torch.tensor([-300.0, 300.0]), torch.tensor([1.0, 0.0]), torch.zeros(2))
    assert torch.isfinite(value) and torch.isfinite(slope).all() and slope[0] < 0
    if exactly:
        assert value.item() == pytest.approx(600.0)


@pytest.mark.parametrize("name", LOSSES)
def test_far_scores_of_the_wrong_order_cost_their_difference(name: str) -> None:
    costs_the_difference(LOSSES[name], name in ("bpr", "listnet", "list_mle"))


def logarithm_of_a_sigmoid(scores: Tensor, grades: Tensor, lists: Lists) -> Tensor:
    """A published BPR: infinite where the sigmoid rounds to 0."""
    pairs = lists.pairs(grades)
    return -(scores[pairs.better] - scores[pairs.worse]).sigmoid().log().mean()


def of_the_labels(scores: Tensor, grades: Tensor, lists: Lists) -> Tensor:
    """A published hinge loss has, with exponents, the labels' sigmoid in the place of the scores."""
    return bpr(grades.sigmoid() + 0.0 * scores, grades, lists, weight="gain")


@pytest.mark.parametrize("wrong", [logarithm_of_a_sigmoid, of_the_labels])
def test_losses_of_other_libraries_fail_there(wrong: Loss) -> None:
    with pytest.raises(AssertionError):
        costs_the_difference(wrong, exactly=False)


def lifts_the_better_row(loss: Loss) -> None:
    """Scores that follow the slope of the loss come into the order of the grades.

    With seeds 0 to 2 .89 of the pairs or more, and all of them but for the losses that care for the top of a list;
    .46 to .54 by chance.
    """
    scores, grades, group = draw()
    scores = scores.clone().requires_grad_()
    optimiser = torch.optim.Adam([scores], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        loss(scores, grades, Lists(group)).backward()
        optimiser.step()
    pairs = Lists(group).pairs(grades)
    assert (scores[pairs.better] > scores[pairs.worse]).float().mean() > 0.8


@pytest.mark.parametrize("name", ["bpr", "bpr_gain", "bpr_per_list", "lambdarank", "list_mle"])
def test_the_slope_leads_to_the_order_of_the_grades(name: str) -> None:
    lifts_the_better_row(LOSSES[name])


def test_a_loss_of_the_labels_leads_nowhere() -> None:
    with pytest.raises(AssertionError):
        lifts_the_better_row(of_the_labels)


def test_listnet_and_list_mle_of_two_rows_are_bpr() -> None:
    scores, group = torch.randn(40), torch.arange(20).repeat_interleave(2)
    grades = torch.tensor([1.0, 0.0]).repeat(20)
    expected = gradient(bpr, scores, grades, group)
    for loss in (listnet, list_mle):
        torch.testing.assert_close(gradient(loss, scores, grades, group), expected)


def test_the_pairs_of_a_list_count_once_with_the_weight_per_list() -> None:
    """A list of ten positives and ten negatives has a hundred pairs, one of two rows has one."""
    grades = torch.cat([torch.ones(10), torch.zeros(10), torch.tensor([1.0, 0.0])])
    group = torch.cat([torch.zeros(20), torch.ones(2)])
    for per_list, shares in ((False, [100 / 101, 1 / 101]), (True, [0.5, 0.5])):
        _, slope = gradient(partial(bpr, per_list=per_list), torch.zeros(22), grades, group)
        pull = [-slope[(group == g) & (grades == 1)].sum().item() * 2 for g in (0, 1)]
        assert pull == pytest.approx(shares)


def test_ties_are_drawn_anew_in_list_mle() -> None:
    scores, grades = torch.tensor([0.0, 3.0, 0.5, -1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    torch.manual_seed(0)
    assert len({round(list_mle(scores, grades, Lists(torch.zeros(4))).item(), 4) for _ in range(50)}) == 4


def test_jrc_of_lists_of_one_row_is_half_the_cross_entropy() -> None:
    logits, positive = torch.randn(50, 2), torch.rand(50) < 0.3
    expected = binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], positive.float())
    torch.testing.assert_close(jrc(logits, positive, Lists(torch.arange(50))), 0.5 * expected)
    torch.testing.assert_close(jrc(logits, positive, Lists(torch.zeros(50)), alpha=1.0), expected)
