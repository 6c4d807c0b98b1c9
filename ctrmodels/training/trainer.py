"""The training loop that search, retraining and controls share."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ctrmodels.data.dataset import Batch, Rows

log = logging.getLogger(__name__)


@runtime_checkable
class Model(Protocol):
    """What the loop asks of a model, which is also a ``torch.nn.Module``."""

    def loss(self, batch: Batch) -> Tensor:
        """Scalar to minimise."""
        ...

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Scores by name, each [B], such as ``like@all``: a probability or an expected value."""
        ...


Metric = Callable[[dict[str, np.ndarray], Rows], float]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: at most this many passes.
        patience: passes without a better validation metric before it stops.
        batch_size: rows per step.
        learning_rate: of Adam.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: of the order of rows; parameters are initialised by whoever builds the model.
    """

    epochs: int = 10
    patience: int = 2
    batch_size: int = 1024
    learning_rate: float = 1e-3
    device: str = "auto"
    seed: int = 0


@dataclass
class FitResult:
    """What a training did.

    Attributes:
        history: one entry per epoch: ``loss`` (mean over the steps) and ``metric`` (on the validation rows).
        best_epoch: index of the epoch whose weights were kept.
        best_metric: its metric.
        steps: optimiser steps taken.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_metric: float = -np.inf
    steps: int = 0


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and have torch refuse nondeterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())


def resolve_device(name: str) -> torch.device:
    """``auto`` is a GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def fit(model: Model, train: Rows, valid: Rows, config: TrainConfig, metric: Metric) -> FitResult:
    """Train until the validation metric has not risen for ``patience`` epochs; keep the best weights.

    The metric is computed once per epoch over all validation rows. Losses are summed on the device and read
    once per epoch, so that no step waits for another.

    Args:
        model: a module with ``loss`` and ``predict``; left in evaluation mode with its best weights.
        train: rows to learn from.
        valid: rows to stop by.
        config: how to train.
        metric: of the predictions on ``valid``; higher is better.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    assert isinstance(model, nn.Module)
    device = resolve_device(config.device)
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    rng = np.random.default_rng([config.seed, 0x7261])
    result = FitResult()
    best: dict[str, Tensor] = {}
    for epoch in range(config.epochs):
        model.train()
        total, steps = torch.zeros((), device=device), 0
        for batch in train.batches(config.batch_size, rng):
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss(batch.to(device))
            loss.backward()
            optimizer.step()
            total += loss.detach()
            steps += 1
        mean = total.item() / max(steps, 1)
        if not np.isfinite(mean):
            raise FloatingPointError(f"the loss became {mean} in epoch {epoch}: lower training.learning_rate")
        result.steps += steps
        value = float(metric(predict(model, valid), valid))
        result.history.append({"loss": mean, "metric": value})
        log.info("epoch %d: loss %.5f, valid %.5f", epoch, mean, value)
        if value > result.best_metric:
            result.best_epoch, result.best_metric = epoch, value
            best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        elif epoch - result.best_epoch >= config.patience:
            break
    if best:
        model.load_state_dict(best)
    model.eval()
    return result


@torch.no_grad()
def predict(model: Model, rows: Rows, batch_size: int = 8192) -> dict[str, np.ndarray]:
    """Scores of all ``rows``, in order: name → float32 [N]."""
    assert isinstance(model, nn.Module)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts: dict[str, list[np.ndarray]] = {}
    for batch in rows.batches(batch_size):
        for name, score in model.predict(batch.to(device)).items():
            parts.setdefault(name, []).append(score.float().cpu().numpy())
    model.train(was_training)
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}
