"""How every network is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.config.section import Section, form


class Training(Section):
    """One loop for search, retraining and controls. Fractions of steps, never absolute counts.

    Attributes:
        embedding_dim: width D of every field's embedding before any search.
        hidden: widths of the MLP.
        epochs: at most this many passes; early stopping on ``valid`` usually ends it before.
        patience: epochs without a better ``valid`` metric before it stops.
        learning_rate: of Adam on the layers.
        table_optimiser: of the embedding tables: ``lazy_adam`` and ``rowwise_adagrad`` update the rows that a batch
            touches, ``adam`` moves whole tables (slow on large ones; the reference).
        table_learning_rate: of the tables; ``null`` = ``learning_rate``. ``rowwise_adagrad`` wants ten times more.
        weight_decay: decoupled, on the layers; ``l2`` is what tables have.
        clip_norm: largest norm of a step's gradient; ``null`` = no limit.
        schedule: of the learning rates after the warm-up: ``constant``, or ``cosine`` down to zero at ``epochs``.
        warm_up: share of the planned steps in which the learning rates rise linearly.
        precision: of matrix products: ``fp32``, ``bf16``, or ``auto`` = ``bf16`` where the processor computes with it.
        compile: whether MLPs are compiled; takes a minute first, so for long trainings only.
        buffer_mb: MiB of rows held in memory; a larger log is streamed from disk in shuffled blocks.
        checkpoint_steps: optimiser steps between two checkpoints of a search or training, which resumes from them.
        l2: weight of the squared norm of the embedding rows that a batch touches, per row of the batch.
        gate_init: where the gates of normalised pairs start; small, so that many pairs do not drown the rest.
        device: ``auto`` takes a GPU where there is one.
    """

    embedding_dim: Annotated[int, Field(ge=1, le=512)] = 16
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64, 32)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    epochs: Annotated[int, Field(ge=1, le=1000, json_schema_extra=form("Training", "Epochs at most"))] = 15
    patience: Annotated[int, Field(ge=1)] = 2
    batch_size: Annotated[int, Field(ge=2)] = 1024
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    table_optimiser: Literal["lazy_adam", "rowwise_adagrad", "adam"] = "lazy_adam"
    table_learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    compile: bool = False
    buffer_mb: Annotated[int, Field(ge=1)] = 2048
    checkpoint_steps: Annotated[int, Field(ge=1)] = 1000
    l2: Annotated[float, Field(ge=0)] = 0.0
    gate_init: Annotated[float, Field(gt=0)] = 0.02
    device: Literal["auto", "cpu", "cuda"] = "auto"
