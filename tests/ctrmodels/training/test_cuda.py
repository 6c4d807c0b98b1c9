"""On a GPU the same training runs, by torch's operations, and ends at the same quality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Rows
from ctrmodels.data.planted import planted_pairs
from ctrmodels.training import TrainConfig, fit, seed_everything
from ctrmodels.training.optimisers import TABLE_OPTIMISERS
from ctrmodels.zoo import MODELS
from ctrmodels.zoo.base import Sizes

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible: use `make test-gpu`"),
              pytest.mark.filterwarnings("ignore::UserWarning")]
LOG = planted_pairs(0, rows=20_000)


def auc(scores: dict[str, np.ndarray], rows: Rows) -> float:
    return metrics.auc(rows.labels[:, 0], next(iter(scores.values())))


def trained(model: str, device: str, **settings) -> float:  # type: ignore[no-untyped-def]
    seed_everything(0)
    network = MODELS[model].sized(LOG.schema, ArchSpec.dense(LOG.schema, 16), LOG.schema.objectives[0].name, Sizes())
    return fit(network, LOG.roles["train"], LOG.roles["valid"],
               TrainConfig(epochs=3, batch_size=512, device=device, **settings), auc).best_metric


@pytest.mark.parametrize("model", [m for m in MODELS if m != "din"])
def test_every_model_learns_there_what_it_learns_here(model: str) -> None:
    assert trained(model, "cuda") == pytest.approx(trained(model, "cpu"), abs=0.01)


@pytest.mark.parametrize("settings", [*({"table_optimiser": name} for name in TABLE_OPTIMISERS), {"precision": "bf16"},
                                      {"buffer_mb": 0}, {"clip_norm": 1.0}], ids=str)
def test_every_way_to_train_works_there(settings: dict[str, object]) -> None:
    assert trained("deepfm", "cuda", **settings) == pytest.approx(trained("deepfm", "cpu", **settings), abs=0.01)
