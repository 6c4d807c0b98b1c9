"""What row-wise updates cost in AUC: lazy Adam and row-wise Adagrad against Adam on whole tables, over seeds.

    python -m benchmarks.updates --encoded outputs/encode --objective like

Every optimiser trains the same DeepFM on ``train`` and ``arch`` with the same seeds, stopping on ``valid``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Dataset, Rows
from ctrmodels.training import TrainConfig, fit, seed_everything
from ctrmodels.training.optimisers import TABLE_OPTIMISERS
from ctrmodels.zoo import DeepFM

RATES = {"adam": 1.0, "lazy_adam": 1.0, "rowwise_adagrad": 20.0}


def main() -> None:
    """Train, print mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoded", type=Path, required=True, help="output folder of the stage encode")
    parser.add_argument("--objective", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    data = Dataset(arguments.encoded, ("train", "arch", "valid"))
    rows, valid = data.role("train", "arch"), data.role("valid")
    column = data.schema.objective_index(arguments.objective)
    known = ~np.isnan(valid.labels[:, column])

    def auc(scores: dict[str, np.ndarray], judged: Rows) -> float:
        return metrics.auc(judged.labels[known, column], scores[f"{arguments.objective}@all"][known])

    print(f"{len(rows):,} rows, {data.schema.total_vocab:,} ids")
    for name in TABLE_OPTIMISERS:
        found, seconds = [], 0.0
        for seed in range(arguments.seeds):
            seed_everything(seed)
            model = DeepFM(data.schema, ArchSpec.dense(data.schema, 16), arguments.objective, dropout=0.2, l2=0.01)
            config = TrainConfig(epochs=arguments.epochs, patience=1, batch_size=arguments.batch_size,
                                 learning_rate=arguments.learning_rate, table_optimiser=name,
                                 table_learning_rate=RATES[name] * arguments.learning_rate, seed=seed)
            began = time.perf_counter()
            found.append(fit(model, rows, valid, config, auc).best_metric)
            seconds += time.perf_counter() - began
        print(f"{name:<18} valid auc {np.mean(found):.4f} ± {np.std(found, ddof=1):.4f}   {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
