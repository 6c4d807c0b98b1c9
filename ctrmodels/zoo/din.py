"""Deep interest network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Field, Schema
from ctrmodels.errors import InputError
from ctrmodels.nn.dice import Dice
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.interest import UNIT, Interests, histories_of_fields
from ctrmodels.nn.towers import MLP
from ctrmodels.zoo.base import CTRModel, without_interactions


class DIN(CTRModel):
    """``logit = MLP([e_1 .. e_F; numeric])`` where a history's part is its interest in the row's item.

    "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, equation 3: in place of the mean of its
    steps a history of items, or of their categories, gives the sum of its steps weighted by
    :class:`~ctrmodels.nn.interest.Interests` with the row's own item or category. Steps and item share a table.

    Example::

        fields = (Field("item", "categorical", 1000, "item"),
                  Field("recent", "sequence", 1000, "user", of="item", max_length=50))
        model = DIN(schema, ArchSpec.dense(schema, dim=16), objective="click")

    Args:
        schema: the log.
        spec: embedding allocation.
        objective: the binary objective to predict.
        hidden: widths of the MLP.
        histories: names of the sequences to attend to, each ``of`` a field; all such sequences by default. Others
            stay the mean of their steps.
        attention: widths of the activation unit.
        softmax: whether the weights of a history are normalised; the paper does not.
        dice: whether the activations are Dice (section 5.2) in place of ReLU.
        dropout: of the MLP.
        l2: weight of the embeddings' squared norm.
        embedding: takes the place of the spec's embedding.

    Raises:
        InputError: the log has no sequence ``of`` a field, or ``histories`` names something else.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, objective: str, hidden: Sequence[int] = (64, 32),
                 histories: Sequence[str] | None = None, attention: Sequence[int] = UNIT, softmax: bool = False,
                 dice: bool = False, dropout: float = 0.0, l2: float = 0.0,
                 embedding: FieldEmbedding | None = None) -> None:
        super().__init__(schema, without_interactions(spec), objective, dropout, l2, embedding)
        self.attention = Interests(
            schema, self.encoder.embedding.dim, _histories(schema, histories), attention, softmax, dice)
        self.deep = MLP(self.encoder.width, hidden, dropout, width_out=1, activation=Dice if dice else None)

    def score(self, encoded: Encoded) -> Tensor:
        """[B] logits."""
        fields = list(encoded.fields.unbind(1))
        interests = self.attention(fields, self.attention.steps(self.encoder.embedding, encoded.batch))
        for (place, _), interest in zip(self.attention.places, interests, strict=True):
            fields[place] = interest
        return self.deep(self.encoder.side_by_side(torch.stack(fields, 1), encoded.numeric)).squeeze(1)

    def flops(self) -> int:
        """Attention, at full histories."""
        return super().flops() + self.attention.flops()


def _histories(schema: Schema, names: Sequence[str] | None) -> list[Field]:
    """The sequences to attend to."""
    possible = histories_of_fields(schema)
    if not possible:
        raise InputError("params.yaml", "data.fields", [f.name for f in schema.sequence_fields],
                         "din needs a sequence `of` a field of the row, such as the items seen before",
                         "give the history its item field as `of:`, or take another model")
    for name in names or ():
        if name not in possible:
            raise InputError("params.yaml", "data.fields", name, "not a sequence `of` a field of the row",
                             f"use {', '.join(possible)}")
    return [possible[name] for name in (names or possible)]
