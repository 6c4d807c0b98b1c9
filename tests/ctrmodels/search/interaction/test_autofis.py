"""AutoFIS finds planted pairs and triples (calibrated); wrong scales of its threshold, and stubs, do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ctrmodels.archspec import ArchSpec, Uniform, all_combinations, all_pairs
from ctrmodels.data.planted import planted_pairs, planted_sparse, planted_triples
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
        precision.append(len(pairs & truth) / max(len(pairs), 1))
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


@pytest.mark.parametrize("network", [{}, {"hidden": (64, 32)}, {"hidden": (64, 32), "model": "autoipnn"}],
                         ids=["fm", "deepfm", "ipnn"])
def test_planted_pairs_are_found_on_every_host(fm_host, network):
    assert_recovers(SEARCH, replace(fm_host, **network), (0, 1))


@pytest.mark.slow
def test_planted_pairs_are_found_over_five_seeds(fm_host):
    assert_recovers(SEARCH, fm_host, range(5))


def test_random_pairs_fail_the_same_test(fm_host):
    with pytest.raises(AssertionError):
        assert_recovers(RandomPairs(), fm_host, (0, 1))


@pytest.mark.parametrize(("threshold", "gamma"), [(0.04, 1.0), (1.16 * 0.1**1.3, 0.1)])
def test_a_constant_of_another_scale_fails_the_same_test(fm_host, threshold, gamma):
    """The published c = 5e-4 belongs to 16,000 steps: here it gives a final threshold of .04. The c that is right here
    gives .06 with a gamma of .1. With a threshold derived from the target, gamma itself hardly matters."""
    wrong = replace(SEARCH, target_threshold=threshold, gamma=gamma)
    with pytest.raises(AssertionError):
        assert_recovers(wrong, fm_host, (0, 1))
    assert recovery(wrong, fm_host, (0,))[2] >= 0.6
    assert_recovers(replace(SEARCH, gamma=0.1), fm_host, (0, 1))


HELD_OUT = AutoFIS(epochs=4, target_threshold=3.0, gates_on="arch")


def assert_pairs_of_many_ids_are_told_from_noise(method: AutoFIS, host: Host, seeds: Sequence[int]) -> None:
    """Four of eight fields have 4,000 ids each, whose products fit the 32,000 rows that they are trained on.

    The bars were set with seeds 0 to 2: all planted pairs and no other, AUC .815, .807 and .800 where all pairs have
    .765, .744 and .731.
    """
    precision, recall, ahead = [], [], []
    for seed in seeds:
        log = planted_sparse(seed)
        rows, valid = SearchRows(log.roles["train"], log.roles["arch"]), log.roles["valid"]
        spec = method.search(rows, host, seed).specs["autofis"]
        found, truth = {i.fields for i in spec.interactions}, set(map(tuple, log.truth["pairs"]))
        precision.append(len(found & truth) / max(len(found), 1))
        recall.append(len(found & truth) / len(truth))
        full = AllPairs().search(rows, host, seed).specs["all_pairs"]
        ahead.append(retrain(spec, rows, valid, host, seed).valid["auc"]
                     - retrain(full, rows, valid, host, seed).valid["auc"])
    assert np.mean(precision) >= 0.8
    assert np.mean(recall) >= 0.9
    assert np.mean(ahead) >= 0.03


@pytest.mark.parametrize("seeds", [[0], pytest.param(range(5), marks=pytest.mark.slow)])
def test_gates_that_learn_on_other_rows_tell_pairs_of_many_ids_from_noise(fm_host, seeds):
    assert_pairs_of_many_ids_are_told_from_noise(HELD_OUT, fm_host, seeds)


@pytest.mark.parametrize("threshold", [1.16, 3.0])
def test_gates_that_learn_with_the_weights_fail_the_same_test(fm_host, threshold):
    """Most of the 28 pairs stay: those of many ids fit best what they are trained on."""
    with pytest.raises(AssertionError):
        assert_pairs_of_many_ids_are_told_from_noise(
            replace(HELD_OUT, gates_on="batch", target_threshold=threshold), fm_host, (0,))


def test_planted_pairs_are_found_on_other_rows_as_well(fm_host):
    assert_recovers(replace(SEARCH, gates_on="arch", target_threshold=1.6), fm_host, (0, 1))


BOTH = AutoFIS(orders=(2, 3), target_threshold=1.4, epochs=5)


def assert_both_orders_are_recovered(specs: Sequence[ArchSpec], truths: Sequence[dict]) -> None:
    """Means over the seeds.

    Measured over five with the threshold chosen on them: pairs, precision .83, .75, .86, .86, 1 and recall .83, 1, 1,
    1, 1; triples, recall .5, 1, 1, 1, 1 among the two strongest, and 21, 8, 13, 13, 12 of 120 kept.
    """
    precision, recall, triples, kept = [], [], [], []
    for spec, truth in zip(specs, truths, strict=True):
        found = {i.fields for i in spec.interactions if i.order == 2}
        precision.append(len(found & set(truth["pairs"])) / max(len(found), 1))
        recall.append(len(found & set(truth["pairs"])) / len(truth["pairs"]))
        grown = sorted((i for i in spec.interactions if i.order == 3), key=lambda i: -abs(i.strength))
        triples.append(np.mean([t in [i.fields for i in grown[:len(truth["triples"])]] for t in truth["triples"]]))
        kept.append(len(grown) / 120)
    assert np.mean(precision) >= 0.7 and np.mean(recall) >= 0.8
    assert np.mean(triples) >= 0.75 and np.mean(kept) <= 0.15


@pytest.mark.parametrize("seeds", [[1], pytest.param(range(5), marks=pytest.mark.slow)])
def test_planted_pairs_and_triples_are_found(fm_host, seeds):
    logs = [planted_triples(seed) for seed in seeds]
    specs = [BOTH.search(SearchRows(log.roles["train"], log.roles["arch"]), fm_host, seed).specs["autofis"]
             for seed, log in zip(seeds, logs, strict=True)]
    assert all(set(spec.tables) == {"order_3"} for spec in specs)
    assert_both_orders_are_recovered(specs, [log.truth for log in logs])


def test_random_pairs_and_triples_fail_the_same_test(fm_host):
    log = planted_triples(1)
    every = [*all_pairs(log.schema), *all_combinations(log.schema, 3, table="order_3")]
    spec = ArchSpec.of(log.schema, "stub", 8, interactions=tuple(every), tables={"order_3": Uniform(8)})
    chosen = np.random.default_rng(0).choice(len(every), 12, replace=False)
    with pytest.raises(AssertionError):
        assert_both_orders_are_recovered(
            [replace(spec, interactions=tuple(every[i] for i in sorted(chosen)))], [log.truth])


def test_an_embedding_that_no_triple_reads_is_dropped(fm_host):
    log = planted_triples(0, rows=3000)
    spec = replace(BOTH, target_threshold=1e6).search(
        SearchRows(log.roles["train"], log.roles["arch"]), fm_host, 0).specs["autofis"]
    assert spec.interactions == () and not spec.tables


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
