"""AutoGroup: groups of fields per order, whose memberships learn in turn with the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctrmodels.archspec import MAIN, ArchSpec, Compensation, Group, Uniform, model_fields
from ctrmodels.nn.group import Groups, PowerSums, drawn
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.bilevel import set_gradients
from ctrmodels.search.progress import Progress
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.optimisers import Optimisers
from ctrmodels.training.trainer import Trainer, seed_everything
from ctrmodels.zoo import CTRModel


@dataclass(frozen=True)
class AutoGroup:
    """Groups of fields by straight-through Gumbel memberships, alternating with the weights on the same batch.

    "AutoGroup: Automatic Feature Grouping for Modelling Explicit High-Order Feature Interactions in CTR Prediction",
    SIGIR 2020. Every batch is used twice: the weights take a step with the memberships as they are, without noise, then
    the memberships take one with noise. A field is a member at the end where its logit of being in is the larger one.
    Groups in which nothing interacts (of a single field, from order 2 on) and repeated ones are left out.

    Adam moves a logit by about ``learning_rate`` whatever its gradient is. Far above 1, as in the published settings
    (10 to 10,000), a single step outweighs the noise, and memberships flip with the sign of the last gradients. The
    softmax has a gradient only where noise and logits come within about ``temperature`` of a tie: at the published 0.1
    and 0.01 few memberships learn from a batch (planted triples: found on 2 of 5 logs at 0.1, on 4 at 1).

    Attributes:
        groups: number of groups of every order from 1 on; 0 for an order that is not wanted.
        dims: width of the embedding that each order from 2 on has of its own; groups of order 1 read the network's.
        learning_rate: of Adam on the memberships' logits.
        temperature: of their softmax.
        lambda_c, compensation: see :class:`~ctrmodels.archspec.Group`.
        epochs: passes over the rows.

    Raises:
        ValueError: there is no group, or not one width per order from 2 on.
    """

    groups: tuple[int, ...] = (4, 16, 16)
    dims: tuple[int, ...] = (8, 8)
    learning_rate: float = 0.03
    temperature: float = 1.0
    lambda_c: float = 1.0
    compensation: Compensation = "formula"
    epochs: int = 6

    name: ClassVar[str] = "autogroup"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "searched"

    def __post_init__(self) -> None:
        if not any(self.groups) or min(self.groups) < 0:
            raise ValueError(f"{self.groups} groups per order: there must be one at least")
        if len(self.dims) != len(self.groups) - 1 or min(self.dims, default=1) < 1:
            raise ValueError(f"widths {self.dims} for {len(self.groups)} orders: every order from 2 on needs one")

    def build(self, rows: SearchRows, host: Host) -> CTRModel:
        """The host with all groups, each of all fields."""
        everyone = tuple(range(len(model_fields(rows.schema))))
        groups = tuple(Group(everyone, order, self.table(order), self.lambda_c, self.compensation)
                       for order, n in enumerate(self.groups, 1) for _ in range(n))
        spec = self.spec(rows, host, groups)
        network = host.build(rows.schema, host.complete(spec, rows.schema))
        if not network.encoder.groups.width:
            raise ValueError(f"AutoGroup needs a host that reads groups: autodeepfm or autoipnn, not {host.model}")
        return network

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The groups at the end; none, if no two fields are together."""
        seed_everything(seed)
        network = self.build(rows, host)
        groups = network.encoder.groups
        network.encoder.layout.keeps = True
        memberships = groups.relax(self.temperature)
        logits = [memberships.logits]
        trainer = Trainer(network, host.train, logits)
        architecture = torch.optim.Adam(logits, lr=self.learning_rate, fused=True)
        train = trainer.loader(rows.both(), seed)
        trainer.planned = self.epochs * train.steps(0)
        progress = Progress(self, seed, trainer, checkpoint, {"architecture": Optimisers([architecture])})
        found = progress.found
        for epoch in progress.epochs(self.epochs):
            for step in progress.steps(train):
                with drawn(memberships):
                    set_gradients(logits, trainer, step.batch)
                architecture.step()
                found.steps += 1
            found.trace.append({"epoch": epoch, "members": {
                str(part.order): round(float(members.mean()) * part.n_fields, 6)
                for part, members in zip(groups, groups.members(), strict=True)}})
        found.specs[self.name] = self.spec(rows, host, self.chosen(groups), seed)
        return found

    def table(self, order: int) -> str:
        """Name of the embedding that groups of ``order`` read."""
        return MAIN if order == 1 else f"order{order}"

    def spec(self, rows: SearchRows, host: Host, groups: tuple[Group, ...], seed: int = 0) -> ArchSpec:
        """``groups`` as the only interactions, with the embeddings that they read."""
        tables = {self.table(order): Uniform(dim) for order, dim in enumerate(self.dims, 2)}
        return ArchSpec.of(rows.schema, self.name, host.dim, interactions=(), groups=groups, seed=seed,
                           tables={name: tables[name] for name in sorted({g.table for g in groups} - {MAIN})},
                           config=configuration(self))

    def chosen(self, groups: Groups) -> tuple[Group, ...]:
        """The groups that searched memberships make now, each once."""
        return tuple(sorted({group for part, members in zip(groups, groups.members(), strict=True)
                             for group in self._of(part, members)}))

    def _of(self, part: PowerSums, members: Tensor) -> Iterator[Group]:
        for of_group in members.T.tolist():
            fields = tuple(f for f, member in enumerate(of_group) if member)
            if len(fields) >= min(part.order, 2):
                yield Group(fields, part.order, part.table, self.lambda_c, self.compensation)
