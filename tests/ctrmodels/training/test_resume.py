"""A training killed at any step goes on to the same bits; a damaged or foreign checkpoint is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec
from ctrmodels.data.planted import planted_pairs
from ctrmodels.errors import InputError
from ctrmodels.training import TrainConfig, fit, seed_everything
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer
from ctrmodels.zoo import AutoDeepFM

LOG = planted_pairs(0, rows=8000)
CONFIG = TrainConfig(epochs=3, patience=2, batch_size=500, learning_rate=1e-2, schedule="cosine", warm_up=0.1,
                     clip_norm=1.0, weight_decay=0.01)
STEPS = 36  # three epochs of twelve
POINTS = np.random.default_rng(0).choice(np.arange(1, STEPS), 10, replace=False).tolist()


def build() -> AutoDeepFM:
    seed_everything(0)
    return AutoDeepFM(LOG.schema, ArchSpec.dense(LOG.schema, 4), "click", hidden=(8,), dropout=0.2, gate_init=0.6)


def auc(scores, rows) -> float:
    return metrics.auc(rows.labels[:, 0], scores["click@all"])


def train(config: TrainConfig, checkpoint: Checkpoint | None, die_at: int | None = None):
    """Fit, or be killed by the system in the middle of step ``die_at``."""
    step = Trainer.step

    def dying(self, batch):
        if self.taken == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)

    Trainer.step = dying
    try:
        model = build()
        return model, fit(model, LOG.roles["train"], LOG.roles["valid"], config, auc, checkpoint)
    finally:
        Trainer.step = step


if __name__ == "__main__":  # the process that a test has killed
    train(replace(CONFIG, table_optimiser=sys.argv[3]), Checkpoint(Path(sys.argv[1]), every=2), int(sys.argv[2]))


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, tuple[dict[str, torch.Tensor], object]]:
    found = {}
    for optimiser in ("lazy_adam", "rowwise_adagrad"):
        model, result = train(replace(CONFIG, table_optimiser=optimiser), None)
        assert result.steps == STEPS
        found[optimiser] = (model.state_dict(), result)
    return found


@pytest.mark.parametrize(("number", "die_at"), list(enumerate(POINTS)))
def test_killed_at_a_random_step_and_resumed_the_weights_are_the_same_to_the_bit(
        tmp_path: Path, undisturbed, number: int, die_at: int) -> None:
    optimiser = ("lazy_adam", "rowwise_adagrad")[number % 2]
    path = tmp_path / "training.safetensors"
    process = subprocess.run([sys.executable, __file__, str(path), str(die_at), optimiser], timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert path.exists() == (die_at >= 2)
    model, result = train(replace(CONFIG, table_optimiser=optimiser), Checkpoint(path, every=2))
    state, expected = undisturbed[optimiser]
    assert result == expected
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not path.exists()


def stopped(path: Path) -> Checkpoint:
    """What a training leaves that ended between two steps."""
    checkpoint = Checkpoint(path, every=5)

    class Stop(Exception):
        pass

    def save(*content) -> None:
        Checkpoint.save(checkpoint, *content)
        raise Stop

    checkpoint.save = save
    with pytest.raises(Stop):
        train(CONFIG, checkpoint)
    return Checkpoint(path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path / "training.safetensors")
    raw = bytearray(checkpoint.path.read_bytes())
    raw[-3] ^= 1
    checkpoint.path.write_bytes(raw)
    with pytest.raises(InputError, match=r"sha256.*delete the file"):
        checkpoint.load()
    checkpoint.path.write_bytes(raw[:100])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        checkpoint.load()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        Checkpoint(tmp_path / "x.safetensors").load()


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    checkpoint = stopped(tmp_path / "training.safetensors")
    with pytest.raises(InputError, match=r"learning_rate = 0\.01: this training has 0\.5"):
        train(replace(CONFIG, learning_rate=0.5), checkpoint)


def test_a_write_that_fails_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "training.safetensors")
    checkpoint.save({"x": torch.ones(3)}, {"step": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"x": torch.zeros(3)}, {"step": 2})
    tensors, document = checkpoint.load()
    assert tensors["x"].tolist() == [1, 1, 1] and document == {"step": 1}
    assert set(load_file(checkpoint.path)) == {"x"}


def test_without_a_file_there_is_no_state(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "none.safetensors").load() is None
