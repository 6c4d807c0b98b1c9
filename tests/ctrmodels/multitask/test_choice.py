"""The rule: best primary within the floors, ties inside the seeds' spread to the cheaper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from ctrmodels.multitask.choice import Choice, Contender, Rule, choose

Choose = Callable[[Sequence[Contender], Rule], Choice]


def model(name: str, click: Sequence[float], buy: Sequence[float] | None = None, parameters: float = 10,
          flops: float = 1) -> Contender:
    return Contender(name, {"click": click, "buy": click if buy is None else buy}, parameters, flops)


def test_the_best_mean_wins_when_nothing_is_within_its_spread() -> None:
    best, cheap = model("mmoe", (0.800, 0.802), parameters=100), model("esmm", (0.790, 0.792))
    found = choose([cheap, best], Rule())
    assert found.name == "mmoe" and found.reason == "mmoe has the best valid auc, 0.8010 ± 0.0014"


def test_a_tie_inside_the_seeds_spread_goes_to_fewer_parameters() -> None:
    best, cheap = model("mmoe", (0.80, 0.82), parameters=100), model("esmm", (0.80, 0.80))
    found = choose([best, cheap], Rule())
    assert (found.name, found.best) == ("esmm", "mmoe")
    assert "within one standard deviation (0.0141) of the best, mmoe" in found.reason


def test_a_tie_does_not_go_to_a_dearer_model() -> None:
    best, dear = model("esmm", (0.80, 0.82)), model("mmoe", (0.80, 0.80), parameters=100)
    assert choose([dear, best], Rule()).name == "esmm"


def test_a_tie_between_balancers_of_one_model_goes_to_the_plain_sum() -> None:
    best, plain = replace(model("mmoe-pcgrad", (0.80, 0.82)), balanced=True), model("mmoe", (0.80, 0.80))
    found = choose([best, plain], Rule())
    assert found.name == "mmoe" and "the best, mmoe-pcgrad (0.8100), and adds its losses up as they are" in found.reason
    clear = replace(model("mmoe-pcgrad", (0.82, 0.82)), balanced=True)
    assert choose([plain, clear], Rule()).name == "mmoe-pcgrad"


def test_one_seed_has_no_spread_and_only_equal_means_tie() -> None:
    near = model("esmm", (0.8,))
    assert choose([model("mmoe", (0.8001,), parameters=100), near], Rule()).name == "mmoe"
    assert choose([model("mmoe", (0.8,), parameters=100), near], Rule()).name == "esmm"


def test_of_logloss_less_is_better() -> None:
    low, high = model("mmoe", (0.3, 0.3), parameters=100), model("esmm", (0.4, 0.4))
    assert choose([high, low], Rule("logloss")).name == "mmoe"
    assert Rule("logloss", floors={"buy": 0.05}).broken([high, low]) == {
        "esmm": {"buy": pytest.approx(0.1)}, "mmoe": {}}


def test_without_a_primary_the_mean_over_the_objectives_decides_with_one_it_alone() -> None:
    clicks, buys = model("clicks", (0.80,), (0.60,)), model("buys", (0.70,), (0.90,))
    assert choose([clicks, buys], Rule()).name == "buys"
    found = choose([clicks, buys], Rule(primary="click"))
    assert found.name == "clicks" and found.reason == "clicks has the best valid auc of click, 0.8000 ± 0.0000"


def keeps_floors(chooses: Choose) -> None:
    """The best of the primary costs too much of another objective: the next best is chosen."""
    greedy = model("greedy", (0.85, 0.86), (0.70, 0.71))
    fair = model("fair", (0.82, 0.83), (0.79, 0.78), parameters=20)
    poor = model("poor", (0.60, 0.61), (0.80, 0.79), parameters=1)
    found = chooses([greedy, fair, poor], Rule(primary="click", floors={"buy": 0.02}))
    assert found.name == "fair" and found.best == "fair"
    assert found.broken["greedy"] == {"buy": pytest.approx(0.09)} and not found.broken["fair"]
    assert found.reason.endswith("greedy does not keep the floors")


def test_a_model_below_a_floor_is_not_chosen() -> None:
    keeps_floors(choose)


def test_a_rule_without_floors_fails_that_test() -> None:
    with pytest.raises(AssertionError):
        keeps_floors(lambda models, rule: choose(models, Rule(rule.metric, rule.primary)))


def test_a_floor_is_a_distance_to_the_best_model_in_its_objective_not_to_the_winner() -> None:
    models = [model("a", (0.80,), (0.70,)), model("b", (0.79,), (0.75,)), model("c", (0.50,), (0.76,))]
    assert choose(models, Rule(primary="click", floors={"buy": 0.0601})).name == "a"
    assert choose(models, Rule(primary="click", floors={"buy": 0.0599})).name == "b"
    assert choose(models, Rule(primary="click", floors={"buy": 0.0})).name == "c"


def test_no_model_within_all_floors_is_an_error_that_names_the_nearest() -> None:
    models = [model("a", (0.80,), (0.70,)), model("b", (0.70,), (0.75,)), model("c", (0.78,), (0.73,))]
    with pytest.raises(ValueError, match=r"c comes closest and is behind the best in click by 0\.0200, buy by 0\.0200"):
        choose(models, Rule(floors={"click": 0.01, "buy": 0.01}))


def test_a_value_that_is_not_a_number_keeps_no_floor() -> None:
    broken = Rule(floors={"buy": 0.1}).broken([model("a", (0.8,), (float("nan"),)), model("b", (0.8,), (0.7,))])
    assert "buy" in broken["a"]


def test_the_rule_says_what_it_does() -> None:
    text = str(Rule("auc", "click", {"buy": 0.002}))
    assert text.startswith("best mean valid auc of click@all over seeds among models with buy at most 0.002 behind")
    assert "the binary objectives" in str(Rule())
