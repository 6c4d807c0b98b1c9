"""Statistics of pairs find planted pairs (bars from five seeds, frozen); uncorrected ones and a stub do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from ctrmodels.archspec import all_pairs
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted import Planted, in_memory, planted_interests, planted_pairs, planted_sparse
from ctrmodels.errors import InputError
from ctrmodels.search import Found, Host, Listed, MutualInformation, NoPairs, SearchMethod, SearchRows, SplitGain
from ctrmodels.search.interaction.columns import IdColumns
from ctrmodels.search.interaction.information import Cells, crossed_information
from ctrmodels.search.interaction.rules import ranked
from ctrmodels.search.interaction.trees import pair_gains, split_gains

HOST = Host("click", dim=8, hidden=())


def rows_of(log: Planted) -> SearchRows:
    return SearchRows(log.roles["train"], log.roles["arch"])


def columns(ids: np.ndarray, sizes: tuple[int, ...], label: np.ndarray) -> IdColumns:
    return IdColumns(np.ascontiguousarray(ids.T, np.int32), sizes, (False,) * len(sizes), np.asarray(label, bool))


def information(keys: np.ndarray, n: int, label: np.ndarray) -> float:
    """Of one set of cells, in nats."""
    cells, rate = Cells.of(keys.astype(np.int64), n, label), label.mean()
    return float(cells.rows @ cells.deviation / (2 * len(label) * rate * (1 - rate)))


def uncorrected(drawn: IdColumns) -> np.ndarray:
    """The same statistic as counts give it."""
    label = drawn.label
    alone = [mutual_info_score(label, column) for column in drawn.ids]
    pairs = [(i, j) for i in range(len(alone)) for j in range(i + 1, len(alone))]
    return np.array([mutual_info_score(label, drawn.ids[i] * drawn.sizes[j] + drawn.ids[j]) - alone[i] - alone[j]
                     for i, j in pairs])


def recovery(method: SearchMethod, generate: Callable[[int], Planted], seeds: range) -> float:
    """Share of the planted pairs among as many of the highest rank: precision and recall at once."""
    shares = []
    for seed in seeds:
        log = generate(seed)
        truth = set(log.truth["pairs"])
        share = len(truth) / len(all_pairs(log.schema))
        (spec,) = replace(method, shares=(share,)).search(rows_of(log), HOST, seed).specs.values()
        found = {i.fields for i in spec.interactions}
        assert len(found) == len(truth)
        shares.append(len(found & truth) / len(truth))
    return float(np.mean(shares))


@dataclass(frozen=True)
class RandomScores(MutualInformation):
    """Stub."""

    def search(self, rows, host, seed, checkpoint=None) -> Found:
        scores = np.random.default_rng([seed, 7]).random(len(all_pairs(rows.schema)))
        return ranked(self, rows, host, seed, self.shares, scores)


@dataclass(frozen=True)
class Uncorrected(MutualInformation):
    """Ablation: sparse crosses are believed."""

    def search(self, rows, host, seed, checkpoint=None) -> Found:
        drawn = IdColumns.draw(rows.both(), host.objective, self.rows, seed)
        return ranked(self, rows, host, seed, self.shares, uncorrected(drawn))


def test_crossed_information_finds_planted_pairs():
    assert recovery(MutualInformation(), planted_pairs, range(2)) >= 0.95


def test_split_gain_finds_planted_pairs():
    assert recovery(SplitGain(), planted_pairs, range(2)) >= 0.9


@pytest.mark.slow
def test_both_find_planted_pairs_over_five_seeds():
    assert recovery(MutualInformation(), planted_pairs, range(5)) >= 0.95
    assert recovery(SplitGain(), planted_pairs, range(5)) >= 0.9


def test_random_scores_fail_the_same_bars():
    assert recovery(RandomScores(), planted_pairs, range(5)) < 0.5


def test_many_ids_do_not_pass_for_information_until_the_correction_is_left_out():
    assert recovery(MutualInformation(), planted_sparse, range(3)) >= 0.95
    assert recovery(Uncorrected(), planted_sparse, range(3)) <= 0.1


def test_labels_without_regard_to_the_ids_say_nothing_however_few_rows_a_cell_has():
    rng = np.random.default_rng(0)
    for n_cells, rate in ((30, 0.5), (3_000, 0.5), (3_000, 0.02), (100_000, 0.1)):
        cells, label = rng.integers(n_cells, size=20_000), rng.random(20_000) < rate
        found = [information(cells, n_cells, rng.permutation(label)) for _ in range(20)]
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(20), (n_cells, rate)
        assert n_cells == 30 or mutual_info_score(label, cells) > 20 * abs(np.mean(found))


def test_of_many_rows_a_cell_it_is_the_mutual_information():
    rng = np.random.default_rng(1)
    cells = rng.integers(20, size=200_000)
    label = rng.random(200_000) < 0.2 + 0.01 * cells
    assert information(cells, 20, label) == pytest.approx(mutual_info_score(label, cells), rel=0.03)


def test_a_cell_is_judged_by_the_products_of_its_different_rows():
    keys, label = np.array([4, 1, 4, 2, 4, 1, 4]), np.array([1, 0, 1, 1, 0, 1, 1], bool)
    r = label - label.mean()
    found = Cells.of(keys, 5, label)
    assert (found.key.tolist(), found.rows.tolist()) == ([1, 2, 4], [2, 1, 4])
    products = [[r[a] * r[b] for a in range(7) for b in range(7) if a != b and keys[a] == keys[b] == k] for k in (1, 4)]
    assert found.deviation == pytest.approx([np.mean(products[0]), 0.0, np.mean(products[1])])


def test_cells_of_any_number_are_counted_alike():
    rng = np.random.default_rng(4)
    keys, label = rng.integers(700, size=20_000), rng.random(20_000) < 0.2
    few, many = Cells.of(keys, 700, label), Cells.of(keys * 10_000, 7_000_000, label)
    np.testing.assert_array_equal(many.key, few.key * 10_000)
    np.testing.assert_array_equal(many.rows, few.rows)
    np.testing.assert_array_equal(many.deviation, few.deviation)


def test_fields_that_only_add_up_score_nothing_even_where_their_cross_is_sparse():
    log = planted_sparse(3, pairs=0)
    drawn = IdColumns.draw(rows_of(log).both(), "click", 10**6, 0)
    alone = [information(ids, size, drawn.label) for ids, size in zip(drawn.ids, drawn.sizes, strict=True)]
    for pair, score in zip(all_pairs(log.schema), crossed_information(drawn), strict=True):
        i, j = pair.fields
        assert abs(score) < 0.15 * (alone[i] + alone[j]), (i, j)


def test_a_field_that_another_one_tells_adds_nothing():
    rng = np.random.default_rng(5)
    item = rng.integers(200, size=20_000)
    label = rng.random(20_000) < np.where(item % 4 == 0, 0.7, 0.3)
    ids = np.stack([item, item % 4, rng.integers(4, size=20_000)], 1)
    scores = crossed_information(columns(ids, (200, 4, 4), label))
    assert scores[0] < -0.9 * information(item % 4, 4, label)  # item and its genre
    assert abs(scores[2]) < 1e-3


def test_either_or_is_all_in_the_cross():
    rng = np.random.default_rng(2)
    ids = rng.integers(2, size=(20_000, 3))
    scores = crossed_information(columns(ids, (2, 2, 2), ids[:, 0] != ids[:, 1]))  # (0, 1), (0, 2), (1, 2)
    assert scores == pytest.approx([0.5, 0.0, 0.0], abs=1e-3)


def test_gain_goes_to_the_pairs_of_a_split_and_the_fields_above_it():
    kind = np.dtype([("feature_idx", int), ("gain", float), ("left", int), ("right", int), ("is_leaf", int)])
    leaf = (0, -1.0, 0, 0, 1)
    tree = np.array([(0, 9.0, 1, 2, 0), (1, 4.0, 3, 4, 0), (0, 5.0, 5, 6, 0), (2, 6.0, 7, 8, 0), leaf, leaf, leaf, leaf,
                     leaf], kind)
    gains = pair_gains([tree, tree], 4)
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = 8.0  # below 0
    expected[0, 2] = expected[2, 0] = expected[1, 2] = expected[2, 1] = 6.0  # below 0 and 1: half each
    np.testing.assert_allclose(gains, expected)  # a root, and a split on its ancestor's own field, count for no pair


def test_trees_see_numbers_as_thresholds_beside_ids_and_the_pairs_keep_their_places():
    rng = np.random.default_rng(3)
    ids = np.stack([rng.integers(600, size=20_000), rng.integers(5, size=20_000), rng.integers(5, size=20_000)], 1)
    label = (ids[:, 0] > 300) == (ids[:, 2] % 2 == 0)
    drawn = replace(columns(ids, (600, 5, 5), label), ordered=(True, False, False))
    assert split_gains(drawn, 20, 3, 0.1, 0).argmax() == 1  # (0, 2)


@pytest.mark.parametrize("method", [MutualInformation((0.5, 0.2, 0.01)), SplitGain((0.5, 0.2, 0.01), trees=5)])
def test_levels_are_nested_sizes_with_their_scores_and_equal_seeds_agree(method):
    log = planted_pairs(0, rows=4_000)
    found, again = (method.search(rows_of(log), HOST, 3) for _ in range(2))
    assert list(found.specs) == [f"{method.name}-{share}" for share in ("0.5", "0.2", "0.01")]
    kept = [{i.fields for i in spec.interactions} for spec in found.specs.values()]
    assert [len(k) for k in kept] == [22, 9, 1]
    assert kept[2] < kept[1] < kept[0]
    half = found.specs[f"{method.name}-0.5"]
    assert [i.fields for i in half.interactions] == sorted(kept[0])
    assert min(i.strength for i in half.interactions) >= np.sort(found.trace[0]["scores"])[-22]
    assert [s.id for s in found.specs.values()] == [s.id for s in again.specs.values()]


def test_no_pairs_is_no_pairs():
    log = planted_pairs(0, rows=1_000)
    spec = NoPairs().search(rows_of(log), HOST, 0).specs["no_pairs"]
    assert spec.interactions == ()
    assert HOST.build(log.schema, HOST.complete(spec, log.schema)).encoder.n_products == 0


def test_listed_interactions_are_taken_as_named():
    log = planted_pairs(0, rows=1_000)
    names = [f.name for f in log.schema.id_fields]
    listed = Listed(((names[4], names[1]), (names[1], names[4]), (names[2], names[0], names[3])))
    spec = listed.search(rows_of(log), HOST, 0).specs["listed"]
    assert [i.fields for i in spec.interactions] == [(0, 2, 3), (1, 4)]
    assert HOST.build(log.schema, HOST.complete(spec, log.schema)).encoder.n_products == 2
    assert list(spec.tables) == ["order_3"]


@pytest.mark.parametrize(("interactions", "message"), [
    ((), "nothing is listed"), ((("nowhere", "f1"),), "no field with ids"), ((("f1", "f1"),), "two different fields"),
    ((("f1",),), "two different fields")])
def test_a_list_that_names_no_interaction_is_refused(interactions, message):
    log = planted_pairs(0, rows=1_000)
    first = log.schema.id_fields[1].name
    named = tuple(tuple(first if name == "f1" else name for name in names) for names in interactions)
    with pytest.raises(InputError, match=message):
        Listed(named).search(rows_of(log), HOST, 0)


def test_a_history_counts_with_its_last_step():
    log = planted_interests(0, rows=2_000)
    rows = log.roles["train"]
    steps = rows.sequences["seen"].copy()
    steps[0], steps[1, 3:] = -1, -1
    rows = Rows.of(log.schema, rows.ids, rows.numeric, {"seen": steps}, rows.labels, rows.position, rows.group,
                   rows.time)
    drawn = IdColumns.draw(rows, "click", 10**6, 0)
    assert drawn.sizes == (log.schema.fields[0].vocab, log.schema.fields[0].vocab + 1)
    assert drawn.ids[1, 0] == 0
    assert drawn.ids[1, 1] == steps[1, 2] + 1
    np.testing.assert_array_equal(drawn.ids[1, 2:], steps[2:, -1] + 1)


def test_rows_of_unknown_label_are_left_out_and_the_rest_drawn():
    log = planted_pairs(0, rows=4_000)
    rows = log.roles["train"]
    labels = rows.labels.copy()
    labels[::2] = np.nan
    part = in_memory(log.schema, rows.ids, labels)
    whole = IdColumns.draw(Rows.concatenate([part, log.roles["arch"]]), "click", 10**6, 0)
    assert whole.ids.shape == (10, 1_400 + 400)
    np.testing.assert_array_equal(whole.ids[:, :1_400].T, rows.ids[1::2])
    np.testing.assert_array_equal(whole.label[1_400:], log.roles["arch"].labels[:, 0] > 0)
    some = IdColumns.draw(Rows.concatenate([part, log.roles["arch"]]), "click", 900, 0)
    assert some.ids.shape == (10, 900)
    rows_of_whole = {tuple(r) for r in np.vstack([whole.ids, whole.label]).T.tolist()}
    assert {tuple(r) for r in np.vstack([some.ids, some.label]).T.tolist()} <= rows_of_whole


@pytest.mark.parametrize("label", [0.0, 1.0, np.nan])
def test_labels_that_are_all_the_same_are_refused(label):
    log = planted_pairs(0, rows=1_000)
    rows = in_memory(log.schema, log.roles["train"].ids, np.full(700, label))
    with pytest.raises(InputError, match="label of click"):
        MutualInformation().search(SearchRows(rows, rows), HOST, 0)
