"""The YouTube ranking model: a mixture of experts above shared layers, and a tower that explains positions away."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask import chains
from ctrmodels.multitask.models.mixtures import MMoE
from ctrmodels.multitask.parts import FlatTrunk, Parts, Side, Site
from ctrmodels.nn.towers import MLP, full_precision

CURVE = "position_bias.csv"
REACH = 4.0
"""Logits per unit of the position tower's weights. Adam moves a weight by its learning rate at most, whatever the
gradient: at 1, a curve of 3 logits takes thousands of steps, in which the main network, whose weights add up, takes
the positions for the items. On two seeds of :func:`ctrmodels.data.planted_numeric.planted_positions` the served order
has a rank correlation with the truth of .894 and .895 at 1, .939 and .924 at 4, .943 and .928 at 10, where the curve
no longer falls everywhere, since it shakes from step to step."""


@dataclass(frozen=True)
class YouTubeOptions:
    """Of the YouTube ranking model.

    Attributes:
        shared: layer widths below the experts, which have those of the bottom.
        experts: number of experts; few, so that objectives share.
        biased: objectives whose labels depend on the position; ``None`` = the binary ones on all rows, such as clicks.
        positions: number of positions told apart; the last one stands for all behind it too.
        device: a categorical field whose every value has position effects of its own; ``None`` = the same for all.
        position_dropout: share of the training rows whose position is hidden. They teach the model the level of a row
            without a position, which is what it serves. The more, the more of the positions' effect stays in the
            scores; with none, the order of the scores is best and their level means nothing.
    """

    shared: tuple[int, ...] = (64,)
    experts: int = 4
    biased: tuple[str, ...] | None = None
    positions: int = 50
    device: str | None = None
    position_dropout: float = 0.1


class SharedThenMMoE(FlatTrunk):
    """:class:`MMoE` on top of shared layers, so that the gates read few inputs (RecSys 2019, section 4.3).

    Args:
        width_in: W.
        n_objectives: K.
        shared: widths of the layers below.
        experts: E.
        hidden: layer widths of every expert.
    """

    def __init__(self, width_in: int, n_objectives: int, shared: Sequence[int], experts: int, hidden: Sequence[int],
                 dropout: float = 0.0) -> None:
        super().__init__(hidden[-1], n_objectives)
        self.shared = MLP(width_in, shared, dropout)
        self.mixture = MMoE(self.shared.width, n_objectives, experts, hidden, dropout)

    def forward(self, flat: Tensor) -> list[Tensor]:
        """See :class:`Trunk`."""
        return self.mixture(self.shared(flat))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The shared layers and the experts."""
        yield from self.shared.parameters()
        yield from self.mixture.shared_parameters()

    def gates(self, flat: Tensor) -> Tensor:
        """Mixing weights [B, K, E]."""
        return self.mixture.gates(self.shared(flat))

    def flops(self) -> int:
        """Those of the mixture."""
        return self.mixture.flops()


class PositionTower(Side):
    """A logit per position, and per device if told, added to the biased objectives in training.

    The shallow tower of "Recommending What Video to Watch Next: A Multitask Ranking System", RecSys 2019, section 4.4:
    ``logit_k = main_k(x) + b_k[position, device]``. An unknown position adds 0 for ever, in training and when serving:
    the level of such rows is part of the main model, and the b are differences from it.

    What belongs to the position and what to the item is told apart by the noise in the log's order. On a log that was
    sorted by the items' true worth alone nothing tells it.

    Args:
        schema: the log.
        biased: objectives it adds to.
        positions: P.
        device: a categorical field, or ``None``.
        dropout: share of the rows whose position is hidden in training.

    Attributes:
        weight: [P, V, biased objectives], V being the device's values, 1 without; starts at 0.
    """

    place: Tensor

    def __init__(self, schema: Schema, biased: Sequence[str], positions: int, device: str | None = None,
                 dropout: float = 0.1) -> None:
        super().__init__()
        self.names, self.dropout = tuple(biased), dropout
        columns = torch.tensor([schema.objective_index(name) for name in biased])
        self.register_buffer("place", nn.functional.one_hot(columns, len(schema.objectives)).float(), persistent=False)
        self.device = None if device is None else schema.id_index(device)
        values = 1 if self.device is None else schema.id_fields[self.device].vocab
        self.weight = nn.Parameter(torch.zeros(positions, values, len(biased)))

    @property
    def bias(self) -> Tensor:
        """The logits b [P, V, biased objectives]."""
        return REACH * self.weight

    def forward(self, batch: Batch) -> Tensor:
        """[B, K], 0 in rows without a position and for objectives that are not biased."""
        position = batch.position.long()
        if self.training and self.dropout:
            hidden = torch.rand(len(position), device=position.device) < self.dropout
            position = position.masked_fill(hidden, 0)
        row = (position - 1).clamp(0, len(self.weight) - 1)
        device = torch.zeros_like(row) if self.device is None else batch.ids[:, self.device].long()
        bias = REACH * self.weight[row, device] * (position > 0).unsqueeze(1)  # [B, biased]
        with full_precision(bias):
            return bias @ self.place

    def check(self, rows: Rows) -> None:
        """Refuse rows of which none has a position."""
        if not rows.position.any():
            raise InputError("outputs/encode", "position", 0, "no row has a position, and youtube learns what they do",
                             "set data.position, or take youtube out of retrain.models")

    def save(self, folder: Path) -> None:
        """``position_bias.csv``: objective, id of the device (0 if there is none), position from 1, logit."""
        bias = self.bias.detach().cpu()
        with (folder / CURVE).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["objective", "device", "position", "logit"])
            writer.writerows([name, device, row + 1, f"{bias[row, device, k]:.6g}"]
                             for k, name in enumerate(self.names) for device in range(bias.shape[1])
                             for row in range(bias.shape[0]))


def youtube(site: Site) -> Parts:
    """Experts above shared layers, a position tower, every head trained on the rows of its own space."""
    c, o = site.config, site.options
    trunk = SharedThenMMoE(site.width, site.n_objectives, o.shared, o.experts, c.bottom, c.dropout)
    side = PositionTower(site.schema, biased_of(site.schema, o.biased), o.positions, device_of(site.schema, o.device),
                         o.position_dropout)
    return Parts(trunk, chains.independent(site.schema.objectives), c.tower, side=side)


def biased_of(schema: Schema, given: Sequence[str] | None) -> tuple[str, ...]:
    """The objectives that positions act on.

    Raises:
        InputError: an unknown one, or none.
    """
    names = [o.name for o in schema.objectives]
    chosen = [o.name for o in schema.objectives if o.kind == "binary" and o.after is None] if given is None else given
    for name in chosen:
        if name not in names:
            raise InputError("params.yaml", "retrain.youtube.biased", name, "no such objective",
                             f"use {', '.join(names)}")
    if not chosen:
        raise InputError("params.yaml", "retrain.youtube.biased", given, "the position tower has nothing to add to",
                         f"name one of {', '.join(names)} at least, or use mmoe")
    return tuple(chosen)


def device_of(schema: Schema, name: str | None) -> str | None:
    """The field whose values have position effects of their own.

    Raises:
        InputError: it is no categorical field of the log.
    """
    fields = [f.name for f in schema.id_fields if f.kind == "categorical"]
    if name is not None and name not in fields:
        raise InputError("params.yaml", "retrain.youtube.device", name, "no such categorical field",
                         f"use one of {', '.join(fields)}, or null")
    return name
