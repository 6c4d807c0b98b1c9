"""A search that is killed goes on from its checkpoint to the same specs, trace and costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrmodels.data.planted import Planted, planted_head, planted_pairs, planted_stream
from ctrmodels.errors import InputError
from ctrmodels.search import (
    AIMEDS,
    NIS,
    PEP,
    AutoDim,
    AutoEmb,
    AutoFIS,
    AutoGroup,
    Found,
    Host,
    SearchMethod,
    SearchRows,
)
from ctrmodels.training import TrainConfig
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer

PAIRS, HEAD = planted_pairs(0, rows=4000), planted_head(0, rows=4000, values=60)
STREAM = planted_stream(0, rows=4000, users=60, items=60)
HOST = Host("click", dim=8, hidden=(8,), dropout=0.1, gate_init=0.6, train=TrainConfig(
    batch_size=200, learning_rate=5e-3, schedule="cosine", warm_up=0.1, clip_norm=1.0))
SEARCHES: dict[str, tuple[SearchMethod, Planted]] = {
    "autodim": (AutoDim(candidates=(2, 8), every=2, epochs=2), PAIRS),
    "autodim, second order": (AutoDim(candidates=(2, 8), every=5, epochs=2, order="second", layout="separate"), PAIRS),
    "pep": (PEP(targets=(0.97, 0.7), rise=4.0, epochs=3), PAIRS),
    "pep, by id": (PEP(granularity="value", targets=(0.97, 0.7), rise=4.0, epochs=3), PAIRS),
    "aim_eds": (AIMEDS(epochs=2, target_threshold=1.0), PAIRS),
    "aim_eds, by id": (AIMEDS(granularity="value_dimension", epochs=2, target_threshold=0.3), PAIRS),
    "nis": (NIS(budget=0.5, every=3, epochs=2, reward_rows=200), HEAD),
    "nis, recall": (NIS(budget=0.5, every=3, epochs=2, reward_rows=200, quality="recall", mode="single"), HEAD),
    "autoemb": (AutoEmb(candidates=(2, 8), every=3, min_vocab=20, context=True, epochs=2), STREAM),
    "autoemb, previous": (AutoEmb(candidates=(2, 8), every=3, min_vocab=20, decide_on="previous",
                                  epochs=2), STREAM),
    "autofis": (AutoFIS(epochs=2, target_threshold=0.6), PAIRS),
    "autofis, gates on arch": (AutoFIS(epochs=2, target_threshold=0.6, gates_on="arch"), PAIRS),
    "autogroup": (AutoGroup(groups=(2, 3, 3), dims=(3, 4), epochs=2), PAIRS),
}


class KilledError(Exception):
    """Stands for a kill: nothing after it happens."""


def search(name: str, checkpoint: Checkpoint | None = None) -> Found:
    method, log = SEARCHES[name]
    return method.search(SearchRows(log.roles["train"], log.roles["arch"]), HOST, 1, checkpoint)


def killed(name: str, path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that dies in its step ``after``, between two checkpoints."""
    step = Trainer.step

    def dying(self, batch):
        if self.taken == after:
            raise KilledError
        return step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Trainer, "step", dying)
        search(name, Checkpoint(path, every=4))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_killed_search_goes_on_to_the_same_result(name, tmp_path, monkeypatch):
    path, expected, taken = tmp_path / "search.safetensors", search(name), []
    for after in (7, 15, 16, 21):  # every attempt gets further than the one before
        killed(name, path, after, monkeypatch)
        assert path.exists()
        torch.manual_seed(after)  # what else happened in the process makes no difference
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: taken.append(self.taken) or step(self, batch))
    found = search(name, Checkpoint(path, every=4))
    assert taken[0] == 20  # what was done is not done again
    assert found.trace == expected.trace and found.steps == pytest.approx(expected.steps)
    assert {k: s.id for k, s in found.specs.items()} == {k: s.id for k, s in expected.specs.items()}


def test_a_step_that_was_lost_makes_a_difference(tmp_path, monkeypatch):
    """The test above can fail: a search that forgets one optimiser's state ends elsewhere."""
    path, expected = tmp_path / "search.safetensors", search("autofis")
    killed("autofis", path, 15, monkeypatch)
    checkpoint = Checkpoint(path, every=4)
    tensors, document = checkpoint.load()
    gone = {k: torch.zeros_like(t) if k.endswith(".v") else t for k, t in tensors.items()}
    assert any(k.endswith(".v") for k in tensors)
    checkpoint.save(gone, document)
    assert search("autofis", checkpoint).specs["autofis"].id != expected.specs["autofis"].id


def test_a_checkpoint_of_another_search_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "search.safetensors"
    killed("autofis", path, 9, monkeypatch)
    method, log = SEARCHES["autofis"]
    with pytest.raises(InputError, match=r"target_threshold = 0\.6: this training has 0\.7"):
        replace(method, target_threshold=0.7).search(
            SearchRows(log.roles["train"], log.roles["arch"]), HOST, 1, Checkpoint(path))


def test_a_checkpoint_of_another_network_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "search.safetensors"
    killed("autofis", path, 9, monkeypatch)
    method, log = SEARCHES["autofis"]
    for host in (replace(HOST, hidden=(8, 8)), replace(HOST, model="autoipnn")):
        with pytest.raises(InputError, match="network"):
            method.search(SearchRows(log.roles["train"], log.roles["arch"]), host, 1, Checkpoint(path))


@pytest.mark.parametrize("name", ["autofis", "pep", "autogroup"])
def test_a_search_that_diverged_finds_nothing(name):
    method, log = SEARCHES[name]
    host = replace(HOST, train=replace(HOST.train, learning_rate=float("inf")))
    with pytest.raises(FloatingPointError, match="learning_rate"):
        method.search(SearchRows(log.roles["train"], log.roles["arch"]), host, 1)


def test_the_schedule_of_a_stream_is_that_of_all_its_passes(monkeypatch):
    """AutoEmb's weights go on learning behind the first step."""
    rates, step = [], Trainer.step

    def watched(self, batch):
        rates.append(self._rate())
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", watched)
    method, log = SEARCHES["autoemb"]
    method.search(SearchRows(log.roles["train"], log.roles["arch"]), HOST, 1)
    assert len(rates) > 10 and rates[len(rates) // 2] == pytest.approx(0.5, abs=0.2) and rates[-1] < 0.05


def test_levels_that_were_found_before_the_kill_are_kept(tmp_path, monkeypatch):
    expected = search("pep")
    first = next(e["step"] for e in expected.trace if e.get("target") == 0.97)
    path = tmp_path / "search.safetensors"
    killed("pep", path, first + 5, monkeypatch)
    found = search("pep", Checkpoint(path, every=4))
    for level, spec in expected.specs.items():
        assert np.array_equal(found.specs[level].alloc.mask, spec.alloc.mask)
        assert np.array_equal(found.specs[level].alloc.init, spec.alloc.init)
