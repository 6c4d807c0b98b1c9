"""What describes one side of a row: the user and the request, or the item."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ctrmodels.archspec import model_fields
from ctrmodels.data.schema import Schema


class SideFeatures(nn.Module):
    """Embeddings and numeric values of some fields, side by side.

    Args:
        schema: the log.
        dim: D of the embeddings.
        names: of the fields, in any order; they keep that of the schema.

    Attributes:
        width: of the output.
    """

    places: Tensor
    columns: Tensor

    def __init__(self, schema: Schema, dim: int, names: Collection[str]) -> None:
        super().__init__()
        places = [i for i, name in enumerate(model_fields(schema)) if name in names]
        columns = [i for i, f in enumerate(schema.numeric_fields) if f.name in names]
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.width = len(places) * dim + len(columns)

    def forward(self, fields: Tensor, numeric: Tensor) -> Tensor:
        """[B, F, D] and [B, N] of all fields → [B, width]."""
        return torch.cat([fields.index_select(1, self.places).flatten(1), numeric.index_select(1, self.columns)], 1)
