"""Fixtures of the search tests: hosts, and searches that do not search."""

from __future__ import annotations

import pytest
import torch

from ctrmodels.search import Host
from ctrmodels.training import TrainConfig


@pytest.fixture(autouse=True)
def _one_thread():
    """Results are the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fm_host() -> Host:
    """A factorisation machine, on which no MLP can absorb what a search has to find."""
    return Host("click", dim=8, hidden=(), gate_init=0.6,
                train=TrainConfig(epochs=8, patience=2, batch_size=500, learning_rate=5e-3))
