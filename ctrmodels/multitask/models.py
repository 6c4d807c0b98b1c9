"""Multi-objective models as configurations of typed parts.

    Batch ─ FeatureEncoder ─ Trunk ─ a tower per objective ─┐
                   └──────── WideHead ──────────────────────┴─ logits ─ Chain ─ log-probabilities ─ losses

A new model is a new entry of ``MODELS``: which trunk, which probability chain. Notation: B rows,
K objectives, W width of the encoded features, H width of a trunk's representation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec, Cost
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Objective, Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask import chains
from ctrmodels.multitask.chains import Chain
from ctrmodels.multitask.losses import cross_entropy
from ctrmodels.multitask.regression import LogTarget
from ctrmodels.multitask.spaces import ALL, joint_label, space_mask
from ctrmodels.multitask.trunks import PLE, Identity, MMoE, OMoE, SharedBottom, Trunk
from ctrmodels.nn.encoder import FeatureEncoder, WideHead
from ctrmodels.nn.losses import masked_mean
from ctrmodels.nn.towers import MLP


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a multi-objective model.

    Attributes:
        bottom: layer widths of the shared bottom or of every expert; a model that shares nothing puts them at
            the start of each tower, so that all models are equally deep.
        tower: layer widths of each objective's tower.
        dropout: after every hidden layer and on the encoded features.
        l2: weight of the squared norm of the embeddings that a batch touches, per row of the batch.
        gate_init: where the pairs' gates start.
        experts: number of experts of a mixture; with experts of its own per objective, of each objective.
        shared_experts: number of shared experts beside those.
        levels: width of the experts of every level, where there are several.
        loss_weights: objective → weight of its loss; 1 where absent.
    """

    bottom: tuple[int, ...] = (64,)
    tower: tuple[int, ...] = (32,)
    dropout: float = 0.0
    l2: float = 0.0
    gate_init: float = 0.1
    experts: int = 4
    shared_experts: int = 2
    levels: tuple[int, ...] = (64, 64)
    loss_weights: Mapping[str, float] = field(default_factory=dict)


class MultiObjectiveModel(nn.Module):
    """A head per objective on a shared encoder, joined by a probability chain.

    Args:
        schema: the log.
        encoder: features of a batch.
        wide: linear part, one logit per objective.
        trunk: one representation per objective.
        tower: layer widths of each tower.
        chain: the events that heads make up and which of them are supervised.
        loss_weights: objective → weight of its loss; 1 where absent.
    """

    def __init__(self, schema: Schema, encoder: FeatureEncoder, wide: WideHead, trunk: Trunk,
                 tower: tuple[int, ...], chain: Chain, dropout: float = 0.0,
                 loss_weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.schema, self.chain, self.loss_weights = schema, chain, dict(loss_weights or {})
        self.encoder, self.wide, self.trunk = encoder, wide, trunk
        self.names = [o.name for o in schema.objectives]
        self.towers = nn.ModuleList(MLP(trunk.width, tower, dropout, width_out=1) for _ in self.names)
        self.regressions = [o for o in schema.objectives if o.kind == "regression"]
        self.targets = nn.ModuleDict({o.name: LogTarget() for o in self.regressions})

    def forward(self, batch: Batch) -> Tensor:
        """One output per objective [B, K]: a logit, or a standardised logarithm for a regression."""
        return self._outputs(batch)[0]

    def loss(self, batch: Batch) -> Tensor:
        """Weighted sum of the objectives' losses, each a mean over its own rows, plus the encoder's penalty.

        Returns:
            scalar.
        """
        outputs, penalty = self._outputs(batch)
        total = penalty
        for name, value in self.losses(outputs, batch.labels).items():
            total = total + self.loss_weights.get(name.partition("@")[0], 1.0) * value
        return total

    def losses(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The supervised losses by score name.

        Args:
            outputs: [B, K] of :meth:`forward`.
            labels: [B, K], NaN where unknown.

        Returns:
            ``OBJECTIVE@SPACE`` → scalar. Rows outside a loss's space, or with an unknown label, have no part
            in it.
        """
        heads = self._heads(outputs)
        found = {}
        for event in self.chain.events:
            if event.name in self.chain.supervised:
                label, mask = self._labels(labels, event.objective, event.space)
                found[event.name] = masked_mean(cross_entropy(event.log_probability(heads), label), mask)
        for o in self.regressions:
            value, mask = self._labels(labels, o.name, o.space)
            loss = self._target(o.name).loss(heads[o.name], value)
            found[f"{o.name}@{o.space}"] = masked_mean(loss, mask)
        return found

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Scores by name, each [B].

        ``OBJECTIVE@all`` is the probability of the joint event, or the expected value counting 0 where the
        parent does not happen; ``OBJECTIVE@PARENT`` is conditional on the parent.
        """
        heads = self._heads(self(batch))
        scores = {name: log_p.exp() for name, log_p in self.chain.log_probabilities(heads).items()}
        for o in self.regressions:
            value = scores[f"{o.name}@{o.space}"] = self._target(o.name).expected(heads[o.name])
            if o.after is not None:
                scores[f"{o.name}@{ALL}"] = scores[f"{o.after}@{ALL}"] * value
        return scores

    def gates(self, batch: Batch) -> Tensor | None:
        """Mixing weights [B, K, E] of a gated trunk, ``None`` for others."""
        return self.trunk.gates(self.encoder(batch).flat)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that several objectives' losses reach: the encoder's and the trunk's shared ones."""
        return [*self.encoder.parameters(), *self.trunk.shared_parameters()]

    def cost(self) -> Cost:
        """What serving this model takes."""
        stored, overhead, trained = self.encoder.stored()
        other = sum(p.numel() for p in self.parameters()) - trained
        linear = sum(2 * m.in_features * m.out_features for m in self.modules() if isinstance(m, nn.Linear))
        return Cost(parameters_embedding=stored, parameters_other=other,
                    flops=linear + self.trunk.flops() + self.encoder.flops() + self.wide.flops(),
                    bytes=4 * (stored + other) + overhead)

    def fit_targets(self, labels: np.ndarray) -> None:
        """Before training: scale of every regression objective from the training labels [N, K].

        Raises:
            InputError: a regression objective has no value in its space, or a negative one.
        """
        for o in self.regressions:
            values = self._values(o, labels)[1]
            try:
                self._target(o.name).fit(values)
            except ValueError as error:
                raise InputError("outputs/encode", o.name, float(values.min()) if len(values) else "no value",
                                 "a regression objective needs values of 0 or more on its own rows",
                                 "mend its `label:` in data.objectives") from error

    def fit_smearing(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """After training: smearing factor of every regression objective from outputs and labels [N, K]."""
        for o in self.regressions:
            mask, values = self._values(o, labels)
            self._target(o.name).fit_smearing(outputs[mask, self.names.index(o.name)], values)

    def _outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        encoded = self.encoder(batch)
        representations = self.trunk(encoded.flat)  # K × [B, H]
        deep = [tower(h) for tower, h in zip(self.towers, representations, strict=True)]  # K × [B, 1]
        # Losses and chains are computed in float32, whatever the network's own precision.
        return (torch.cat(deep, dim=1) + self.wide(encoded)).float(), encoded.penalty

    def _heads(self, outputs: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, outputs.unbind(dim=1), strict=True))

    def _target(self, name: str) -> LogTarget:
        return cast(LogTarget, self.targets[name])

    def _labels(self, labels: Tensor, objective: str, space: str) -> tuple[Tensor, Tensor]:
        """Labels [B] of an objective and the mask [B] of its rows; labels outside the mask are 0."""
        mask = space_mask(self.schema, labels, objective, space)
        label = joint_label(self.schema, labels, objective)
        return torch.where(mask, label, torch.zeros_like(label)), mask

    def _values(self, o: Objective, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a regression objective's own space, bool [N], and its values there."""
        mask = space_mask(self.schema, labels, o.name, o.space)
        return mask, joint_label(self.schema, labels, o.name)[mask]


@dataclass(frozen=True)
class Blueprint:
    """A named model: its trunk, its probability chain, and whether towers start with the bottom's layers."""

    trunk: Callable[[int, int, ModelConfig], Trunk]
    chain: str
    deep_towers: bool = False


MODELS: Mapping[str, Blueprint] = {
    "shared_bottom": Blueprint(lambda w, k, c: SharedBottom(w, k, c.bottom, c.dropout), "independent"),
    "mmoe": Blueprint(lambda w, k, c: MMoE(w, k, c.experts, c.bottom, c.dropout), "independent"),
    "omoe": Blueprint(lambda w, k, c: OMoE(w, k, c.experts, c.bottom, c.dropout), "independent"),
    "cgc": Blueprint(lambda w, k, c: PLE(w, k, c.experts, c.shared_experts, [c.bottom], c.dropout), "independent"),
    "ple": Blueprint(lambda w, k, c: PLE(w, k, c.experts, c.shared_experts, [(n,) for n in c.levels], c.dropout),
                     "independent"),
    "mmoe_esmm": Blueprint(lambda w, k, c: MMoE(w, k, c.experts, c.bottom, c.dropout), "esmm"),
    "esmm": Blueprint(lambda w, k, c: Identity(w, k), "esmm", deep_towers=True),
}


def build_model(name: str, schema: Schema, spec: ArchSpec, config: ModelConfig) -> MultiObjectiveModel:
    """The model ``name`` on the architecture ``spec``.

    Args:
        name: a key of ``MODELS``.
        schema: the log; its objectives become the heads.
        spec: embedding and interactions.
        config: sizes.

    Raises:
        InputError: unknown model, a loss weight for an objective that the log does not have, or a model that
            needs a chain of objectives on a log without one.
    """
    if name not in MODELS:
        raise InputError("params.yaml", "retrain.models", name, "unknown model", f"use {', '.join(MODELS)}")
    names = [o.name for o in schema.objectives]
    for unknown in sorted(set(config.loss_weights) - set(names)):
        raise InputError("params.yaml", "retrain.loss_weights", unknown, "no such objective",
                         f"use {', '.join(names)}")
    blueprint = MODELS[name]
    chain = chains.CHAINS[blueprint.chain](schema.objectives)
    encoder = FeatureEncoder(schema, spec, config.dropout, config.l2)
    trunk = blueprint.trunk(encoder.width, len(names), config)
    tower = (*config.bottom, *config.tower) if blueprint.deep_towers else config.tower
    wide = WideHead(schema, spec, len(names), config.gate_init)
    return MultiObjectiveModel(schema, encoder, wide, trunk, tower, chain, config.dropout, config.loss_weights)
