"""Functions that fuse several scores of a row into the one that rows are ordered by.

All of them rise with every score when the weights are not negative. New ones are added to ``FUNCTIONS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class FusionFunction(ABC):
    """A fusion function; its own fields, if any, are constants that are not tuned."""

    id: ClassVar[str]
    formula: ClassVar[str]

    def score(self, scores: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
        """Fused score [N] of normalised ``scores`` [N, K] under ``weights`` [K].

        Raises:
            ValueError: a weight is negative or not finite, all are 0, or their number is not K.
        """
        return self.combine(self.prepare(scores), weights)

    def combine(self, prepared: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
        """The same from :meth:`prepare`'s result, for many weights on the same scores."""
        w = np.asarray(weights, np.float64)
        if w.shape != prepared.shape[1:]:
            raise ValueError(f"{prepared.shape[1]} weights expected, got {w.shape}")
        if not np.isfinite(w).all() or (w < 0).any() or not w.any():
            raise ValueError(f"weights {w.tolist()}: finite, not negative and not all 0 expected")
        return self._combine(prepared, w)

    @abstractmethod
    def prepare(self, scores: np.ndarray) -> np.ndarray:
        """The part [N, K] of the work that does not depend on the weights."""

    @abstractmethod
    def _combine(self, prepared: np.ndarray, weights: np.ndarray) -> np.ndarray: ...

    def to_json(self) -> dict[str, Any]:
        """Id and constants, for :func:`function_from_json`."""
        return {"id": self.id, **asdict(self)}


@dataclass(frozen=True)
class WeightedSum(FusionFunction):
    """Σ_k w_k s_k: a weak objective can be made up for by another. Needs scores on one scale."""

    id: ClassVar[str] = "weighted_sum"
    formula: ClassVar[str] = "Σ w·s"

    def prepare(self, scores: np.ndarray) -> np.ndarray:
        """The scores themselves."""
        return np.asarray(scores, np.float64)

    def _combine(self, prepared: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return prepared @ weights


@dataclass(frozen=True)
class WeightedProduct(FusionFunction):
    """Π_k (s_k + eps)^{w_k}, given as its logarithm Σ_k w_k log(s_k + eps), which orders rows the same.

    A weak objective pulls the whole score down, and a constant factor on a score changes no order, so a
    model whose calibration drifts by a factor needs no new weights. Equation 1 of Tang et al., "Progressive
    Layered Extraction" (RecSys 2020).

    Attributes:
        eps: keeps a score of 0 from deciding alone; small against the scores' mean, which is 1.
    """

    id: ClassVar[str] = "weighted_product"
    formula: ClassVar[str] = "Π (s + eps)^w"
    eps: float = 1e-6

    def prepare(self, scores: np.ndarray) -> np.ndarray:
        """Logarithms of the scores.

        Raises:
            ValueError: a score is negative.
        """
        scores = np.asarray(scores, np.float64)
        if (scores < 0).any():
            raise ValueError("weighted_product needs scores >= 0")
        return np.log(scores + self.eps)

    def _combine(self, prepared: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return prepared @ weights


FUNCTIONS: dict[str, type[FusionFunction]] = {f.id: f for f in (WeightedSum, WeightedProduct)}


def function_from_json(raw: Mapping[str, Any]) -> FusionFunction:
    """Rebuild what :meth:`FusionFunction.to_json` gave.

    Raises:
        ValueError: the id is unknown.
        TypeError: a constant is missing or unknown.
    """
    constants = dict(raw)
    name = constants.pop("id", None)
    if name not in FUNCTIONS:
        raise ValueError(f"unknown fusion function {name!r}; known are {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name](**constants)
