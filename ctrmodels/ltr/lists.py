"""The lists among a batch's flat rows: sums and softmaxes inside each, places, and preference pairs.

Rows are never laid out as a padded matrix, so that no padding can leak into a loss and long lists cost short ones
nothing. Notation: B rows, G lists, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Rows of one list of which the first is preferred.

    Attributes:
        better, worse: int64 [P], rows of the batch.
        list: int64 [P], their list.
    """

    better: Tensor
    worse: Tensor
    list: Tensor


class Lists:
    """Which row of a batch belongs to which list.

    Args:
        group: integers [B], equal in the rows of a list; in any order.

    Attributes:
        of: int64 [B], the list of each row, 0 to G - 1.
        size: int64 [G], rows per list.
    """

    def __init__(self, group: Tensor) -> None:
        _, self.of, self.size = torch.unique(group, return_inverse=True, return_counts=True)

    def __len__(self) -> int:
        return len(self.size)

    @cached_property
    def start(self) -> Tensor:
        """int64 [G], where a list begins once rows are sorted by list."""
        return self.size.cumsum(0) - self.size

    def sum(self, values: Tensor) -> Tensor:
        """[B] → [G]."""
        return values.new_zeros(len(self)).index_add(0, self.of, values)

    def mean(self, values: Tensor) -> Tensor:
        """[B] → [G]."""
        return self.sum(values) / self.size

    def log_softmax(self, scores: Tensor) -> Tensor:
        """Logarithm of the softmax of [B] inside every list; same shape, stable for any finite score."""
        top = scores.detach().new_full((len(self),), -torch.inf)
        top = top.scatter_reduce(0, self.of, scores.detach(), "amax")
        shifted = scores - top[self.of]
        return shifted - self.sum(shifted.exp()).log()[self.of]

    def sorted(self, values: Tensor) -> Tensor:
        """int64 [B], the rows list by list, the largest of ``values`` [B] first; ties in the order of the rows."""
        by_value = torch.argsort(values, descending=True, stable=True)
        return by_value[torch.argsort(self.of[by_value], stable=True)]

    def place(self, values: Tensor) -> Tensor:
        """int64 [B], each row's place in its list by falling ``values``, from 0."""
        order = self.sorted(values)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device) - self.start[self.of[order]]
        return place

    def pairs(self, grades: Tensor) -> Pairs:
        """All pairs of rows of one list with different ``grades`` [B], nothing else being built on the way."""
        order = self.sorted(grades)
        unit, grade = self.of[order], grades[order]
        rows = torch.arange(len(order), device=order.device)
        new = torch.ones_like(unit, dtype=torch.bool)
        new[1:] = (unit[1:] != unit[:-1]) | (grade[1:] != grade[:-1])
        block = new.cumsum(0) - 1
        behind = torch.cat([rows[new][1:], rows.new_tensor([len(order)])])[block]  # first row of a lower grade
        count = (self.start + self.size)[unit] - behind
        better = rows.repeat_interleave(count)
        step = torch.arange(len(better), device=order.device) - (count.cumsum(0) - count)[better]
        return Pairs(order[better], order[behind[better] + step], unit[better])
