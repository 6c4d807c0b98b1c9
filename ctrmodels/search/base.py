"""What all searches share: the host they work on, what they are given, and what they hand back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from ctrmodels.archspec import ArchSpec, merge
from ctrmodels.data.dataset import Rows
from ctrmodels.data.schema import Schema
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import TrainConfig
from ctrmodels.zoo import HOSTS, MODELS, CTRModel, Sizes

Part = Literal["embedding", "interaction"]
Kind = Literal["searched", "rule", "control", "baseline"]


@dataclass(frozen=True)
class Host:
    """The network that a search relaxes and a retraining rebuilds.

    Attributes:
        objective: the binary objective it predicts.
        model: its name, a key of ``ctrmodels.zoo``'s ``HOSTS`` or ``MODELS``. ``autodeepfm`` (with no hidden
            widths a factorisation machine) and ``autoipnn`` have the interactions of an ArchSpec; the others their own.
        dim: common embedding width D.
        hidden, dropout, l2: of the network.
        gate_init: where the gates of pairs start, outside of a search for them.
        train: how it is trained.
        embedding: the chosen embedding, for a search of interactions; ``None`` = width ``dim`` everywhere.
    """

    objective: str
    model: str = "autodeepfm"
    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.0
    l2: float = 0.0
    gate_init: float = 0.1
    train: TrainConfig = field(default_factory=TrainConfig)
    embedding: ArchSpec | None = None

    def complete(self, spec: ArchSpec, schema: Schema) -> ArchSpec:
        """``spec`` with the part that it does not speak of taken from the host: all pairs, or its embedding."""
        dense = ArchSpec.dense(schema, self.dim)
        if spec.interactions is None:
            spec = merge(spec, replace(dense, alloc=None))
        if spec.alloc is None:
            spec = merge(self.embedding or replace(dense, interactions=None), spec)
        return spec

    def build(self, schema: Schema, spec: ArchSpec, embedding: FieldEmbedding | None = None,
              gate_init: float | None = None) -> CTRModel:
        """The network of a complete ``spec``; a search may put its relaxation in the embedding's place."""
        sizes = Sizes(self.hidden, self.dropout, self.l2, self.gate_init if gate_init is None else gate_init)
        return {**HOSTS, **MODELS}[self.model].sized(schema, spec, self.objective, sizes, embedding)


@dataclass(frozen=True)
class SearchRows:
    """The rows that a search may read.

    Attributes:
        train: for weights.
        arch: for architecture gradients and rewards; methods without those learn weights from it as well.
    """

    train: Rows
    arch: Rows

    @property
    def schema(self) -> Schema:
        """The log's description."""
        return self.train.schema

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 [total_vocab]: how often every id occurs on ``train``, in the layout of ``Schema.offsets``."""
        schema, counts = self.schema, np.zeros(self.schema.total_vocab, np.int64)
        for part in self.train.parts:
            for place, f in enumerate(schema.id_fields):
                start = schema.offsets[f.name]
                counts[start:start + f.vocab] += np.bincount(part.ids[:, place], minlength=f.vocab)
            for f in schema.sequence_fields:
                if f.of is None:
                    steps, start = part.sequences[f.name], schema.offsets[f.name]
                    counts[start:start + f.vocab] += np.bincount(steps[steps >= 0], minlength=f.vocab)
        return counts

    def both(self) -> Rows:
        """All rows of both roles, for one-level methods and retraining."""
        return Rows.concatenate([self.train, self.arch]) if len(self.arch) else self.train


@dataclass
class Found:
    """What one search run found.

    Attributes:
        specs: name of the level (a target size, or the method's name) → spec of the searched part.
        trace: what happened on the way, one entry per epoch or decision, only reproducible numbers.
        steps: what it took, in training steps of one batch; passes that only judge a batch count a third.
    """

    specs: dict[str, ArchSpec]
    trace: list[dict[str, Any]] = field(default_factory=list)
    steps: float = 0


class SearchMethod(Protocol):
    """One search algorithm.

    Attributes:
        name: its key.
        part: which part of an ArchSpec it speaks of.
        kind: ``searched``; ``rule``, an allocation that follows from counts alone; ``control``, the unsearched model
            that every search is compared with; or ``baseline``, a plain model to stand beside them.
    """

    @property
    def name(self) -> str:
        """Its key."""
        ...

    part: ClassVar[Part]
    kind: ClassVar[Kind]

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """Run the search once; go on from what ``checkpoint`` holds of an interrupted attempt."""
        ...


def configuration(method: SearchMethod) -> Mapping[str, Any]:
    """The method's settings, for the spec and the report."""
    return asdict(method)  # type: ignore[call-overload]


