"""A tree of naive Bayes classifiers that sorts genomes by what they promise, the best leaf on the left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.naive_bayes import CategoricalNB

from ctrmodels.search.controller.genome import SYMBOLS

SMALLEST = 20  # genomes of a node below the root that is worth a split; of fewer, a percentile is noise
SMOOTHING = 0.5  # pseudo-counts of every symbol, Jeffreys' prior


@dataclass(frozen=True)
class _Node:
    """A classifier; what it takes for good goes left."""

    classifier: CategoricalNB
    left: _Node | None
    right: _Node | None


class NBTree:
    """Splits judged genomes into promising and other regions, and finds the region of new ones.

    "Scaling Up the Accuracy of Naive-Bayes Classifiers: A Decision-Tree Hybrid", KDD 1996, as "AutoFeature: Searching
    for Feature Interactions and Their Architectures for Click-through Rate Prediction", CIKM 2020, uses it: in every
    node the genomes that score above a percentile *of that node* are good, a naive Bayes classifier learns to tell
    them, and each goes where the classifier sends it. Genes are symbols, not numbers; smoothing keeps one that was
    never seen from vetoing a region.

    Args:
        genomes: int8 [N, ...].
        scores: [N].
        depth: of the tree; it has at most ``2 ** depth`` leaves.
        percentile: of the scores of a node, in percent.

    Attributes:
        leaves: int64 [N], the leaf of every genome; 0 is the left-most, the most promising one.
        n_leaves: L.
    """

    def __init__(self, genomes: np.ndarray, scores: np.ndarray, depth: int, percentile: float) -> None:
        self.n_leaves = 0
        self.leaves = np.zeros(len(scores), np.int64)
        genes = genomes.reshape(len(genomes), -1)
        self._root = self._grow(genes, scores, np.arange(len(scores)), depth, percentile)

    def _grow(self, genes: np.ndarray, scores: np.ndarray, members: np.ndarray, depth: int,
              percentile: float) -> _Node | None:
        """The subtree of ``members``; ``None`` is a leaf."""
        good = scores[members] > np.percentile(scores[members], percentile)
        large = len(members) >= SMALLEST or len(members) == len(genes)
        if depth and large and good.any():
            classifier = CategoricalNB(alpha=SMOOTHING, min_categories=SYMBOLS).fit(genes[members], good)
            left = classifier.predict(genes[members])
            if left.any() and not left.all():
                return _Node(classifier, self._grow(genes, scores, members[left], depth - 1, percentile),
                             self._grow(genes, scores, members[~left], depth - 1, percentile))
        self.leaves[members] = self.n_leaves
        self.n_leaves += 1
        return None

    def route(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where genomes [K, ...] belong.

        Returns:
            int64 [K], their leaves; and float [K], the log odds of being good, summed over the classifiers on the way.
        """
        leaves, odds = np.zeros(len(genomes), np.int64), np.zeros(len(genomes))
        self._route(self._root, genomes.reshape(len(genomes), -1), np.arange(len(genomes)), leaves, odds, 0)
        return leaves, odds

    def _route(self, node: _Node | None, genes: np.ndarray, members: np.ndarray, leaves: np.ndarray, odds: np.ndarray,
               first: int) -> int:
        """Write leaves and odds of ``members`` below ``node``, whose left-most is ``first``; the number behind."""
        if node is None:
            leaves[members] = first
            return first + 1
        left = np.zeros(len(members), bool)
        if len(members):
            bad, good = node.classifier.predict_log_proba(genes[members]).T
            odds[members] += good - bad
            left = good > bad
        first = self._route(node.left, genes, members[left], leaves, odds, first)
        return self._route(node.right, genes, members[~left], leaves, odds, first)
