"""How fast multi-objective models train beside the shared bottom at equal width, on the benchmarks' display log.

    python -m benchmarks.multitask_speed --experts 8

The log has a second objective, a conversion after the click, so that gates have something to part. Both models train
the same steps of the same batches in turns, in one process, so that a machine whose speed drifts treats them alike;
the ratio of samples per second is that of each round, and its median counts. An expert has the bottom's widths.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Objective, Rows
from ctrmodels.data.dataset import Batch
from ctrmodels.data.planted import display_log
from ctrmodels.multitask import MODELS, ModelConfig, build_model
from ctrmodels.training import TrainConfig, seed_everything
from ctrmodels.training.trainer import Trainer

WIDTH = 16
BASE = "shared_bottom"


def two_objectives(rows: int) -> Rows:
    """The display log's training rows, with a conversion after every fifth click."""
    log = display_log(0, rows).roles["train"]
    click = np.asarray(log.labels[:, :1])
    conversion = click * (np.random.default_rng(0).random(click.shape) < 0.2)
    schema = replace(log.schema, objectives=(Objective("click"), Objective("conversion", after="click")))
    part = replace(log.parts[0], labels=np.concatenate([click, conversion], 1).astype(np.float32))
    return Rows(schema, [part])


def trainer_of(name: str, rows: Rows, arguments: argparse.Namespace) -> Trainer:
    """A model in its training, options as given where it has them."""
    blueprint, hidden = MODELS[name], tuple(map(int, arguments.bottom.split("-")))
    options = blueprint.options(**({"experts": arguments.experts} if name != BASE else {}))
    seed_everything(0)
    model = build_model(name, rows.schema, ArchSpec.dense(rows.schema, WIDTH),
                        ModelConfig(bottom=hidden, dropout=arguments.dropout, options=options))
    return Trainer(model, TrainConfig(
        batch_size=arguments.batch, table_optimiser="rowwise_adagrad", table_learning_rate=0.02,
        precision=arguments.precision, buffer_mb=1 << 20))


def seconds(trainer: Trainer, batches: list[Batch]) -> float:
    """Wall time of one pass over ``batches``."""
    trainer.network.train()
    began = time.perf_counter()
    for batch in batches:
        trainer.step(batch)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print one JSON line per width of the bottom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("omoe", "mmoe", "mmoe_esmm"), default="mmoe")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--bottom", default="64")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = two_objectives(arguments.rows)
    trainers = {name: trainer_of(name, rows, arguments) for name in (BASE, arguments.model)}
    batches = list(trainers[BASE].loader(rows).epoch(0))
    for trainer in trainers.values():  # compiles, and touches memory
        seconds(trainer, batches[:5])
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(arguments.rounds):
        for name, trainer in trainers.items():
            taken[name].append(seconds(trainer, batches))
    ratio = [base / own for base, own in zip(taken[BASE], taken[arguments.model], strict=True)]
    print(json.dumps({**{k: v for k, v in vars(arguments).items() if k != "rounds"},
                      "samples_per_s": {name: round(len(rows) / statistics.median(t)) for name, t in taken.items()},
                      "ratio": round(statistics.median(ratio), 3), "ratios": [round(r, 2) for r in ratio]}))


if __name__ == "__main__":
    main()
