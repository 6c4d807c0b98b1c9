"""Multi-objective models as configurations of typed parts.

    Batch ─ FeatureEncoder ─ Trunk ─ Transfer ─ a tower per objective ─┐
                   └──────── WideHead ─────────────────────────────────┴─ logits ─ Chain ─ log-probabilities ─ losses

In training a side may add to the logits and auxiliaries to the losses; serving does without both. Notation: B rows,
K objectives, W width of the encoded features, H width of a trunk's representation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ctrmodels.archspec import Cost
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Objective, Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.losses import cross_entropy
from ctrmodels.multitask.parts import Parts, Pass
from ctrmodels.multitask.regression import LogTarget, Target
from ctrmodels.multitask.spaces import ALL, joint_label, space_mask
from ctrmodels.nn.encoder import Encoded, FeatureEncoder
from ctrmodels.nn.heads import WideHead
from ctrmodels.nn.losses import masked_mean
from ctrmodels.nn.separate import SeparateEncoders, SeparateWide
from ctrmodels.nn.towers import MLP


class MultiObjectiveModel(nn.Module):
    """Heads on an encoder, one per objective at least, joined by a probability chain.

    Args:
        schema: the log.
        encoder: features of a batch, for all objectives or for each its own.
        wide: linear part, one logit per head.
        parts: trunk, chain, towers and what else the model has.
        dropout: after every hidden layer of the towers.
        loss_weights: objective → weight of its loss; 1 where absent.
        targets: regression objective → what its head says; its logarithm where absent.
    """

    def __init__(self, schema: Schema, encoder: FeatureEncoder | SeparateEncoders, wide: WideHead | SeparateWide,
                 parts: Parts, dropout: float = 0.0, loss_weights: Mapping[str, float] | None = None,
                 targets: Mapping[str, Target] | None = None) -> None:
        super().__init__()
        self.schema, self.chain, self.loss_weights = schema, parts.chain, dict(loss_weights or {})
        self.encoder, self.wide, self.trunk, self.transfer = encoder, wide, parts.trunk, parts.transfer
        self.names = [o.name for o in schema.objectives]
        self.heads = [*self.names, *parts.further]
        self.regressions = [o for o in schema.objectives if o.kind == "regression"]
        self.targets = nn.ModuleDict({o.name: (targets or {}).get(o.name) or LogTarget() for o in self.regressions})
        said = {o.name: self._target(o.name) for o in self.regressions}
        self.sizes = [said[name].width + said[name].known if name in said else 1 for name in self.heads]
        self.towers = nn.ModuleList(
            MLP(parts.trunk.width, parts.tower, dropout, width_out=said[name].width if name in said else 1)
            for name in self.heads)
        self.side, self.auxiliaries = parts.side, nn.ModuleList(parts.auxiliaries)
        self._explaining = False

    def forward(self, batch: Batch) -> Tensor:
        """All heads' outputs side by side: a logit per binary objective, what its target says of a regression; then
        the logits of further heads.

        Returns:
            [B, K], or wider where there are further heads or a target has several numbers per row.
        """
        return self.outputs(self.encoder(batch))

    def loss(self, batch: Batch) -> Tensor:
        """Weighted sum of the objectives' losses, each a mean over its own rows, plus auxiliary ones and the
        encoder's penalty.

        Returns:
            scalar.
        """
        losses, total = self.terms(batch)
        for value in losses.values():
            total = total + value
        return total

    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """What :meth:`loss` adds up: the objectives' weighted losses by name, and the sum of all else."""
        encoded = self.encoder(batch)
        outputs = self.outputs(encoded)
        if self.side is not None:
            outputs = self.beside(outputs, self.side(batch))
        losses = {name: self.loss_weights.get(name.partition("@")[0], 1.0) * value
                  for name, value in self.losses(outputs, batch.labels).items()}
        rest = encoded.penalty
        for auxiliary in self.auxiliaries:
            for value in auxiliary(Pass(batch, encoded, outputs, self._heads(outputs))).values():
                rest = rest + value
        return losses, rest

    @property
    def loss_names(self) -> list[str]:
        """``OBJECTIVE@SPACE`` of all :meth:`losses`, in their order."""
        return [*(e.name for e in self.chain.events if e.name in self.chain.supervised),
                *(f"{o.name}@{o.space}" for o in self.regressions)]

    def losses(self, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The supervised losses by score name.

        Args:
            outputs: of :meth:`forward`.
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
        outputs = self(batch)
        if self.side is not None and self._explaining:
            outputs = self.beside(outputs, self.side(batch))
        return self.scores(outputs)

    def scores(self, outputs: Tensor) -> dict[str, Tensor]:
        """:meth:`predict` from outputs of :meth:`forward`."""
        heads = self._heads(outputs)
        scores = {name: log_p.exp() for name, log_p in self.chain.log_probabilities(heads).items()}
        for o in self.regressions:
            value = scores[f"{o.name}@{o.space}"] = self._target(o.name).expected(heads[o.name])
            if o.after is not None:
                scores[f"{o.name}@{ALL}"] = scores[f"{o.after}@{ALL}"] * value
        return scores

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Within it :meth:`predict` adds the side, as the loss does: scores of what the log shows, not for serving."""
        self._explaining = True
        try:
            yield
        finally:
            self._explaining = False

    def drop_training_parts(self) -> None:
        """From now on the model is without the parts that serving does without."""
        self.side, self.auxiliaries = None, nn.ModuleList()

    def outputs(self, encoded: Encoded, representations: list[Tensor] | None = None) -> Tensor:
        """:meth:`forward` of encoded rows, and of K ``representations`` [B, H] if the trunk has given them already."""
        if representations is None:
            representations = self.trunk.represent(encoded)
        if self.transfer is not None:
            representations = self.transfer(representations)
        deep = [tower(h) for tower, h in zip(self.towers, representations, strict=True)]  # [B, 1] or wider each
        for o in self.regressions:
            if self._target(o.name).known:
                k = self.heads.index(o.name)
                deep[k] = torch.cat([deep[k], self._target(o.name).offset(encoded.batch.ids)], dim=1)
        # Losses and chains are computed in float32, whatever the network's own precision.
        return self.beside(torch.cat(deep, dim=1), self.wide(encoded)).float()

    def beside(self, outputs: Tensor, more: Tensor) -> Tensor:
        """``outputs`` with ``more``, a number per head, added to the first column of every head."""
        if outputs.shape[1] == more.shape[1]:
            return outputs + more
        parts = [nn.functional.pad(column, (0, size - 1))
                 for column, size in zip(more.split(1, dim=1), self.sizes, strict=True)]
        return outputs + torch.cat(parts, dim=1)

    def gates(self, batch: Batch) -> Tensor | None:
        """Mixing weights [B, K, E] of a gated trunk, ``None`` for others."""
        return self.trunk.gates(self.encoder(batch).flat)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that several objectives' losses reach: a common encoder's and the trunk's shared ones."""
        return [*self._common(), *self.trunk.shared_parameters()]

    def last_shared_layer(self) -> list[nn.Parameter]:
        """Of those, the weights nearest to the towers: the trunk's, or the encoder's where the trunk has none."""
        return self.trunk.last_shared_layer() or self._common()

    def _common(self) -> list[nn.Parameter]:
        """The parameters of an encoder that all objectives read."""
        return list(self.encoder.parameters()) if isinstance(self.encoder, FeatureEncoder) else []

    def cost(self) -> Cost:
        """What serving this model takes."""
        stored, overhead, trained = self.encoder.stored()
        served = [self.encoder, self.wide, self.trunk, self.towers, *([] if self.transfer is None else [self.transfer])]
        other = sum(p.numel() for part in served for p in part.parameters()) - trained
        linear = sum(2 * m.in_features * m.out_features
                     for part in served for m in part.modules() if isinstance(m, nn.Linear))
        own = self.trunk.flops() + (0 if self.transfer is None else self.transfer.flops())
        return Cost(parameters_embedding=stored, parameters_other=other,
                    flops=linear + own + self.encoder.flops() + self.wide.flops(),
                    bytes=4 * (stored + other) + overhead)

    def check_spaces(self, labels: np.ndarray) -> None:
        """Refuse labels that leave a conditional loss without anything to learn.

        Args:
            labels: [N, K] of the training rows.

        Raises:
            InputError: a binary objective is learned where its parent happened, and never happens there, though it
                does elsewhere: the parent's label is not known, or 0, where the objective happened.
        """
        for event in self.chain.events:
            if event.name not in self.chain.supervised or event.space == ALL:
                continue
            happened = labels[:, self.schema.objective_index(event.objective)] == 1
            if happened.any() and not (happened & space_mask(self.schema, labels, event.objective, event.space)).any():
                raise InputError("outputs/encode", event.space, f"not 1 on the {int(happened.sum())} rows with "
                                 f"{event.objective}", f"{event.objective} is learned on the rows where {event.space} "
                                 "happened, and has no positive among them",
                                 f"mend the `label:` of {event.space} in data.objectives, or take the `after:` of "
                                 f"{event.objective} out")

    @property
    def needs_ids(self) -> bool:
        """Whether a target reads the rows' ids."""
        return any(self._target(o.name).known for o in self.regressions)

    def fit_targets(self, labels: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Before training: scale of every regression objective.

        Args:
            labels: [N, K] of the training rows.
            ids: [N, F] of the same rows, where :attr:`needs_ids`.

        Raises:
            InputError: a regression objective has no value in its space, or a negative one, or none that its target
                could learn from.
        """
        for o in self.regressions:
            mask, values = self._values(o, labels)
            try:
                self._target(o.name).fit(values, None if ids is None else ids[mask])
            except ValueError as error:
                raise InputError("outputs/encode", o.name, float(values.min()) if len(values) else "no value",
                                 f"a regression objective needs values of 0 or more on its own rows: {error}",
                                 "mend its `label:` in data.objectives") from error

    def fit_residuals(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """After training: what only residuals tell, from outputs of :meth:`forward` and labels [N, K]."""
        heads = self._heads(torch.from_numpy(outputs))
        for o in self.regressions:
            mask, values = self._values(o, labels)
            self._target(o.name).fit_residuals(heads[o.name].numpy()[mask], values)

    def _heads(self, outputs: Tensor) -> dict[str, Tensor]:
        """Head → its part of the outputs, [B] where that is one column."""
        parts = zip(self.heads, outputs.split(self.sizes, dim=1), strict=True)
        return {name: part.squeeze(1) if part.shape[1] == 1 else part for name, part in parts}

    def _target(self, name: str) -> Target:
        return cast(Target, self.targets[name])

    def _labels(self, labels: Tensor, objective: str, space: str) -> tuple[Tensor, Tensor]:
        """Labels [B] of an objective and the mask [B] of its rows; labels outside the mask are 0."""
        mask = space_mask(self.schema, labels, objective, space)
        label = joint_label(self.schema, labels, objective)
        return torch.where(mask, label, torch.zeros_like(label)), mask

    def _values(self, o: Objective, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a regression objective's own space, bool [N], and its values there."""
        mask = space_mask(self.schema, labels, o.name, o.space)
        return mask, joint_label(self.schema, labels, o.name)[mask]
