"""The planted truth as numbers, and the best AUC that any model can expect."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class PlantedInteraction:
    """An interaction as it was planted.

    Attributes:
        fields: two or three field names.
        strength: standard deviation of its part of the click logit under independent field values.
        rank: its latent factors.
    """

    fields: tuple[str, ...]
    strength: float
    rank: int


@dataclass(frozen=True)
class SimulatorTruth:
    """What was planted, for the whole log.

    Attributes:
        pairs, triples: the interactions of the click logit.
        ranks: latent factors by field; 0 = noise.
        informative: informative values by field, the most frequent ones; for ``item_id`` the ids below this.
        position_bias: probability that position 1, 2, … is examined.
        history_strength: gain of the click logit when all recent clicks have the item's category.
        category_appeal: [days][categories], drift of the click logit.
        items_known: by day, how many item ids exist; ids count up from 0.
        bayes_auc: AUC that the true probabilities can expect, by objective and sample space:
            ``click@all``, ``cart@click``, ``cart@all``, ``purchase@cart``, ``purchase@all``, and
            ``click@all.position_unknown`` for a model that may not see the position.
        rates: mean true probability, under the same names.
        sample: rows, from the first on, over which ``bayes_auc`` and ``rates`` are computed.
    """

    pairs: tuple[PlantedInteraction, ...]
    triples: tuple[PlantedInteraction, ...]
    ranks: dict[str, int]
    informative: dict[str, int]
    position_bias: tuple[float, ...]
    history_strength: float
    category_appeal: tuple[tuple[float, ...], ...]
    items_known: tuple[int, ...]
    bayes_auc: dict[str, float]
    rates: dict[str, float]
    sample: int

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")


def expected_auc(score: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> float:
    """AUC of ``score`` [N] that labels drawn with ``probability`` [N] will show, up to sampling noise.

    The pair-counting AUC with row i a positive with weight ``w_i p_i`` and a negative with ``w_i (1 - p_i)``;
    ties count half. ``expected_auc(p, p)`` is the Bayes AUC, which no score exceeds.

    Args:
        score: what the rows are ordered by.
        probability: true probability of the label.
        weight: probability [N] that the row is in the sample space; ``None`` = all rows are.
    """
    weight = np.ones(len(score)) if weight is None else weight
    _, tie = np.unique(score, return_inverse=True)
    positive = np.bincount(tie, weight * probability)
    negative = np.bincount(tie, weight * (1.0 - probability))
    below = np.cumsum(negative) - negative
    return float(positive @ (below + 0.5 * negative) / (positive.sum() * negative.sum()))


def bayes(relevance: np.ndarray, examination: np.ndarray, cart: np.ndarray, purchase: np.ndarray,
          ) -> tuple[dict[str, float], dict[str, float]]:
    """Bayes AUCs and mean probabilities by objective and sample space, from the probabilities [N] of a log."""
    click = relevance * examination
    carted = click * cart
    spaces: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]] = {
        "click@all": (click, click, None),
        "click@all.position_unknown": (relevance, click, None),
        "cart@click": (cart, cart, click),
        "cart@all": (carted, carted, None),
        "purchase@cart": (purchase, purchase, carted),
        "purchase@all": (carted * purchase, carted * purchase, None),
    }
    aucs = {name: expected_auc(*parts) for name, parts in spaces.items()}
    rates = {name: float(np.average(p, weights=w)) for name, (_, p, w) in spaces.items()}
    return aucs, rates


def value_of_order(score: np.ndarray, relevance: np.ndarray, worth: np.ndarray, examination: np.ndarray) -> float:
    """Expected value per exposure if each shown list were ordered by ``score``, best first.

    The item at position k is clicked with probability ``examination[k] * relevance``. One list at a time: a click
    that the new order brings does not change the user's later lists.

    Args:
        score: [R, K]; ties keep the order given.
        relevance: [R, K], probability of a click at an examined position.
        worth: [R, K], expected value of a click on the item, such as 1 for clicks or
            ``p_cart_given_click * p_purchase_given_cart`` for purchases.
        examination: [K], probability that a position is examined.
    """
    order = np.argsort(-score, axis=1, kind="stable")
    return float((np.take_along_axis(relevance * worth, order, axis=1) * examination).mean())
