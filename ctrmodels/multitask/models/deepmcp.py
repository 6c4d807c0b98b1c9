"""DeepMCP: a shared bottom whose embeddings learn from matching and correlation too, in training only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask import chains
from ctrmodels.multitask.models.shared_bottom import SharedBottom
from ctrmodels.multitask.parts import Auxiliary, Parts, Pass, Site
from ctrmodels.multitask.requirements import check_aligned, item_histories, side_names
from ctrmodels.multitask.spaces import ALL, joint_label, space_mask
from ctrmodels.nn.losses import known_cross_entropy
from ctrmodels.nn.sides import SideFeatures
from ctrmodels.nn.towers import MLP

HISTORIES = "retrain.deepmcp.histories"


@dataclass(frozen=True)
class DeepMCPOptions:
    """Of DeepMCP.

    Attributes:
        alpha: weight of the matching subnet's loss; 0 = no such subnet.
        beta: weight of the correlation subnet's loss; 0 = no such subnet.
        layers: widths of both subnets; their last is that of the vectors whose products they learn.
        objective: the binary objective that matching predicts; ``None`` = the first.
        user: the fields that matching knows of the user and of what was asked for; empty = all with ``side: user``. An
            id of the user is best left out where users have few rows, for it is learned by heart.
        histories: the sequences that correlation learns from, a step of each being one item; empty = the first.
        window: how many steps apart two items of a history still count as a pair.
        negatives: per pair.
        power: negatives are drawn from the batch's histories by the frequency of their item there to this power.
    """

    alpha: float = 1.0
    beta: float = 0.1
    layers: tuple[int, ...] = (64, 32)
    objective: str | None = None
    user: tuple[str, ...] = ()
    histories: tuple[str, ...] = ()
    window: int = 3
    negatives: int = 4
    power: float = 0.75


class _Vector(MLP):
    """An MLP whose last activation is tanh: of vectors without negative values most products would vanish or agree."""

    def __init__(self, width_in: int, layers: Sequence[int]) -> None:
        super().__init__(width_in, layers[:-1], width_out=layers[-1])

    def forward(self, x: Tensor, constant: int = 0) -> Tensor:
        """[n, W] → float32 [n, H]."""
        return super().forward(x, constant).tanh()


class Matching(Auxiliary):
    """Whether the user's vector and the item's fit: ``L_m = BCE(y, sigmoid(v_u . v_a))`` on the batch's own rows.

    ``v_u = tanh(MLP_u(user))`` and ``v_a = tanh(MLP_a(item))``, so that the gradient reaches the embeddings of the user
    and of the item and nothing else. "Representation Learning-Assisted Click-Through Rate Prediction", IJCAI 2019, and
    its published code, as is :class:`Correlation`.

    Args:
        schema: the log.
        dim: D of the embeddings.
        options: see there.

    Raises:
        InputError: no field describes the user, or none the item, or an option names what is not there.
    """

    def __init__(self, schema: Schema, dim: int, options: DeepMCPOptions) -> None:
        super().__init__()
        users, items = side_names("deepmcp", schema, "user"), side_names("deepmcp", schema, "item")
        for name in options.user:
            if name in items or all(name != f.name for f in schema.fields):
                raise InputError("params.yaml", "retrain.deepmcp.user", name, "no field of the user or the request",
                                 f"use {', '.join(f.name for f in schema.fields if f.name not in items)}")
        self.schema, self.weight, self.objective = schema, options.alpha, _objective(schema, options.objective)
        self.user = SideFeatures(schema, dim, options.user or users)
        self.item = SideFeatures(schema, dim, items)
        self.of_user, self.of_item = _Vector(self.user.width, options.layers), _Vector(self.item.width, options.layers)

    def forward(self, done: Pass) -> dict[str, Tensor]:
        """``matching``."""
        fields, numeric, labels = done.encoded.fields, done.encoded.numeric, done.batch.labels
        fit = (self.of_user(self.user(fields, numeric)) * self.of_item(self.item(fields, numeric))).sum(1)
        label = joint_label(self.schema, labels, self.objective)
        known = space_mask(self.schema, labels, self.objective, ALL)
        return {"matching": self.weight * known_cross_entropy(fit, label.masked_fill(~known, torch.nan))}


class Correlation(Auxiliary):
    """Whether two items were clicked close to each other, against items of other histories.

    ``L_c = -log sigmoid(h_t . h_c) - sum_q log sigmoid(-h_t . h_q)`` with one ``h = tanh(MLP_c(item))`` for all, of a
    target t, a context c at most ``window`` steps from it, and Q negatives, after skip-gram.
    A row with two steps or more gives one pair, drawn anew each time it is seen. Negatives that the row's own history
    holds do not count.

    Args:
        schema: the log.
        dim: D of the embeddings.
        options: see there.

    Raises:
        InputError: the log has no history of items, or not the ones that are named.
    """

    def __init__(self, schema: Schema, dim: int, options: DeepMCPOptions) -> None:
        super().__init__()
        self.histories = [f.name for f in item_histories("deepmcp", schema, options.histories, HISTORIES)]
        self.weight, self.window = options.beta, options.window
        self.negatives, self.power = options.negatives, options.power
        self.of_item = _Vector(dim * len(self.histories), options.layers)

    def forward(self, done: Pass) -> dict[str, Tensor]:
        """``correlation``."""
        check_aligned(done.batch, self.histories, HISTORIES)
        steps = torch.cat([done.encoded.steps(name) for name in self.histories], 2).flatten(0, 1)  # [B * L, D]
        target, context, negatives, counts = self.drawn(done.batch)
        if not len(target):
            return {"correlation": steps.sum() * 0.0}
        of_target, of_context = (self.of_item(steps.index_select(0, place)) for place in (target, context))
        of_negatives = self.of_item(steps.index_select(0, negatives.flatten())).unflatten(0, negatives.shape)
        near = logsigmoid((of_target * of_context).sum(1))  # [n]
        far = logsigmoid(-torch.einsum("nh,nqh->nq", of_target, of_negatives)) * counts
        return {"correlation": -self.weight * (near + far.sum(1)).mean()}

    @torch.no_grad()
    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pairs and negatives as places among all B * L steps.

        Returns:
            n targets and as many contexts [n], negatives [n, Q] and whether each counts, bool [n, Q].
        """
        ids = batch.sequences[self.histories[0]]  # [B, L]
        length = (ids >= 0).sum(1)
        row = (length > 1).nonzero().squeeze(1)
        n = length[row]
        target = (torch.rand(len(row), device=ids.device) * n).long().clamp(max=n - 1)
        before, behind = target.clamp(max=self.window), (n - 1 - target).clamp(max=self.window)
        choices = before + behind
        context = target - before + (torch.rand(len(row), device=ids.device) * choices).long().clamp(max=choices - 1)
        context += context >= target
        first = row * ids.shape[1]
        there = (ids >= 0).flatten().nonzero().squeeze(1)
        _, item, count = ids.flatten()[there].unique(return_inverse=True, return_counts=True)
        # A step for each occurrence: the share of an item is its count to ``power`` in the end.
        chance = count.double()[item] ** (self.power - 1)
        shape = len(row), self.negatives
        drawn = torch.multinomial(chance, len(row) * self.negatives, replacement=True) if len(row) else there[:0]
        negatives = there[drawn].view(shape)
        own = (ids.flatten()[negatives].unsqueeze(2) == ids[row].unsqueeze(1)).any(2)
        return first + target, first + context, negatives, ~own


def _objective(schema: Schema, name: str | None) -> str:
    binary = [o.name for o in schema.objectives if o.kind == "binary"]
    if name is not None and name not in binary:
        raise InputError("params.yaml", "retrain.deepmcp.objective", name, "no binary objective",
                         f"use {', '.join(binary)}")
    return name or binary[0]


def deepmcp(site: Site) -> Parts:
    """A shared bottom, and the two subnets that train its embeddings with it."""
    o, c, dim = site.options, site.config, site.spec.out_dim
    trunk = SharedBottom(site.width, site.n_objectives, c.bottom, c.dropout)
    subnets: list[Auxiliary] = [Matching(site.schema, dim, o)] if o.alpha else []
    if o.beta:
        subnets.append(Correlation(site.schema, dim, o))
    return Parts(trunk, chains.independent(site.schema.objectives), c.tower, auxiliaries=subnets)
