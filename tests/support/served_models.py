"""Models as they are after a training, on a small log with every kind of field, and rows to score with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ctrmodels.archspec import (
    Alloc,
    ArchSpec,
    CentralResidual,
    FieldDimMask,
    Group,
    Interaction,
    PerBucket,
    PerField,
    Uniform,
    ValueMask,
    all_pairs,
)
from ctrmodels.data import Batch, Field, Objective, Schema
from ctrmodels.export import Model
from ctrmodels.multitask import ONE_SCORE, ModelConfig, build_model
from ctrmodels.multitask import build as build_retrained
from ctrmodels.multitask.parts import History
from ctrmodels.nn.norm import BatchNorm
from ctrmodels.nn.table import tables
from ctrmodels.zoo import HOSTS, MODELS

SCHEMA = Schema(
    fields=(Field("user", "categorical", 40, "user"), Field("price", "numeric", 5, "item"),
            Field("item", "categorical", 30, "item"), Field("age", "numeric", 0, "user"),
            Field("seen", "sequence", 30, "user", of="item", max_length=4),
            Field("tags", "sequence", 6, "item", max_length=3)),
    objectives=(Objective("click"), Objective("buy", after="click"), Objective("dwell", "regression", after="click")),
    rows={"train": 1}, vocab_hash="v", roles_hash="r")
DIM = 6
_NEAR = np.stack([np.arange(30), np.arange(1, 31) % 30, np.where(np.arange(30) % 3, np.arange(2, 32) % 30, -1)], 1)
_MASK = np.random.default_rng(0).random((SCHEMA.total_vocab, DIM)) < 0.3
ALLOCS: Mapping[str, Alloc] = {
    "uniform": Uniform(DIM), "per_field": PerField((2, 0, DIM, 3)), "mask": ValueMask(_MASK),
    "per_bucket": PerBucket(((3, 20), (), (10,), (2,)), ((DIM, 2, 0), (3,), (4, 2), (2, 0))),
    "shared_rare": PerBucket(((3, 20), (2,), (10,), (2,)), ((DIM, 2, 2), (3, 1), (4, 2), (2, 2)), shared=True),
    "field_dims": FieldDimMask(np.random.default_rng(1).random((4, DIM)) < 0.5),
    "central": CentralResidual("item", _NEAR.astype(np.int32), (_NEAR >= 0) * np.float32([2, 2, 1]), "gcn", 0.1),
    "central_attention": CentralResidual("item", _NEAR.astype(np.int32), (_NEAR >= 0) * np.float32([1, 1, 1]),
                                         "attention"),
    "mask_with_init": ValueMask(_MASK, np.full(_MASK.shape, 0.1, np.float32))}
# Every operation and order, on embeddings of their own of every kind that searches of interactions give.
GROWN = (Interaction((0, 1)), *(Interaction(fields, op, table=table) for op, table in (
    ("inner", "dense"), ("outer", "dense"), ("vector_kernel", "dims"), ("scalar_kernel", "single"))
    for fields in ((0, 1), (1, 3), (0, 2, 3), (0, 1, 2, 3))), *(
    Interaction(fields, "micronet", genes=genes) for fields, genes in (
        ((0, 1), (1,)), ((0, 2), (2, 3)), ((1, 3), (3, 4, 1, 2)), ((0, 1, 4), (4,)), ((1, 2, 3), (3, 2, 1)))))
GROUPS = (Group((0, 2, 4), 1), Group((0, 3), 2, "dense"), Group((1, 2, 4), 3, "dims"),
          Group((0, 1), 3, "single", 0.5, "code"))
TABLES: Mapping[str, Alloc] = {
    "dense": ALLOCS["uniform"], "dims": ALLOCS["field_dims"], "single": ALLOCS["mask"]}


def build(name: str, alloc: str, schema: Schema = SCHEMA, grown: bool = False, options: Any = None,
          target: str = "log", history: History = "mean") -> Model:
    """A model whose parameters and statistics all count, with the values that were pruned still at zero.

    Args:
        target: of the objective ``dwell``, by ``price`` where that is per duration.
        history: how a multi-objective model or one of one score reads ``seen``.
    """
    spec = ArchSpec.of(schema, "test", DIM, alloc=ALLOCS[alloc], interactions=GROWN if grown else all_pairs(schema),
                       groups=GROUPS if grown else (), tables=TABLES if grown else {})
    torch.manual_seed(0)
    if name in MODELS or name in HOSTS:
        model: Model = {**HOSTS, **MODELS}[name](schema, spec, "click", dropout=0.1, l2=0.1)
    elif name in ONE_SCORE:
        model = build_retrained(name, schema, spec, ModelConfig((8,), (6,), dropout=0.1, l2=0.1, history=history))
    else:
        model = build_model(name, schema, spec, ModelConfig(
            (8,), (6,), dropout=0.1, l2=0.1, history=history, options=options, duration="price",
            regression={o.name: target for o in schema.objectives if o.kind == "regression"}))
        values = [[3.0, 40.0] if o.kind == "regression" else [1.0, 1.0] for o in schema.objectives]
        model.fit_targets(np.array(values, np.float32).T, np.zeros((2, len(schema.id_fields)), int))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for norm in (m for m in model.modules() if isinstance(m, BatchNorm)):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
        for table in tables(model):
            if table.mask is not None:
                table.prune(table.mask)
            if table.void:
                table.weight[0] = 0
    return model


def draw(n: int, schema: Schema = SCHEMA) -> dict[str, np.ndarray]:
    """Inputs of n rows by name, the way ``Scorer.score`` names them; histories of any length, the first one empty."""
    rng = np.random.default_rng(n)
    rows = {"ids": np.stack([rng.integers(f.vocab, size=n) for f in schema.id_fields], 1).astype(np.int32),
            "numeric": rng.standard_normal((n, len(schema.numeric_fields)), np.float32)}
    for f in schema.sequence_fields:
        lengths = np.where(np.arange(n) > 0, rng.integers(f.max_length + 1, size=n), 0)
        steps = rng.integers(f.vocab, size=(n, f.max_length))
        rows[f.name] = np.where(np.arange(f.max_length) < lengths[:, None], steps, -1).astype(np.int32)
    return rows


def histories(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sequences among ``rows``."""
    return {name: steps for name, steps in rows.items() if name not in ("ids", "numeric")}


def eager(model: Model, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model itself says of ``rows``, by the code that training uses."""
    model.eval()
    with torch.no_grad():
        return {name: score.numpy() for name, score in model.predict(batch_of(rows)).items()}


def batch_of(rows: Mapping[str, np.ndarray]) -> Batch:
    """``rows`` as training sees them, nothing having happened on them."""
    n = len(rows["ids"])
    return Batch(torch.from_numpy(rows["ids"]), torch.from_numpy(rows["numeric"]),
                 {name: torch.from_numpy(steps) for name, steps in histories(rows).items()},
                 torch.zeros(n, len(SCHEMA.objectives)), torch.zeros(n, dtype=torch.int32))
