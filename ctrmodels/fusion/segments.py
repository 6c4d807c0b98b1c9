"""Fusion weights per segment: the global ones, moved as far as the segment's own lists can vouch for.

A segment's free weights are noisy where its lists are few. Its log-weights are therefore an empirical-Bayes
compromise (Efron and Morris, "Data analysis using Stein's estimator and its generalizations", JASA 1975): with θ the
global log-weight, θ_s the one tuned on segment s alone, n_s its lists, and coordinates treated one by one,

    offset_s = B_s (θ_s - θ),    B_s = τ² / (τ² + c / n_s).

c / n_s is the noise of θ_s. c is pooled over the segments: each segment's lists are cut at random into ``parts``, the
weights are tuned on each, and their spread around their mean, times the lists of a part, is averaged. τ² is the
variance of the S segments' true log-weights about θ by the method of moments (DerSimonian and Laird, Controlled
Clinical Trials 1986, with a given centre),

    τ² = max(0, (Σ (θ_s - θ)² n_s / c - S) / (Σ n_s / c)).

So segments that differ by no more than noise keep the global weights exactly, and a small segment keeps more of them
than a large one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ctrmodels.errors import InputError
from ctrmodels.fusion.functions import FusionFunction

Tune = Callable[[np.ndarray], Sequence[float] | np.ndarray]
"""Rows, as a mask bool [N] → the best weights [K] on them, all > 0, one of them fixed where the scale is free."""


@dataclass(frozen=True)
class SegmentWeights:
    """Weights by segment.

    Attributes:
        overall: [K] the global weights, also those of a segment that is not listed.
        offsets: segment → [K] what is added to the logarithms of the global weights.
        kept: segment → [K] the share B of its own offset that each segment kept, from 0 to 1.
    """

    overall: tuple[float, ...]
    offsets: Mapping[Any, tuple[float, ...]]
    kept: Mapping[Any, tuple[float, ...]]

    def of(self, segment: object) -> np.ndarray:
        """[K] the weights of a segment."""
        return np.asarray(self.overall) * np.exp(self.offsets.get(segment, np.zeros(len(self.overall))))

    def score(self, function: FusionFunction, scores: np.ndarray, segment: np.ndarray) -> np.ndarray:
        """Fused score [N] of normalised ``scores`` [N, K], each row under its own segment's weights ([N])."""
        prepared = function.prepare(scores)
        fused = np.empty(len(prepared))
        found, code = np.unique(segment, return_inverse=True)
        for i, value in enumerate(found.tolist()):
            rows = code == i
            fused[rows] = function.combine(prepared[rows], self.of(value))
        return fused

    def to_json(self) -> dict[str, Any]:
        """As plain data that :meth:`from_json` reads back exactly; JSON objects have no numeric keys, so pairs."""
        return {"overall": list(self.overall),
                "segments": [[s, list(self.offsets[s]), list(self.kept[s])] for s in self.offsets]}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Rebuild what :meth:`to_json` gave."""
        return cls(tuple(raw["overall"]), {s: tuple(o) for s, o, _ in raw["segments"]},
                   {s: tuple(k) for s, _, k in raw["segments"]})


def tune_segments(tune: Tune, segment: np.ndarray, groups: np.ndarray, parts: int = 4, least_lists: int = 100,
                  seed: int = 0) -> SegmentWeights:
    """Tune on all rows, on each segment, and on each of its parts, and shrink.

    Args:
        tune: see :data:`Tune`; called 1 + segments · (1 + parts) times.
        segment: [N], the same for all rows of a list.
        groups: [N], the list of each row.
        parts: into how many parts a segment's lists are cut to see the noise; at least 2.
        least_lists: a segment with fewer lists, which its parts could not be tuned on, keeps the global weights.
        seed: of the cut.

    Raises:
        InputError: a list has rows of two segments, ``parts`` < 2, or the parts of no segment are long enough.
        ValueError: a tuned weight is not positive.
    """
    if parts < 2:
        raise InputError("segments", "parts", parts, "the spread of one part is unknown", "choose 2 or more")
    _, first, unit = np.unique(groups, return_index=True, return_inverse=True)
    found, code = np.unique(segment, return_inverse=True)
    of_list = code[first]
    mixed = of_list[unit] != code
    if mixed.any():
        raise InputError("segments", "segment", groups[mixed][0].item(), "this list has rows of two segments",
                         "use a property of the user or of the request")
    lists = np.bincount(of_list, minlength=len(found))
    judged = np.flatnonzero(lists >= least_lists)
    if not len(judged):
        raise InputError("segments", "least_lists", least_lists, f"the largest segment has {lists.max()} lists",
                         "use coarser segments, or none")
    # A list's part is its place in a random order of its segment's lists, so parts are equally long.
    part = np.empty(len(first), np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(first))
    shuffled = shuffled[np.argsort(of_list[shuffled], kind="stable")]
    part[shuffled] = (np.arange(len(first)) - (np.cumsum(lists) - lists)[of_list[shuffled]]) % parts

    overall = _logs(tune(np.ones(len(code), bool)))
    own = np.array([_logs(tune(code == s)) for s in judged])
    cut = np.array([[_logs(tune((code == s) & (part[unit] == p))) for p in range(parts)] for s in judged])
    offsets, kept = shrink(own - overall, cut, lists[judged])
    names = found[judged].tolist()
    return SegmentWeights(tuple(np.exp(overall).tolist()), dict(zip(names, map(tuple, offsets.tolist()), strict=True)),
                          dict(zip(names, map(tuple, kept.tolist()), strict=True)))


def shrink(own: np.ndarray, parts: np.ndarray, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rule of this module.

    Args:
        own: [S, K] each segment's log-weights minus the global ones.
        parts: [S, P, K] log-weights from each of its P parts.
        lists: [S] its lists.

    Returns:
        Offsets and the share B of ``own`` that they are, both [S, K].
    """
    per_part = lists[:, None] / parts.shape[1]
    noise = (parts.var(axis=1, ddof=1) * per_part).mean(axis=0) / lists[:, None]  # c / n_s, [S, K]
    noise = np.maximum(noise, 1e-12)  # a pinned weight has none
    between = np.maximum(((own**2 / noise).sum(axis=0) - len(own)) / (1 / noise).sum(axis=0), 0)
    kept = between / (between + noise)
    return kept * own, kept


def _logs(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError(f"weights {weights.tolist()}: offsets of logarithms need finite weights > 0")
    return np.log(weights)
