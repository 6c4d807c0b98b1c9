"""Two processes under ``torchrun`` train the activation units that one process trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ctrmodels import metrics, ranks
from ctrmodels.archspec import ArchSpec
from ctrmodels.data.planted import planted_interests
from ctrmodels.multitask import ModelConfig, MultiObjectiveModel, build_model
from ctrmodels.training import TrainConfig, fit, seed_everything


def train() -> MultiObjectiveModel:
    """Histories of any length, most of them empty, so that ranks weigh different numbers of steps."""
    log = planted_interests(0, rows=4000)
    for rows in log.roles.values():
        for part in rows.parts:
            lengths = np.maximum(np.arange(len(part.ids)) % 40 - 25, 0)[:, None]
            part.sequences["seen"][np.arange(15) >= lengths] = -1
    config = TrainConfig(epochs=3, patience=3, batch_size=200, learning_rate=1e-2, clip_norm=0.5, device="cpu")
    seed_everything(ranks.local())  # ranks build different networks: rank 0's must win
    model = build_model("mmoe", log.schema, ArchSpec.dense(log.schema, 4),
                        ModelConfig((8,), (6,), l2=0.01, history="din"))
    fit(model, log.roles["train"], log.roles["valid"], config,
        lambda scores, rows: metrics.auc(rows.labels[:, 0], scores["click@all"]))
    return model


if __name__ == "__main__":  # what torchrun starts
    save_file(train().state_dict(), f"{sys.argv[1]}/{ranks.rank()}.safetensors")


@pytest.mark.slow
def test_two_processes_give_the_model_of_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__,
                    str(tmp_path)], check=True, timeout=300)
    one = train().state_dict()
    assert any("interests" in name for name in one)
    for rank in range(2):
        two = load_file(tmp_path / f"{rank}.safetensors")
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=name)
