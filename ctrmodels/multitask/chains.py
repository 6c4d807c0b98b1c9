"""Probability chains as data: events as sums of products of heads, evaluated in log space.

A head is one logit per row. An event is a list of products of ``sigmoid(head)`` or ``1 - sigmoid(head)``;
their sum is its probability. Which events a loss looks at is part of the chain: heads that no supervised
event reads directly, such as ESMM's conversion head, are learned through products only.

    independent:  click@all = s(a)   conv@click = s(b), each on its own rows       conv@all = s(a) s(b)
    esmm:         click@all = s(a)   conv@all = s(a) s(b), both on all rows        conv@click = s(b)
    joint:        click@all = s(a)   conv@all = s(b), both on all rows             conv@click = s(b) / s(a)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.multitask.spaces import ALL


@dataclass(frozen=True)
class Factor:
    """``sigmoid(head)``, or ``1 - sigmoid(head)`` when ``complement``."""

    head: str
    complement: bool = False

    def log(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Its logarithm, [B], exact for any finite logit."""
        logit = logits[self.head]
        return logsigmoid(-logit if self.complement else logit)


@dataclass(frozen=True)
class Event:
    """What is predicted: an objective in a sample space, and its probability as a sum of products.

    The products must exclude each other, so that their probabilities add up.

    Attributes:
        objective, space: what is predicted, and where.
        products: of factors; their sum is the probability.
        given: factors that divide it: the condition of a conditional event whose joint event has a head of its own.
    """

    objective: str
    space: str
    products: tuple[tuple[Factor, ...], ...]
    given: tuple[Factor, ...] = ()

    @property
    def name(self) -> str:
        """``OBJECTIVE@SPACE``."""
        return f"{self.objective}@{self.space}"

    def log_probability(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Logarithm of the event's probability.

        Args:
            logits: head → [B].

        Returns:
            [B], at most 0.
        """
        products = [reduce(torch.add, [f.log(logits) for f in factors]) for factors in self.products]
        found = reduce(torch.logaddexp, products)
        for factor in self.given:
            found = found - factor.log(logits)
        # Nothing makes a joint event's own head smaller than its condition's.
        return found.clamp(max=0.0) if self.given else found


@dataclass(frozen=True)
class Chain:
    """The events of a model and the names of those a loss looks at."""

    events: tuple[Event, ...]
    supervised: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = set(self.supervised) - {e.name for e in self.events}
        if unknown:
            raise ValueError(f"supervised events that the chain does not have: {sorted(unknown)}")

    def log_probabilities(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Event name → log-probability [B]."""
        return {e.name: e.log_probability(logits) for e in self.events}


def independent(objectives: Sequence[Objective]) -> Chain:
    """A head per objective, conditional on its parent, each trained on the rows of its own space."""
    return Chain(_events(objectives), tuple(f"{o.name}@{o.space}" for o in _binary(objectives)))


def esmm(objectives: Sequence[Objective]) -> Chain:
    """ESMM (SIGIR 2018, eqs. 1-3): joint events trained on all rows, conditional heads never directly.

    Works for chains of any length: impression → click → cart → purchase.

    Raises:
        InputError: no binary objective has a parent, so there is no chain to model.
    """
    binary = _binary(objectives)
    if all(o.after is None for o in binary):
        raise InputError("params.yaml", "data.objectives", [o.name for o in binary],
                         "esmm needs a binary objective with `after:`, and none has it",
                         "declare which objective follows which, or take esmm out of retrain.models")
    return Chain(_events(objectives), tuple(f"{o.name}@{ALL}" for o in binary))


def joint(objectives: Sequence[Objective]) -> Chain:
    """A head per joint event, trained on all rows, as AITM has it (KDD 2021).

    Nothing in this chain makes a later step less likely than an earlier one; the score in the parent's space is the
    quotient of the two heads, and 1 where the later step is the more likely one.
    """
    events = []
    for o in _binary(objectives):
        events.append(Event(o.name, ALL, ((Factor(o.name),),)))
        if o.after is not None:
            events.append(Event(o.name, o.after, ((Factor(o.name),),), given=(Factor(o.after),)))
    return Chain(tuple(events), tuple(f"{o.name}@{ALL}" for o in _binary(objectives)))


def path(objectives: Sequence[Objective], name: str) -> tuple[str, ...]:
    """The objective and its ancestors, first ancestor first: ``("click", "cart", "purchase")``."""
    parents = {o.name: o.after for o in objectives}
    steps = [name]
    while (parent := parents[steps[-1]]) is not None:
        steps.append(parent)
    return tuple(reversed(steps))


def _binary(objectives: Sequence[Objective]) -> list[Objective]:
    return [o for o in objectives if o.kind == "binary"]


def _events(objectives: Sequence[Objective]) -> tuple[Event, ...]:
    events = []
    for o in _binary(objectives):
        events.append(Event(o.name, ALL, (tuple(Factor(step) for step in path(objectives, o.name)),)))
        if o.after is not None:
            events.append(Event(o.name, o.after, ((Factor(o.name),),)))
    return tuple(events)
