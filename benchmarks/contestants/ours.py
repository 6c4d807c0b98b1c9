"""This project's engine. Options: ``--precision``, ``--table``, ``--compile``."""

from __future__ import annotations

import argparse

import numpy as np
import torch

import ctrmodels
from benchmarks.contestants.common import LEARNING_RATE, WIDTH, Task, main
from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Dataset, Rows
from ctrmodels.data.dataset import Columns
from ctrmodels.training import TrainConfig, predict
from ctrmodels.training.trainer import Trainer
from ctrmodels.zoo import DCNv2, DeepFM


def train(task: Task) -> None:
    """One epoch by the Trainer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--table", default="rowwise_adagrad")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--buffer-mb", type=int, default=2048)
    options, _ = parser.parse_known_args()
    data = Dataset(task.log, ("train", "test"))
    rows = first(data.role("train"), task.rows)
    build = {"deepfm": DeepFM, "dcnv2": DCNv2}[task.model]
    model = build(data.schema, ArchSpec.dense(data.schema, WIDTH), "click", task.hidden)
    config = TrainConfig(
        batch_size=task.batch, learning_rate=LEARNING_RATE, table_optimiser=options.table,
        table_learning_rate=20 * LEARNING_RATE if options.table == "rowwise_adagrad" else None,
        precision=options.precision, compile=options.compile, device="cpu", buffer_mb=options.buffer_mb)
    trainer = Trainer(model, config)
    if options.compile:  # compilation is not training
        for _, _ in zip(range(3), trainer.epoch(trainer.loader(rows), 1), strict=False):
            pass
    loader = trainer.loader(rows)
    with task.timed():
        for _ in trainer.epoch(loader, 0):
            pass
    test = data.role("test")
    task.scored(predict(model, test)["click@all"])
    model.eval()
    batches = {n: test.take(slice(0, n)) for n in (1, 100, 4096)}
    with torch.no_grad():
        task.latency(lambda n: model(batches[n]))


def first(rows: Rows, n: int) -> Rows:
    """The first ``n`` rows, mapped as they are if that is all."""
    if n >= len(rows):
        return rows
    part = rows.parts[0]
    cut = {k: np.asarray(v[:n]) for k, v in vars(part).items() if k != "sequences"}
    return Rows(rows.schema, [Columns(**cut, sequences={})])


if __name__ == "__main__":
    main(train, "ctrmodels", ctrmodels.__version__)
