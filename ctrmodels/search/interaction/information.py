"""What the crossed ids of two fields say of the label beyond what each says alone.

The interaction information of "Multivariate information transmission", McGill, Psychometrika 1954,
``I(X_i X_j; Y) - I(X_i; Y) - I(X_j; Y)``, each term estimated from counts. Estimates from counts are too high, and the
more so the fewer rows a cell has: ids that occur once each seem to say everything. So every term is adjusted for chance
("Information Theoretic Measures for Clusterings Comparison: Variants, Properties, Normalization and Correction for
Chance", JMLR 2010, section 4): what labels drawn without regard to the ids would seem to say is taken away. Of n rows
in a cell that is ``b(n) = h(p) - E h(K / n)`` with ``K ~ Binomial(n, p)``, h the entropy of a label and p the rate of
all rows.

Cells of a few rows also hide what there is: of one row each, everything. A cross shows about the share
``s = 1 - mean of b / h(p)`` of it, and that share of the single fields' information is all that is taken from it;
otherwise every sparse cross would fall behind those that say nothing. A pair that says nothing of its own scores about
0 however sparse it is, and one whose cells are all of one row scores 0, since nothing can be known of it.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.special import entr, xlogy
from scipy.stats import binom

from ctrmodels.search.interaction.columns import IdColumns

TABULATED = 1000  # rows of a cell up to which its chance is summed exactly; the series is within 2 % from there on
DENSE = 2**20  # cells that are counted in an array of their own; the rows of more cells are sorted


class Information:
    """The information of cells about one label, adjusted for chance.

    Args:
        label: bool [n], of both values.
    """

    def __init__(self, label: np.ndarray) -> None:
        self.label, self.rate = label, float(label.mean())
        self.entropy = float(entr(self.rate) + entr(1 - self.rate))  # nats
        sizes, positives = np.arange(TABULATED + 1)[:, None], np.arange(TABULATED + 1)[None]
        share = np.minimum(positives / np.maximum(sizes, 1), 1.0)
        expected = (binom.pmf(positives, sizes, self.rate) * (entr(share) + entr(1 - share))).sum(1)
        self.tabulated = self.entropy - expected

    def chance(self, sizes: np.ndarray) -> np.ndarray:
        """b(n) of cells of n rows, in nats.

        Above ``TABULATED`` rows ``1 / 2n + (1 / p + 1 / (1 - p) - 1) / 12 n^2``; "The statistical estimation of
        entropy in the non-parametric case", Harris, 1975.
        """
        n = np.maximum(sizes, 1).astype(float)
        series = 1 / (2 * n) + (1 / self.rate + 1 / (1 - self.rate) - 1) / (12 * n**2)
        return np.where(sizes <= TABULATED, self.tabulated[np.minimum(sizes, TABULATED)], series)

    def of(self, cells: np.ndarray, n: int) -> tuple[float, float]:
        """Adjusted information in nats, and the share of the true one that it shows on average.

        Args:
            cells: int64 [n rows], each below ``n``.
            n: number of cells.
        """
        sizes, positives = self._counts(cells, n)
        rows = len(self.label)
        within = float((xlogy(sizes, sizes) - xlogy(positives, positives)
                        - xlogy(sizes - positives, sizes - positives)).sum()) / rows
        chance = float(sizes @ self.chance(sizes)) / rows
        return self.entropy - within - chance, max(1 - chance / self.entropy, 0.0)

    def _counts(self, cells: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and positives of every cell that has rows."""
        marked = 2 * cells + self.label
        if n <= DENSE:
            counts = np.bincount(marked, minlength=2 * n).reshape(n, 2)
            counts = counts[counts.any(1)]
            return counts.sum(1), counts[:, 1]
        marked.sort()
        starts = np.flatnonzero(np.diff(marked >> 1, prepend=-1))
        return np.diff(starts, append=len(marked)), np.add.reduceat(marked & 1, starts)


def crossed_information(columns: IdColumns) -> np.ndarray:
    """[M] nats, of every pair in the order of ``all_pairs``: see the module's text.

    One pair at a time, so that it needs a few numbers per row beside the columns.
    """
    information = Information(columns.label)
    alone = [information.of(column.astype(np.int64), size)
             for column, size in zip(columns.ids, columns.sizes, strict=True)]
    found = []
    for i, j in combinations(range(len(columns.ids)), 2):
        together, shown = information.of(*cross(columns, i, j))
        for value, visible in (alone[i], alone[j]):
            together -= value * min(shown / visible, 1.0) if visible else 0.0
        found.append(together)
    return np.array(found)


def cross(columns: IdColumns, i: int, j: int) -> tuple[np.ndarray, int]:
    """int64 [n] cell of the two ids, and the number of cells."""
    return (columns.ids[i].astype(np.int64) * columns.sizes[j] + columns.ids[j],
            columns.sizes[i] * columns.sizes[j])
