"""Rules of thumb: who gets which width, from counts alone."""

from __future__ import annotations

import numpy as np
import pytest

from ctrmodels.archspec import PerBucket, PerField
from ctrmodels.data.planted import planted_head
from ctrmodels.search import FrequencyRule, Host, NarrowWidth, RareIds, SearchRows

LOG = planted_head(0, rows=8000)
ROWS, HOST = SearchRows(LOG.roles["train"], LOG.roles["arch"]), Host("click", dim=16)


def cost(spec) -> int:
    return HOST.build(LOG.schema, HOST.complete(spec, LOG.schema)).cost().parameters_embedding


def test_counts_are_those_of_the_encoded_log():
    assert np.array_equal(ROWS.counts, LOG.counts)


def test_one_narrow_width_everywhere():
    found = NarrowWidth((8, 2)).search(ROWS, HOST, 0).specs
    assert list(found) == ["narrow-8", "narrow-2"]
    assert found["narrow-2"].alloc == PerField((2,) * 4)


@pytest.mark.parametrize("shared", [True, False])
def test_ids_under_the_threshold_share_a_row_or_have_none(shared: bool):
    spec = RareIds((5,), shared).search(ROWS, HOST, 0).specs["rare_ids-5"]
    assert isinstance(spec.alloc, PerBucket)
    frequent = sum(int((LOG.counts[s:s + f.vocab] >= 5).sum()) for f, s in (
        (f, LOG.schema.offsets[f.name]) for f in LOG.schema.id_fields))
    assert cost(spec) == 16 * (frequent + 4 * shared)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_widths_fall_with_the_count_and_cost_what_was_asked_for(share: float):
    spec = FrequencyRule((share,)).search(ROWS, HOST, 0).specs[f"frequency_rule-{share:g}"]
    values = 0
    for _, begin, end, width, _ in spec.alloc.buckets(LOG.schema):
        values += (end - begin) * width
    assert 0.8 * share <= values / (16 * LOG.schema.total_vocab) <= share
    for dims in spec.alloc.dims:
        assert list(dims) == sorted(dims, reverse=True)


def test_a_width_beyond_the_hosts_is_refused():
    for rule in (NarrowWidth((32,)), FrequencyRule(candidates=(0, 32))):
        with pytest.raises(ValueError, match="exceeds"):
            rule.search(ROWS, HOST, 0)
