"""The metrics that an evaluator offers beside NDCG and GAUC, and the logs it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.fusion import Evaluator, Resampled
from ctrmodels.metrics import ListMrr, ListValue

CLICK, DWELL = Objective("click"), Objective("dwell", "regression")


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels [N, 2], groups, a score that knows something of both."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.6, 2000)
    labels = np.column_stack([rng.random(2000) < p, rng.lognormal(p)])
    return labels, np.repeat(np.arange(200), 10), p


def test_mrr_and_value_are_the_metrics_of_their_names(rows) -> None:
    labels, groups, p = rows
    mrr = Evaluator(labels[:, :1], groups, [CLICK], "mrr", 3)
    assert mrr.name == "mrr" and mrr(p).tolist() == [ListMrr(labels[:, 0], groups).mean(p)]
    value = Evaluator(labels, groups, [CLICK, DWELL], "value", 3)
    assert value.name == "value@3"
    assert value(p).tolist() == [ListValue(labels[:, i], groups, 3).mean(p) for i in (0, 1)]


def test_each_metric_prefers_the_informed_order_with_an_interval_above_zero(rows) -> None:
    labels, groups, p = rows
    random = np.random.default_rng(1).random(2000)
    for metric in ("mrr", "value"):
        gain = Resampled(Evaluator(labels[:, :1], groups, [CLICK], metric, 3)).gains(p, random)[0]
        assert 0 < gain.low < gain.mean < gain.high


def test_an_amount_has_no_reciprocal_rank(rows) -> None:
    labels, groups, _ = rows
    with pytest.raises(InputError, match=r"dwell is an amount, .* choose ndcg, gauc or value"):
        Evaluator(labels, groups, [CLICK, DWELL], "mrr", 3)


@pytest.mark.parametrize("metric", ["ndcg", "gauc", "mrr", "value"])
def test_a_log_of_single_rows_is_refused_and_single_rows_among_lists_are_not(rows, metric) -> None:
    labels, groups, p = rows
    with pytest.raises(InputError, match=r"2000 lists of one row.: there is no order to judge; group the rows"):
        Evaluator(labels[:, :1], np.arange(2000), [CLICK], metric, 3)
    groups = np.where(np.arange(2000) < 100, 1000 + np.arange(2000), groups)
    assert np.isfinite(Evaluator(labels[:, :1], groups, [CLICK], metric, 3)(p)).all()


@pytest.mark.parametrize("metric", ["ndcg", "gauc", "mrr", "value"])
def test_scores_that_are_no_numbers_are_refused(rows, metric) -> None:
    labels, groups, p = rows
    with pytest.raises(ValueError, match="finite"):
        Evaluator(labels[:, :1], groups, [CLICK], metric, 3)(np.where(p > 0.5, np.nan, p))
