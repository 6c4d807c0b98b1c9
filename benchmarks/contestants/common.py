"""What all contestants share: the task, the log, the clocks, the score. Needs numpy, scikit-learn and torch only."""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

WIDTH = 16
LATENCY_BATCHES = (1, 100, 4096)


@dataclass
class Task:
    """One training.

    Attributes:
        log: folder of the encoded log.
        model: ``deepfm`` or ``dcnv2``.
        hidden: widths of the MLP.
        batch: rows per step.
        rows: training rows used.
        threads: of torch.
        rate: learning rate of Adam.
        device: ``cpu`` or ``cuda``.
        seed: of the initial weights and of the order of rows.
        result: what was measured so far.
    """

    log: Path
    model: str
    hidden: tuple[int, ...]
    batch: int
    rows: int
    threads: int
    rate: float = 1e-3
    device: str = "cpu"
    seed: int = 0
    result: dict[str, Any] = field(default_factory=dict)

    def columns(self, role: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids int32 [N, 26], numeric float32 [N, 13] and labels float32 [N] of ``role``."""
        n = self.rows if role == "train" else None
        ids, numeric, labels = (np.load(self.log / role / f"{name}.npy")[:n] for name in ("ids", "numeric", "labels"))
        return ids, numeric, labels[:, 0]

    def vocabularies(self) -> list[int]:
        """Ids per categorical field."""
        fields = json.loads((self.log / "schema.json").read_text())["fields"]
        return [f["vocab"] for f in fields if f["kind"] == "categorical"]

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The epoch: its loading of batches included, reading the log and building the model not."""
        self.wait()
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wait()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.result |= {"wall_s": round(wall, 3), "cpu_s": round(processor, 3),
                        "samples_per_s": round(self.rows / wall), "samples_per_cpu_s": round(self.rows / processor)}

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def scored(self, valid: np.ndarray, test: np.ndarray) -> None:
        """Scores of the valid and the test rows."""
        label = self.columns("test")[2]
        self.result |= {"valid_auc": round(float(roc_auc_score(self.columns("valid")[2], valid)), 5),
                        "auc": round(float(roc_auc_score(label, test)), 5),
                        "logloss": round(float(log_loss(label, np.clip(test, 1e-7, 1 - 1e-7).astype(np.float64))), 5)}

    def latency(self, predict: Callable[[int], object], name: str = "latency") -> None:
        """Median milliseconds of ``predict(n)`` on n rows, by n."""
        for n in LATENCY_BATCHES:
            repeats = 30 if n > 1000 else 300
            taken = []
            for _ in range(repeats + 5):
                began = time.perf_counter()
                predict(n)
                self.wait()
                taken.append(time.perf_counter() - began)
            self.result[f"{name}_ms_{n}"] = round(1000 * float(np.median(taken[5:])), 4)


def main(train: Callable[[Task], None], library: str, version: str) -> None:
    """Parse the task, run ``train`` on it, print the result."""
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--model", choices=("deepfm", "dcnv2"), required=True)
    parser.add_argument("--hidden", type=lambda text: tuple(map(int, text.split("-"))), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments, rest = parser.parse_known_args()
    task = Task(**vars(arguments))
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    train(task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"library": library, "version": version, "torch": torch.__version__, "options": rest,
                      "pid": os.getpid(), "peak_mb": round(peak), **task.result}))
