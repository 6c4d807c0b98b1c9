"""Routes without a multi-task network: one network whose one score orders rows for all objectives.

Objectives meet in the loss, as weights of rows or as grades of a list, and no longer in the fusion. One score cannot
reach the compromises that need two; it is the baseline that several heads have to beat.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, cast

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ctrmodels import ltr
from ctrmodels.archspec import Cost
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.ltr.losses import PairWeight
from ctrmodels.multitask.spaces import ALL, joint_label, known, space_mask
from ctrmodels.multitask.weights import WeightPolicy
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.nn.heads import WideHead
from ctrmodels.nn.losses import masked_mean
from ctrmodels.nn.towers import MLP


class ScoreLoss(ABC):
    """How one score is learned from all labels.

    Attributes:
        width: numbers per row that the network gives.
        whole_lists: whether a batch must hold its lists whole.
        relative: whether scores say something inside a list only, and are no probabilities.
    """

    width: ClassVar[int] = 1
    whole_lists: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Scalar, from ``outputs`` [B, width]."""

    def score(self, outputs: Tensor) -> Tensor:
        """[B] from [B, width]; a logit of the primary objective unless it is relative."""
        return outputs[:, 0]

    def fit(self, labels: np.ndarray) -> None:  # noqa: B027  (most losses take nothing from the labels)
        """Before training: what depends on the training labels [N, K]."""

    def log_odds_shift(self, labels: np.ndarray) -> float:
        """By how much the learned log-odds of the primary objective are too large."""
        return 0.0


@dataclass(frozen=True)
class RankingOptions:
    """Settings of the pair- and list-wise losses.

    Attributes:
        grades: objective → what it adds to a row's grade, 0 or more; 1 where absent, so that in a funnel the grade is
            the number of steps.
        pair_weight: of bpr: ``one``, or ``gain``, the difference of ``2^grade``.
        per_list: of bpr: every list counts as much, however many pairs it has.
        temperature: of listnet's targets; ``None`` = shares of the grades.
        alpha: of jrc: share of the cross-entropy.
    """

    grades: Mapping[str, float] = field(default_factory=dict)
    pair_weight: PairWeight = "one"
    per_list: bool = True
    temperature: float | None = None
    alpha: float = 0.5


@dataclass(frozen=True)
class WeightedOptions:
    """Settings of the weights of rows.

    Attributes:
        actions: objective → weight that it adds to a positive of the primary one, per action or per ``log(1 + value)``;
            all others add nothing.
        negative: weight of rows without the primary event.
        cap: largest weight of a row.
    """

    actions: Mapping[str, float] = field(default_factory=dict)
    negative: float = 1.0
    cap: float = 50.0


class Graded(ScoreLoss):
    """A loss of :mod:`ctrmodels.ltr` on the sum of the binary objectives' grades.

    A row with an unknown label among those that count has no grade, and is left out of its list.
    """

    def __init__(self, schema: Schema, grades: Mapping[str, float],
                 loss: Callable[[Tensor, Tensor, ltr.Lists], Tensor]) -> None:
        names = [o.name for o in schema.objectives if o.kind == "binary"]
        _check_names("retrain.ranking.grades", grades, names)
        weights = {name: grades.get(name, 1.0) for name in names}
        self.columns = {schema.objective_index(n): w for n, w in weights.items() if w}
        if not self.columns:
            raise InputError("params.yaml", "retrain.ranking.grades", dict(grades), "no objective is worth anything",
                             "give at least one a grade above 0")
        self.loss = loss

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See :class:`ScoreLoss`."""
        grade = torch.stack([w * batch.labels[:, k] for k, w in self.columns.items()]).sum(0)
        rows = known(grade).nonzero().squeeze(1)
        return self.loss(outputs[rows, 0], grade[rows], ltr.Lists(_group(batch)[rows]))


class Joint(ScoreLoss):
    """JRC of the primary objective."""

    width: ClassVar[int] = 2
    relative: ClassVar[bool] = False

    def __init__(self, primary: int, alpha: float) -> None:
        self.primary, self.alpha = primary, alpha

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See :class:`ScoreLoss`."""
        label = batch.labels[:, self.primary]
        rows = known(label).nonzero().squeeze(1)
        return ltr.jrc(outputs[rows], label[rows] == 1, ltr.Lists(_group(batch)[rows]), self.alpha)

    def score(self, outputs: Tensor) -> Tensor:
        """See :class:`ScoreLoss`."""
        return outputs[:, 1] - outputs[:, 0]


class Weighted(ScoreLoss):
    """Cross-entropy of the primary objective with :class:`WeightPolicy`'s weights."""

    whole_lists: ClassVar[bool] = False
    relative: ClassVar[bool] = False

    def __init__(self, policy: WeightPolicy) -> None:
        self.policy = policy

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See :class:`ScoreLoss`."""
        label = batch.labels[:, self.policy.primary]
        losses = binary_cross_entropy_with_logits(outputs[:, 0], label.nan_to_num(0.0), self.policy(batch.labels),
                                                  reduction="none")
        return masked_mean(losses, known(label))

    def fit(self, labels: np.ndarray) -> None:
        """See :class:`ScoreLoss`."""
        self.policy = self.policy.fitted(labels)

    def log_odds_shift(self, labels: np.ndarray) -> float:
        """See :class:`ScoreLoss`."""
        return self.policy.log_odds_shift(labels)


class OneScoreModel(nn.Module):
    """One network, one score under the name of every objective on all rows.

    A relative score is given as it is. Else the primary objective, the first binary one, gets the network's
    probability; another binary one the same log-odds, shifted so that its mean over the training rows is right; an
    amount the probability times what makes its mean right. So all have their scale, and all have one order.

    Args:
        schema: the log.
        encoder: features of a batch.
        wide: linear part, as wide as the loss asks.
        hidden: layer widths of the network.
        loss: how the score is learned.
        dropout: after every hidden layer.

    Attributes:
        shift: [K], added to the log-odds of a binary objective, or to the logarithm of an amount.
    """

    shift: Tensor

    def __init__(self, schema: Schema, encoder: FeatureEncoder, wide: WideHead, hidden: tuple[int, ...],
                 loss: ScoreLoss, dropout: float = 0.0) -> None:
        super().__init__()
        self.schema, self.encoder, self.wide, self.score_loss = schema, encoder, wide, loss
        self.names = [o.name for o in schema.objectives]
        self.network = MLP(encoder.width, hidden, dropout, width_out=loss.width)
        self.register_buffer("shift", torch.zeros(len(self.names)))

    @property
    def whole_lists(self) -> bool:
        """Whether it is trained on batches that hold their lists whole."""
        return self.score_loss.whole_lists

    @property
    def relative(self) -> bool:
        """Whether its scores say something inside a list only."""
        return self.score_loss.relative

    def forward(self, batch: Batch) -> Tensor:
        """[B, width]."""
        return self._outputs(batch)[0]

    def loss(self, batch: Batch) -> Tensor:
        """The loss of the score, plus the encoder's penalty; scalar."""
        outputs, penalty = self._outputs(batch)
        return self.score_loss(outputs, batch) + penalty

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """``OBJECTIVE@all`` → [B]: a probability or expected value, or the bare score if it is relative."""
        score = self.score_loss.score(self(batch))
        if self.relative:
            return {f"{name}@{ALL}": score for name in self.names}
        primary = torch.sigmoid(score + self.shift[primary_objective(self.schema)])
        return {f"{o.name}@{ALL}": torch.sigmoid(score + self.shift[k]) if o.kind == "binary"
                else primary * torch.exp(self.shift[k]) for k, o in enumerate(self.schema.objectives)}

    def gates(self, batch: Batch) -> None:
        """It has none."""

    def cost(self) -> Cost:
        """What serving this model takes."""
        stored, overhead, trained = self.encoder.stored()
        other = sum(p.numel() for p in self.parameters()) - trained
        linear = sum(2 * m.in_features * m.out_features for m in self.modules() if isinstance(m, nn.Linear))
        return Cost(parameters_embedding=stored, parameters_other=other,
                    flops=linear + self.encoder.flops() + self.wide.flops(), bytes=4 * (stored + other) + overhead)

    def fit_loss(self, labels: np.ndarray) -> None:
        """Before training: what the loss takes from the training labels [N, K].

        Raises:
            InputError: an amount that weighs rows is negative.
        """
        try:
            self.score_loss.fit(labels)
        except ValueError as error:
            raise InputError("params.yaml", "retrain.weighted.actions", float(np.nanmin(labels)), str(error),
                             "take it out, or mend its `label:` in data.objectives") from error

    def fit_scales(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """After training, unless it is relative: the shifts that make means right on the training rows.

        Args:
            outputs: [N, width] of :meth:`forward`.
            labels: [N, K].

        Raises:
            InputError: an amount has no mean above 0.
        """
        score = self.score_loss.score(torch.from_numpy(outputs)).double().numpy()
        primary = primary_objective(self.schema)
        self.shift[primary] = -self.score_loss.log_odds_shift(labels)
        chance = expit(score + float(self.shift[primary]))
        for k, o in enumerate(self.schema.objectives):
            rows = space_mask(self.schema, labels, o.name, ALL)
            mean = float(joint_label(self.schema, labels, o.name)[rows].mean())
            if o.kind == "regression":
                if mean <= 0:
                    raise InputError("outputs/encode", o.name, mean, "an amount needs a mean above 0",
                                     "mend its `label:` in data.objectives")
                self.shift[k] = float(np.log(mean / chance[rows].mean()))
            elif k != primary:
                self.shift[k] = _shift_to(score[rows], mean)

    def _outputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        encoded = self.encoder(batch)
        return (self.network(encoded.flat) + self.wide(encoded)).float(), encoded.penalty


def primary_objective(schema: Schema) -> int:
    """Column of the first binary objective."""
    return next(k for k, o in enumerate(schema.objectives) if o.kind == "binary")


def _weighted(schema: Schema, options: WeightedOptions) -> ScoreLoss:
    primary = primary_objective(schema)
    others = [o.name for k, o in enumerate(schema.objectives) if k != primary]
    _check_names("retrain.weighted.actions", options.actions, others)
    actions = {schema.objective_index(name): weight for name, weight in options.actions.items()}
    amounts = frozenset(k for k, o in enumerate(schema.objectives) if o.kind == "regression")
    return Weighted(WeightPolicy(primary, actions, amounts, options.negative, options.cap))


LOSSES: Mapping[str, Callable[[Schema, RankingOptions], ScoreLoss]] = {
    "bpr": lambda s, o: Graded(s, o.grades, partial(ltr.bpr, weight=o.pair_weight, per_list=o.per_list)),
    "listnet": lambda s, o: Graded(s, o.grades, partial(ltr.listnet, temperature=o.temperature)),
    "list_mle": lambda s, o: Graded(s, o.grades, ltr.list_mle),
    "lambdarank": lambda s, o: Graded(s, o.grades, ltr.lambdarank),
    "jrc": lambda s, o: Joint(primary_objective(s), o.alpha),
}
ONE_SCORE: Mapping[str, type[RankingOptions] | type[WeightedOptions]] = {
    "weighted": WeightedOptions, **dict.fromkeys(LOSSES, RankingOptions)}


def score_loss(name: str, schema: Schema, options: RankingOptions | WeightedOptions | None) -> ScoreLoss:
    """The loss of the model ``name``, a key of ``ONE_SCORE``; ``None`` = its default options."""
    if name == "weighted":
        return _weighted(schema, cast(WeightedOptions, options or WeightedOptions()))
    return LOSSES[name](schema, cast(RankingOptions, options or RankingOptions()))


def _group(batch: Batch) -> Tensor:
    if batch.group is None:
        raise ValueError("a loss of lists needs batches that hold their lists whole: use ctrmodels.data.lists")
    return batch.group


def _check_names(key: str, given: Mapping[str, float], names: list[str]) -> None:
    for unknown in sorted(set(given) - set(names)):
        raise InputError("params.yaml", key, unknown, "no objective that it could name",
                         f"use {', '.join(names)}" if names else "leave it out")


def _shift_to(logits: np.ndarray, mean: float) -> float:
    """What added to ``logits`` gives probabilities of that mean."""
    return float(brentq(lambda shift: expit(logits + shift).mean() - mean, -60.0 - logits.max(), 60.0 - logits.min()))
