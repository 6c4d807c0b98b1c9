"""What multi-objective models are made of: sizes, the base classes of their parts, and the set of parts of one model.

Notation: B rows, K objectives, W width of the encoded features, H width of a trunk's representation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.data.schema import Schema
from ctrmodels.multitask.chains import Chain
from ctrmodels.nn.encoder import Encoded

History = Literal["mean", "din", "din_softmax"]
HISTORIES: tuple[History, ...] = ("mean", "din", "din_softmax")


@dataclass(frozen=True)
class NoOptions:
    """Of a model that has no settings but those of :class:`ModelConfig`."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a multi-objective model.

    Attributes:
        bottom: layer widths of the shared bottom or of every expert; a model that shares nothing puts them at
            the start of each tower, so that all models are equally deep.
        tower: layer widths of each objective's tower.
        dropout: after every hidden layer, and on the encoded features unless the trunk crosses them.
        l2: weight of the squared norm of the embeddings that a batch touches, per row of the batch.
        gate_init: where the pairs' gates start.
        history: what a sequence ``of`` a field gives: the ``mean`` of its steps; or with ``din``, beside it, the sum
            of its steps weighted by what each says of the row's own item; or with ``din_softmax`` that of weights whose
            sum is 1. Other sequences give their mean.
        loss_weights: objective → weight of its loss; 1 where absent.
        regression: regression objective → its target, one of :data:`ctrmodels.multitask.regression.TARGETS`; ``log``
            where absent.
        duration: name of the field that the target ``per_duration`` takes its buckets from.
        options: settings that only the model itself has, of the class that its blueprint names; ``None`` = their
            defaults.
    """

    bottom: tuple[int, ...] = (64,)
    tower: tuple[int, ...] = (32,)
    dropout: float = 0.0
    l2: float = 0.0
    gate_init: float = 0.1
    history: History = "mean"
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    regression: Mapping[str, str] = field(default_factory=dict)
    duration: str | None = None
    options: Any = None


class Trunk(nn.Module, ABC):
    """Base of all trunks.

    Attributes:
        width: H, width of every representation.
        n_objectives: K.
    """

    def __init__(self, width: int, n_objectives: int) -> None:
        super().__init__()
        self.width, self.n_objectives = width, n_objectives

    @abstractmethod
    def represent(self, encoded: Encoded) -> list[Tensor]:
        """K representations [B, H], in the order of the objectives."""

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that the losses of several objectives reach; what gradient balancing looks at."""
        return iter(())

    def last_shared_layer(self) -> list[nn.Parameter]:
        """The weights among them that are nearest to the towers, whose gradients GradNorm measures; none by default."""
        return []

    def gates(self, flat: Tensor) -> Tensor | None:
        """Mixing weights [B, K, E] of a gated trunk, summing to 1 over the E experts; ``None`` for others."""
        return None

    def flops(self) -> int:
        """Operations per row beyond those of its ``Linear`` layers."""
        return 0


class FlatTrunk(Trunk):
    """A trunk that reads nothing but ``flat``."""

    @abstractmethod
    def forward(self, flat: Tensor) -> list[Tensor]:
        """``flat`` [B, W] → K representations [B, H], in the order of the objectives."""

    def represent(self, encoded: Encoded) -> list[Tensor]:
        """See :class:`Trunk`."""
        return cast(list[Tensor], self(encoded.flat))


class SplitTrunk(Trunk):
    """A trunk of which the part that does not depend on the item is computed by itself, once per request.

    U is the width of a user's representation, which no field with ``side: item`` has a part in.
    """

    @abstractmethod
    def user(self, encoded: Encoded) -> Tensor:
        """[B, U]."""

    @abstractmethod
    def joined(self, user: Tensor, encoded: Encoded) -> list[Tensor]:
        """K representations [B, H] of :meth:`user`, [B, U] or [1, U] for all rows, and of the items in ``encoded``."""

    def represent(self, encoded: Encoded) -> list[Tensor]:
        """See :class:`Trunk`."""
        return self.joined(self.user(encoded), encoded)


class Transfer(nn.Module, ABC):
    """Between trunk and towers: what one objective's representation takes from the others'."""

    @abstractmethod
    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """K representations [B, H] → as many of the same width."""

    def flops(self) -> int:
        """Operations per row beyond those of its ``Linear`` layers."""
        return 0


class Side(nn.Module, ABC):
    """What explains the training labels but is unknown when serving, such as the position of an impression.

    Added to the outputs in training only: serving, predictions, exports and costs do without it.
    """

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """[B, K], one number for the first output of every head."""

    def check(self, rows: Rows) -> None:
        """Refuse to learn from ``rows``.

        Raises:
            InputError: they lack what the side reads.
        """
        return

    def save(self, folder: Path) -> None:
        """Write what it has learned into ``folder``, for people to read: a result of its own, beside the model."""
        return


@dataclass(frozen=True)
class Pass:
    """One batch on its way through a model.

    Attributes:
        batch: B rows, with their labels.
        encoded: what the encoder made of them.
        outputs: of the towers, with the side's part; [B, K] if every head has one number per row.
        heads: head → its part of ``outputs``: [B], or [B, n] for a regression target of several numbers.
    """

    batch: Batch
    encoded: Encoded
    outputs: Tensor
    heads: Mapping[str, Tensor]


class Auxiliary(nn.Module, ABC):
    """A loss beside those of the objectives, with parameters of its own perhaps; in training only, like a side."""

    @abstractmethod
    def forward(self, done: Pass) -> dict[str, Tensor]:
        """Name → scalar, with its weight; names differ from those of the objectives' losses."""


@dataclass(frozen=True)
class Site:
    """What a model is built on.

    Attributes:
        schema: the log.
        spec: embedding and interactions.
        config: sizes.
        options: the model's own, never ``None``.
        width: W.
        interest: columns of one encoder's ``Encoded.interests``, which are among these.
    """

    schema: Schema
    spec: ArchSpec
    config: ModelConfig
    options: Any
    width: int
    interest: int

    @property
    def n_objectives(self) -> int:
        """K."""
        return len(self.schema.objectives)


@dataclass(frozen=True)
class Parts:
    """The parts that make one model differ from another.

    Attributes:
        trunk: one representation per objective.
        chain: the events that heads make up and which of them are supervised.
        tower: layer widths of each tower.
        transfer: between trunk and towers.
        side: what training knows and serving does not.
        auxiliaries: further losses.
        further: heads beside those of the objectives, which only the chain reads; the trunk has a representation for
            each of them too, behind those of the objectives.
    """

    trunk: Trunk
    chain: Chain
    tower: tuple[int, ...]
    transfer: Transfer | None = None
    side: Side | None = None
    auxiliaries: Sequence[Auxiliary] = ()
    further: tuple[str, ...] = ()
