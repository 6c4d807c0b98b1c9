"""AutoFIS finds planted pairs (calibrated); a wrong scale of its threshold, and a stub, do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ctrmodels.archspec import all_pairs
from ctrmodels.data.planted import planted_pairs
from ctrmodels.search import AllPairs, AutoFIS, Found, Host, SearchRows, random_control, retrain

SEARCH = AutoFIS(epochs=4)


def recovery(method: AutoFIS, host: Host, seeds: Sequence[int]) -> tuple[float, float, float]:
    """Mean precision, recall and share of pairs kept."""
    precision, recall, kept = [], [], []
    for seed in seeds:
        log = planted_pairs(seed)
        found = method.search(SearchRows(log.roles["train"], log.roles["arch"]), host, seed)
        pairs = {i.fields for i in found.specs["autofis"].interactions}
        truth = set(map(tuple, log.truth["pairs"]))
        precision.append(len(pairs & truth) / len(pairs))
        recall.append(len(pairs & truth) / len(truth))
        kept.append(len(pairs) / len(all_pairs(log.schema)))
    return float(np.mean(precision)), float(np.mean(recall)), float(np.mean(kept))


def assert_recovers(method: AutoFIS, host: Host, seeds: Sequence[int]) -> None:
    precision, recall, _ = recovery(method, host, seeds)
    assert precision >= 0.7
    assert recall >= 0.8


@dataclass(frozen=True)
class RandomPairs(AutoFIS):
    """Stub: six random pairs."""

    def search(self, rows: SearchRows, host: Host, seed: int) -> Found:
        pairs = all_pairs(rows.schema)
        drawn = np.random.default_rng([seed, 1]).choice(len(pairs), 6, replace=False)
        spec = AllPairs().search(rows, host, seed).specs["all_pairs"]
        return Found({self.name: replace(spec, interactions=tuple(pairs[i] for i in sorted(drawn)))})


def test_planted_pairs_are_found(fm_host):
    assert_recovers(SEARCH, fm_host, (0, 1))


@pytest.mark.slow
def test_planted_pairs_are_found_over_five_seeds(fm_host):
    assert_recovers(SEARCH, fm_host, range(5))


def test_random_pairs_fail_the_same_test(fm_host):
    with pytest.raises(AssertionError):
        assert_recovers(RandomPairs(), fm_host, (0, 1))


def test_the_published_constant_of_another_run_length_hardly_prunes(fm_host):
    """c = 5e-4 belongs to 16,000 steps; here it gives a final threshold of 0.04."""
    assert recovery(replace(SEARCH, target_threshold=0.04), fm_host, (0,))[2] >= 0.6


def assert_retrains_well(spec, log, host: Host, seed: int) -> None:
    rows, valid = SearchRows(log.roles["train"], log.roles["arch"]), log.roles["valid"]
    found = retrain(spec, rows, valid, host, seed).valid["auc"]
    full = retrain(AllPairs().search(rows, host, seed).specs["all_pairs"], rows, valid, host, seed).valid["auc"]
    random = retrain(random_control(spec, log.schema, seed), rows, valid, host, seed).valid["auc"]
    assert found >= full - 0.002
    assert found > random + 0.02


def test_the_retrained_pairs_match_all_pairs_and_beat_random_ones(fm_host):
    log = planted_pairs(1)
    rows = SearchRows(log.roles["train"], log.roles["arch"])
    assert_retrains_well(SEARCH.search(rows, fm_host, 1).specs["autofis"], log, fm_host, 1)
    stub = RandomPairs().search(rows, fm_host, 1).specs["autofis"]
    with pytest.raises(AssertionError):
        assert_retrains_well(stub, log, fm_host, 1)


def test_a_threshold_that_drops_everything_leaves_a_model_without_interactions(fm_host):
    log = planted_pairs(0, rows=3000)
    rows = SearchRows(log.roles["train"], log.roles["arch"])
    spec = replace(SEARCH, target_threshold=1e6).search(rows, fm_host, 0).specs["autofis"]
    assert spec.interactions == ()
    assert random_control(spec, log.schema, 0).interactions == ()
    assert retrain(spec, rows, log.roles["valid"], fm_host, 0).model.encoder.n_products == 0


def test_equal_seeds_give_the_same_spec(fm_host):
    log = planted_pairs(0, rows=4000)
    rows = SearchRows(log.roles["train"], log.roles["arch"])
    method = AutoFIS(epochs=1, target_threshold=0.5)
    first, again = (method.search(rows, fm_host, 3).specs["autofis"] for _ in range(2))
    assert first.id == again.id
