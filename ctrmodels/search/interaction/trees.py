"""Which fields boosted trees split on together.

As in "Accurate Intelligible Models with Pairwise Interactions", KDD 2013, section 3, an additive model comes first:
trees that each split on one field alone. Trees that may cross fields go on from there, so that what they gain is mostly
what single fields could not. In these a split's gain is shared equally by the pairs of its field with each other field
that its ancestors, the splits on the path from the root, have split on; a split whose ancestors are all of its own
field, as a root's, counts for no pair.

Splits are of sets of ids, which the trees order by their gradients in the node; of numeric fields they are thresholds.
The trees tell apart the ``IDS`` most frequent ids of a field and take the others as one, so that a pair of two
long-tailed fields is judged by its heads. A split among many ids gains more by chance than one among few, and gains are
not adjusted for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from ctrmodels.search.interaction.columns import IdColumns

IDS = 254  # of scikit-learn's 255 categories; the last one is for all others


def split_gains(columns: IdColumns, trees: int, depth: int, learning_rate: float, seed: int) -> np.ndarray:
    """[M] share of the gain of all pairs, of every pair in the order of ``all_pairs``; 0 everywhere if none gained.

    Args:
        columns: F fields.
        trees: of single fields, and as many more of any.
        depth: of a tree.
        learning_rate: of the boosting.
        seed: of the draws by which scikit-learn bins numbers.
    """
    ordered = np.array(columns.ordered)
    places = np.argsort(ordered, kind="stable")  # scikit-learn numbers categorical features first
    heads = np.minimum(columns.ids[places], IDS)
    table = np.where(ordered[places, None], columns.ids[places], heads).astype(np.int16).T
    model = HistGradientBoostingClassifier(
        learning_rate=learning_rate, max_iter=trees, max_depth=depth, categorical_features=~ordered[places],
        interaction_cst="no_interactions", warm_start=True, early_stopping=False, random_state=seed)
    model.fit(table, columns.label)
    model.set_params(interaction_cst=None, max_iter=2 * trees).fit(table, columns.label)
    n = len(places)
    gains = pair_gains((grown[0].nodes for grown in model._predictors[trees:]), n)
    in_order = np.empty_like(gains)
    in_order[np.ix_(places, places)] = gains
    found = np.array([in_order[i, j] for i, j in combinations(range(n), 2)])
    return found / found.sum() if found.sum() > 0 else found


def pair_gains(trees: Iterable[np.ndarray], n: int) -> np.ndarray:
    """float [n, n], symmetric: the gain of every pair of features in ``trees``.

    Args:
        trees: the nodes of each as scikit-learn records them (it has no public name for them), the root first:
            ``feature_idx``, ``gain``, ``is_leaf``, ``left``, ``right``.
        n: number of features.
    """
    gains = np.zeros((n, n))
    for nodes in trees:
        ahead: list[tuple[int, frozenset[int]]] = [(0, frozenset())]
        while ahead:
            place, above = ahead.pop()
            node = nodes[place]
            if node["is_leaf"]:
                continue
            feature = int(node["feature_idx"])
            others = sorted(above - {feature})
            for other in others:
                gains[feature, other] += node["gain"] / len(others)
                gains[other, feature] += node["gain"] / len(others)
            below = above | {feature}
            ahead += [(int(node["left"]), below), (int(node["right"]), below)]
    return gains
