"""AIM-EDS: gates on embedding dimensions, driven to zero where a dimension does not help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from ctrmodels.archspec import Alloc, ArchSpec, FieldDimMask, ValueMask
from ctrmodels.data.schema import Schema
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.optimiser import GRDA, RowGRDA
from ctrmodels.search.progress import Progress
from ctrmodels.search.relaxation import GatedEmbedding
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer, seed_everything
from ctrmodels.zoo import CTRModel


@dataclass(frozen=True)
class AIMEDS:
    """Embedding dimensions by gates under GRDA, trained one-level with the weights.

    "AIM: Automatic Interaction Machine for Click-Through Rate Prediction", TKDE 2021, embedding dimension search.
    Dimensions whose gate is zero at the end are dropped; the retraining starts from scratch and has no gates.

    Attributes:
        granularity: gates per ``field_dimension``, as in the published code, or per ``value_dimension`` (every id its
            own), as the text may be read.
        target_threshold: GRDA's threshold at the last step, which decides how much goes.
        gamma, mu: of GRDA. A gate of a field sums the gradients of all rows, that of an id those of its own rows, which
            are fewer by far.
        gate_init: where gates start.
        epochs: passes over the rows.
    """

    granularity: Literal["field_dimension", "value_dimension"] = "field_dimension"
    target_threshold: float = 1.6
    gamma: float = 1.0
    mu: float = 0.8
    gate_init: float = 0.6
    epochs: int = 6

    name: ClassVar[str] = "aim_eds"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    @property
    def by_value(self) -> bool:
        """Whether every id has gates of its own."""
        return self.granularity == "value_dimension"

    def embedding(self, schema: Schema, dim: int) -> GatedEmbedding:
        """An embedding with all its gates."""
        return GatedEmbedding(schema, dim, self.by_value, self.gate_init)

    def allocation(self, embedding: GatedEmbedding) -> Alloc:
        """What is left of it."""
        kept = embedding.kept().cpu().numpy()
        return ValueMask(kept) if self.by_value else FieldDimMask(kept)

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The dimensions whose gates are not zero at the end.

        Raises:
            RuntimeError: there are none.
        """
        seed_everything(seed)
        schema = rows.schema
        embedding = self.embedding(schema, host.dim)
        # Normalised rows have one norm, so that a penalty on it would act on the gates alone.
        network = replace(host, l2=0.0).build(schema, ArchSpec.dense(schema, host.dim), embedding)
        found = self.train(network, [embedding], rows, host, seed, checkpoint)
        if not embedding.kept().any():
            raise RuntimeError(f"no gate outlived a threshold of {self.target_threshold:g}: lower "
                               "search_embedding.aim_eds.target_threshold or raise gamma")
        found.specs[self.name] = ArchSpec.of(schema, self.name, host.dim, alloc=self.allocation(embedding), seed=seed,
                                             config=configuration(self))
        if not self.by_value:
            found.trace.append({"gates": np.round(embedding.parameter.detach().cpu().numpy(), 6).tolist()})
        return found

    def train(self, network: CTRModel, embeddings: Sequence[GatedEmbedding], rows: SearchRows, host: Host, seed: int,
              checkpoint: Checkpoint | None = None) -> Found:
        """Train ``network`` and the gates of those of its ``embeddings`` that have some; trace and steps."""
        gates = [e.parameter for e in embeddings]
        trainer = Trainer(network, host.train, gates)
        train = trainer.loader(rows.both(), seed)
        trainer.planned = self.epochs * train.steps(0)
        selection = (RowGRDA if self.by_value else GRDA)(
            gates, self.target_threshold, trainer.planned, self.gamma, self.mu)
        trainer.optimisers.add_architecture(selection)
        progress = Progress(self, seed, trainer, checkpoint)

        def rise() -> None:
            for e in embeddings if self.by_value else ():
                e.level = selection.level

        rise()
        for epoch in progress.epochs(self.epochs):
            for _ in progress.steps(train):
                rise()
            kept = np.mean([float(e.kept().float().mean()) for e in embeddings])
            progress.found.trace.append({"epoch": epoch, "threshold": round(float(selection.level), 6),
                                         "kept": round(float(kept), 6)})
        progress.keep()
        return progress.found
