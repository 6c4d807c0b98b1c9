"""Pair- and list-wise losses of flat rows.

Arguments of all: ``scores`` float [B], ``grades`` float [B] of 0 or more, larger = preferred, both of known rows
only, and the batch's :class:`Lists`, each whole. A list without a preference says nothing and has no part in a mean.
With several ranks every mean is that over all ranks' lists, as in :func:`ctrmodels.nn.losses.masked_mean`.

All but :func:`jrc` see differences of scores inside a list only. So a constant added to all scores of a list changes
nothing, and such scores say nothing about rows of different lists.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ctrmodels.ltr.lists import Lists
from ctrmodels.nn.losses import masked_mean

PairWeight = Literal["one", "gain"]


def bpr(scores: Tensor, grades: Tensor, lists: Lists, weight: PairWeight = "one", per_list: bool = False) -> Tensor:
    """Bayesian personalised ranking with grades: mean of ``w_ij softplus(-(s_i - s_j))`` over pairs r_i > r_j.

    "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, the criterion BPR-Opt of section 4.1 for
    pairs of one list.

    Args:
        scores, grades, lists: see the module.
        weight: ``one``, or ``gain`` = ``|2^r_i - 2^r_j|``.
        per_list: mean over the pairs of a list, then over the lists: without it a list of ten clicks counts ten times
            as much as one of a single click.

    Returns:
        scalar; 0 without a pair.
    """
    pairs = lists.pairs(grades)
    loss = softplus(scores[pairs.worse] - scores[pairs.better])
    if weight == "gain":
        loss = loss * (grades[pairs.better].exp2() - grades[pairs.worse].exp2())
    if not per_list:
        return masked_mean(loss, torch.ones_like(loss, dtype=torch.bool))
    total = loss.new_zeros(len(lists)).index_add(0, pairs.list, loss)
    count = pairs.list.bincount(minlength=len(lists))
    return masked_mean(total / count.clamp(min=1), count > 0)


def lambdarank(scores: Tensor, grades: Tensor, lists: Lists) -> Tensor:
    """Mean over the lists of ``sum_ij |delta NDCG_ij| softplus(-(s_i - s_j))`` over pairs r_i > r_j.

    ``delta NDCG_ij = (2^r_i - 2^r_j) (1 / log2(1 + rank_i) - 1 / log2(1 + rank_j)) / IDCG`` is what swapping the two
    would change. Ranks are those of the current scores, without a gradient. "Learning to Rank with Nonsmooth Cost
    Functions", NIPS 2006, in the form of Burges, "From RankNet to LambdaRank to LambdaMART", MSR-TR-2010-82, section 4.

    Returns:
        scalar; 0 without a pair.
    """
    pairs = lists.pairs(grades)
    gain = grades.exp2() - 1
    ideal = lists.sum(gain * _discount(lists.place(grades)))
    discount = _discount(lists.place(scores.detach()))
    change = (gain[pairs.better] - gain[pairs.worse]) * (discount[pairs.better] - discount[pairs.worse]).abs()
    loss = change / ideal[pairs.list] * softplus(scores[pairs.worse] - scores[pairs.better])
    total = loss.new_zeros(len(lists)).index_add(0, pairs.list, loss)
    return masked_mean(total, pairs.list.bincount(minlength=len(lists)) > 0)


def listnet(scores: Tensor, grades: Tensor, lists: Lists, temperature: float | None = None) -> Tensor:
    """ListNet with the top-one probability: ``-sum_j q_j log softmax(s)_j``, mean over the lists.

    "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007, equation 4.

    Args:
        scores, grades, lists: see the module.
        temperature: of the targets ``q = softmax(r / temperature)``; ``None`` = each row's share ``r / sum(r)``, by
            which a row of grade 0 is no target at all.

    Returns:
        scalar; 0 without a list of different grades.
    """
    if temperature is None:
        total = lists.sum(grades)[lists.of]
        target = grades / torch.where(total > 0, total, torch.ones_like(total))
    else:
        target = lists.log_softmax(grades / temperature).exp()
    return masked_mean(-lists.sum(target * lists.log_softmax(scores)), _differ(grades, lists))


def list_mle(scores: Tensor, grades: Tensor, lists: Lists) -> Tensor:
    """ListMLE: the Plackett-Luce likelihood of the order of the grades, ties drawn anew at every call.

    ``sum_j [logsumexp(s_j .. s_n) - s_j]`` with rows by falling grade, mean over the lists. "Listwise Approach to
    Learning to Rank: Theory and Algorithm", ICML 2008, section 4.

    Returns:
        scalar; 0 without a list of different grades.
    """
    shuffled = torch.randperm(len(grades), device=grades.device)
    order = shuffled[Lists(lists.of[shuffled]).sorted(grades[shuffled])]
    unit = lists.of[order]
    last_first = (lists.size[unit] - 1 - (torch.arange(len(order), device=order.device) - lists.start[unit]))
    # The one loss that needs a matrix: a running logsumexp inside lists. Its padding, behind a list's first row, is
    # never read.
    laid_out = scores.new_full((len(lists), int(lists.size.max())), -torch.inf)
    laid_out = laid_out.index_put((unit, last_first), scores[order])
    tails = laid_out.logcumsumexp(1)[unit, last_first]
    each = scores.new_zeros(len(lists)).index_add(0, unit, tails - scores[order])
    return masked_mean(each, _differ(grades, lists))


def jrc(logits: Tensor, positive: Tensor, lists: Lists, alpha: float = 0.5) -> Tensor:
    """Joint ranking and calibration: ``alpha`` of the cross-entropy and ``1 - alpha`` of a loss inside the lists.

    A row has two logits, f_0 and f_1. The cross-entropy of ``softmax(f_0, f_1)`` keeps ``sigmoid(f_1 - f_0)`` a
    probability; ``-log softmax(f_y)`` over the rows of the list, y being the row's label, orders the list. "Joint
    Optimization of Ranking and Calibration with Contextualized Hybrid Model", KDD 2023.

    Args:
        logits: [B, 2].
        positive: bool [B].
        lists: of the rows.
        alpha: 1 = cross-entropy alone.

    Returns:
        scalar, a mean over the rows.
    """
    f0, f1 = logits.unbind(1)
    classified = logsigmoid(torch.where(positive, f1 - f0, f0 - f1))
    ordered = torch.where(positive, lists.log_softmax(f1), lists.log_softmax(f0))
    return masked_mean(-(alpha * classified + (1 - alpha) * ordered), torch.ones_like(positive))


def _discount(place: Tensor) -> Tensor:
    """``1 / log2(1 + rank)`` of places that count from 0."""
    return 1 / (place + 2).log2()


def _differ(grades: Tensor, lists: Lists) -> Tensor:
    """bool [G]: the list has rows of different grades."""
    ends = [grades.new_zeros(len(lists)).scatter_reduce(0, lists.of, grades, how, include_self=False)
            for how in ("amin", "amax")]
    return ends[0] < ends[1]
