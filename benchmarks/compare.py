"""Several ways to train the same model on the same encoded log, over seeds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Dataset, Rows
from ctrmodels.training import TrainConfig, fit, seed_everything
from ctrmodels.zoo import DeepFM


@dataclass(frozen=True)
class Study:
    """The log, and what all variants of a training have in common.

    Attributes:
        train: rows to learn from.
        valid: rows to stop by and to be judged on.
        objective: to predict.
        seeds: how many.
        common: settings of every training.
    """

    train: Rows
    valid: Rows
    objective: str
    seeds: int
    common: Mapping[str, Any]

    @classmethod
    def parse(cls, parser: argparse.ArgumentParser) -> Study:
        """As the command line says; sets torch's threads."""
        parser.add_argument("--encoded", type=Path, required=True, help="output folder of the stage encode")
        parser.add_argument("--objective", required=True)
        parser.add_argument("--seeds", type=int, default=3)
        parser.add_argument("--epochs", type=int, default=5)
        parser.add_argument("--batch-size", type=int, default=2048)
        parser.add_argument("--learning-rate", type=float, default=1e-3)
        arguments = parser.parse_args()
        torch.set_num_threads(2)
        data = Dataset(arguments.encoded, ("train", "arch", "valid"))
        study = cls(data.role("train", "arch"), data.role("valid"), arguments.objective, arguments.seeds,
                    {"epochs": arguments.epochs, "patience": 1, "batch_size": arguments.batch_size,
                     "learning_rate": arguments.learning_rate})
        print(f"{len(study.train):,} rows, {data.schema.total_vocab:,} ids, valid AUC over {arguments.seeds} seeds")
        return study

    def run(self, name: str, **settings: Any) -> None:
        """Train with ``settings`` on top of the common ones; prints the mean and the standard deviation."""
        column = self.train.schema.objective_index(self.objective)
        known = ~np.isnan(self.valid.labels[:, column])

        def auc(scores: dict[str, np.ndarray], judged: Rows) -> float:
            return metrics.auc(judged.labels[known, column], scores[f"{self.objective}@all"][known])

        found, began = [], time.perf_counter()
        for seed in range(self.seeds):
            seed_everything(seed)
            spec = ArchSpec.dense(self.train.schema, 16)
            model = DeepFM(self.train.schema, spec, self.objective, dropout=0.2, l2=0.01)
            config = TrainConfig(**{**self.common, **settings, "seed": seed})
            found.append(fit(model, self.train, self.valid, config, auc).best_metric)
        spread = np.std(found, ddof=1) if len(found) > 1 else float("nan")
        print(f"{name:<32} {np.mean(found):.4f} ± {spread:.4f}   {time.perf_counter() - began:.0f} s", flush=True)
