"""Where rows stand in their lists, with ties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ctrmodels.metrics.arrays import rankable


class ListRanks:
    """Where every row stands in its list, for any number of score vectors.

    Attributes:
        unit: [N] index of each row's list.
        size: [U] rows of each list.
    """

    def __init__(self, groups: np.ndarray) -> None:
        _, self.unit, self.size = np.unique(groups, return_inverse=True, return_counts=True)
        rows = np.arange(len(self.unit))
        self._layout = Layout(rows, self.unit, np.ones(len(rows), bool))

    def __call__(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([N], [N]): how many rows of its list score above a row, and how many equal to it, itself too.

        Raises:
            ValueError: a score is not finite, or their number is not that of the rows.
        """
        return self._layout.all_places(rankable(scores, len(self.unit)))


class Places(NamedTuple):
    """Where rows stand in their list: ``above`` of its rows score higher, ``tied`` equal (itself too)."""

    row: np.ndarray
    unit: np.ndarray
    above: np.ndarray
    tied: np.ndarray


class Layout:
    """Lists as blocks of equally wide, padded matrices, and the rows of interest (the relevant ones) in them.

    In short lists a relevant row's place is counted by comparing it with its list, which is exact with ties
    and far cheaper than sorting; where many rows are relevant, all are compared at once. Long lists are sorted.

    Args:
        rows: [M] indices of the rows that belong to a list.
        unit: [M] list of each.
        wanted: bool [M], whether the row's place is asked for.
    """

    COUNT_UP_TO = 64
    MANY = 0.25
    CHUNK = 1 << 17

    def __init__(self, rows: np.ndarray, unit: np.ndarray, wanted: np.ndarray) -> None:
        order = np.argsort(unit, kind="stable")
        rows, unit, wanted = rows[order], unit[order], wanted[order]
        start = np.flatnonzero(np.r_[True, np.diff(unit) != 0][:len(unit)])
        size = np.diff(np.r_[start, len(unit)])
        octave = np.frexp(size)[1]  # lists of one block differ in length by less than a factor of two
        self._blocks = []
        for o in np.unique(octave):
            lists = np.flatnonzero(octave == o)
            column = np.arange(size[lists].max())
            inside = column < size[lists, None]
            position = np.where(inside, start[lists, None] + column, 0)
            of_list, of_column = np.nonzero(inside & wanted[position])
            wanted_rows = rows[position[of_list, of_column]]
            self._blocks.append((np.where(inside, rows[position], -1), of_list, of_column,
                                 wanted_rows, unit[start[lists]][of_list]))

    def places(self, scores: np.ndarray) -> Iterator[Places]:
        """The places of all wanted rows under ``scores``, in parts."""
        padded = np.append(scores, -np.inf)  # the index -1 of padding lands here
        for index, of_list, of_column, row, unit in self._blocks:
            block = padded[index]
            if block.shape[1] > self.COUNT_UP_TO or len(row) > self.MANY * block.size:
                above, tied = (found[of_list, of_column].astype(np.int64) for found in self._places(block))
                yield Places(row, unit, above, tied)
                continue
            step = self.CHUNK // block.shape[1]
            for s in (slice(i, i + step) for i in range(0, len(row), step)):
                others, own = block[of_list[s]], scores[row[s]][:, None]
                yield Places(row[s], unit[s], np.count_nonzero(others > own, axis=1),
                              np.count_nonzero(others == own, axis=1))

    def all_places(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([N], [N]): for every row how many of its list score above it, and how many equal, itself too."""
        padded = np.append(scores, -np.inf)
        above, tied = np.empty((2, len(padded)), np.int64)
        for index, *_ in self._blocks:
            above[index], tied[index] = self._places(padded[index])
        return above[:-1], tied[:-1]

    def _places(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return places_by_sorting(block) if block.shape[1] > self.COUNT_UP_TO else places_by_counting(block)


def places_by_counting(block: np.ndarray, lists: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """For each entry of ``block`` [G, L]: how many of its row are larger, how many equal (itself too); L < 256.

    Many ``lists`` are compared at a time, but no more than the processor's cache holds.
    """
    above, tied = np.empty((2, *block.shape), np.uint8)
    for s in (slice(i, i + lists) for i in range(0, len(block), lists)):
        part = np.ascontiguousarray(block[s].T)
        larger, equal = np.zeros((2, *part.shape), np.uint8)
        for other in part:
            larger += other > part
            equal += other == part
        above[s], tied[s] = larger.T, equal.T
    return above, tied


def places_by_sorting(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same; the work grows with L log L instead of L²."""
    order = np.argsort(-block, axis=1, kind="stable")
    falling = np.take_along_axis(block, order, axis=1)
    column = np.arange(block.shape[1])
    first = np.ones(block.shape, bool)
    first[:, 1:] = falling[:, 1:] != falling[:, :-1]
    last = np.ones(block.shape, bool)
    last[:, :-1] = first[:, 1:]
    begin = np.maximum.accumulate(np.where(first, column, 0), axis=1)
    end = np.minimum.accumulate(np.where(last, column, len(column))[:, ::-1], axis=1)[:, ::-1]
    above, tied = np.empty_like(begin), np.empty_like(begin)
    np.put_along_axis(above, order, begin, axis=1)
    np.put_along_axis(tied, order, end - begin + 1, axis=1)
    return above, tied
