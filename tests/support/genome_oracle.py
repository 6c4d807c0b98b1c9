"""A made-up fitness of genomes, whose optimum is known exactly: nothing has to be trained to test a controller."""

from __future__ import annotations

from itertools import product

import numpy as np

from ctrmodels.search.controller import NBTreeCRP
from ctrmodels.search.controller.genome import SYMBOLS, canonical

NETWORKS, SLOTS = 15, 4
OPTIMUM, RANGE, NOISE, MATTERS = 0.8, 0.1, 5e-4, 0.35


class Oracle:
    """35 % of the genes matter, each with one right symbol; the best genome scores 0.8, a mean one 0.7."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0x6F7261])
        matters = rng.random((NETWORKS, SLOTS)) < MATTERS
        self.right = np.where(matters, rng.integers(SYMBOLS, size=matters.shape), -1)
        strings = canonical(np.array(list(product(range(SYMBOLS), repeat=SLOTS))))
        hits = (strings[:, None] == self.right).sum(2)
        self.best = int(hits.max(0).sum())
        self.scale = RANGE / (self.best - hits.mean(0).sum())

    def score(self, genome: np.ndarray) -> float:
        """Without noise."""
        return OPTIMUM - self.scale * (self.best - int((canonical(genome) == self.right).sum()))


def play(controller: NBTreeCRP, oracle: Oracle, evaluations: int) -> tuple[np.ndarray, list[int | None]]:
    """True scores [N] of what was proposed, and the leaf of each; the controller sees them with noise."""
    noise = NOISE * np.random.default_rng([controller.seed, 1]).standard_normal(evaluations)
    true, leaves = np.zeros(evaluations), []
    for k in range(evaluations):
        proposal = controller.propose()
        true[k] = oracle.score(proposal.genome)
        controller.observe(proposal, float(true[k] + noise[k]))
        leaves.append(proposal.leaf)
    return true, leaves
