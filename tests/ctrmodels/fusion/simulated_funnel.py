"""A simulated log as an off-policy estimator wants it, with the true value of any order of its lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.special import expit, logit

from ctrmodels.data.simulator import Simulator, SimulatorConfig, position_propensity, value_of_order
from ctrmodels.fusion import WeightedProduct

PURCHASE = 3.0
"""What a purchase is worth, a click being worth 1."""


@dataclass(frozen=True)
class Funnel:
    """N rows in whole lists of K, by list and position.

    Attributes:
        size: K.
        user, request, position: [N].
        reward: [N] clicks + 3 · purchases.
        propensity: [N] chance of the row at its position, given the items of the list.
        scores: [N, 2] what two models might say of click and purchase: the truth, blurred.
        relevance, worth: [N] true chance of a click where examined, and what it is worth.
        examination: [K].
    """

    size: int
    user: np.ndarray
    request: np.ndarray
    position: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    scores: np.ndarray
    relevance: np.ndarray
    worth: np.ndarray
    examination: np.ndarray

    @classmethod
    def generate(cls, rows: int, seed: int, size: int = 5) -> Funnel:
        batches = list(Simulator(SimulatorConfig(rows=rows, seed=seed, list_size=size, candidates=2 * size)).batches())
        log, truth = (pa.Table.from_batches([getattr(b, part) for b in batches]) for part in ("log", "truth"))
        order = np.lexsort((log["position"].to_numpy(), log["request_id"].to_numpy()))
        _, first, count = np.unique(log["request_id"].to_numpy()[order], return_index=True, return_counts=True)
        rows_of = order[(first[count == size][:, None] + np.arange(size)).ravel()]  # the last list may be cut off

        def column(name: str) -> np.ndarray:
            return (truth if name in truth.column_names else log)[name].to_numpy()[rows_of]

        buys = column("p_cart_given_click") * column("p_purchase_given_cart")
        blur = np.random.default_rng(seed).normal(0, 0.7, (2, len(rows_of)))
        return cls(size, column("user_id"), column("request_id"), column("position"),
                   column("click") + PURCHASE * column("purchase"),
                   position_propensity(column("propensity_first").reshape(-1, size)).ravel(),
                   expit(logit(np.column_stack([column("relevance"), buys])) + blur.T), column("relevance"),
                   1 + PURCHASE * buys, column("examination")[:size])

    def fuse(self, *weights: float) -> np.ndarray:
        """[N] weighted product of the two scores."""
        return WeightedProduct().score(self.scores, weights)

    def true_value(self, fused: np.ndarray) -> float:
        """Expected reward per exposure if every list were ordered by ``fused``."""
        shape = (-1, self.size)
        return value_of_order(fused.reshape(shape), self.relevance.reshape(shape), self.worth.reshape(shape),
                              self.examination)

    def crude_model(self) -> np.ndarray:
        """[N] a reward model that knows neither the positions' true weight nor the purchases."""
        return 0.8 * self.scores[:, 0]

    def take(self, rows: np.ndarray) -> Funnel:
        """Whole lists, by a mask [N]."""
        names = ("user", "request", "position", "reward", "propensity", "scores", "relevance", "worth")
        return Funnel(self.size, *(getattr(self, n)[rows] for n in names), self.examination)
