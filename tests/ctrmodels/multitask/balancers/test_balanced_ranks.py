"""Two processes under ``torchrun`` balance the losses of the whole batch, as one process does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctrmodels import ranks
from ctrmodels.archspec import ArchSpec
from ctrmodels.data.planted import planted_funnel
from ctrmodels.multitask import ModelConfig, build_model
from ctrmodels.multitask.balancers import GradNormOptions, MgdaOptions, build_balancer
from ctrmodels.training import TrainConfig, fit, seed_everything

OPTIONS = {"uncertainty": None, "dwa": None, "pcgrad": None, "gradnorm": GradNormOptions(initial_steps=3),
           "mgda": MgdaOptions("both")}


def train() -> dict[str, Tensor]:
    """The weights of one short training per balancer, and the balancers' own state."""
    log = planted_funnel(0, rows=3000, users=40, items=40)
    found = {}
    for name, options in OPTIONS.items():
        seed_everything(ranks.local())  # ranks build different networks: rank 0's must win
        model = build_model("mmoe", log.schema, ArchSpec.dense(log.schema, 4),
                            ModelConfig(bottom=(8,), tower=(6,), l2=0.01))
        balancer = build_balancer(name, model, options)
        config = TrainConfig(epochs=4, patience=9, batch_size=200, learning_rate=1e-2, clip_norm=0.5, device="cpu")
        fit(model, log.roles["train"], log.roles["valid"], config,
            lambda scores, rows: float(scores["click@all"].mean()), balancer=balancer)
        found |= {f"{name}/{k}": v.clone() for k, v in model.state_dict().items()}
        found |= {f"{name}/balancer/{k}": v.clone() for k, v in balancer.state_dict().items()}
    return found


if __name__ == "__main__":  # what torchrun starts
    save_file(train(), f"{sys.argv[1]}/{ranks.rank()}.safetensors")


@pytest.mark.slow
def test_two_processes_give_the_models_of_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__,
                    str(tmp_path)], check=True, timeout=300)
    one = train()
    for rank in range(2):
        two = load_file(tmp_path / f"{rank}.safetensors")
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4, msg=name)
