"""The loop learns, stops by valid, keeps the best weights and reproduces itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctrmodels import metrics, ranks
from ctrmodels.archspec import ArchSpec
from ctrmodels.data.planted import planted_pairs
from ctrmodels.training import TrainConfig, fit, predict, run_trials, seed_everything
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.parallel import default_workers
from ctrmodels.training.trainer import Trainer
from ctrmodels.zoo import AutoDeepFM

LOG = planted_pairs(0, rows=16_000)
TRAIN, VALID = LOG.roles["train"], LOG.roles["valid"]
CONFIG = TrainConfig(epochs=2, patience=2, batch_size=500, learning_rate=1e-2)


def auc(scores, rows):
    return metrics.auc(rows.labels[:, 0], scores["click@all"])


def train(config=CONFIG, metric=auc):
    seed_everything(config.seed)
    model = AutoDeepFM(LOG.schema, ArchSpec.dense(LOG.schema, 4), "click", hidden=(8,), gate_init=0.6)
    return model, fit(model, TRAIN, VALID, config, metric)


def test_training_learns():
    model, result = train(replace(CONFIG, epochs=8))
    assert result.best_metric > 0.65
    assert auc(predict(model, VALID), VALID) == result.best_metric


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not():
    first, again, other = train()[0], train()[0], train(replace(CONFIG, seed=1))[0]
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.wide.weights.weight, other.wide.weights.weight)


def test_it_stops_by_patience_and_keeps_the_best_epoch():
    script = iter([0.5, 0.9, 0.8, 0.7, 1.0])
    states = []

    def metric(scores, rows):
        states.append(scores["click@all"].copy())
        return next(script)

    model, result = train(replace(CONFIG, epochs=10), metric)
    assert [e["metric"] for e in result.history] == [0.5, 0.9, 0.8, 0.7]
    assert result.best_epoch == 1
    assert np.array_equal(predict(model, VALID)["click@all"], states[1])


def test_predictions_do_not_depend_on_the_batch_size():
    model, _ = train()
    assert np.allclose(predict(model, VALID, 64)["click@all"], predict(model, VALID, 10_000)["click@all"], atol=1e-6)


def test_a_diverged_loss_names_the_setting_to_lower():
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(replace(CONFIG, learning_rate=float("inf")))


def test_rows_without_a_label_teach_nothing():
    batch = TRAIN.take(slice(0, 100))
    half = TRAIN.take(slice(0, 50))
    batch.labels[50:] = float("nan")
    seed_everything(0)
    bare = ArchSpec.of(LOG.schema, "x", 4, alloc=ArchSpec.dense(LOG.schema, 4).alloc, interactions=())
    model = AutoDeepFM(LOG.schema, bare, "click", hidden=(8,))
    assert model.loss(batch).item() == pytest.approx(model.loss(half).item(), rel=1e-6)


def _square(x: int) -> int:
    return x * x


def test_trials_return_in_order_whatever_ends_first():
    arguments = [{"x": x} for x in range(5)]
    assert run_trials(_square, arguments, workers=1) == run_trials(_square, arguments, workers=2) == [0, 1, 4, 9, 16]


def _noted(folder: Path, number: int) -> None:
    (folder / str(number)).touch()
    if number == 0:
        raise FloatingPointError("diverged")
    time.sleep(1.0)  # far longer than it takes to hear of the failure, on a busy machine too


def test_trials_that_wait_are_not_begun_when_one_has_failed(tmp_path):
    """Two run at once, and the pool hands out up to two ahead."""
    with pytest.raises(FloatingPointError, match="diverged"):
        run_trials(_noted, [{"folder": tmp_path, "number": n} for n in range(20)], workers=2)
    assert len(list(tmp_path.iterdir())) <= 8


def test_trials_do_not_share_a_gpu(monkeypatch):
    monkeypatch.delenv("CTRMODELS_WORKERS", raising=False)
    assert default_workers() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_workers() == 1
    monkeypatch.setenv("CTRMODELS_WORKERS", "3")
    assert default_workers() == 3


def test_a_schedule_needs_the_number_of_steps():
    model = AutoDeepFM(LOG.schema, ArchSpec.dense(LOG.schema, 4), "click", hidden=(8,))
    trainer = Trainer(model, replace(CONFIG, schedule="cosine"))
    with pytest.raises(ValueError, match="number of steps"):
        trainer.step(TRAIN.take(slice(0, 100)))


def test_a_checkpoint_of_one_of_several_ranks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(ValueError, match="one of 2 ranks"):
        Checkpoint(tmp_path / "state.safetensors").load_of({})


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from ctrmodels.training import run_trials\n"
        "def trial(folder):\n"
        "    open(os.path.join(folder, str(os.getpid())), 'w').close()\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    run_trials(trial, [{'folder': sys.argv[1]}] * 2, workers=2)\n")
    pids = tmp_path / "pids"
    pids.mkdir()
    main = subprocess.Popen([sys.executable, str(script), str(pids)])
    until(lambda: len(list(pids.iterdir())) == 2)
    main.kill()
    main.wait()
    until(lambda: not any(Path(f"/proc/{p.name}").exists() for p in pids.iterdir()))


def until(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
