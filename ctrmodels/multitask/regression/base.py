"""What a regression objective's head says: the base of all targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from torch import Tensor, nn


class Target(nn.Module, ABC):
    """Between a head's outputs and a value y >= 0; what it is fitted to lies in buffers, so that weights carry it.

    Shapes: ``output`` is [B] for one number per row, else [B, width + known] with the columns of :meth:`offset` behind.

    Attributes:
        width: numbers per row that the head gives.
        known: columns of :meth:`offset`.
    """

    width: ClassVar[int] = 1
    known: ClassVar[int] = 0

    @abstractmethod
    def fit(self, values: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Before training: take the scale from the training values.

        Args:
            values: [n], on the objective's own rows.
            ids: [n, F] of the same rows, for targets that have an offset.

        Raises:
            ValueError: there is no value, or a negative one, or none from which a scale could come.
        """

    def fit_residuals(self, outputs: np.ndarray, values: np.ndarray) -> None:
        """After training: take from a trained head's outputs on the training values [n] what only they tell."""

    def offset(self, ids: Tensor) -> Tensor:
        """Columns [B, known] that every row has without a head, from its ``ids`` [B, F]."""
        return ids.new_zeros(len(ids), self.known)

    @abstractmethod
    def loss(self, output: Tensor, value: Tensor) -> Tensor:
        """Loss of every row [B], about 1 for a head that has learned nothing."""

    @abstractmethod
    def expected(self, output: Tensor) -> Tensor:
        """Expected value [B], at least 0."""


def checked(values: np.ndarray) -> np.ndarray:
    """``values`` [n] in double precision.

    Raises:
        ValueError: there are none, or negative ones, or all are 0.
    """
    if not len(values) or values.min() < 0 or values.max() == 0:
        raise ValueError("a regression target needs values, none of them negative, not all of them 0")
    return values.astype(np.float64)
