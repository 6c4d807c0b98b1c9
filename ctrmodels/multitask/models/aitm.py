"""AITM: along a funnel every step attends to what the step before hands on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.multitask import chains
from ctrmodels.multitask.models.esmm import Identity
from ctrmodels.multitask.models.own_layers import OwnLayers
from ctrmodels.multitask.parts import Auxiliary, Parts, Pass, Site, Transfer
from ctrmodels.nn.towers import MLP


@dataclass(frozen=True)
class AITMOptions:
    """Of AITM.

    Attributes:
        penalty: weight of the loss on rows where a later step is scored likelier than the one before; 0 = none.
    """

    penalty: float = 0.6


class AttentionTransfer(Transfer):
    """The adaptive information transfer of "Modeling the Sequential Dependence among Audience Multi-step Conversions
    with Multi-task Learning in Targeted Display Advertising", KDD 2021.

    ``z_1 = q_1`` and ``z_t = sum_u w_u h1(u)`` over ``u`` in ``{g(z_{t-1}), q_t}``, with ``w`` the softmax over the two
    of ``<h2(u), h3(u)> / sqrt(H)``. The step before hands on ``z_{t-1}``, in which all earlier steps are, and every
    step has maps of its own.

    Args:
        width: H.
        before: objective → the one before, by their numbers; an objective without an entry keeps its own state.
    """

    def __init__(self, width: int, before: Mapping[int, int]) -> None:
        super().__init__()
        self.before = dict(before)
        self.steps = nn.ModuleDict({str(k): TransferStep(width) for k in sorted(before)})

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """K states q [B, H] → K states z [B, H]; parents come before children."""
        found: list[Tensor] = []
        for k, own in enumerate(states):
            found.append(self.steps[str(k)](found[self.before[k]], own) if k in self.before else own)
        return found

    def flops(self) -> int:
        """Of all steps, beyond their ``Linear`` layers."""
        return sum(cast(TransferStep, step).flops() for step in self.steps.values())


class TransferStep(nn.Module):
    """One step of :class:`AttentionTransfer`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.hand_on = MLP(width, (width,))  # g
        self.value, self.key, self.query = (nn.Linear(width, width) for _ in range(3))  # h1, h2, h3

    def forward(self, before: Tensor, own: Tensor) -> Tensor:
        """``z_{t-1}`` [B, H] and ``q_t`` [B, H] → ``z_t`` [B, H]."""
        pair = self.pair(before, own)
        return torch.einsum("bu,buh->bh", self.weights(pair), self.value(pair))

    def pair(self, before: Tensor, own: Tensor) -> Tensor:
        """What is attended to, [B, 2, H]: what is handed on, and the step's own."""
        return torch.stack([self.hand_on(before), own], dim=1)

    def weights(self, pair: Tensor) -> Tensor:
        """[B, 2], summing to 1 over the two."""
        scores = torch.einsum("buh,buh->bu", self.key(pair), self.query(pair))
        return (scores / math.sqrt(self.width)).softmax(dim=1)

    def flops(self) -> int:
        """Three maps once more, since they are applied to two vectors, two inner products, and a weighted sum."""
        return 3 * 2 * self.width**2 + 2 * 2 * self.width + 2 * 2 * self.width


class OrderPenalty(Auxiliary):
    """``penalty * mean over rows of sum_t max(p_t - p_{t-1}, 0)``: AITM's calibrator of behavioural expectation.

    A soft rule: scores out of order become rarer, they do not vanish.

    Args:
        steps: (later, earlier) objectives.
        weight: of this loss.
    """

    def __init__(self, steps: Sequence[tuple[str, str]], weight: float) -> None:
        super().__init__()
        self.steps, self.weight = tuple(steps), weight

    def forward(self, done: Pass) -> dict[str, Tensor]:
        """``order_penalty``."""
        p = {name: done.heads[name].sigmoid() for step in self.steps for name in step}
        excess = torch.stack([(p[later] - p[earlier]).relu() for later, earlier in self.steps])  # [steps, B]
        return {"order_penalty": self.weight * excess.sum(dim=0).mean()}


def aitm(site: Site) -> Parts:
    """A bottom per objective, attention along `after:`, heads that are the joint events themselves."""
    c, objectives = site.config, site.schema.objectives
    steps = steps_of(objectives)
    of = site.schema.objective_index
    trunk = OwnLayers(Identity(site.width, site.n_objectives), c.bottom, c.dropout)
    penalty = [OrderPenalty(steps, site.options.penalty)] if site.options.penalty else []
    return Parts(trunk, chains.joint(objectives), c.tower, auxiliaries=penalty,
                 transfer=AttentionTransfer(trunk.width, {of(later): of(earlier) for later, earlier in steps}))


def steps_of(objectives: Sequence[Objective]) -> list[tuple[str, str]]:
    """(later, earlier) of every binary objective that follows another.

    Raises:
        InputError: none does.
    """
    steps = [(o.name, o.after) for o in objectives if o.kind == "binary" and o.after is not None]
    if not steps:
        raise InputError("params.yaml", "data.objectives", [o.name for o in objectives],
                         "aitm needs a binary objective with `after:`, and none has it",
                         "declare which objective follows which, or take aitm out of retrain.models")
    return steps
