"""DUPN: one representation of the user, made from the history, that all objectives share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Field, Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask import chains
from ctrmodels.multitask.parts import Parts, Site, SplitTrunk
from ctrmodels.multitask.requirements import check_aligned, item_histories, same_length, side_names
from ctrmodels.nn.dropout import Dropout
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.flat import flat_width
from ctrmodels.nn.sequence import PropertyGatedLSTM, StepAttention
from ctrmodels.nn.sides import SideFeatures
from ctrmodels.nn.towers import MLP

HISTORIES, PROPERTIES = "retrain.dupn.histories", "retrain.dupn.properties"


@dataclass(frozen=True)
class DUPNOptions:
    """Of DUPN.

    Attributes:
        histories: the sequences, ``of`` fields of the item, that together say which item each step was, such as its id,
            its shop and its category; empty = the first that the log has.
        properties: the sequences that say how each of these steps was met, such as the action, the scenario or the time
            since; the gates read them. All have a step per event of the histories.
        units: width of a state, and so of what the history becomes.
        profile: width of what the user's and the request's other fields become.
        attention: widths of the MLP that weighs the states.
    """

    histories: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    units: int = 64
    profile: int = 64
    attention: tuple[int, ...] = (32,)


class DUPN(SplitTrunk):
    """A representation of the user and the request, beside what describes the item.

    ``user = [sum_t a_t h_t; MLP(u)]`` for the states h of a property-gated LSTM over the history, weighted by
    ``a = softmax_t MLP([h_t; p_t; u])``, where u are the other fields of user and request: the query among them, the
    item never, so that one user is computed once for all the items of a request. "Perceive Your Users in Depth:
    Learning Universal User Representations from Multiple E-commerce Tasks", KDD 2018.

    Args:
        schema: the log.
        spec: embedding.
        width_in: W.
        n_objectives: K.
        options: see there.
        dropout: on what is read of the fields.

    Raises:
        InputError: the log has no history of items, or not the sequences that are named.
    """

    def __init__(self, schema: Schema, spec: ArchSpec, width_in: int, n_objectives: int, options: DUPNOptions,
                 dropout: float = 0.0) -> None:
        dim = spec.out_dim
        histories = item_histories("dupn", schema, options.histories, HISTORIES)
        properties = _properties(schema, histories, options)
        read = {f.name for f in (*histories, *properties)}
        profile = SideFeatures(schema, dim, set(side_names("dupn", schema, "user", "context")) - read)
        item = SideFeatures(schema, dim, side_names("dupn", schema, "item"))
        # Behind the fields, flat has what groups of fields and micro-networks give.
        plain = flat_width(len(schema.id_fields) + len(schema.sequence_fields), dim, len(schema.numeric_fields))
        width_user = options.units + (options.profile if profile.width else 0)
        super().__init__(width_user + item.width + width_in - plain, n_objectives)
        self.histories, self.properties = [f.name for f in histories], [f.name for f in properties]
        self.n_steps, self.plain = histories[0].max_length, plain
        self.profile_features, self.item_features, self.dropout = profile, item, Dropout(dropout)
        width_property = len(properties) * dim
        self.lstm = PropertyGatedLSTM(len(histories) * dim, width_property, options.units)
        self.attention = StepAttention(options.units + width_property, profile.width, options.attention)
        self.profile = MLP(profile.width, (options.profile,)) if profile.width else None

    def user(self, encoded: Encoded) -> Tensor:
        """See :class:`SplitTrunk`; float32 [B, U]."""
        features, states, steps, there = self._read(encoded)
        parts = [self.attention(states, steps, features, there)]
        if self.profile is not None:
            parts.append(self.profile(features).float())
        return torch.cat(parts, 1)

    def joined(self, user: Tensor, encoded: Encoded) -> list[Tensor]:
        """See :class:`SplitTrunk`."""
        item = self.dropout(self.item_features(encoded.fields, encoded.numeric))
        both = torch.cat([user.expand(item.shape[0], -1), item, encoded.flat[:, self.plain:].float()], 1)
        return [both] * self.n_objectives

    def weights(self, encoded: Encoded) -> Tensor:
        """What each step counts in the user's representation: float32 [B, L], summing to 1, or 0 without any step."""
        features, _, steps, there = self._read(encoded)
        return self.attention.weights(steps, features, there)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""
        return self.parameters()

    def flops(self) -> int:
        """LSTM and attention, at full histories."""
        return self.lstm.flops(self.n_steps) + self.attention.flops(self.n_steps, self.lstm.width)

    def _read(self, encoded: Encoded) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Profile features [B, C], states [B, L, H], what attention reads of steps [B, L, S], and which are there."""
        if self.training:
            check_aligned(encoded.batch, (*self.histories, *self.properties), PROPERTIES)
        features = self.dropout(self.profile_features(encoded.fields, encoded.numeric))
        items = torch.cat([encoded.steps(name) for name in self.histories], 2)
        properties = torch.cat([items[:, :, :0], *(encoded.steps(name) for name in self.properties)], 2)
        states = self.lstm(items, properties)
        there = encoded.batch.sequences[self.histories[0]] >= 0
        return features, states, torch.cat([states, properties], 2), there


def _properties(schema: Schema, histories: list[Field], options: DUPNOptions) -> list[Field]:
    possible = {f.name: f for f in schema.sequence_fields if f.side != "item" and f not in histories}
    for name in options.properties:
        if name not in possible:
            raise InputError("params.yaml", PROPERTIES, name, "no further sequence of the user",
                             f"use {', '.join(possible)}" if possible else "leave it out")
    return same_length([histories[0], *(possible[name] for name in options.properties)], PROPERTIES)[1:]


def dupn(site: Site) -> Parts:
    """One representation of the user for all; each tower starts with the bottom's layers."""
    c = site.config
    trunk = DUPN(site.schema, site.spec, site.width, site.n_objectives, site.options, c.dropout)
    return Parts(trunk, chains.independent(site.schema.objectives), (*c.bottom, *c.tower))
