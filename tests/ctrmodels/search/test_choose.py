"""The rule: best valid metric within the budget, ties inside the spread to the cheaper, never a random control."""

from __future__ import annotations

import pytest

from ctrmodels.archspec import Cost
from ctrmodels.search.choose import choose, leaderboard, mean_sd
from ctrmodels.search.run import Candidate


def candidate(name: str, kind: str, auc: tuple[float, ...], parameters: int, flops: int = 10) -> Candidate:
    return Candidate(name, kind, tuple(range(len(auc))), {"auc": auc, "logloss": tuple(1 - a for a in auc)},
                     (Cost(parameters, 0, flops, 4 * parameters),) * len(auc), 5.0, 10.0, f"specs/{name}")


DENSE = candidate("dense", "control", (0.760, 0.764, 0.762), 1000)


def test_the_best_wins_when_nothing_is_tied():
    small = candidate("small", "searched", (0.70, 0.70, 0.70), 10)
    assert choose([DENSE, small], "auc", 1.0).candidate is DENSE


def test_a_tie_goes_to_the_cheaper():
    small = candidate("small", "searched", (0.761, 0.760, 0.762), 400)
    choice = choose([DENSE, small], "auc", 1.0)
    assert choice.candidate is small
    assert "cheaper" in choice.reason


def test_equal_parameters_are_told_apart_by_flops():
    fewer = candidate("fewer", "searched", (0.761, 0.760, 0.762), 1000, flops=5)
    assert choose([DENSE, fewer], "auc", 1.0).candidate is fewer


def test_the_budget_excludes_the_large():
    small = candidate("small", "searched", (0.70, 0.70, 0.70), 10)
    assert choose([DENSE, small], "auc", 0.5).candidate is small
    with pytest.raises(ValueError, match="at most"):
        choose([DENSE], "auc", 0.5)


def test_a_random_control_is_never_chosen():
    lucky = candidate("random(x)", "random", (0.9, 0.9, 0.9), 10)
    assert choose([DENSE, lucky], "auc", 1.0).candidate is DENSE


def test_lower_logloss_is_better():
    worse = candidate("worse", "searched", (0.5, 0.5, 0.5), 10)
    assert choose([worse, DENSE], "logloss", 1.0).candidate is DENSE


def test_the_leaderboard_lists_everything_best_first_and_marks_the_choice():
    lucky = candidate("random(x)", "random", (0.9, 0.9, 0.9), 10)
    board = leaderboard([DENSE, lucky], "auc", choose([DENSE, lucky], "auc", 1.0))
    assert [r["candidate"] for r in board["rows"]] == ["random(x)", "dense"]
    assert [r["chosen"] for r in board["rows"]] == [False, True]


def test_one_seed_has_no_spread():
    assert mean_sd((0.5,)) == (0.5, 0.0)
