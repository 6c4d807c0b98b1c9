"""Every tuner on lists whose best weights are known, interrupted, shared, and beside random search."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import pytest
from planted_lists import BEST_WEIGHTS, Lists
from planted_search import GOAL, LISTS, TRIALS, search

from ctrmodels.errors import InputError
from ctrmodels.fusion import (
    FUNCTIONS,
    TUNERS,
    CmaEs,
    GaussianProcess,
    Goal,
    Grid,
    Nsga2,
    Point,
    RandomSearch,
    Tpe,
    Tuner,
    WeightedProduct,
    WeightedSum,
    Window,
    best,
    hypervolume,
    non_dominated,
    race,
    tune,
)

FREE = Goal(0, (None,))
PRODUCT = WeightedProduct(eps=1e-12)
SEARCHERS = [Tpe(), GaussianProcess(), Nsga2(population=8), Grid(), CmaEs()]
SHORT = [Tpe(startup=6), Tpe(polish=0.0, startup=6), GaussianProcess(startup=6), Nsga2(population=4), RandomSearch(),
         Grid(), CmaEs()]


def name(tuner: Tuner) -> str:
    return f"{tuner.id}{'' if tuner.polish == type(tuner)().polish else '-unpolished'}"


@cache
def halves() -> tuple[Lists, Lists]:
    lists = Lists.generate(4000)
    return lists.take(0, 2000), lists.take(2000, 4000)


@cache
def screens() -> tuple[Window, ...]:
    """Twenty draws of 400 lists: what one trial sees differs from what the next one sees."""
    tuning, drawn = halves()[0], []
    for seed in range(20):
        which = np.random.default_rng(seed).choice(2000, 400, replace=False)
        rows = (which[:, None] * tuning.length + np.arange(tuning.length)).ravel()
        some = Lists(tuning.scores[rows], tuning.value[rows], tuning.click[rows], tuning.length)
        drawn.append(Window(some.scores, some.value_at_top))
    return tuple(drawn)


@cache
def noisy(tuner: Tuner, seed: int) -> Point:
    """The choice after 60 trials on other lists each, the leaders judged again on all 2000."""
    tuning = halves()[0]
    points = tune(PRODUCT, Window(tuning.scores, tuning.value_at_top), FREE, 60, seed, screens(), tuner)
    return best(points, FREE)


def share_of_best(weights: tuple[float, ...]) -> float:
    report = halves()[1]
    found, ideal = (report.value_at_top(PRODUCT.score(report.scores, w))[0] for w in (weights, BEST_WEIGHTS))
    return float(found / ideal)


def recovers_the_truth(weights: tuple[float, ...]) -> bool:
    """The bar: 99.5 % of the best value on other lists, and weight ratios within 15 %."""
    ratios = np.array(weights) / weights[0] / BEST_WEIGHTS
    return share_of_best(weights) >= 0.995 and bool((np.abs(ratios - 1) <= 0.15).all())


# --- the planted truth


@pytest.mark.parametrize("tuner", [Tpe(), GaussianProcess()], ids=name)
def test_sixty_noisy_trials_recover_the_planted_weights(tuner: Tuner) -> None:
    assert recovers_the_truth(noisy(tuner, 0).weights)


@pytest.mark.slow
@pytest.mark.parametrize("tuner", [Tpe(), GaussianProcess()], ids=name)
@pytest.mark.parametrize("seed", range(1, 5))
def test_other_seeds_recover_them_too(tuner: Tuner, seed: int) -> None:
    assert recovers_the_truth(noisy(tuner, seed).weights)


@pytest.mark.parametrize(("weights", "share"), [((1, 1, 1), 0.945), ((1, 0, 0), 0.44)])
def test_equal_weights_and_clicks_alone_fail_the_bar(weights: tuple[float, ...], share: float) -> None:
    assert share_of_best(weights) == pytest.approx(share, abs=0.01)
    assert not recovers_the_truth(weights)


@pytest.mark.slow
@pytest.mark.parametrize("tuner", SEARCHERS, ids=name)
def test_every_tuner_beats_random_search_but_the_grid(tuner: Tuner) -> None:
    """Median of 5 seeds at 60 noisy trials. Nothing tells a grid of 7 levels that (1, 2, 1) lies between them."""
    found, chance = (np.median([share_of_best(noisy(t, seed).weights) for seed in range(5)])
                     for t in (tuner, RandomSearch()))
    assert (found > chance) == (tuner.id != "grid")
    assert found >= (0.98 if tuner.id == "grid" else 0.995)


@pytest.mark.slow
@pytest.mark.parametrize(("tuner", "trials"), [
    (Tpe(front=True, polish=0.0), 60), (GaussianProcess(front=True), 60), (Nsga2(front=True), 120)])
def test_fronts_have_more_volume_than_random_search_finds(tuner: Tuner, trials: int) -> None:
    """Of value and clicks on 500 lists, above what equal weights reach; median of 5 seeds."""
    lists = Lists.generate(500, seed=1)
    window, goal = Window(lists.scores, lists.value_and_clicks_at_top), Goal(0, (None, None))
    judge = window.judge(PRODUCT)
    reference = np.minimum(judge((1, 0, 0)), judge((1, 1, 1)))

    def volume(searcher: Tuner, seed: int) -> float:
        points = tune(PRODUCT, window, goal, trials, seed, tuner=searcher)
        return hypervolume(np.array([p.metrics for p in points]), reference)

    found, chance = (np.median([volume(t, s) for s in range(5)]) for t in (tuner, RandomSearch()))
    assert found > chance


# --- interruption, continuation, sharing


class Stop(Exception):
    pass


def search_with(tuner: Tuner, storage: Path | None, trials: int = TRIALS, stop_after: float = np.inf,
                goal: Goal = GOAL, lists: Lists = LISTS) -> list[Point]:
    """A search whose ``stop_after``-th evaluation does not come back. One is spent on recognising the rows."""
    calls = 0

    def evaluate(fused: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > stop_after:
            raise Stop
        return lists.value_and_clicks_at_top(fused)

    return tune(PRODUCT, Window(lists.scores, evaluate), goal, trials, 3, tuner=tuner, storage=storage)


@pytest.mark.parametrize("tuner", SHORT, ids=name)
def test_an_interrupted_search_ends_as_an_uninterrupted_one(tuner: Tuner, tmp_path: Path) -> None:
    whole = search_with(tuner, None)
    for stop_after in (1, 3, 9, 5, 6):  # counted from each restart
        with pytest.raises(Stop):
            search_with(tuner, tmp_path / "trials", stop_after=stop_after)
    assert search_with(tuner, tmp_path / "trials") == whole
    assert search_with(tuner, tmp_path / "trials", stop_after=1) == whole  # nothing is judged again


def test_the_seed_alone_would_not_resume(tmp_path: Path) -> None:
    """The stub: a sampler that is seeded once and restarted proposes its first points again."""
    def values(storage: optuna.storages.BaseStorage, counts: tuple[int, ...]) -> list[float]:
        for count in counts:
            study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True,
                                        sampler=optuna.samplers.TPESampler(seed=3))
            for _ in range(count):
                trial = study.ask()
                study.tell(trial, trial.suggest_float("x", 0, 1))
        return [t.value for t in study.get_trials()]

    assert values(optuna.storages.InMemoryStorage(), (8,)) != values(optuna.storages.InMemoryStorage(), (4, 4))


def test_a_search_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    first = search_with(Nsga2(population=4), tmp_path / "trials", 12)
    more = search_with(Nsga2(population=4), tmp_path / "trials", 20)
    assert more[:12] == first and more == search_with(Nsga2(population=4), None, 20)
    polished = [len(search_with(Tpe(startup=6), tmp_path / "polished", trials)) for trials in (20, 40)]
    assert polished[0] <= 20 < polished[1] <= 40


def test_trials_of_another_search_are_refused(tmp_path: Path) -> None:
    storage = tmp_path / "trials"
    search_with(RandomSearch(), storage, 4)
    others = Lists(LISTS.scores, LISTS.value, LISTS.click * 0.5, LISTS.length)
    for change in ({"tuner": Tpe()}, {"goal": Goal(0, (None, 0.6))}, {"lists": others},
                   {"lists": Lists(LISTS.scores * 1.01, LISTS.value, LISTS.click, LISTS.length)}):
        with pytest.raises(InputError, match=r"trials: study = 'weighted_product'.*other rows.*another storage"):
            search_with(**{"tuner": RandomSearch(), "storage": storage, "trials": 4} | change)
    assert len(search_with(RandomSearch(), storage, 6)) == 6


def is_one_search(points: list[Point]) -> bool:
    """The trials of one search, none twice and none too many."""
    explored = [p for p in points if p.source != "local"]
    return (len(explored) == round(0.6 * TRIALS) and len(points) <= TRIALS
            and [p.source for p in explored].count("start") == 3
            and len({p.weights for p in explored}) == len(explored))


def test_two_workers_share_a_storage(tmp_path: Path) -> None:
    """Threads hold locks of their own, as processes do."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(search, [tmp_path / "trials"] * 2)
    assert first == second and is_one_search(first)
    assert not is_one_search(first + search(tmp_path / "other"))


@pytest.mark.slow
def test_two_processes_share_a_storage(tmp_path: Path) -> None:
    here = Path(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[3]), str(here.parent)])}
    command = [sys.executable, str(here.with_name("planted_search.py")), str(tmp_path / "trials")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    outcomes = [worker.communicate(timeout=120)[0] for worker in workers]
    points = search(tmp_path / "trials")
    assert is_one_search(points)
    assert outcomes == ["".join(f"{p.weights} {p.metrics} {p.source}\n" for p in points)] * 2


def test_a_trial_whose_worker_died_is_done_by_the_next(tmp_path: Path) -> None:
    storage = tmp_path / "trials"
    with pytest.raises(Stop):
        search_with(RandomSearch(), storage, 8, stop_after=6)
    states = [t.state.name for t in _study(storage).get_trials()]
    assert states.count("RUNNING") == 1
    search_with(RandomSearch(), storage, 8)
    assert [t.state.name for t in _study(storage).get_trials()] == ["COMPLETE"] * 8


def _study(path: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.load_study(study_name="weighted_product", storage=optuna.storages.JournalStorage(backend))


# --- settings and rules


@pytest.mark.parametrize("tuner", SHORT, ids=name)
def test_a_floor_is_kept_by_every_tuner(tuner: Tuner) -> None:
    clicks = Window(LISTS.scores, LISTS.value_and_clicks_at_top).judge(PRODUCT)((1, 0, 0))[1]
    rule = Goal(0, (None, 0.8 * clicks))
    found = best(search_with(tuner, None, 40, goal=rule), rule)
    assert rule.shortfall(found.metrics) == 0
    assert found.metrics[0] > search_with(tuner, None, 40)[1].metrics[0]  # more than clicks alone bring


def test_trials_below_a_floor_rank_last_for_tuners_that_know_no_floors() -> None:
    assert {t.id for t in TUNERS.values() if not t.takes_floors} == {"cma"}
    assert {t.id for t in TUNERS.values() if not t.finds_fronts} == {"cma"}


@pytest.mark.parametrize(("function", "count"), [("weighted_sum", 7**2), ("expected_value", 7)])
def test_a_grid_visits_each_of_its_points_once_and_ends(function: str, count: int) -> None:
    few = LISTS.take(0, 5)
    points = tune(FUNCTIONS[function](), Window(few.scores, few.value_at_top), FREE, 1000, tuner=Grid())
    visited = [p.weights for p in points if p.source == "grid"]
    assert len(visited) == len(set(visited)) == count
    assert {max(p) for p in visited} >= {1.5 if count == 7 else 20.085537}


def test_cma_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"cmaes.*not installed; pip install cmaes"):
        search_with(CmaEs(), None)


def test_settings_that_make_no_sense_are_refused() -> None:
    for settings, message in (({"front": True}, "set polish=0"), ({"polish": 1.0}, "below 1")):
        with pytest.raises(ValueError, match=message):
            Tpe(**settings)
    with pytest.raises(ValueError, match="for a front take"):
        CmaEs(front=True)
    with pytest.raises(ValueError, match="two ends"):
        Grid(levels=1)


def test_an_objective_that_cannot_be_judged_is_refused() -> None:
    window = Window(LISTS.scores, lambda fused: np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="cannot be judged"):
        tune(PRODUCT, window, Goal(0, (None, None)), 4)


# --- every function, and the choice among them


@pytest.mark.parametrize("function", list(FUNCTIONS))
def test_every_function_is_tuned_and_its_points_carry_their_constants(function: str) -> None:
    groups = np.repeat(np.arange(60), LISTS.length)
    window = Window(LISTS.scores / LISTS.scores.mean(axis=0), LISTS.value_at_top, groups)
    points = tune(FUNCTIONS[function](), window, FREE, 25)
    assert best(points, FREE).metrics[0] > points[0].metrics[0]
    for p in points[::6]:
        fused = p.fusion().score(window.scores, p.weights, groups)
        assert p.metrics == tuple(LISTS.value_at_top(fused))


def test_a_race_finds_the_function_that_the_value_is_made_of() -> None:
    functions = [FUNCTIONS[name]() for name in ("weighted_sum", "weighted_product", "expected_value", "constrained")]
    scores = LISTS.scores / LISTS.scores.mean(axis=0)
    for true in ("weighted_product", "weighted_sum"):
        value = np.exp(PRODUCT.score(scores, (1, 2, 1))) if true == "weighted_product" else scores @ (1, 3, 0.2)
        lists = Lists(scores, value, LISTS.click, LISTS.length)
        points = race(functions, Window(scores, lists.value_at_top), FREE, 120)
        assert best(points, FREE).function == true
        tried = {f.id: sum(p.function == f.id for p in points) for f in functions}
        assert sum(tried.values()) <= 120
        assert tried[true] == max(tried.values()) > 2 * min(tried.values())


def test_a_race_is_resumed_like_any_search(tmp_path: Path) -> None:
    functions = [WeightedSum(), PRODUCT]
    window = Window(LISTS.scores, LISTS.value_at_top)
    whole = race(functions, window, FREE, 40)
    assert race(functions, window, FREE, 40, storage=tmp_path / "trials") == whole
    assert race(functions, window, FREE, 40, storage=tmp_path / "trials")[:10] == whole[:10]
    with pytest.raises(ValueError, match="different ones"):
        race([PRODUCT, PRODUCT], window, FREE, 40)


def test_front_searches_return_points_that_span_the_front() -> None:
    window = Window(LISTS.scores, LISTS.value_and_clicks_at_top)
    points = tune(PRODUCT, window, Goal(0, (None, None)), 40, tuner=Nsga2(front=True))
    front = non_dominated(np.array([p.metrics for p in points]))
    assert front.sum() >= 5
