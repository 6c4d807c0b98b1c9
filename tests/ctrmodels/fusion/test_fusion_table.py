"""Windows, evaluators, judges and the spec: how a fused order is judged and carried on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctrmodels import metrics
from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.fusion import (
    Evaluator,
    ExpectedValue,
    FusedScore,
    FusionSpec,
    Isotonic,
    Judge,
    LengthProduct,
    Platt,
    Point,
    Quantile,
    Resampled,
    ScoreTable,
    WeightedProduct,
    tuning_window,
)

CLICK, BUY, DWELL = Objective("click"), Objective("buy", after="click"), Objective("dwell", "regression")


def table(n: int = 3000, lists: int = 150, seed: int = 0) -> ScoreTable:
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.05, 0.6, (n, 2))
    labels = np.column_stack([rng.random((n, 2)) < p, rng.lognormal(2, 1, n)]).astype(float)
    scores = np.column_stack([p, labels[:, 2] * rng.lognormal(0, 0.5, n)])
    return ScoreTable((CLICK, BUY, DWELL), scores, labels, rng.integers(0, lists, n))


def fitted(rows: ScoreTable) -> FusionSpec:
    return FusionSpec(WeightedProduct(), tuple(rows.fit(i, Platt) for i in range(3)), {"role": "valid"})


# --- windows


def test_no_list_is_in_both_windows_and_the_first_ones_tune() -> None:
    groups = np.array([7, 7, 3, 7, 9, 3, 1, 9])
    assert tuning_window(groups, 0.5).tolist() == [True, True, True, True, False, True, False, False]
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 200, 5000)
    tuning = tuning_window(groups, 0.3)
    assert not set(groups[tuning]) & set(groups[~tuning])
    assert len(set(groups[tuning])) == 60


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_each_window_gets_at_least_one_list(share: float) -> None:
    tuning = tuning_window(np.array([5, 5, 2, 2]), share)
    assert tuning.tolist() == [True, True, False, False]


def test_rows_without_lists_are_cut_in_their_order() -> None:
    assert tuning_window(np.zeros(10, int), 0.3).tolist() == [True] * 3 + [False] * 7


# --- evaluators


def test_each_objective_gets_the_metric_of_its_kind() -> None:
    rows = table()
    fused = rows.scores[:, 0]
    ndcg = Evaluator(rows.labels, rows.groups, rows.objectives, "ndcg", 5)
    assert ndcg.name == "ndcg@5"
    assert ndcg(fused) == pytest.approx([
        metrics.ndcg(rows.labels[:, 0], fused, rows.groups, 5), metrics.ndcg(rows.labels[:, 1], fused, rows.groups, 5),
        metrics.ndcg(rows.labels[:, 2], fused, rows.groups, 5, "linear")], abs=1e-12)
    gauc = Evaluator(rows.labels, rows.groups, rows.objectives, "gauc", 5)
    assert gauc.name == "gauc"
    assert gauc(fused)[:2] == pytest.approx([metrics.gauc(rows.labels[:, i], fused, rows.groups) for i in (0, 1)])
    assert gauc(rows.scores[:, 2])[2] > 0.7 > gauc(fused)[2]


def test_a_single_list_is_a_log_without_lists_and_judged_by_auc() -> None:
    rows = table()
    evaluator = Evaluator(rows.labels, np.zeros(3000, int), rows.objectives, "ndcg", 5)
    fused, labels = rows.scores[:, 0], rows.labels.T
    assert evaluator.name == "auc"
    assert evaluator(fused) == pytest.approx(
        [metrics.auc(labels[0], fused), metrics.auc(labels[1], fused), metrics.xauc(labels[2], fused)], abs=1e-12)
    click, _, dwell = Resampled(evaluator).intervals(fused)
    assert click.error == pytest.approx(metrics.auc_contributions(rows.labels[:, 0], fused).std() / 3000**0.5, rel=0.15)
    assert np.isnan(dwell.error)


def test_objectives_that_no_list_can_judge_are_named() -> None:
    rows = table()
    labels = rows.labels * [1, 0, 1]
    assert Evaluator(labels, rows.groups, rows.objectives, "ndcg", 5).undefined() == [1]
    assert Evaluator(labels, rows.groups, rows.objectives, "gauc", 5).undefined() == [1]


def test_gains_are_paired_so_that_an_order_gains_nothing_over_itself() -> None:
    rows = table()
    resampled = Resampled(Evaluator(rows.labels, rows.groups, rows.objectives, "ndcg", 5))
    same = resampled.gains(rows.scores[:, 0], 3 * rows.scores[:, 0])
    assert all(g[:4] == (0, 0, 0, 0) for g in same)
    better = resampled.gains(rows.scores[:, 0], rows.scores[:, 1])[0]
    values = [m.mean for m in (resampled.intervals(rows.scores[:, i])[0] for i in (0, 1))]
    assert better.mean == pytest.approx(values[0] - values[1])
    assert 0 < better.low < better.mean < better.high


# --- normalised scores and the spec


def test_normalised_scores_average_one_and_each_objective_gets_its_normaliser() -> None:
    rows = table()
    spec = fitted(rows)
    assert [type(s.normaliser) for s in spec.scores] == [Platt, Platt, Quantile]
    assert spec.normalise(rows.columns).mean(axis=0) == pytest.approx(np.ones(3))
    assert isinstance(rows.fit(0, Isotonic).normaliser, Isotonic)


def test_unknown_labels_do_not_enter_the_fit() -> None:
    rows = table()
    labels = rows.labels.copy()
    labels[::2] = np.nan
    odd = ScoreTable(rows.objectives, rows.scores[1::2], rows.labels[1::2], rows.groups[1::2])
    half = ScoreTable(rows.objectives, rows.scores, labels, rows.groups)
    assert half.fit(0, Platt).normaliser == odd.fit(0, Platt).normaliser


def test_a_sample_has_whole_lists_and_no_more_than_asked_for() -> None:
    rows = table()
    some = rows.sample(40, seed=1)
    assert some.lists == 40
    assert np.isin(rows.groups, some.groups).sum() == len(some.groups)
    assert rows.sample(1000, seed=1) is rows


def test_a_judge_names_metrics_by_objective_and_agrees_with_the_spec() -> None:
    rows = table()
    spec = fitted(rows)
    judge = Judge(rows, spec, ("ndcg", "gauc"), 5)
    point = Point("weighted_product", (1.0, 2.0, 0.5), (), "tpe")
    found = judge.intervals(point)
    assert set(found) == {f"{m}.{o}" for m in ("ndcg@5", "gauc") for o in ("click", "buy", "dwell")}
    fused = spec.with_weights(WeightedProduct(), point.weights).score(rows.columns)
    assert found["gauc.buy"].mean == pytest.approx(metrics.gauc(rows.labels[:, 1], fused, rows.groups))
    assert [e.mean for e in judge.errors(point)] == [found[f"ndcg@5.{o}"].mean for o in ("click", "buy", "dwell")]


def test_a_spec_survives_json_exactly_and_scores_rows_one_by_one(tmp_path: Path) -> None:
    rows = table()
    spec = fitted(rows).with_weights(WeightedProduct(eps=1e-4), [0.1, 1 / 3, 2.5])
    path = tmp_path / "fusion.json"
    path.write_text(json.dumps({"spec": spec.to_json()}))
    again = FusionSpec.load(path)
    assert again == spec
    whole = spec.score(rows.columns)
    assert np.array_equal(again.score(rows.columns), whole)
    one = {name: values[17:18] for name, values in rows.columns.items()}
    assert again.score(one)[0] == pytest.approx(whole[17], abs=1e-12)


def test_a_column_of_the_log_is_fused_in_units_of_its_mean_by_the_functions_that_have_one() -> None:
    seconds, cost = np.random.default_rng(2).lognormal(3, 1, (2, 3000))
    rows = replace(table(), logged={"seconds": seconds, "cost": cost})
    whole = replace(fitted(rows), scores=(*fitted(rows).scores, rows.fit_logged("seconds", "length"),
                                          rows.fit_logged("cost", "price")))
    assert whole.normalise(rows.columns).mean(axis=0) == pytest.approx(np.ones(5))
    assert [s.name for s in whole.predicted] == ["click@all", "buy@all", "dwell@all"]
    length = whole.with_weights(LengthProduct(midpoint=2.0), (1, 1, 1, 0.5))
    value = whole.with_weights(ExpectedValue(), (0.2, 0.8, 0, 1.0))
    plain = whole.with_weights(WeightedProduct(), (1, 1, 1))
    assert [[s.name for s in spec.columns] for spec in (length, value, plain)] == [["seconds"], ["cost"], []]
    x = seconds / seconds.mean() / 2
    assert length.score(rows.columns) == pytest.approx(plain.score(rows.columns) + 0.5 * np.log(x / (1 + x)), abs=1e-4)
    normalised = whole.normalise(rows.columns)
    assert value.score(rows.columns) == pytest.approx(
        (normalised[:, :3] @ (0.2, 0.8, 0)) * cost / cost.mean())
    judge = Judge(rows, whole, ("gauc",), 5)
    for spec in (length, value, plain):
        weights = tuple(s.weight for s in spec.scores)
        assert judge.fuse(Point.of(spec.function, weights, (), "tpe")) == pytest.approx(spec.score(rows.columns))
        assert judge.window(spec.function).scores.shape == (3000, len(weights))
        assert FusionSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    half = rows.take(rows.groups < 75)
    assert np.array_equal(half.columns["cost"], cost[rows.groups < 75])
    with pytest.raises(KeyError, match="seconds"):
        length.score({name: values for name, values in rows.columns.items() if name != "seconds"})


def test_models_are_asked_of_scores_and_not_of_the_log() -> None:
    rows = replace(table(), logged={"seconds": np.arange(1.0, 3001)}, models="a" * 64)
    spec = replace(fitted(rows), scores=(*fitted(rows).scores, rows.fit_logged("seconds", "length")))
    spec.check_models(dict.fromkeys(("click@all", "buy@all", "dwell@all"), "a" * 64))
    with pytest.raises(InputError, match="model of buy@all"):
        spec.check_models({"click@all": "a" * 64, "seconds": "a" * 64})


def test_a_missing_score_or_an_unreadable_spec_is_refused(tmp_path: Path) -> None:
    spec = FusionSpec(WeightedProduct(), (FusedScore("click@all", Platt(1.0, 0.0), 0.2),))
    with pytest.raises(KeyError, match="click@all"):
        spec.score({"buy@all": np.ones(2)})
    path = tmp_path / "fusion.json"
    for text in ("", "{}", '{"spec": {"function": {"id": "mean"}, "scores": [], "fitted_on": {}}}'):
        path.write_text(text)
        with pytest.raises(InputError, match="run the stage `tune_fusion` again"):
            FusionSpec.load(path)
