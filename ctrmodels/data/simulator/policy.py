"""The logging policy: which items a request shows, in which order, and how probable that was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_ITEMS = 12
"""Longest list whose orders are summed over: the work doubles with every further item."""


@dataclass(frozen=True)
class Lists:
    """R shown lists of K items.

    Attributes:
        item: int [R, K], the item at every position.
        propensity: [R, K], chance of this item at this position, given the candidates and the items above.
            The product over a list is the chance of the whole list.
        propensity_first: [R, K], chance of this item at the first position, given the candidates.
    """

    item: np.ndarray
    propensity: np.ndarray
    propensity_first: np.ndarray


def draw_candidates(cumulative: np.ndarray, requests: int, candidates: int,
                    rng: np.random.Generator) -> np.ndarray:
    """Distinct items for every request, int [requests, candidates].

    Args:
        cumulative: cumulative probabilities [items] of one draw; items drawn twice are drawn anew.
    """
    drawn = np.searchsorted(cumulative, rng.random((requests, candidates)), side="right")
    rows = np.arange(requests)
    while len(rows):
        part = drawn[rows]
        order = np.argsort(part, axis=1, kind="stable")
        ranked = np.take_along_axis(part, order, axis=1)
        again = np.zeros(part.shape, bool)
        np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
        part[again] = np.searchsorted(cumulative, rng.random(np.count_nonzero(again)), side="right")
        drawn[rows] = part
        rows = rows[again.any(axis=1)]
    return drawn


def plackett_luce(candidates: np.ndarray, score: np.ndarray, size: int, rng: np.random.Generator) -> Lists:
    """Lists of ``size`` drawn without replacement, each next item with probability softmax(score of the rest).

    Sorting by ``score + Gumbel noise`` draws from exactly this distribution (Yellott, J. Math. Psychology
    1977), so its propensities are exact.

    Args:
        candidates: int [R, C].
        score: [R, C].
    """
    order = np.argsort(-(score + rng.gumbel(size=score.shape)), axis=1, kind="stable")
    ranked = np.take_along_axis(score, order, axis=1)
    rest = np.logaddexp.accumulate(ranked[:, ::-1], axis=1)[:, ::-1]
    shown = ranked[:, :size]
    return Lists(np.take_along_axis(candidates, order[:, :size], axis=1),
                 np.exp(shown - rest[:, :size]), np.exp(shown - rest[:, :1]))


def position_propensity(first: np.ndarray) -> np.ndarray:
    """Chance [R, K] that an item stood where it did, given which items were shown.

    What an estimator needs that judges new orders of the shown lists: a new order cannot show anything else. The
    chance of a set at the head of a list, in whatever order, and that of the rest behind it follow by recursion
    over the 2^K sets of shown items.

    Args:
        first: [R, K], ``propensity_first`` of the items in the order they were shown.

    Raises:
        ValueError: lists of more than ``MOST_ITEMS`` items.
    """
    rows, size = first.shape
    if size > MOST_ITEMS:
        raise ValueError(f"lists of {size} items: at most {MOST_ITEMS}")
    step = max(1, (1 << 21) >> size)
    return np.concatenate([_position_propensity(first[i:i + step]) for i in range(0, max(rows, 1), step)])


def _position_propensity(first: np.ndarray) -> np.ndarray:
    size = first.shape[1]
    whole = (1 << size) - 1
    item = first.T  # [K, R]; a set is a bit mask, and every array below has one row per set
    rest = np.empty((whole + 1, len(first)))  # mass of the items that are not in the set
    rest[whole] = np.maximum(1 - first.sum(axis=1), 0)
    head, tail = np.zeros(rest.shape), np.zeros(rest.shape)
    head[0], tail[whole] = 1, 1
    for taken in range(whole - 1, -1, -1):
        free = [i for i in range(size) if not taken >> i & 1]
        rest[taken] = rest[taken | 1 << free[0]] + item[free[0]]
        for i in free:
            tail[taken] += item[i] / rest[taken] * tail[taken | 1 << i]
    propensity = np.zeros(item.shape)
    for taken in range(whole):  # head[taken] is complete, since its subsets are smaller numbers
        place = taken.bit_count()
        for i in range(size):
            if not taken >> i & 1:
                chance = head[taken] * item[i] / rest[taken]
                head[taken | 1 << i] += chance
                if i == place:
                    propensity[i] += chance * tail[taken | 1 << i]
    return (propensity / tail[0]).T
