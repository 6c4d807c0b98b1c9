"""Segments that truly differ get weights of their own; small ones and equal ones keep the global weights.

Lists of 10 rows with two scores. A row's worth is score₁ · score₂^w with w = 1 everywhere but in ``odd``, where it
is 4, times noise. Weights are tuned over a grid by the mean worth of a list's first row.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from ctrmodels.errors import InputError
from ctrmodels.fusion import WeightedProduct
from ctrmodels.fusion.segments import SegmentWeights, shrink, tune_segments

LISTS = {"main": 2400, "twin": 1200, "odd": 1200, "tiny": 40}
TRUE_WEIGHT = {"main": 1.0, "twin": 1.0, "odd": 4.0, "tiny": 1.0}
LENGTH = 10
GRID = np.exp(np.linspace(-2.5, 2.5, 51))


class Planted:
    """Rows [N], with ``tune`` as :func:`tune_segments` wants it."""

    def __init__(self, seed: int, true_weight: dict[str, float] = TRUE_WEIGHT) -> None:
        rng = np.random.default_rng(seed)
        self.segment = np.repeat(list(LISTS), np.array(list(LISTS.values())) * LENGTH)
        self.groups = np.arange(len(self.segment)) // LENGTH
        self.scores = np.exp(rng.normal(0, 1, (len(self.segment), 2)))
        weight = np.array([true_weight[s] for s in self.segment])
        self.worth = (np.log(self.scores[:, 0]) + weight * np.log(self.scores[:, 1])
                      + rng.normal(0, 1, len(weight)))

    def tune(self, rows: np.ndarray) -> tuple[float, float]:
        logs = np.log(self.scores[rows]).reshape(-1, LENGTH, 2)
        worth = self.worth[rows].reshape(-1, LENGTH)
        lists = np.arange(len(worth))
        values = [worth[lists, (logs[..., 0] + w * logs[..., 1]).argmax(axis=1)].mean() for w in GRID]
        return 1.0, float(GRID[np.argmax(values)])

    def found(self, **options: int) -> SegmentWeights:
        return tune_segments(self.tune, self.segment, self.groups, **options)


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(0)


@pytest.fixture(scope="module")
def found(planted: Planted) -> SegmentWeights:
    return planted.found(least_lists=20)


def distances(found: SegmentWeights) -> dict[str, float]:
    """How far each segment's log-weight is from the truth."""
    return {s: abs(float(np.log(found.of(s)[1] / w))) for s, w in TRUE_WEIGHT.items()}


def large_segments_are_right(distance: dict[str, float]) -> bool:
    return max(distance[s] for s in ("main", "twin", "odd")) < 0.35


def test_large_segments_find_their_own_weights_and_global_ones_would_not_do(found: SegmentWeights) -> None:
    assert large_segments_are_right(distances(found))
    one_for_all = SegmentWeights(found.overall, {}, {})
    assert not large_segments_are_right(distances(one_for_all))
    assert distances(one_for_all)["odd"] > 0.6


def test_the_smaller_the_segment_the_less_of_its_own_offset_it_keeps(found: SegmentWeights) -> None:
    main, twin, tiny = (found.kept[s][1] for s in ("main", "twin", "tiny"))
    assert 1 > main > twin > tiny > 0
    assert main > 0.8 and tiny < 0.7


def test_shrinking_brings_small_segments_nearer_to_the_truth_than_their_free_weights_are() -> None:
    shrunk, free = [], []
    for seed in range(12):
        planted = Planted(seed, dict.fromkeys(LISTS, 1.0) | {"odd": 1.5})
        shrunk.append(float(np.log(planted.found(least_lists=20).of("tiny")[1])))
        free.append(float(np.log(planted.tune(planted.segment == "tiny")[1])))
    assert np.mean(np.square(shrunk)) < 0.5 * np.mean(np.square(free))


def test_segments_that_do_not_differ_keep_the_global_weights() -> None:
    planted = Planted(1, dict.fromkeys(LISTS, 1.0))
    found = planted.found(least_lists=20)
    assert max(abs(o[1]) for o in found.offsets.values()) < 0.15
    assert found.overall[1] == pytest.approx(1, rel=0.2)


def test_pinned_weights_and_noise_have_no_offset_and_equal_spread_beyond_noise_is_kept() -> None:
    rng = np.random.default_rng(2)
    lists = np.full(40, 500)
    own = np.column_stack([np.zeros(40), rng.normal(0, 0.1, 40), rng.normal(0, 1.0, 40)])
    parts = own[:, None] + np.stack([np.zeros((40, 4)), *rng.normal(0, 0.2, (2, 40, 4))], axis=-1)
    offsets, kept = shrink(own, parts, lists)  # the noise of a whole segment is .2² / 4 = .1²
    assert not offsets[:, 0].any()
    assert kept[0, 1] < 0.35
    assert kept[0, 2] == pytest.approx(1 / (1 + 0.01), abs=0.02)
    assert np.allclose(offsets, kept * own)


def test_the_share_kept_follows_the_lists() -> None:
    rng = np.random.default_rng(3)
    lists = np.array([50, 200, 800] * 30)
    noise = 4.0 / lists
    own = rng.normal(0, np.sqrt(0.25 + noise))[:, None]
    parts = rng.normal(own, np.sqrt(4 * noise)[:, None], (90, 4))[..., None]
    _, kept = shrink(own, parts, lists)
    assert kept[:3, 0] == pytest.approx(0.25 / (0.25 + noise[:3]), abs=0.08)


def test_rows_are_scored_by_their_segment_and_unknown_segments_by_the_global_weights(found: SegmentWeights) -> None:
    function, scores = WeightedProduct(), np.random.default_rng(4).uniform(0.1, 3, (300, 2))
    segment = np.random.default_rng(5).choice(["odd", "main", "new"], 300)
    fused = found.score(function, scores, segment)
    for name, weights in (("odd", found.of("odd")), ("main", found.of("main")), ("new", found.overall)):
        rows = segment == name
        assert fused[rows] == pytest.approx(function.score(scores[rows], weights))
    assert found.of("odd")[1] > 2 * found.of("main")[1]


def test_segments_of_too_few_lists_are_not_tuned(planted: Planted) -> None:
    found = planted.found(least_lists=100)
    assert set(found.offsets) == {"main", "twin", "odd"}
    assert found.of("tiny").tolist() == list(found.overall)


def test_json_carries_segments_exactly_and_keeps_numbers_numbers(found: SegmentWeights) -> None:
    assert SegmentWeights.from_json(json.loads(json.dumps(found.to_json()))) == found
    numbered = SegmentWeights((1.0, 2.0), {3: (0.0, 0.1)}, {3: (0.0, 0.5)})
    assert SegmentWeights.from_json(json.loads(json.dumps(numbered.to_json()))) == numbered


def test_what_cannot_be_cut_or_tuned_is_refused(planted: Planted) -> None:
    with pytest.raises(InputError, match="parts = 1"):
        planted.found(parts=1)
    with pytest.raises(InputError, match="the largest segment has 2400 lists; use coarser segments"):
        planted.found(least_lists=5000)
    with pytest.raises(InputError, match="rows of two segments"):
        tune_segments(planted.tune, np.arange(len(planted.groups)) % 2, planted.groups)
    with pytest.raises(ValueError, match="finite weights > 0"):
        tune_segments(lambda rows: (1.0, 0.0), planted.segment, planted.groups)
