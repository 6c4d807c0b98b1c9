"""The benchmark of search costs runs every method it names, in units of a plain training."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import search_cost


@pytest.fixture(autouse=True)
def _threads():
    """The benchmark takes both cores; other tests count on one thread."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("only", ["pep", "autodim, shared, every", "aim_eds, field", "autoemb", "autogroup",
                                  "autofeature"])
def test_a_method_is_timed_against_plain_training(only, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search_cost", "--rows", "6000", "--epochs", "1", "--rounds", "1",
                                      "--batch", "500", "--hidden", "8", "--precision", "fp32", "--only", only])
    search_cost.main()
    found = json.loads(capsys.readouterr().out)
    assert found["hidden"] == "8" and found["epochs"] == 1
    (name,), (ratio,) = found["ratios"], found["ratios"].values()
    assert name.startswith(only) and ratio > 0


def test_a_retraining_of_what_was_found_is_timed_with_it(monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(search_cost, "plain", lambda rows, host, epochs, spec=None: trained.append((epochs, spec)))
    monkeypatch.setattr(sys, "argv", ["search_cost", "--rows", "6000", "--epochs", "1", "--rounds", "1",
                                      "--batch", "500", "--hidden", "8", "--precision", "fp32", "--retrain",
                                      "--only", "aim, pairs and"])
    search_cost.main()
    assert json.loads(capsys.readouterr().out)["retrained"]
    assert [(epochs, spec and spec.method) for epochs, spec in trained] == [(1, None), (1, None), (1, "aim")]


def test_an_error_of_a_search_is_not_taken_for_its_end():
    class Broken:
        part = "embedding"

        def search(self, *_):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        search_cost.search(Broken(), None, None)
