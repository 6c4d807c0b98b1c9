"""Functions that fuse several scores of a row into the one that rows are ordered by.

All of them rise with every score when the weights are not negative. New ones are added to ``FUNCTIONS``. Each
formula is written once and runs on NumPy arrays and, inside an exported model, on tensors.

Scores come normalised: around 1, 2 = twice as much as an average row.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

LOG_WEIGHT_BOUND = 3.0
"""Weights are searched in [e⁻³, e³] times the primary objective's, which is 1: about 1/20 to 20."""


@dataclass(frozen=True)
class Range:
    """Where a number is searched.

    Attributes:
        low, high: the ends, both included.
        start: what it is before any search.
    """

    low: float
    high: float
    start: float


LOG_WEIGHT = Range(-LOG_WEIGHT_BOUND, LOG_WEIGHT_BOUND, 0.0)
Column = Literal["length", "price"]
"""What a column of the log is to a function."""


@dataclass(frozen=True)
class FusionFunction(ABC):
    """A fusion function; its own fields, if any, are its constants.

    Attributes:
        id: its name in files and settings.
        formula: what it computes, for people.
        lowest: the smallest score it is defined for.
        needs_lists: whether a row's fused score depends on the other rows of its list.
    """

    id: ClassVar[str]
    formula: ClassVar[str]
    lowest: ClassVar[float] = -np.inf
    needs_lists: ClassVar[bool] = False

    @property
    def column(self) -> Column | None:
        """What its last score is, where that is a column of the log and predicted by no model."""
        return None

    def score(self, scores: np.ndarray, weights: Sequence[float] | np.ndarray,
              groups: np.ndarray | None = None) -> np.ndarray:
        """Fused score [N] of normalised ``scores`` [N, K] under ``weights`` [K], in the lists ``groups`` [N].

        Raises:
            ValueError: a score is not finite or below ``lowest``; a weight is negative or not finite, all are
                0, or their number is not K; the function needs lists and none are given.
        """
        return self.combine(self.prepare(scores, groups), weights)

    def prepare(self, scores: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """The part [N, K] of the work that depends on no weight and on no constant that is searched.

        Raises:
            ValueError: a score is not finite or below ``lowest``, or lists are needed and none are given.
        """
        scores = np.asarray(scores, np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(f"{self.id} needs finite scores")
        if len(scores) and scores.min() < self.lowest:
            raise ValueError(f"{self.id} needs scores >= {self.lowest:g}")
        if self.needs_lists and groups is None:
            raise ValueError(f"{self.id} orders rows within their list: the list of each row is needed")
        return self._prepare(scores, groups)

    def combine(self, prepared: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
        """The same from :meth:`prepare`'s result, for many weights and constants on the same scores."""
        w = np.asarray(weights, np.float64)
        if w.shape != prepared.shape[1:]:
            raise ValueError(f"{prepared.shape[1]} weights expected, got {w.shape}")
        if not np.isfinite(w).all() or (w < 0).any() or not w.any():
            raise ValueError(f"weights {w.tolist()}: finite, not negative and not all 0 expected")
        return self._combine(prepared, w)

    def graph(self, scores: Any, weights: Any) -> Any:
        """The same on float64 tensors [B, K] and [K], unchecked, for export; the B rows are one list."""
        return self._combine(self._prepare(scores, None), weights)

    def ranges(self, scores: int, primary: int) -> dict[str, Range]:
        """What is searched, by name, for K = ``scores``.

        The weight of score ``primary`` is 1, since a common factor of the weights changes no order.
        """
        return {f"log_weight_{i}": LOG_WEIGHT for i in range(scores) if i != primary}

    def at(self, theta: Mapping[str, float], scores: int, primary: int) -> tuple[Self, tuple[float, ...]]:
        """The function and the weights [K] at a point ``theta`` of :meth:`ranges`."""
        return self, tuple(_exp(theta.get(f"log_weight_{i}", 0.0)) for i in range(scores))

    def scaled(self, weights: Sequence[float], index: int, factor: float) -> tuple[Self, tuple[float, ...]]:
        """The function and the weights [K] when score ``index`` counts ``factor`` times as much."""
        return self, tuple(w * factor if i == index else w for i, w in enumerate(weights))

    def _prepare(self, scores: Any, groups: np.ndarray | None) -> Any:
        return scores

    @abstractmethod
    def _combine(self, prepared: Any, weights: Any) -> Any: ...

    def to_json(self) -> dict[str, Any]:
        """Id and constants, for :func:`function_from_json`."""
        return {"id": self.id, **asdict(self)}


@dataclass(frozen=True)
class WeightedSum(FusionFunction):
    """Σ_k w_k s_k: a weak objective can be made up for by another. Needs scores on one scale."""

    id: ClassVar[str] = "weighted_sum"
    formula: ClassVar[str] = "Σ w·s"

    def _combine(self, prepared: Any, weights: Any) -> Any:
        return prepared @ weights


@dataclass(frozen=True)
class WeightedProduct(FusionFunction):
    """Π_k (s_k + eps)^{w_k}, given as its logarithm Σ_k w_k log(s_k + eps), which orders rows the same.

    A weak objective pulls the whole score down, and a constant factor on a score changes no order, so a
    model whose calibration drifts by a factor needs no new weights. Equation 1 of Tang et al., "Progressive
    Layered Extraction" (RecSys 2020), without its length term.

    Attributes:
        eps: keeps a score of 0 from deciding alone; small against the scores' mean, which is 1.
    """

    id: ClassVar[str] = "weighted_product"
    formula: ClassVar[str] = "Π (s + eps)^w"
    lowest: ClassVar[float] = 0.0
    eps: float = 1e-6

    def _prepare(self, scores: Any, groups: np.ndarray | None) -> Any:
        return _library(scores).log(scores + self.eps)

    def _combine(self, prepared: Any, weights: Any) -> Any:
        return prepared @ weights


@dataclass(frozen=True)
class LengthProduct(WeightedProduct):
    """Π_{k<K} (s_k + eps)^{w_k} · f(length)^{w_K}: equation 1 of Tang et al. (RecSys 2020); a logarithm again.

    The last score is the item's length, such as a video's. It counts through f, which is concave, so that long
    items are not preferred for their length alone.

    Attributes:
        form: f of x = length / midpoint. ``sigmoid``: x / (1 + x), the sigmoid of log x, which has an upper
            bound; ``log``: log(1 + x), which has none.
        midpoint: in units of the mean length; its logarithm is searched in ±2.
    """

    id: ClassVar[str] = "product_with_length"
    formula: ClassVar[str] = "Π (s + eps)^w · f(length)^w"
    LOG_MIDPOINT: ClassVar[Range] = Range(-2.0, 2.0, 0.0)
    form: Literal["sigmoid", "log"] = "sigmoid"
    midpoint: float = 1.0

    @property
    def column(self) -> Column | None:
        """The length."""
        return "length"

    def ranges(self, scores: int, primary: int) -> dict[str, Range]:
        """The weights and the midpoint.

        Raises:
            ValueError: there is no score beside the length.
        """
        if scores < 2:
            raise ValueError(f"{self.id} needs a score beside the length, which is the last one")
        return super().ranges(scores, primary) | {"log_midpoint": self.LOG_MIDPOINT}

    def at(self, theta: Mapping[str, float], scores: int, primary: int) -> tuple[Self, tuple[float, ...]]:
        """The function with its midpoint, and the weights."""
        return replace(self, midpoint=_exp(theta["log_midpoint"])), super().at(theta, scores, primary)[1]

    def _combine(self, prepared: Any, weights: Any) -> Any:
        library = _library(prepared)
        x = library.exp(prepared[:, -1] - float(np.log(self.midpoint)))
        factor = x / (1 + x) if self.form == "sigmoid" else library.log1p(x)
        return prepared[:, :-1] @ weights[:-1] + weights[-1] * library.log(factor)


@dataclass(frozen=True)
class ShiftedPower(FusionFunction):
    """Π_k (1 + a_k s_k)^{b_k}, the b_k being the weights; given as its logarithm Σ_k b_k log(1 + a_k s_k).

    Between sum and product: for small a_k s_k nearly linear, for large ones a product. A score near 0 brings
    its factor to 1 and not to 0, so none can veto.

    Attributes:
        shifts: the a_k > 0, or one for all; their logarithms are searched in ±3.
    """

    id: ClassVar[str] = "shifted_power"
    formula: ClassVar[str] = "Π (1 + a·s)^w"
    lowest: ClassVar[float] = 0.0
    LOG_SHIFT: ClassVar[Range] = Range(-3.0, 3.0, 0.0)
    shifts: float | tuple[float, ...] = 1.0

    def ranges(self, scores: int, primary: int) -> dict[str, Range]:
        """The weights and the shifts."""
        return super().ranges(scores, primary) | {f"log_shift_{i}": self.LOG_SHIFT for i in range(scores)}

    def at(self, theta: Mapping[str, float], scores: int, primary: int) -> tuple[Self, tuple[float, ...]]:
        """The function with its shifts, and the weights."""
        shifts = tuple(_exp(theta[f"log_shift_{i}"]) for i in range(scores))
        return replace(self, shifts=shifts), super().at(theta, scores, primary)[1]

    def _combine(self, prepared: Any, weights: Any) -> Any:
        return _library(prepared).log1p(prepared * _like(prepared, self.shifts)) @ weights


@dataclass(frozen=True)
class ExponentialSum(FusionFunction):
    """Σ_k w_k exp(g_k s_k), given as its logarithm, which does not overflow: the top of a score counts most.

    Attributes:
        rates: the g_k > 0, or one for all; their logarithms are searched in [-3, 1].
    """

    id: ClassVar[str] = "exponential_sum"
    formula: ClassVar[str] = "Σ w·exp(g·s)"
    LOG_RATE: ClassVar[Range] = Range(-3.0, 1.0, 0.0)
    rates: float | tuple[float, ...] = 1.0

    def ranges(self, scores: int, primary: int) -> dict[str, Range]:
        """The weights and the rates."""
        return super().ranges(scores, primary) | {f"log_rate_{i}": self.LOG_RATE for i in range(scores)}

    def at(self, theta: Mapping[str, float], scores: int, primary: int) -> tuple[Self, tuple[float, ...]]:
        """The function with its rates, and the weights."""
        rates = tuple(_exp(theta[f"log_rate_{i}"]) for i in range(scores))
        return replace(self, rates=rates), super().at(theta, scores, primary)[1]

    def _combine(self, prepared: Any, weights: Any) -> Any:
        library = _library(prepared)
        exponents = library.where(weights > 0, prepared * _like(prepared, self.rates), -np.inf)
        largest = library.amax(exponents, 1)
        return largest + library.log(library.exp(exponents - largest[:, None]) @ weights)


@dataclass(frozen=True)
class ExponentialBoost(FusionFunction):
    """s_l^{w_l} · exp(Σ_{k≠l} w_k s_k), given as its logarithm: the leading score, boosted by the others.

    With w_l = 1 it is the form s_1 · exp(Σ w_k s_k). A boost of 0 leaves the leading score as it is.

    Attributes:
        lead: which score leads. The search lets the primary objective's lead.
        eps: as of :class:`WeightedProduct`.
    """

    id: ClassVar[str] = "exponential_boost"
    formula: ClassVar[str] = "lead^w · exp(Σ w·s)"
    lowest: ClassVar[float] = 0.0
    lead: int = 0
    eps: float = 1e-6

    def at(self, theta: Mapping[str, float], scores: int, primary: int) -> tuple[Self, tuple[float, ...]]:
        """The function led by the primary score, and the weights."""
        return replace(self, lead=primary), super().at(theta, scores, primary)[1]

    def _combine(self, prepared: Any, weights: Any) -> Any:
        lead = prepared[:, self.lead]
        boost = prepared @ weights - weights[self.lead] * lead
        return weights[self.lead] * _library(prepared).log(lead + self.eps) + boost


@dataclass(frozen=True)
class ExpectedValue(FusionFunction):
    """Σ_{k<K} w_k p_k · price^g: what a row is expected to bring, the last score being the price, of weight g.

    The p_k are probabilities of the whole event on all rows, as of a click and purchase. The one of a purchase is
    pCTR · pCVR already, and pCTR · pCVR · price^g is this function of it alone. What the events are worth is given,
    not searched: only the exponent is, in [0, 1.5]. 0 orders as if all prices were equal, 1 by the expected value.

    Attributes:
        worth: the w_k, or one for all: value of an event times its mean probability, up to a common factor.
        priced: which of the p_k the price multiplies, or one answer for all. If none, there is no price, all scores
            are probabilities, and there is nothing to search.
    """

    id: ClassVar[str] = "expected_value"
    formula: ClassVar[str] = "Σ w·p·price^g"
    lowest: ClassVar[float] = 0.0
    POWER: ClassVar[Range] = Range(0.0, 1.5, 1.0)
    worth: float | tuple[float, ...] = 1.0
    priced: bool | tuple[bool, ...] = True

    @property
    def column(self) -> Column | None:
        """The price, unless no event has one."""
        return "price" if np.any(self.priced) else None

    def ranges(self, scores: int, primary: int) -> dict[str, Range]:
        """The price's exponent.

        Raises:
            ValueError: there is no score beside the price.
        """
        if self.column is None:
            return {}
        if scores < 2:
            raise ValueError(f"{self.id} needs a score beside the price, which is the last one")
        return {"power": self.POWER}

    def at(self, theta: Mapping[str, float], scores: int, primary: int) -> tuple[Self, tuple[float, ...]]:
        """The function, and what the events are worth beside the price's exponent."""
        power = () if self.column is None else (round(theta["power"], 6),)
        worth = np.broadcast_to(self.worth, scores - len(power))
        return self, (*worth.tolist(), *power)

    def _combine(self, prepared: Any, weights: Any) -> Any:
        if self.column is None:
            return prepared @ weights
        price = prepared[:, -1:] ** (weights[-1] * _like(prepared, self.priced))
        return (prepared[:, :-1] * price) @ weights[:-1]


@dataclass(frozen=True)
class ReciprocalRank(FusionFunction):
    """Σ_k w_k / (rank_k + c_k), rank 1 being a list's largest score and ties sharing their mean rank.

    Knows the order only, so no calibration can be wrong; needs the whole list. Cormack et al., "Reciprocal
    rank fusion" (SIGIR 2009), with weights.

    Attributes:
        constants: the c_k, or one for all: small ones let a list's first rows decide. 60 is the paper's; their
            logarithms are searched in [0, 5].
    """

    id: ClassVar[str] = "reciprocal_rank"
    formula: ClassVar[str] = "Σ w / (rank + c)"
    needs_lists: ClassVar[bool] = True
    LOG_CONSTANT: ClassVar[Range] = Range(0.0, 5.0, float(np.log(60.0)))
    constants: float | tuple[float, ...] = 60.0

    def ranges(self, scores: int, primary: int) -> dict[str, Range]:
        """The weights and the constants."""
        return super().ranges(scores, primary) | {f"log_constant_{i}": self.LOG_CONSTANT for i in range(scores)}

    def at(self, theta: Mapping[str, float], scores: int, primary: int) -> tuple[Self, tuple[float, ...]]:
        """The function with its constants, and the weights."""
        constants = tuple(_exp(theta[f"log_constant_{i}"]) for i in range(scores))
        return replace(self, constants=constants), super().at(theta, scores, primary)[1]

    def _prepare(self, scores: Any, groups: np.ndarray | None) -> Any:
        if groups is not None:
            return np.stack([_ranks(column, groups) for column in scores.T], axis=1)
        larger = (scores[None, :, :] > scores[:, None, :]).to(scores.dtype).sum(1)
        equal = (scores[None, :, :] == scores[:, None, :]).to(scores.dtype).sum(1)
        return larger + (equal + 1) / 2

    def _combine(self, prepared: Any, weights: Any) -> Any:
        return (1 / (prepared + _like(prepared, self.constants))) @ weights


@dataclass(frozen=True)
class Constrained(FusionFunction):
    """1[s_k ≥ floor_k for all k] + q / (1 + q), q = Σ_k w_k s_k: rows that reach the floors, then the others.

    Inside both classes rows go by q. The search gives all weight to the primary score and moves the floors of
    the others: the largest primary score among rows whose other scores exceed floors.

    Attributes:
        floors: one per score, or one for all; searched in [0, 2], 1 being the score's mean.
    """

    id: ClassVar[str] = "constrained"
    formula: ClassVar[str] = "Σ w·s where every s ≥ floor, others after"
    lowest: ClassVar[float] = 0.0
    FLOOR: ClassVar[Range] = Range(0.0, 2.0, 0.0)
    floors: float | tuple[float, ...] = 0.0

    def ranges(self, scores: int, primary: int) -> dict[str, Range]:
        """The floors of all scores but the primary one."""
        return {f"floor_{i}": self.FLOOR for i in range(scores) if i != primary}

    def at(self, theta: Mapping[str, float], scores: int, primary: int) -> tuple[Self, tuple[float, ...]]:
        """The function with its floors, and all weight on the primary score."""
        floors = tuple(round(theta.get(f"floor_{i}", 0.0), 6) for i in range(scores))
        return replace(self, floors=floors), tuple(float(i == primary) for i in range(scores))

    def scaled(self, weights: Sequence[float], index: int, factor: float) -> tuple[Self, tuple[float, ...]]:
        """A score without weight counts by its floor, which is multiplied."""
        if weights[index] > 0:
            return super().scaled(weights, index, factor)
        floors = np.broadcast_to(self.floors, len(weights)).tolist()
        return replace(self, floors=tuple(f * factor if i == index else f for i, f in enumerate(floors))), (*weights,)

    def _combine(self, prepared: Any, weights: Any) -> Any:
        library = _library(prepared)
        inside = library.where((prepared >= _like(prepared, self.floors)).all(1), 1.0, 0.0)
        value = prepared @ weights
        return inside + value / (1 + value)


FUNCTIONS: dict[str, type[FusionFunction]] = {f.id: f for f in (
    WeightedSum, WeightedProduct, LengthProduct, ShiftedPower, ExponentialSum, ExponentialBoost, ExpectedValue,
    ReciprocalRank, Constrained)}


def function_from_json(raw: Mapping[str, Any]) -> FusionFunction:
    """Rebuild what :meth:`FusionFunction.to_json` gave.

    Raises:
        ValueError: the id is unknown.
        TypeError: a constant is missing or unknown.
    """
    constants = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    name = constants.pop("id", None)
    if name not in FUNCTIONS:
        raise ValueError(f"unknown fusion function {name!r}; known are {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name](**constants)


def _library(values: Any) -> Any:
    """NumPy or torch, whose functions of these names agree. torch is loaded by whoever made the tensor."""
    return np if isinstance(values, np.ndarray) else importlib.import_module("torch")


def _like(values: Any, constants: float | tuple[float, ...]) -> Any:
    """Constants as an array or tensor that goes with ``values``."""
    return _library(values).asarray(constants, dtype=values.dtype)


def _exp(logarithm: float) -> float:
    """A weight or constant from its logarithm, with digits enough for any order."""
    return float(np.round(np.exp(logarithm), 6))


def _ranks(scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rank [N] of each score within its list, 1 = largest, ties the mean of theirs."""
    order = np.lexsort((-scores, groups))
    lists, values = groups[order], scores[order]
    new_list = np.r_[True, lists[1:] != lists[:-1]]
    new_run = new_list | np.r_[True, values[1:] != values[:-1]]
    place = np.arange(len(scores))
    first, run = np.flatnonzero(new_run), np.cumsum(new_run) - 1
    last = np.r_[first[1:], len(scores)] - 1
    ranks = np.empty(len(scores))
    ranks[order] = (first + last)[run] / 2 - np.maximum.accumulate(np.where(new_list, place, 0)) + 1
    return ranks
