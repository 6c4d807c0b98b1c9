"""The logging policy: which items a request shows, in which order, and how probable that was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
