"""The section ``training`` of params.yaml as the training loop takes it."""

from __future__ import annotations

from ctrmodels.training import TrainConfig
from tasks.config import Training


def train_config(training: Training, seed: int = 0) -> TrainConfig:
    """How every stage trains."""
    return TrainConfig(
        epochs=training.epochs, patience=training.patience, batch_size=training.batch_size,
        learning_rate=training.learning_rate, table_optimiser=training.table_optimiser,
        table_learning_rate=training.table_learning_rate, weight_decay=training.weight_decay,
        clip_norm=training.clip_norm, schedule=training.schedule, warm_up=training.warm_up,
        precision=training.precision, compile=training.compile, device=training.device,
        buffer_mb=training.buffer_mb, seed=seed)
