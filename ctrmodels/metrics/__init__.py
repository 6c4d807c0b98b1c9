"""Offline metrics of scores, each over all given rows at once (never a mean over batches).

Every function takes one-dimensional arrays of one length and rows whose label is known: the caller drops
rows outside the sample space. A metric that is undefined on its rows (no rows, one class only) is NaN.

Metrics of ranked lists are classes that lay the lists out once and then evaluate any number of score vectors on
them: :class:`ListAuc`, :class:`ListConcordance`, :class:`ListNdcg`, :class:`ListMrr`, :class:`ListValue`. For a
single call there are :func:`gauc` and :func:`ndcg`. Ties in the scores count with their expected value under a
random order of the tied rows, so no metric depends on the order of the rows.
"""

from ctrmodels.metrics.binary import (
    PROBABILITY_FLOOR,
    Reliability,
    auc,
    auc_contributions,
    calibration_ratio,
    ece,
    logloss,
    logloss_contributions,
    normalised_entropy,
    reliability,
)
from ctrmodels.metrics.concordance import ListConcordance
from ctrmodels.metrics.gains import ListNdcg, ListValue, ndcg
from ctrmodels.metrics.lists import ListAuc, ListMetric, RowAuc, gauc, gauc_coverage
from ctrmodels.metrics.objective import HIGHER_IS_BETTER, Kind, evaluate
from ctrmodels.metrics.places import ListRanks
from ctrmodels.metrics.reciprocal import ListMrr
from ctrmodels.metrics.regression import rmse, rmse_log, xauc
from ctrmodels.metrics.resampling import Bootstrap, Interval, bootstrap_interval, interval

__all__ = [
    "HIGHER_IS_BETTER", "PROBABILITY_FLOOR", "Bootstrap", "Interval", "Kind", "ListAuc", "ListConcordance",
    "ListMetric", "ListMrr", "ListNdcg", "ListRanks", "ListValue", "Reliability", "RowAuc", "auc", "auc_contributions",
    "bootstrap_interval", "calibration_ratio", "ece", "evaluate", "gauc", "gauc_coverage", "interval", "logloss",
    "logloss_contributions", "ndcg", "normalised_entropy", "reliability", "rmse", "rmse_log", "xauc",
]
