"""torch-rechub: its features, DataGenerator, models and CTRTrainer, without weight decay."""

from __future__ import annotations

import contextlib
import io
import tempfile
from importlib.metadata import version

import numpy as np
import torch
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.ranking import DCNv2, DeepFM
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

from benchmarks.contestants.common import WIDTH, Task, main


def train(task: Task) -> None:
    """One call of ``train_one_epoch``."""
    sparse = [SparseFeature(f"c{i}", v, WIDTH) for i, v in enumerate(task.vocabularies())]
    dense = [DenseFeature(f"n{i}") for i in range(13)]
    mlp = {"dims": list(task.hidden), "activation": "relu", "dropout": 0.0}
    if task.model == "deepfm":
        model = DeepFM(deep_features=sparse + dense, fm_features=sparse, mlp_params=mlp)
    else:
        model = DCNv2(sparse + dense, 3, mlp, use_low_rank_mixture=False)
    inputs, labels = columns(task, "train")
    valid, valid_labels = columns(task, "valid")
    test, test_labels = columns(task, "test")
    loader, valid_loader, test_loader = DataGenerator(inputs, labels).generate_dataloader(
        x_val=valid, y_val=valid_labels, x_test=test, y_test=test_labels, batch_size=task.batch)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        trainer = CTRTrainer(model, optimizer_params={"lr": task.rate, "weight_decay": 0.0}, n_epoch=1,
                             device=task.device, model_path=folder)
        with task.timed():
            trainer.train_one_epoch(loader)
        task.scored(*(np.asarray(trainer.predict(model, rows)) for rows in (valid_loader, test_loader)))
    first = {k: torch.from_numpy(v[:4096]).to(task.device) for k, v in test.items()}
    batches = {n: {k: v[:n] for k, v in first.items()} for n in (1, 100, 4096)}
    model.eval()
    with torch.no_grad():
        task.latency(lambda n: model(batches[n]))


def columns(task: Task, role: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    ids, numeric, labels = task.columns(role)
    return ({f"c{i}": ids[:, i] for i in range(ids.shape[1])} | {f"n{i}": numeric[:, i] for i in range(13)}), labels


if __name__ == "__main__":
    main(train, "torch-rechub", version("torch-rechub"))
