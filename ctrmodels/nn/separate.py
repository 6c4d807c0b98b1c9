"""Features of which K outputs share nothing: an encoder and a wide part each, behind the faces of single ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.nn.encoder import Encoded, FeatureEncoder
from ctrmodels.nn.heads import WideHead
from ctrmodels.nn.interest import BY_MEAN, Attended


class SeparateEncoders(nn.Module):
    """A :class:`FeatureEncoder` per objective of the log, K of them, what they give laid side by side.

    Args:
        schema: the log.
        spec: embedding and interactions of every encoder.
        dropout: on ``flat``.
        l2: weight of the penalty.
        attended: what every encoder looks at from the row's own fields.

    Attributes:
        width: K times W.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, dropout: float = 0.0, l2: float = 0.0,
                 attended: Attended = BY_MEAN) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            FeatureEncoder(schema, spec, dropout, l2, attended=attended) for _ in schema.objectives)
        self.width = sum(e.width for e in self._each)

    def forward(self, batch: Batch) -> Encoded:
        """``fields`` [B, K*F, D], ``flat`` [B, K*W], all ``interests``, the interactions of all, and the sum of the
        penalties."""
        found: Sequence[Encoded] = [encoder(batch) for encoder in self.encoders]
        return replace(found[0], fields=torch.cat([e.fields for e in found], dim=1),
                       flat=torch.cat([e.flat for e in found], dim=1),
                       interests=tuple(interest for e in found for interest in e.interests),
                       interactions=[own for e in found for own in e.interactions],
                       penalty=torch.stack([e.penalty for e in found]).sum())

    def stored(self) -> tuple[int, int, int]:
        """Those of :meth:`FeatureEncoder.stored`, of all encoders together."""
        values, overhead, trained = zip(*(e.stored() for e in self._each), strict=True)
        return sum(values), sum(overhead), sum(trained)

    def flops(self) -> int:
        """Operations per row of all encoders."""
        return sum(e.flops() for e in self._each)

    @property
    def _each(self) -> list[FeatureEncoder]:
        return [cast(FeatureEncoder, e) for e in self.encoders]


class SeparateWide(nn.Module):
    """A :class:`WideHead` per output, each on the interactions of its own one of :class:`SeparateEncoders`."""

    def __init__(self, schema: Schema, spec: ArchSpec, n_outputs: int, gate_init: float = 0.1) -> None:
        super().__init__()
        self.heads = nn.ModuleList(WideHead(schema, spec, 1, gate_init) for _ in range(n_outputs))

    def flops(self) -> int:
        """Operations per row of all heads."""
        return sum(cast(WideHead, head).flops() for head in self.heads)

    def forward(self, encoded: Encoded) -> Tensor:
        """[B, K]."""
        return torch.cat([head(replace(encoded, interactions=[own]))
                          for head, own in zip(self.heads, encoded.interactions, strict=True)], dim=1)
