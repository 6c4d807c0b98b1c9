"""FuxiCTR: its embedding, blocks, loader and training step, put together as its model zoo does."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import fuxictr
import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

from benchmarks.contestants.common import WIDTH, Task, main


class DeepFM(BaseModel):
    """FM and MLP on shared embeddings."""

    def __init__(self, feature_map: FeatureMap, hidden: tuple[int, ...], rate: float, **options: object) -> None:
        super().__init__(feature_map, **options)
        self.embedding_layer = FeatureEmbedding(feature_map, WIDTH)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), list(hidden), "ReLU", 1)
        self.finish(rate)

    def finish(self, rate: float) -> None:
        self.compile("adam", "binary_crossentropy", rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.get_inputs(inputs)
        embedded = self.embedding_layer(x)
        return {"y_pred": self.output_activation(self.fm(x, embedded) + self.mlp(embedded.flatten(start_dim=1)))}


class DCNv2(DeepFM):
    """Cross layers beside an MLP."""

    def __init__(self, feature_map: FeatureMap, hidden: tuple[int, ...], rate: float, **options: object) -> None:
        BaseModel.__init__(self, feature_map, **options)
        width = feature_map.sum_emb_out_dim()
        self.embedding_layer = FeatureEmbedding(feature_map, WIDTH)
        self.crossnet = CrossNetV2(width, 3)
        self.mlp = MLP_Block(width, list(hidden), "ReLU", None)
        self.fc = torch.nn.Linear(width + hidden[-1], 1)
        self.finish(rate)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        flat = self.embedding_layer(self.get_inputs(inputs)).flatten(start_dim=1)
        return {"y_pred": self.output_activation(self.fc(torch.cat([self.crossnet(flat), self.mlp(flat)], -1)))}


def train(task: Task) -> None:
    """One epoch of BaseModel.train_epoch, without evaluation at its end."""
    logging.disable(logging.INFO)
    feature_map = describe(task)
    with tempfile.TemporaryDirectory() as folder:
        paths = {role: save(task, role, Path(folder)) for role in ("train", "valid", "test")}
        build = {"deepfm": DeepFM, "dcnv2": DCNv2}[task.model]
        model = build(feature_map, task.hidden, task.rate, gpu=0 if task.device == "cuda" else -1, verbose=0,
                      model_root=folder, metrics=["AUC"])
        model._max_gradient_norm = 10.0
        model._total_steps, model._eval_steps, model._stop_training = 0, 10**9, False
        loader = NpzDataLoader(feature_map, str(paths["train"]), task.batch, shuffle=True, num_workers=0)
        with task.timed():
            model.train_epoch(loader)
        del loader
        valid, test = (NpzDataLoader(feature_map, str(paths[r]), 4096, num_workers=0) for r in ("valid", "test"))
        task.scored(model.predict(valid), model.predict(test))
        first = next(iter(test))
        batches = {n: {k: v[:n] for k, v in first.items()} for n in (1, 100, 4096)}
        with torch.no_grad():
            task.latency(lambda n: model(batches[n]))


def describe(task: Task) -> FeatureMap:
    feature_map = FeatureMap("display", "")
    feature_map.default_emb_dim = WIDTH
    feature_map.labels = ["label"]
    for i, vocabulary in enumerate(task.vocabularies()):
        feature_map.features[f"c{i}"] = {"source": "", "type": "categorical", "vocab_size": vocabulary}
    for i in range(13):
        feature_map.features[f"n{i}"] = {"source": "", "type": "numeric"}
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.total_features = sum(task.vocabularies()) + 13
    feature_map.set_column_index()
    return feature_map


def save(task: Task, role: str, folder: Path) -> Path:
    ids, numeric, labels = task.columns(role)
    columns = {f"c{i}": ids[:, i] for i in range(ids.shape[1])} | {f"n{i}": numeric[:, i] for i in range(13)}
    np.savez(folder / role, label=labels, **columns)
    return folder / f"{role}.npz"


if __name__ == "__main__":
    main(train, "FuxiCTR", fuxictr.__version__)
