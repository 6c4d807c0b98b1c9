"""Selecting interactions by gates: what all such searches share, and the stage that each of them runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ctrmodels.archspec import ArchSpec, Interaction
from ctrmodels.data.loader import Endless
from ctrmodels.data.schema import Schema
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows
from ctrmodels.search.bilevel import set_gradients
from ctrmodels.search.optimiser import GRDA
from ctrmodels.search.progress import Progress, Stateful
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.optimisers import Optimisers
from ctrmodels.training.trainer import Trainer, seed_everything
from ctrmodels.zoo import GATED, GatedModel


@dataclass
class Selection:
    """What one stage selected.

    Attributes:
        kept: candidates whose gate is not zero at the end, with it as their strength.
        found: trace and steps.
    """

    kept: tuple[Interaction, ...]
    found: Found


@dataclass(frozen=True)
class GatedSearch(ABC):
    """Selection of interactions by a gate on each, behind a normalisation that keeps embeddings from undoing it.

    ``logit = ... + sum_m alpha_m BN(product_m)``; Adam on the weights and GRDA on the candidates' gates, from the same
    batch and backward pass. "AutoFIS: Automatic Feature Interaction Selection in Factorization Models for Click-Through
    Rate Prediction", KDD 2020, sections 3.2 and 3.3.

    That is ``gates_on: batch``, as published. Where fields have so many ids that their products fit the rows they are
    trained on, gates that learn from these rows prefer such products. ``gates_on: arch`` is ours: weights learn from
    ``train``, and after each of their steps the gates take one of their own on a batch of ``arch``, to first order. A
    gate that falls below zero there belongs to a product that says the opposite on new rows of what it learnt, and is
    zero.

    Attributes:
        target_threshold: GRDA's threshold at the last step; twice ``gate_init`` matches the published runs
            (the published constant c belongs to their number of steps and does not carry over).
        gamma, mu: of GRDA.
        gate_init: where gates start.
        epochs: passes over the rows, per stage.
        gates_on: the rows that gates learn from: the weights' own batch, or ``arch``.
    """

    target_threshold: float = 1.16
    gamma: float = 1.0
    mu: float = 0.8
    gate_init: float = 0.6
    epochs: int = 5
    gates_on: Literal["batch", "arch"] = "batch"

    name: ClassVar[str]
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "searched"

    @abstractmethod
    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """See :class:`~ctrmodels.search.base.SearchMethod`."""

    def build(self, schema: Schema, host: Host, spec: ArchSpec) -> GatedModel:
        """The host with a gate on every interaction of ``spec``.

        Raises:
            ValueError: the host has no gated interactions.
        """
        network = host.build(schema, host.complete(spec, schema), gate_init=self.gate_init)
        if not isinstance(network, GatedModel):
            raise ValueError(f"{self.name} needs a host with gated interactions: {' or '.join(GATED)}, "
                             f"not {host.model}")
        return network

    def select(self, spec: ArchSpec, candidates: Sequence[Interaction], rows: SearchRows, host: Host, seed: int,
               checkpoint: Checkpoint | None = None, **about: Any) -> Selection:
        """Train the host on the interactions of ``spec``, which stay, and on ``candidates``, and select among these.

        Args:
            spec: embeddings that the candidates read, and what stays beside them; its gates are trained as weights.
            candidates: other interactions.
            rows, host, seed, checkpoint: as of a search.
            about: goes into every entry of the trace.
        """
        seed_everything(seed)
        stays = spec.interactions or ()
        network = self.build(rows.schema, host, replace(spec, interactions=(*stays, *candidates)))
        gates = _gates_behind(network.gated, len(stays))
        trainer = Trainer(network, host.train, [gates])
        held_out = self.gates_on == "arch"
        train = trainer.loader(rows.train if held_out else rows.both(), seed)
        trainer.planned = self.epochs * train.steps(0)
        selection = GRDA([gates], self.target_threshold, trainer.planned, self.gamma, self.mu, positive=held_out)
        arch = Endless(trainer.loader(rows.arch, seed))
        if not held_out:
            trainer.optimisers.add_architecture(selection)
        steps_alone: dict[str, Stateful] = {"selection": Optimisers([selection]), "arch": arch}
        progress = Progress(self, seed, trainer, checkpoint, steps_alone if held_out else None)
        for epoch in progress.epochs(self.epochs):
            for _ in progress.steps(train):
                if held_out:
                    set_gradients([gates], trainer, next(arch))
                    selection.step()
                    progress.found.steps += 1
            progress.found.trace.append({**about, "epoch": epoch, "threshold": round(float(selection.level), 6),
                                         "kept": int((gates != 0).sum())})
        progress.keep()
        strength = gates.detach().squeeze(1).tolist()
        kept = tuple(replace(i, strength=a) for i, a in zip(candidates, strength, strict=True) if a)
        return Selection(kept, progress.found)


class _Joined(nn.Module):
    """Gates as two parameters: of the first ``n`` interactions, and of those behind them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, first: Tensor, behind: Tensor) -> Tensor:
        """[n, K] and [M - n, K] → [M, K]."""
        return torch.cat([first, behind])

    def right_inverse(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """[M, K] → [n, K] and [M - n, K]."""
        return gates[:self.n].clone(), gates[self.n:].clone()


def _gates_behind(gated: nn.Module, n: int) -> nn.Parameter:
    """The gates behind the first ``n``, as a parameter of its own in ``gated``."""
    if n:
        parametrize.register_parametrization(gated, "gates", _Joined(n))
        gates = gated.parametrizations["gates"].original1  # type: ignore[index,union-attr]
    else:
        gates = gated.gates
    assert isinstance(gates, nn.Parameter)
    return gates
