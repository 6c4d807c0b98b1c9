"""DUPN finds the step that matters, reads no padding, and computes a user once for all items of a request.

Planted retrieval: a click is likely if some step of the history has the query's category and was a purchase. The only
public code, a plain LSTM for a single task, lacks the property's gates; means of the history know the categories that
were bought but not of which the purchase was.

ANCHORS
"""

from __future__ import annotations

import numpy as np
import torch

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted import in_memory
from ctrmodels.data.schema import Field, Objective, Schema
from ctrmodels.metrics import auc
from ctrmodels.multitask import ModelConfig, build_model
from ctrmodels.multitask.models.dupn import DUPN, DUPNOptions
from ctrmodels.multitask.train import train
from ctrmodels.training import TrainConfig, predict, seed_everything

STEPS, CATEGORIES, TRAIN, TEST = 8, 8, 14_000, 4_000
SCALE = 1.0
OPTIONS = DUPNOptions(properties=("action",), units=32, profile=16)


def retrieval(seed: int) -> tuple[Rows, Rows, np.ndarray]:
    """Rows, and of the test rows which step decides: bool [N, L]."""
    rng = np.random.default_rng(seed)
    n = TRAIN + TEST
    category, bought = rng.integers(CATEGORIES, size=(n, STEPS)), rng.random((n, STEPS)) < 0.5
    query = rng.integers(CATEGORIES, size=n)
    decides = (category == query[:, None]) & bought
    click = rng.random(n) < 1 / (1 + np.exp(1.5 - 3.0 * decides.any(1)))
    labels = np.stack([click, bought.mean(1), bought.sum(1) % 2], 1)
    schema = Schema((Field("query", "categorical", CATEGORIES), Field("item", "categorical", CATEGORIES, "item"),
                     Field("seen", "sequence", CATEGORIES, "user", "item", STEPS),
                     Field("action", "sequence", 2, "user", None, STEPS)),
                    (Objective("click"), Objective("share", "regression"), Objective("odd")), {"train": TRAIN}, "v", "r")
    ids = np.stack([query, rng.integers(CATEGORIES, size=n)], 1)
    sequences = {"seen": category.astype(np.int32), "action": bought.astype(np.int32)}

    def part(rows: slice) -> Rows:
        return in_memory(schema, ids[rows], labels[rows], sequences={k: v[rows] for k, v in sequences.items()})

    return part(slice(TRAIN)), part(slice(TRAIN, None)), decides[TRAIN:]


def found(name: str, seed: int, options: DUPNOptions | None = None, epochs: int = 6, lr: float = 5e-3, tlr: float | None = None) -> tuple[float, float]:
    """AUC of the click, and the attention on the deciding step where there is exactly one (0 for other models)."""
    rows, test, decides = retrieval(seed)
    seed_everything(seed)
    spec = ArchSpec.dense(rows.schema, 8)
    model = build_model(name, rows.schema, spec, ModelConfig((32,), (16,), options=options))
    with torch.no_grad():
        model.encoder.embedding.table.weight.mul_(SCALE)
    train(model, rows, test, TrainConfig(epochs=epochs, patience=epochs, batch_size=128, learning_rate=lr, table_learning_rate=tlr, device="cpu", seed=seed))
    area = auc(test.labels[:, 0], predict(model, test)["click@all"])
    if not isinstance(model.trunk, DUPN):
        return area, 0.0
    single = decides.sum(1) == 1
    with torch.no_grad():
        weights = model.trunk.weights(model.eval().encoder(test.take(slice(None)))).numpy()
    return area, float(weights[single][decides[single]].mean())
