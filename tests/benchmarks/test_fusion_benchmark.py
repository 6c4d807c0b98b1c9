"""The benchmark of the fusion search runs the search it names, within its number of evaluations."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import fusion


@pytest.mark.parametrize("metric", ["ndcg", "gauc"])
def test_a_search_is_measured_in_evaluations_and_cpu_seconds(metric, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fusion", "--lists", "50", "--trials", "15", "--metric", metric])
    fusion.main()
    found = json.loads(capsys.readouterr().out)
    assert found["evaluations"] == 15 + 1  # one more to recognise the rows
    assert set(found["cpu_seconds"]) == {"layout", "search"} and found["metric"] == metric
