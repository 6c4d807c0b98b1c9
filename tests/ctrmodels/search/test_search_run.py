"""A search as trials: complete, resumable, reproducible, and blind to test."""

from __future__ import annotations

import json
import os

import pytest

from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Dataset
from ctrmodels.data.planted import planted_pairs
from ctrmodels.errors import InputError, RoleError
from ctrmodels.search import AllPairs, AutoFIS, Host
from ctrmodels.search import run as module
from ctrmodels.search.run import Candidate, Trace, run_search
from ctrmodels.training import TrainConfig

HOST = Host("click", dim=4, hidden=(), gate_init=0.6, train=TrainConfig(epochs=2, batch_size=500, learning_rate=5e-3))
SEARCH = AutoFIS(epochs=1, target_threshold=0.5)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log") / "encode"
    planted_pairs(0, rows=3000).save(folder)
    return folder


def run(encoded, folder, method=SEARCH, seeds=(0, 1), workers=1):
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return run_search(method, encoded, HOST, seeds, folder / "scratch", folder / "out", workers)[0]


def outputs(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted((folder / "out").rglob("*")) if p.is_file()}


def test_every_level_stands_beside_its_random_control(encoded, tmp_path):
    found, random = run(encoded, tmp_path)
    assert (found.kind, random.kind) == ("searched", "random")
    assert found.seeds == random.seeds == (0, 1)
    assert len(found.valid["auc"]) == 2
    for metric, best in (("auc", max), ("logloss", min)):
        spec = ArchSpec.load(tmp_path / "out" / found.best_spec(metric))
        assert spec.cost in found.costs
        assert spec.result[f"valid.{metric}"] == best(found.valid[metric])


def test_the_best_seed_is_that_of_the_metric_that_chooses():
    valid = {"auc": (0.7, 0.9, 0.8), "logloss": (0.1, 0.2, 0.3)}
    found = Candidate("a", "searched", (3, 4, 5), valid, (), 0, 0, "specs/a")
    assert (found.best_spec(), found.best_spec("logloss")) == ("specs/a/4", "specs/a/3")


def test_a_control_has_no_random_control(encoded, tmp_path):
    (control,) = run(encoded, tmp_path, AllPairs())
    assert control.kind == "control"


def test_one_process_and_two_give_the_same_bytes(encoded, tmp_path):
    run(encoded, tmp_path / "one", workers=1)
    run(encoded, tmp_path / "two", workers=2)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")


def test_an_interrupted_search_goes_on_where_it_stopped(encoded, tmp_path, monkeypatch):
    run(encoded, tmp_path / "whole")
    original, calls = module.retrain_trial, []

    def dies_on_the_second(**arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(**arguments)

    monkeypatch.setattr(module, "retrain_trial", dies_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(encoded, tmp_path / "broken")
    trace = tmp_path / "broken/scratch/trace.jsonl"
    trace.write_text(trace.read_text() + '{"trial": "retr')  # a line cut off by the kill
    calls.clear()
    monkeypatch.setattr(module, "retrain_trial", lambda **a: calls.append(a) or original(**a))
    monkeypatch.setattr(module, "search_trial", None)  # searching again would fail
    run(encoded, tmp_path / "broken")
    assert len(calls) == 3  # four retrainings in all, one was done
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "broken")


def test_a_trial_that_follows_a_line_cut_off_outlives_a_second_interruption(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"trial": "search/0"}\n{"trial": "retr')
    Trace(path).add({"trial": "search/1"})
    assert list(Trace(path).done) == ["search/0", "search/1"]
    assert path.read_text().endswith('{"trial": "search/0"}\n{"trial": "search/1"}\n')


def test_a_trace_of_one_line_cut_off_is_empty(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"trial": "sea')
    assert Trace(path).done == {}
    assert path.read_bytes() == b""


@pytest.mark.parametrize("damage", [b'{"trial": "retr', b"\xff", b"", b"7", b'{"seed": 1}', b'{"trial": 1}'])
def test_a_damaged_line_that_no_kill_leaves_is_told_and_kept(tmp_path, damage: bytes):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(content := b'{"trial": "search/0"}\n' + damage + b'\n{"trial": "search/1"}\n')
    with pytest.raises(InputError, match=r"line 2 = .*is not a finished trial; delete the line") as caught:
        Trace(path)
    assert caught.value.where == str(path)
    assert path.read_bytes() == content


def test_a_finished_trial_is_on_disk_before_the_next_one(tmp_path, monkeypatch):
    path, synced = tmp_path / "trace.jsonl", []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_text()))
    trace = Trace(path)
    for name in ("search/0", "search/1"):
        trace.add({"trial": name})
    assert synced == ['{"trial": "search/0"}\n', '{"trial": "search/0"}\n{"trial": "search/1"}\n']


def test_a_search_cannot_read_test(encoded):
    with pytest.raises(RoleError, match="test"):
        Dataset(encoded, module.ROLES).role("test")


def test_the_trace_holds_every_trial_and_no_time(encoded, tmp_path):
    run(encoded, tmp_path)
    trials = [json.loads(line) for line in (tmp_path / "out/trace.jsonl").read_text().splitlines()]
    assert {t["trial"] for t in trials} == {
        "search/0", "search/1", "retrain/autofis/found/0", "retrain/autofis/found/1",
        "retrain/autofis/random/0", "retrain/autofis/random/1"}
    assert not any("seconds" in t for t in trials)
