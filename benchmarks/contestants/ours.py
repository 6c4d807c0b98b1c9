"""This project's engine. Options: ``--precision``, ``--table``, ``--table-rate``, ``--compile``, ``--onnx``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import ctrmodels
from benchmarks.contestants.common import LATENCY_BATCHES, WIDTH, Task, main
from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Batch, Dataset, Rows, Schema
from ctrmodels.data.dataset import Columns
from ctrmodels.training import TrainConfig, predict
from ctrmodels.training.trainer import Trainer
from ctrmodels.zoo import CTRModel, DCNv2, DeepFM


def train(task: Task) -> None:
    """One epoch by the Trainer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--table", default="rowwise_adagrad")
    parser.add_argument("--table-rate", type=float, default=0.02)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--onnx", action="store_true", help="also measure the exported model")
    parser.add_argument("--buffer-mb", type=int, default=2048)
    options, _ = parser.parse_known_args()
    data = Dataset(task.log, ("train", "valid", "test"))
    rows = first(data.role("train"), task.rows)
    build = {"deepfm": DeepFM, "dcnv2": DCNv2}[task.model]
    model = build(data.schema, ArchSpec.dense(data.schema, WIDTH), "click", task.hidden)
    config = TrainConfig(
        batch_size=task.batch, learning_rate=task.rate, table_optimiser=options.table,
        table_learning_rate=options.table_rate, seed=task.seed,
        precision=options.precision, compile=options.compile, device=task.device, buffer_mb=options.buffer_mb)
    trainer = Trainer(model, config)
    if options.compile:  # compilation is not training
        for _, _ in zip(range(3), trainer.epoch(trainer.loader(rows), 1), strict=False):
            pass
    loader = trainer.loader(rows)
    with task.timed():
        for _ in trainer.epoch(loader, 0):
            pass
    test = data.role("test")
    task.scored(*(predict(model, judged)["click@all"] for judged in (data.role("valid"), test)))
    model.eval()
    batches = {n: test.take(slice(0, n)).to(trainer.device) for n in LATENCY_BATCHES}
    with torch.no_grad():
        task.latency(lambda n: model(batches[n]))
    if options.onnx:
        served(task, model, data.schema, batches)


def served(task: Task, model: CTRModel, schema: Schema, batches: dict[int, Batch]) -> None:
    """The latency of the exported model: of its graph alone, and with the loader's checks of the input."""
    from ctrmodels.export import export_onnx
    from ctrmodels.serving import Scorer

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model.cpu(), schema, Path(folder) / "export")
        scorer = Scorer(Path(folder) / "export", threads=task.threads)
        inputs = {n: {"ids": b.ids.cpu().numpy(), "numeric": b.numeric.cpu().numpy()} for n, b in batches.items()}
        task.latency(lambda n: scorer.session.run(scorer.outputs, inputs[n]), "onnx")
        task.latency(lambda n: scorer.score(**inputs[n]), "scorer")


def first(rows: Rows, n: int) -> Rows:
    """The first ``n`` rows, mapped as they are if that is all."""
    if n >= len(rows):
        return rows
    part = rows.parts[0]
    cut = {k: np.asarray(v[:n]) for k, v in vars(part).items() if k != "sequences"}
    return Rows(rows.schema, [Columns(**cut, sequences={})])


if __name__ == "__main__":
    main(train, "ctrmodels", ctrmodels.__version__)
