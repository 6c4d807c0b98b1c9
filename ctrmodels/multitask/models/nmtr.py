"""NMTR: behaviours from the first to the last, each predicted on top of what was predicted of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ctrmodels.data.schema import Objective, Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.chains import Chain, Event, path
from ctrmodels.multitask.parts import Parts, Site, Trunk
from ctrmodels.multitask.requirements import side_names
from ctrmodels.multitask.spaces import ALL
from ctrmodels.nn.encoder import Encoded
from ctrmodels.nn.sides import SideFeatures
from ctrmodels.nn.towers import MLP

Carry = Literal["logit", "probability"]
Interaction = Literal["gmf", "mlp", "neumf"]


@dataclass(frozen=True)
class NMTROptions:
    """Of NMTR.

    Attributes:
        behaviours: binary objectives from the first behaviour to the last; empty = all, in the order of
            data.objectives. Others stand for themselves.
        carry: what of a behaviour the next one is predicted on top of: its ``logit``, or its ``probability``, which
            lies between 0 and 1 and so moves a logit little.
        interaction: of user and item, one per behaviour: ``gmf``, their product weighted by dimension; ``mlp``, the
            widths ``bottom`` and ``tower`` on both side by side; ``neumf``, both together.
        width: d, of the user and of the item.
    """

    behaviours: tuple[str, ...] = ()
    carry: Carry = "logit"
    interaction: Interaction = "neumf"
    width: int = 32


@dataclass(frozen=True)
class Behaviour(Event):
    """A behaviour predicted on top of those before it, so that its logit is no single head.

    ``s_r = c(s_(r-1)) + a_r`` for the heads a_1 .. a_r and ``p_r = sigmoid(s_r)``, on all rows. "Neural Multi-Task
    Recommendation from Multi-Behavior Data", ICDE 2019, which carries a prediction without saying whether c is the
    identity or the sigmoid.

    In the space of an earlier behaviour it is ``min(p_r / p_parent, 1)``: nothing makes p_r the smaller one.

    Attributes:
        products, given: none.
        heads: a_1 .. a_r, the behaviour itself last.
        condition: the heads of the behaviour whose space this is, if it is not all rows.
        carry: c.
    """

    heads: tuple[str, ...] = ()
    condition: tuple[str, ...] = ()
    carry: Carry = "logit"

    def log_probability(self, logits: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Event`."""
        joint = logsigmoid(self._score(logits, self.heads))
        if not self.condition:
            return joint
        return (joint - logsigmoid(self._score(logits, self.condition))).clamp(max=0.0)

    def _score(self, logits: Mapping[str, Tensor], heads: Sequence[str]) -> Tensor:
        """s_r [B] of the last of ``heads``."""
        score = logits[heads[0]]
        for head in heads[1:]:
            score = logits[head] + (score if self.carry == "logit" else score.sigmoid())
        return score


class UserItem(Trunk):
    """A user's and an item's vector, shared by all behaviours, and how each behaviour makes them interact.

    ``p = P x_user`` and ``q = Q x_item`` with d values each. ``gmf``: ``p * q``; ``mlp``: ``[p; q]``; ``neumf``:
    ``[p * q; MLP_r([p; q])]``, its MLP the behaviour's own ("Neural Collaborative Filtering", WWW 2017, section 3.4).
    Users come with their context, and with the interest that their histories have in the item where the encoder looks
    at them from there.

    Args:
        schema: the log.
        dim: D of the embeddings.
        n_objectives: K.
        width: d.
        interaction: which.
        hidden: widths of NeuMF's MLP.
        dropout: of that.
        interest: columns of the encoder's interests.

    Raises:
        InputError: no field describes the user, or none the item.
    """

    def __init__(self, schema: Schema, dim: int, n_objectives: int, width: int, interaction: Interaction,
                 hidden: Sequence[int], dropout: float = 0.0, interest: int = 0) -> None:
        layers = tuple(hidden) if interaction == "neumf" else ()
        super().__init__({"gmf": width, "mlp": 2 * width, "neumf": width + sum(layers[-1:])}[interaction], n_objectives)
        self.interaction = interaction
        self.user = SideFeatures(schema, dim, side_names("nmtr", schema, "user", "context"))
        self.item = SideFeatures(schema, dim, side_names("nmtr", schema, "item"))
        self.p = nn.Linear(self.user.width + interest, width, bias=False)
        self.q = nn.Linear(self.item.width, width, bias=False)
        self.own = nn.ModuleList(MLP(2 * width, layers, dropout) for _ in range(n_objectives if layers else 0))

    def represent(self, encoded: Encoded) -> list[Tensor]:
        """See :class:`Trunk`."""
        p = self.p(torch.cat([self.user(encoded.fields, encoded.numeric), *encoded.interests], 1))
        q = self.q(self.item(encoded.fields, encoded.numeric))
        if self.interaction == "gmf":
            return [p * q] * self.n_objectives
        both = torch.cat([p, q], 1)
        if self.interaction == "mlp":
            return [both] * self.n_objectives
        return [torch.cat([p * q, own(both)], 1) for own in self.own]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """What makes the user's and the item's vector."""
        yield from self.p.parameters()
        yield from self.q.parameters()


def cascade(objectives: Sequence[Objective], order: Sequence[str], carry: Carry) -> Chain:
    """Every behaviour of ``order`` on top of those before it, the other binary objectives on their own; all of them
    trained on all rows with a known label."""
    events = []
    heads = {name: tuple(order[:n]) for n, name in enumerate(order, 1)}
    binary = [o for o in objectives if o.kind == "binary"]
    for o in binary:
        own = heads.get(o.name, (o.name,))
        events.append(Behaviour(o.name, ALL, (), heads=own, carry=carry))
        if o.after is not None:
            events.append(Behaviour(o.name, o.after, (), heads=own, condition=heads.get(o.after, (o.after,)),
                                    carry=carry))
    return Chain(tuple(events), tuple(f"{o.name}@{ALL}" for o in binary))


def nmtr(site: Site) -> Parts:
    """A user's and an item's vector, an interaction per behaviour, and their sum from the first behaviour on.

    Negatives are the log's own rows without the behaviour. The paper samples items that the user never met, since its
    data are positives alone; beside logged impressions such rows would move the probabilities of all rows.

    Raises:
        InputError: fewer than two behaviours, a name that is none, one before its parent, or no field of the user or of
            the item.
    """
    o, c = site.options, site.config
    order = _order(site.schema, o.behaviours)
    trunk = UserItem(site.schema, site.spec.out_dim, site.n_objectives, o.width, o.interaction, c.bottom, c.dropout,
                     site.interest)
    tower = (*c.bottom, *c.tower) if o.interaction == "mlp" else ()
    return Parts(trunk, cascade(site.schema.objectives, order, o.carry), tower)


def _order(schema: Schema, names: Sequence[str]) -> tuple[str, ...]:
    binary = [o.name for o in schema.objectives if o.kind == "binary"]
    for name in names:
        if name not in binary or names.count(name) > 1:
            raise InputError("params.yaml", "retrain.nmtr.behaviours", name,
                             "named twice" if name in binary else "no binary objective", f"use {', '.join(binary)}")
    order = tuple(names or binary)
    if len(order) < 2:
        raise InputError("params.yaml", "data.objectives", list(order), "nmtr needs two binary objectives, the "
                         "behaviours from the first to the last", "add one, or take nmtr out of retrain.models")
    for n, name in enumerate(order):
        late = set(path(schema.objectives, name)[:-1]) & set(order[n:])
        if late:
            raise InputError("params.yaml", "retrain.nmtr.behaviours", name, f"stands before {sorted(late)[0]}, after "
                             "which alone it can happen", "name the behaviours from the first to the last")
    return order
