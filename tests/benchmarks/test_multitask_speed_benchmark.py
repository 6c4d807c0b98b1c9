"""The benchmark of multi-objective training speed times the mixture beside the shared bottom on the same batches."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import multitask_speed


@pytest.fixture(autouse=True)
def _threads():
    """The benchmark sets torch's threads; other tests count on one."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model", ["mmoe", "mmoe_esmm"])
def test_the_ratio_is_told_with_what_it_is_of(model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["multitask_speed", "--model", model, "--rows", "3000", "--rounds", "2", "--batch",
                                      "500", "--bottom", "8", "--experts", "2", "--threads", "1"])
    multitask_speed.main()
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == model and found["experts"] == 2 and len(found["ratios"]) == 2 and found["ratio"] > 0
    assert set(found["samples_per_s"]) == {"shared_bottom", model}


def test_conversions_happen_after_clicks_alone():
    rows = multitask_speed.two_objectives(2000)
    click, conversion = rows.labels.T
    assert 0 < conversion.sum() < click.sum() and np.all(conversion <= click)
