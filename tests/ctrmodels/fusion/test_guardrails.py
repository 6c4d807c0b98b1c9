"""Each guard-rail breaks on the harm it is there for, names itself, and holds where there is none."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import spearmanr

from ctrmodels.errors import InputError
from ctrmodels.fusion.guardrails import (
    Check,
    Guardrails,
    Proposal,
    calibration,
    coverage,
    exposures,
    gini,
    rank_correlation,
    segment_changes,
)
from ctrmodels.metrics import ListAuc, ListNdcg, ListRanks

LISTS, LENGTH = 800, 12


@pytest.fixture(scope="module")
def harmless() -> Proposal:
    """A new order much like the incumbent's, a little better, with calibrated probabilities."""
    rng = np.random.default_rng(0)
    n = LISTS * LENGTH
    groups, items = np.repeat(np.arange(LISTS) + 50, LENGTH), rng.integers(0, 200, n)
    p = rng.uniform(0.05, 0.6, n)
    labels = (rng.random(n) < p).astype(float)
    incumbent, fused = p + rng.normal(0, 0.1, n), p + rng.normal(0, 0.05, n)
    return Proposal(groups, items, fused, incumbent, ListNdcg(labels, groups, 5), {"click": (labels, p)},
                    {"device": np.repeat(rng.integers(0, 3, LISTS), LENGTH)})


def broken(proposal: Proposal, limits: Guardrails | None = None) -> list[str]:
    return [c.name for c in (limits or Guardrails(k=5)).judge(proposal).broken]


def test_a_harmless_proposal_passes_every_guard_rail(harmless: Proposal) -> None:
    verdict = Guardrails(k=5).judge(harmless)
    assert [c.name for c in verdict.checks] == [
        "calibration.click", "coverage", "gini", "rank_correlation", "segment.device=0", "segment.device=1",
        "segment.device=2"]
    assert not verdict.withheld and not verdict.broken and str(verdict) == "all guard-rails hold"


def test_an_overconfident_score_breaks_the_calibration(harmless: Proposal) -> None:
    labels, p = harmless.probabilities["click"]
    for factor, limit in ((1.2, "between 0.9 and 1.1"), (0.8, "between 0.9 and 1.1")):
        proposal = replace(harmless, probabilities={"click": (labels, p * factor)})
        verdict = Guardrails(k=5).judge(proposal)
        assert [c.name for c in verdict.broken] == ["calibration.click"]
        assert verdict.withheld and limit in str(verdict)
        assert verdict.broken[0].value == pytest.approx(factor, abs=0.05)


def test_unknown_items_leave_coverage_and_gini_unjudged(harmless: Proposal) -> None:
    verdict = Guardrails(k=5).judge(replace(harmless, items=None))
    assert verdict.unjudged == ("coverage", "gini") and not verdict.withheld
    assert not {"coverage", "gini"} & {c.name for c in verdict.checks}


def test_showing_few_items_breaks_coverage_and_gini(harmless: Proposal) -> None:
    favourites = replace(harmless, fused=harmless.fused + 5.0 * (harmless.items < 40))
    assert {"gini"} <= set(broken(favourites)) - {"rank_correlation"}
    only = replace(harmless, fused=np.where(harmless.items < 120, 1.0, 0) + harmless.fused / 100)
    limits = Guardrails(k=1, rank_correlation=-1, segment=-1)
    verdict = limits.judge(only)
    assert [c.name for c in verdict.broken] == ["coverage", "gini"]
    assert str(verdict).startswith("withheld: coverage = 0.") and "at least 0.9 expected; gini = 0." in str(verdict)
    assert "at most 0.05 expected" in str(verdict)


def test_a_reversed_order_breaks_the_rank_correlation(harmless: Proposal) -> None:
    verdict = Guardrails(k=5, segment=-1).judge(replace(harmless, fused=-harmless.incumbent))
    assert [c.name for c in verdict.broken] == ["rank_correlation"]
    assert verdict.broken[0].value == pytest.approx(-1)


def test_harm_in_one_segment_is_seen_although_the_whole_gains(harmless: Proposal) -> None:
    rng = np.random.default_rng(1)
    device, p = harmless.segments["device"], harmless.probabilities["click"][1]
    incumbent = np.where(device == 1, p, rng.random(len(p)))
    proposal = replace(harmless, fused=np.where(device == 1, p + rng.normal(0, 0.3, len(p)), p), incumbent=incumbent)
    assert proposal.metric.mean(proposal.fused) > proposal.metric.mean(incumbent)
    assert broken(proposal, Guardrails(k=5, rank_correlation=-1)) == ["segment.device=1"]


def test_segments_of_few_lists_are_named_and_not_judged(harmless: Proposal) -> None:
    rare = np.repeat(np.where(np.arange(LISTS) < 20, 7, 0), LENGTH)
    verdict = Guardrails(k=5).judge(replace(harmless, segments={"city": rare}))
    assert verdict.unjudged == ("city=7",)
    assert [c.name for c in verdict.checks if c.name.startswith("segment")] == ["segment.city=0"]


def test_a_segments_change_is_that_of_the_metric_on_its_lists_alone(harmless: Proposal) -> None:
    labels = harmless.probabilities["click"][0]
    proposal = replace(harmless, metric=ListAuc(labels, harmless.groups))
    device = harmless.segments["device"]
    for value, lists, change in segment_changes(proposal, "device", device):
        rows = device == value
        part = ListAuc(labels[rows], harmless.groups[rows])
        assert lists == np.count_nonzero(part.weights)
        assert change == pytest.approx(part.mean(proposal.fused[rows]) / part.mean(proposal.incumbent[rows]) - 1)


def test_a_list_with_two_segments_is_refused(harmless: Proposal) -> None:
    with pytest.raises(InputError, match=r"segments.category = 50: this list has rows of two segments"):
        Guardrails().judge(replace(harmless, segments={"category": harmless.items}))


def test_what_cannot_be_measured_is_broken(harmless: Proposal) -> None:
    constant = replace(harmless, fused=np.ones(len(harmless.fused)))
    verdict = Guardrails(k=5, segment=-1).judge(constant)
    assert [c.name for c in verdict.broken] == ["rank_correlation"] and "= nan, at least 0.7" in str(verdict)
    no_clicks = replace(harmless, probabilities={"click": (np.zeros(len(harmless.fused)), harmless.fused)})
    assert "calibration.click" in broken(no_clicks)
    assert not Check("x", math.nan).holds


def test_scores_that_are_no_numbers_are_refused(harmless: Proposal) -> None:
    fused = harmless.fused.copy()
    fused[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        Guardrails().judge(replace(harmless, fused=fused))


@pytest.mark.parametrize("limits", [{"k": 0}, {"calibration": (1.1, 0.9)}, {"segment": 0.1}, {"gini": -1},
                                    {"rank_correlation": 2}, {"coverage": -0.1}, {"lists": 0}])
def test_limits_that_make_no_sense_are_refused(limits: dict) -> None:
    with pytest.raises(InputError, match=f"{next(iter(limits))} = .* cannot be used as a limit"):
        Guardrails(**limits)


# --- the numbers


def test_exposures_with_ties_are_the_mean_over_the_orders_of_the_tied_rows() -> None:
    items, scores = np.array([3, 1, 2, 1]), np.array([0.5, 0.9, 0.5, 0.5])
    tied = [0, 2, 3]
    counts = np.mean([[(items[[1, *p][:2]] == i).sum() for i in (1, 2, 3)] for p in permutations(tied)], axis=0)
    found = exposures(ListRanks(np.zeros(4))(scores), items, 2)
    assert found == pytest.approx(counts)
    assert coverage(found) == 3 and coverage(exposures(ListRanks(np.zeros(4))(scores), items, 1)) == 1


def test_gini_equals_the_mean_difference_of_all_pairs() -> None:
    x = np.random.default_rng(2).pareto(1.5, 60)
    assert gini(x) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))
    assert gini(np.full(9, 2.0)) == pytest.approx(0)
    assert gini(np.eye(50)[0]) == pytest.approx(0.98)


def test_rank_correlation_is_the_mean_of_spearmans_over_the_lists_where_it_exists() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat([1, 2, 3, 4, 5], [6, 9, 1, 5, 4])
    one, other = rng.integers(0, 4, 25).astype(float), rng.normal(size=25)
    one[groups == 4] = 2.0  # a constant score, like the list of one row, has no correlation
    expected = [spearmanr(one[groups == g], other[groups == g]).statistic for g in (1, 2, 5)]
    assert rank_correlation(ListRanks(groups), one, other) == pytest.approx(np.mean(expected))


def test_calibration_leaves_unknown_labels_out() -> None:
    assert calibration(np.array([1, np.nan, 1]), np.array([0.5, 0.9, 0.7])) == pytest.approx(0.6)
