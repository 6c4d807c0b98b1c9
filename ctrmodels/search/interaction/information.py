"""What the crossed ids of two fields say of the label beyond what each says alone.

The interaction information of "Multivariate information transmission", McGill, Psychometrika 1954,
``I(X_i X_j; Y) - I(X_i; Y) - I(X_j; Y)``, in nats. To second order in what ids change of a label's rate, the
information of cells c with n_c of the N rows each is ``sum_c n_c (p_c - p)^2 / (2 N p (1 - p))``, p_c the rate of a
cell and p that of all rows: Pearson's chi-square over 2 N.

Put in as counted, rates overstate it, and the more so the fewer rows a cell has: ids that occur once each seem to say
everything. Hence ``(p_c - p)^2`` is estimated by the mean product ``(y_a - p)(y_b - p)`` over all pairs of *different*
rows a, b of the cell, which is right on average from two rows on. A cell of one row has no such pair, and nothing can
be known of it: its rows are left out of all three terms, so that a cross is compared with what its fields say of the
same rows. A pair of independent fields that only add up scores about 0, however sparse its cross is.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ctrmodels.search.interaction.columns import IdColumns

DENSE = 2**20  # cells that are counted in an array of their own; the rows of more cells are sorted


@dataclass(frozen=True)
class Cells:
    """The cells that have rows, C of them.

    Attributes:
        key: int64 [C], rising.
        rows: int64 [C], how many each has.
        deviation: float [C], the estimate of ``(p_c - p)^2``; 0 for a cell of one row.
    """

    key: np.ndarray
    rows: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, n: int, label: np.ndarray) -> Cells:
        """Group rows by their cells.

        Args:
            keys: int64 [N], the cell of every row, below ``n``.
            n: number of cells.
            label: bool [N].
        """
        marked = 2 * keys + label
        if n <= DENSE:
            counts = np.bincount(marked, minlength=2 * n).reshape(n, 2)
            found = np.flatnonzero(counts.any(1))
            rows, positives = counts[found].sum(1), counts[found, 1]
        else:
            marked.sort()
            starts = np.flatnonzero(np.diff(marked >> 1, prepend=-1))
            found = marked[starts] >> 1
            rows, positives = np.diff(starts, append=len(marked)), np.add.reduceat(marked & 1, starts)
        rate = label.mean()
        summed = positives - rows * rate  # of y - p
        squares = positives * (1 - rate) ** 2 + (rows - positives) * rate**2
        return cls(found, rows, (summed**2 - squares) / np.maximum(rows * (rows - 1.0), 1.0) * (rows > 1))


def crossed_information(columns: IdColumns) -> np.ndarray:
    """float [M], of every pair in the order of ``all_pairs``: see the module's text.

    One pair at a time, so that it needs a few numbers per row beside the columns.
    """
    alone = []  # per field, the deviation of every id
    for ids, size in zip(columns.ids, columns.sizes, strict=True):
        cells, deviations = Cells.of(ids.astype(np.int64), size, columns.label), np.zeros(size)
        deviations[cells.key] = cells.deviation
        alone.append(deviations)
    rate, found = columns.label.mean(), []
    for i, j in combinations(range(len(columns.ids)), 2):
        width = columns.sizes[j]
        crossed = Cells.of(columns.ids[i].astype(np.int64) * width + columns.ids[j], columns.sizes[i] * width,
                           columns.label)
        beyond = crossed.deviation - alone[i][crossed.key // width] - alone[j][crossed.key % width]
        found.append(float((crossed.rows * beyond)[crossed.rows > 1].sum()))
    return np.array(found) / (2 * len(columns.label) * rate * (1 - rate))
