"""Random rows with every kind of field, and models of them whose parameters are all large enough to count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Batch, Field, Objective, Schema
from ctrmodels.zoo import MODELS, CTRModel

SCHEMA = Schema(
    fields=(Field("user", "categorical", 5, "user"), Field("item", "categorical", 7, "item"),
            Field("price", "numeric", 4, "item"), Field("age", "numeric", 0, "user"),
            Field("tags", "sequence", 3, "item", None, 3), Field("recent", "sequence", 7, "user", "item", 4)),
    objectives=(Objective("other"), Objective("click")), rows={"train": 8}, vocab_hash="v", roles_hash="r")
DIM = 4


def draw(rows: int, schema: Schema = SCHEMA) -> Batch:
    """Random rows; histories of any length, empty ones among them."""
    generator = torch.Generator().manual_seed(0)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)

    ids = torch.cat([integers(f.vocab, rows, 1) for f in schema.id_fields], 1)
    sequences = {f.name: integers(f.vocab, rows, f.max_length).masked_fill(
        torch.arange(f.max_length) >= integers(f.max_length + 1, rows, 1), -1) for f in schema.sequence_fields}
    numeric = torch.randn(rows, len(schema.numeric_fields), generator=generator)
    labels = integers(2, rows, len(schema.objectives)).float()
    return Batch(ids, numeric, sequences, labels, torch.zeros(rows, dtype=torch.int32))


def build(name: str, **settings: Any) -> CTRModel:
    """A model by its name in MODELS, with random parameters of mean 0 and standard deviation 0.5."""
    torch.manual_seed(0)
    model = MODELS[name](SCHEMA, ArchSpec.dense(SCHEMA, DIM), "click", **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model
