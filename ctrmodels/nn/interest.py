"""What the histories of a row say about its own item: target attention, as encoders and models take it in.

Notation: B rows, F fields, L steps, D width, H histories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor, nn

from ctrmodels.archspec import model_fields
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Field, Schema
from ctrmodels.nn.attention import InterestPooling
from ctrmodels.nn.embedding import FieldEmbedding

UNIT = (36,)  # widths of an activation unit


@dataclass(frozen=True)
class Attended:
    """What an encoder looks at from the row's own fields.

    Attributes:
        histories: H sequences, each ``of`` a field.
        softmax: whether the weights of a history are normalised: a long one then weighs no more than a short one.
    """

    histories: tuple[Field, ...] = ()
    softmax: bool = False


BY_MEAN = Attended()  # nothing: sequences are the means of their steps alone


class Steps(NamedTuple):
    """One history of a batch, step by step.

    Attributes:
        embeddings: [B, L, D].
        there: bool [B, L], false where a step is padding.
    """

    embeddings: Tensor
    there: Tensor


def histories_of_fields(schema: Schema) -> dict[str, Field]:
    """The sequences ``of`` a field of the row, by name: those that can be looked at from that field."""
    return {f.name: f for f in schema.sequence_fields if f.of is not None}


class Interests(nn.ModuleList):
    """An :class:`~ctrmodels.nn.attention.InterestPooling` per history, its candidate being the row's field that the
    history is ``of``: the row's item for the items seen before, its category for their categories.

    "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, equation 3.

    Args:
        schema: the log.
        dim: D.
        histories: H sequences, each ``of`` a field.
        hidden, softmax, dice: of the activation units.

    Attributes:
        places: of each history, where it and its candidate stand among the F fields.
        width: H * D.
    """

    def __init__(self, schema: Schema, dim: int, histories: Sequence[Field], hidden: Sequence[int] = UNIT,
                 softmax: bool = False, dice: bool = False) -> None:
        super().__init__(InterestPooling(dim, hidden, softmax, dice) for _ in histories)
        place = model_fields(schema).index
        self.histories, self.width = tuple(histories), len(histories) * dim
        self.places = [(place(f.name), place(f.of or f.name)) for f in histories]

    def steps(self, embedding: FieldEmbedding, batch: Batch) -> dict[str, Steps]:
        """Every history's steps by its name, from the table that its candidate is from."""
        return {f.name: Steps(embedding.steps(batch, f.name), batch.sequences[f.name] >= 0) for f in self.histories}

    def forward(self, fields: Sequence[Tensor], steps: Mapping[str, Steps]) -> tuple[Tensor, ...]:
        """[B, D] of each of the F fields, and :meth:`steps` → [B, D] per history, zero where it has no step."""
        return tuple(pooling(fields[candidate], *steps[f.name])
                     for pooling, f, (_, candidate) in zip(self, self.histories, self.places, strict=True))

    def flops(self) -> int:
        """Operations per row, at full histories, beyond one use of the ``Linear`` layers."""
        return sum(cast(InterestPooling, pooling).flops(f.max_length)
                   for pooling, f in zip(self, self.histories, strict=True))
