"""Micro-networks: for every chosen combination of fields a small network of its own, described by its genes.

Notation: B rows, F fields, D width of their embeddings, p fields of a combination.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctrmodels.archspec import MAIN, Interaction
from ctrmodels.nn.norm import BatchNorm

SUM, HADAMARD, CONCAT, PRODUCT = 1, 2, 3, 4
ROWS = 256  # computed at a time: what many micro-networks take in training is that of so many rows, not of the batch
VALUES = 1 << 18  # of the vectors of few micro-networks, computed at a time: more rows, since every part has its price


def cost_of(genes: Sequence[int], order: int, dim: int) -> tuple[int, int]:
    """Parameters, and operations per row, of one micro-network of ``order`` fields of width ``dim``."""
    parameters = flops = 0
    for place, gene in enumerate(genes):
        n_inputs = order + (place > 0)
        if gene != CONCAT:
            flops += (n_inputs - 1) * dim
        if gene in (CONCAT, PRODUCT):
            weights = dim * dim * (n_inputs if gene == CONCAT else 1)
            parameters += weights + dim
            flops += 2 * weights
    return parameters, flops


class Operation(nn.Module):
    """What n micro-networks do in one slot, all the same, with k inputs of width D each::

        1  sum               sum of the inputs
        2  Hadamard          product of the inputs, value by value
        3  concatenation     relu([inputs] W + b)
        4  general product   relu((product of the inputs) W + b)

    Args:
        gene: which of these.
        n: number of micro-networks.
        n_inputs: k.
        dim: D.
    """

    def __init__(self, gene: int, n: int, n_inputs: int, dim: int) -> None:
        super().__init__()
        self.gene, self.n, self.n_inputs = gene, n, n_inputs
        self.weight: nn.Parameter | None = None
        if gene in (CONCAT, PRODUCT):
            width = dim * (n_inputs if gene == CONCAT else 1)
            self.weight = nn.Parameter(torch.empty(n, width, dim).uniform_(-width**-0.5, width**-0.5))
            self.bias = nn.Parameter(torch.empty(n, 1, dim).uniform_(-width**-0.5, width**-0.5))

    def forward(self, *inputs: Tensor) -> Tensor:
        """k times [n, B, D] → [n, B, D]."""
        if self.gene == CONCAT:
            combined = torch.cat(inputs, 2)
        else:
            combined = inputs[0]
            for other in inputs[1:]:
                combined = combined + other if self.gene == SUM else combined * other
        return combined if self.weight is None else torch.baddbmm(self.bias, combined, self.weight).relu()


class Slot(nn.Module):
    """One slot of all micro-networks of one order that have it; those that do the same are one batched product.

    Args:
        interactions: m of them, ordered by what they do here.
        place: of the slot, from 0.
        dim: D.

    Attributes:
        fields: [p, m], of every one.
    """

    fields: Tensor

    def __init__(self, interactions: Sequence[Interaction], place: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("fields", torch.tensor([i.fields for i in interactions]).T.contiguous(), persistent=False)
        alike = Counter(i.genes[place] for i in interactions)
        self.sizes = list(alike.values())
        n_inputs = interactions[0].order + (place > 0)
        self.operations = nn.ModuleList(Operation(gene, n, n_inputs, dim) for gene, n in alike.items())

    def forward(self, fields: Tensor, before: Tensor | None) -> Tensor:
        """[F, B, D] and the outputs of the slot before, in the order of this one's micro-networks → [m, B, D]."""
        inputs = [fields.index_select(0, place).split(self.sizes) for place in self.fields]
        if before is not None:
            inputs.insert(0, before.split(self.sizes))
        return torch.cat([operation(*parts) for operation, *parts in zip(self.operations, *inputs, strict=True)])


class SameOrder(nn.Module):
    """The micro-networks of one order, slot by slot.

    Args:
        interactions: M of them.
        dim: D.
    """

    def __init__(self, interactions: Sequence[Interaction], dim: int) -> None:
        super().__init__()
        self.slots = nn.ModuleList()
        self.going_on: list[int] = []  # how many have a further slot
        ended: list[Interaction] = []
        alive = _ordered(interactions, 0)
        while alive:
            place = len(self.slots)
            self.slots.append(Slot(alive, place, dim))
            further = _ordered([i for i in alive if len(i.genes) > place + 1], place + 1)
            last = [i for i in alive if len(i.genes) == place + 1]
            self._register(f"after{place}", alive, [*further, *last])
            self.going_on.append(len(further))
            ended += last
            alive = further
        self._register("order", ended, interactions)

    def _register(self, name: str, given: Sequence[Interaction], wanted: Sequence[Interaction]) -> None:
        places = {i.fields: place for place, i in enumerate(given)}
        self.register_buffer(name, torch.tensor([places[i.fields] for i in wanted]), persistent=False)

    def forward(self, fields: Tensor) -> Tensor:
        """[F, B, D] → [B, M * D], in the order of the interactions."""
        before: Tensor | None = None
        ended = []
        for place, (slot, n) in enumerate(zip(self.slots, self.going_on, strict=True)):
            outputs = slot(fields, before).index_select(0, getattr(self, f"after{place}"))
            before, last = outputs.split([n, len(outputs) - n])
            ended.append(last)
        return torch.cat(ended).transpose(0, 1).index_select(1, cast(Tensor, self.order)).flatten(1)


def _ordered(interactions: Sequence[Interaction], place: int) -> list[Interaction]:
    return sorted(interactions, key=lambda i: i.genes[place])


class MicroNets(nn.Module):
    """A vector per micro-network of an ArchSpec.

    The first slot of a micro-network reads the p embeddings of its fields, every further one the output of the slot
    before and the embeddings again; its vector is the output of its last slot. After "AutoFeature: Searching for
    Feature Interactions and Their Architectures for Click-through Rate Prediction", CIKM 2020; how slots are wired is
    reconstructed, since there is no public code.

    Ours is that they read embeddings that are normalised over the batch, without scale and shift, as groups do
    (:mod:`ctrmodels.nn.group`). Embeddings start small and products of them smaller by as much again, so that on a log
    of few positives the MLP overfits what single fields say before it has heard of any product.

    Of a large batch, rows are computed some at a time, and in training their activations once more in the backward pass
    instead of being kept: they take the memory of ``ROWS`` rows, or of ``VALUES`` values of the vectors, and the
    processor's cache holds more of them.

    Args:
        interactions: of any orders, all micronets.
        n_fields: F.
        dim: D.

    Attributes:
        interactions: in the order of the vectors, which is by p.
        width: of the vectors together, M * D; 0 without micro-networks.

    Raises:
        ValueError: genes or fields that no micro-network has.
    """

    def __init__(self, interactions: Sequence[Interaction], n_fields: int, dim: int) -> None:
        super().__init__()
        for i in interactions:
            if not i.genes or not set(i.genes) <= {SUM, HADAMARD, CONCAT, PRODUCT}:
                raise ValueError(f"a micro-network of the genes {i.genes}: it takes one or more of 1, 2, 3 and 4")
            if not 2 <= len(set(i.fields)) == len(i.fields):
                raise ValueError(f"a micro-network of the fields {i.fields}: it takes two or more different ones")
            if i.table != MAIN:
                raise ValueError(f"a micro-network of the table {i.table!r}: it reads the network's own embedding")
        if len({i.fields for i in interactions}) < len(interactions):
            raise ValueError("two micro-networks of the same fields: a combination has one")
        self.dim = dim
        self.norm = BatchNorm(n_fields * dim) if interactions else None
        self.interactions = tuple(sorted(interactions, key=lambda i: i.order))
        self.width = dim * len(interactions)
        self.orders = nn.ModuleList(SameOrder(list(same), dim)
                                    for _, same in groupby(self.interactions, lambda i: i.order))

    def forward(self, fields: Tensor) -> list[Tensor]:
        """[B, F, D] → [B, M * D] of every order."""
        if self.norm is None:
            return []
        fields = self.norm(fields.flatten(1)).view(fields.shape)
        if torch.compiler.is_exporting():
            return [order(fields.transpose(0, 1)) for order in self.orders]
        if len(fields) <= (rows := max(ROWS, VALUES // self.width)):
            return [order(fields.transpose(0, 1)) for order in self.orders]
        parts = [part.transpose(0, 1).contiguous() for part in fields.split(rows)]  # [F, b, D] each
        return [torch.cat([self._of(order, part) for part in parts]) for order in self.orders]

    def _of(self, order: nn.Module, part: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(order, part, use_reentrant=False, preserve_rng_state=False))
        return cast(Tensor, order(part))

    def flops(self) -> int:
        """Operations per row."""
        normalised = 0 if self.norm is None else 2 * self.norm.num_features
        return normalised + sum(cost_of(i.genes, i.order, self.dim)[1] for i in self.interactions)
