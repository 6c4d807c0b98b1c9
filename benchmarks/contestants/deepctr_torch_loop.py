"""DeepCTR-Torch: ``fit`` and ``predict`` as its documentation shows them, without regularisation."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import DCN, DeepFM

from benchmarks.contestants.common import WIDTH, Task, main


def train(task: Task) -> None:
    """One epoch of ``fit``."""
    features = [SparseFeat(f"c{i}", v, WIDTH) for i, v in enumerate(task.vocabularies())]
    features += [DenseFeat(f"n{i}", 1) for i in range(13)]
    options = {"l2_reg_linear": 0, "l2_reg_embedding": 0, "l2_reg_dnn": 0, "dnn_hidden_units": task.hidden,
               "device": task.device}
    if task.model == "deepfm":
        model = DeepFM(features, features, **options)
    else:
        model = DCN(features, features, cross_num=3, cross_parameterization="matrix", l2_reg_cross=0, **options)
    model.compile(torch.optim.Adam(model.parameters(), lr=task.rate), "binary_crossentropy")
    inputs, labels = columns(task, "train")
    with task.timed():
        model.fit(inputs, labels, batch_size=task.batch, epochs=1, verbose=0)
    test, _ = columns(task, "test")
    valid, _ = columns(task, "valid")
    task.scored(model.predict(valid, 4096)[:, 0], model.predict(test, 4096)[:, 0])
    flat = torch.from_numpy(np.stack([test[name] for name in model.feature_index], 1)[:4096]).float().to(task.device)
    model.eval()
    with torch.no_grad():
        task.latency(lambda n: model(flat[:n]))


def columns(task: Task, role: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    ids, numeric, labels = task.columns(role)
    return ({f"c{i}": ids[:, i] for i in range(ids.shape[1])} | {f"n{i}": numeric[:, i] for i in range(13)}), labels


if __name__ == "__main__":
    main(train, "DeepCTR-Torch", version("deepctr-torch"))
