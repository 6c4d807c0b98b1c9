"""Two processes under ``torchrun`` train the model that one process trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ctrmodels import metrics, ranks
from ctrmodels.archspec import ArchSpec
from ctrmodels.data.planted import planted_pairs
from ctrmodels.training import TrainConfig, fit, seed_everything
from ctrmodels.training.optimisers import TABLE_OPTIMISERS
from ctrmodels.zoo import AutoDeepFM


def train(table_optimiser: str) -> AutoDeepFM:
    """Half of the labels are unknown, unevenly over the rows, so that ranks see different numbers of them."""
    log = planted_pairs(0, rows=4000)
    for part in log.roles["train"].parts:
        part.labels[::3] = float("nan")
    config = TrainConfig(epochs=2, batch_size=400, learning_rate=1e-2, table_optimiser=table_optimiser,
                         clip_norm=0.5, device="cpu")
    seed_everything(ranks.local())  # ranks build different networks: rank 0's must win
    model = AutoDeepFM(log.schema, ArchSpec.dense(log.schema, 4), "click", hidden=(8,), l2=0.1, gate_init=0.6)
    fit(model, log.roles["train"], log.roles["valid"], config,
        lambda scores, rows: metrics.auc(rows.labels[:, 0], scores["click@all"]))
    return model


if __name__ == "__main__":  # what torchrun starts
    trained = train(sys.argv[1])
    save_file(trained.state_dict(), f"{sys.argv[2]}/{ranks.rank()}.safetensors")


@pytest.mark.parametrize("table_optimiser", TABLE_OPTIMISERS)
def test_two_processes_give_the_model_of_one(tmp_path: Path, table_optimiser) -> None:
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__,
                    table_optimiser, str(tmp_path)], check=True, timeout=300)
    one = train(table_optimiser).state_dict()
    for rank in range(2):
        two = load_file(tmp_path / f"{rank}.safetensors")
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
