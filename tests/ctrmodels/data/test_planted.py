"""The planted generators: their truth is in their rows, encoded as the stage ``encode`` would."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from ctrmodels.data import ROLES
from ctrmodels.data.planted import (
    Planted,
    planted_funnel,
    planted_groups,
    planted_head,
    planted_interests,
    planted_pairs,
    planted_sparse,
    planted_stream,
    planted_widths,
)

GENERATORS = (planted_pairs, planted_sparse, planted_groups, planted_head, planted_widths, planted_funnel,
              planted_interests, planted_stream)


def click_probability(planted: Planted, role: str) -> np.ndarray:
    """True probability of the first objective."""
    found = planted.truth["probability"]
    return found.get("click", found)[role]


@pytest.mark.parametrize("generate", GENERATORS)
def test_a_seed_gives_the_same_rows_and_another_seed_others(generate: Callable[..., Planted]) -> None:
    first, again, other = generate(4, rows=5_000), generate(4, rows=5_000), generate(5, rows=5_000)
    for role in ROLES:
        np.testing.assert_array_equal(first.roles[role].ids, again.roles[role].ids)
        np.testing.assert_array_equal(first.roles[role].labels, again.roles[role].labels)
        assert (first.roles[role].labels != other.roles[role].labels).any()
    assert first.schema == again.schema
    assert first.schema.vocab_hash != other.schema.vocab_hash


@pytest.mark.parametrize("generate", GENERATORS)
def test_ids_are_ranks_by_frequency_on_train_and_the_last_is_unseen(generate: Callable[..., Planted]) -> None:
    planted = generate(0, rows=8_000)
    assert len(planted.counts) == planted.schema.total_vocab
    assert dict(planted.schema.rows) == {role: len(rows) for role, rows in planted.roles.items()}
    assert sum(planted.schema.rows.values()) == 8_000
    for f, field in enumerate(planted.schema.id_fields):
        start = planted.schema.offsets[field.name]
        counts = planted.counts[start:start + field.vocab]
        found = np.bincount(planted.roles["train"].ids[:, f], minlength=field.vocab)
        np.testing.assert_array_equal(found, counts)
        assert (np.diff(counts) <= 0).all() and counts[-1] == 0 and counts[-2] > 0
        for rows in planted.roles.values():
            assert rows.ids[:, f].max() < field.vocab


@pytest.mark.parametrize("generate", GENERATORS)
def test_labels_are_drawn_from_the_true_probabilities(generate: Callable[..., Planted]) -> None:
    planted = generate(1)
    for role, rows in planted.roles.items():
        p, y = click_probability(planted, role), rows.labels[:, 0]
        for part in np.array_split(np.argsort(p), 5):
            noise = np.sqrt((p[part] * (1 - p[part])).sum())
            assert abs((y[part] - p[part]).sum()) < 4.5 * noise


def test_pairs_are_the_whole_truth() -> None:
    planted = planted_pairs(2)
    pairs, effects = planted.truth["pairs"], planted.truth["effects"]
    assert len(set(pairs)) == 6 and set(pairs) <= set(combinations(range(10), 2))
    for role, rows in planted.roles.items():
        logit = sum(effects[i, j][rows.ids[:, i], rows.ids[:, j]] for i, j in pairs)
        np.testing.assert_allclose(1 / (1 + np.exp(-logit)), click_probability(planted, role))
    for i, j in pairs:
        assert effects[i, j][:-1, :-1].std() == pytest.approx(1.0)


def test_planted_pairs_show_in_the_labels_and_single_fields_do_not() -> None:
    planted = planted_pairs(3)
    train, test = planted.roles["train"], planted.roles["test"]

    def auc(crosses: list[tuple[int, int]]) -> float:
        def columns(ids: np.ndarray) -> np.ndarray:
            return np.column_stack([ids, *(100 * ids[:, i] + ids[:, j] for i, j in crosses)])

        one_hot = OneHotEncoder(handle_unknown="ignore").fit(columns(train.ids))
        model = LogisticRegression(C=0.5, max_iter=200).fit(one_hot.transform(columns(train.ids)),
                                                           train.labels[:, 0])
        return roc_auc_score(test.labels[:, 0], model.decision_function(one_hot.transform(columns(test.ids))))

    others = [p for p in combinations(range(10), 2) if p not in planted.truth["pairs"]][:6]
    assert auc(planted.truth["pairs"]) > auc(others) + 0.15


def test_groups_are_the_whole_truth_and_their_parts_say_nothing() -> None:
    planted = planted_groups(0)
    codes, groups, rows = planted.truth["codes"], planted.truth["groups"], planted.roles["train"]
    assert groups == ((0, 5), (1, 4, 7))
    signs = codes[np.arange(10), rows.ids]
    logit = 1.6 * sum(signs[:, group].prod(axis=1) for group in groups)
    np.testing.assert_allclose(1 / (1 + np.exp(-logit)), click_probability(planted, "train"))

    def correlation(group: tuple[int, ...]) -> float:
        return abs(np.corrcoef(signs[:, group].prod(axis=1), rows.labels[:, 0])[0, 1])

    assert min(map(correlation, groups)) > 0.3
    parts = [part for n in (1, 2) for part in combinations(range(10), n) if part != (0, 5)]
    assert max(map(correlation, parts)) < 4 / np.sqrt(len(signs))


def test_head_values_are_informative_and_tail_values_are_not() -> None:
    planted = planted_head(0)
    tail = np.ones(len(planted.roles["train"]), bool)
    for f, field in enumerate(planted.schema.fields):
        head = planted.truth["head"][field.name]
        assert head.sum() == 30 and head[:20].all() and not head[50:].any()
        tail &= ~head[planted.roles["train"].ids[:, f]]
    p = click_probability(planted, "train")
    assert tail.sum() > 50 and np.all(p[tail] == 0.5) and p[~tail].std() > 0.2


def test_inside_a_pair_of_wide_values_the_other_fields_only_add() -> None:
    planted = planted_widths(0, values=8)
    ids, p = planted.roles["train"].ids, click_probability(planted, "train")
    logit = np.log(p / (1 - p))

    def unexplained(rows: np.ndarray, fields: slice) -> np.ndarray:
        """Residual of the logit beside the best sum of single values' effects."""
        x = OneHotEncoder().fit_transform(ids[rows, fields]).toarray()
        return logit[rows] - x @ np.linalg.lstsq(x, logit[rows], rcond=None)[0]

    first, second = planted.truth["wide"]
    cell = (ids[:, first] == 0) & (ids[:, second] == 0)
    assert cell.sum() > 200 and logit[cell].std() > 0.3
    np.testing.assert_allclose(unexplained(cell, slice(2, None)), 0.0, atol=1e-9)
    assert unexplained(np.ones(len(ids), bool), slice(None)).std() > 1.0
    assert planted.truth["rank"] == 12


def test_the_funnel_has_its_rates_and_clickbait() -> None:
    planted = planted_funnel(0)
    truth, labels = planted.truth["probability"], planted.roles["train"].labels
    assert planted.schema.objectives[1].after == "click"
    assert labels[:, 0].mean() == pytest.approx(0.12, abs=0.03)
    assert (labels[:, 1] <= labels[:, 0]).all()
    given_click = labels[labels[:, 0] == 1, 1].mean()
    assert given_click > truth["conversion@click"]["train"].mean() + 0.02, "clicked rows convert more than all rows"
    np.testing.assert_allclose(truth["conversion"]["test"],
                               truth["click"]["test"] * truth["conversion@click"]["test"])
    assert len(np.unique(planted.roles["test"].group)) == 800


def test_users_click_on_the_domains_that_their_histories_are_about() -> None:
    planted = planted_interests(0)
    domain, rows = planted.truth["domain"], planted.roles["train"]
    assert domain[-1] == -1 and np.array_equal(np.unique(domain[:-1]), np.arange(10))
    history = domain[rows.sequences["seen"]]
    assert (history[:, 1:] == history[:, :-1]).mean() == pytest.approx(0.8, abs=0.02)
    assert max(len(np.unique(h[h >= 0])) for h in history) == 2
    fond = (history == domain[rows.ids[:, 0]][:, None]).any(1)
    likely = click_probability(planted, "train") == 0.65
    assert not (fond & ~likely).any()  # a short history may miss one of the interests
    assert (likely & ~fond).mean() < 0.05
    _, first, user = np.unique(rows.group, return_index=True, return_inverse=True)
    assert np.array_equal(rows.sequences["seen"], rows.sequences["seen"][first][user])  # one history per user


def test_the_stream_counts_what_came_before_and_a_rare_id_becomes_frequent() -> None:
    planted = planted_stream(0, rows=6_000)
    rows = planted.roles["train"]
    assert (np.diff(rows.time) == 60).all()
    for f, field in enumerate(planted.schema.fields):
        seen: dict[int, int] = {}
        for i, before in zip(rows.ids[:, f].tolist(), planted.truth["occurrences"]["train"][:, f], strict=True):
            assert before == seen.get(i, 0)
            seen[i] = seen.get(i, 0) + 1
        switched = rows.ids[:, f] == planted.truth["switched"][field.name]
        assert switched[3_000:].mean() > 0.02 > 0.005 > switched[:3_000].mean()
