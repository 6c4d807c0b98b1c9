"""A model in two halves: what it knows of the user and the request, computed once, and what each item adds.

Notation: R requests, N items of one request, F fields of which F_u describe the user or the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ctrmodels.archspec import model_fields
from ctrmodels.data.dataset import PADDING, Batch
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.multitask.parts import SplitTrunk
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.nn.heads import WideHead
from ctrmodels.nn.interest import Steps
from ctrmodels.nn.table import Layout

# Names of what a state holds; FIELDS goes before the name of a table, STEPS and THERE before that of a history.
USER, WIDE, FIELDS, STEPS, THERE = "state.user", "state.wide", "state.fields.", "state.steps.", "state.there."


class _Half(nn.Module):
    """One half of ``model`` and the columns of a batch that it reads.

    Attributes:
        schema: its own fields alone.
        places: of its fields among all of the model's.
        order, id_order, numeric_order: bring its own fields, ids or values, with the others' behind, into the model's
            order.
    """

    order: Tensor
    id_order: Tensor
    numeric_order: Tensor
    places: Tensor

    def __init__(self, model: MultiObjectiveModel, schema: Schema, items: bool) -> None:
        super().__init__()
        if not isinstance(model.trunk, SplitTrunk):
            raise InputError("export_split", "model", type(model.trunk).__name__,
                             "has no part that depends on the user alone", "export dupn, or the whole model at once")
        encoder, wide = model.encoder, model.wide
        assert isinstance(encoder, FeatureEncoder) and isinstance(wide, WideHead)  # as that trunk needs
        self.encoder, self.wide = encoder, wide
        mine = {f.name for f in schema.fields if (f.side == "item") == items}
        self.model, self.trunk = model, model.trunk
        self.schema = replace(schema, fields=tuple(f for f in schema.fields if f.name in mine))
        self.others = [f.name for f in schema.sequence_fields if f.name not in mine]
        self.attended = [f.name for f in encoder.interests.histories if f.side != "item"]
        places = [i for i, name in enumerate(model_fields(schema)) if name in mine]
        self.layout = Layout(schema, places)
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)
        for kind, names in (("order", model_fields(schema)), ("id_order", [f.name for f in schema.id_fields]),
                            ("numeric_order", [f.name for f in schema.numeric_fields])):
            self.register_buffer(kind, _order([name in mine for name in names]), persistent=False)

    def batch(self, ids: Tensor, numeric: Tensor, sequences: Mapping[str, Tensor]) -> Batch:
        """A batch of all fields, with the first id, 0, or no step in the columns of the other half."""
        n = ids.shape[0]
        other = {name: ids.new_full((n, 1), PADDING) for name in self.others}
        return Batch(_completed(ids, self.id_order), _completed(numeric, self.numeric_order),
                     {**sequences, **other}, numeric.new_zeros(n, 0), ids.new_zeros(n))


class UserHalf(_Half):
    """What a request's user and context become: a state that all its items share.

    Args:
        model: trained.
        schema: the log.

    Raises:
        InputError: the model's trunk is no :class:`~ctrmodels.multitask.parts.SplitTrunk`.
    """

    def __init__(self, model: MultiObjectiveModel, schema: Schema) -> None:
        super().__init__(model, schema, items=False)

    def forward(self, ids: Tensor, numeric: Tensor, sequences: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """int32 [R, F_u], float32 [R, N_u] and [R, L] by name, all of the user's fields alone → the state.

        Returns:
            ``state.user`` [R, U], the representation, of use elsewhere too; ``state.wide`` [R, K], the linear part;
            ``state.fields.TABLE`` [R, F_u, D] for every table; of a history that is looked at from the item,
            ``state.steps.NAME`` [R, L, D] and ``state.there.NAME`` [R, L], 1 where a step is there, else 0: how much a
            step counts is known per item alone.
        """
        batch, encoder, wide = self.batch(ids, numeric, sequences), self.encoder, self.wide
        by_name, lookup = encoder.embed(batch), self.layout(batch)
        state = {FIELDS + name: fields.index_select(1, self.places) for name, fields in by_name.items()}
        steps = encoder.steps(batch)
        for name in self.attended:
            state |= {STEPS + name: steps[name].embeddings, THERE + name: steps[name].there.float()}
        return {USER: self.trunk.user(encoder.encode(batch, lookup, by_name, steps)),
                WIDE: wide.weights.sums(lookup) + batch.numeric @ wide.numeric, **state}


class ItemHalf(_Half):
    """The scores of a request's items, from the state of :class:`UserHalf`; takes the same arguments."""

    def __init__(self, model: MultiObjectiveModel, schema: Schema) -> None:
        super().__init__(model, schema, items=True)

    def forward(self, state: Mapping[str, Tensor], ids: Tensor, numeric: Tensor,
                sequences: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of one request, R = 1, and N items' int32 [N, F - F_u], float32 [N, ..] and [N, L] by name.

        Returns:
            Scores by name, [N].
        """
        n, model, batch = ids.shape[0], self.model, self.batch(ids, numeric, sequences)
        mine = {name: fields.index_select(1, self.places) for name, fields in self.encoder.embed(batch).items()}
        by_name = {name: torch.cat([fields, state[FIELDS + name].expand(n, -1, -1)], 1).index_select(1, self.order)
                   for name, fields in mine.items()}
        steps = self.encoder.steps(batch) | {
            name: Steps(state[STEPS + name].expand(n, -1, -1), state[THERE + name].expand(n, -1) > 0)
            for name in self.attended}
        # The linear part is that of the items, for the look-up and the values are theirs; the user's stands beside it.
        encoded = self.encoder.encode(batch, self.layout(batch), by_name, steps)
        outputs = model.outputs(encoded, self.trunk.joined(state[USER], encoded))
        return model.scores(model.beside(outputs, state[WIDE]))


def _order(mine: list[bool]) -> Tensor:
    """Where each of all columns lies when one's own columns come first and the others behind them."""
    own, other = [i for i, m in enumerate(mine) if m], [i for i, m in enumerate(mine) if not m]
    return torch.tensor([*own, *other], dtype=torch.long).argsort()


def _completed(own: Tensor, order: Tensor) -> Tensor:
    """[n, own] → [n, all] with zeros in the others' columns."""
    return torch.cat([own, own.new_zeros(own.shape[0], len(order) - own.shape[1])], 1).index_select(1, order)
