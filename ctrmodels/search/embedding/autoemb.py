"""AutoEmb: embedding widths that follow the popularity of ids in a stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ctrmodels import metrics, ranks
from ctrmodels.archspec import ArchSpec, PerBucket
from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.data.schema import Schema
from ctrmodels.data.stream import stream
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.embedding.rules import by_space, check_widths
from ctrmodels.search.popularity import PopularityMixture, bucket
from ctrmodels.training.optimisers import Optimisers
from ctrmodels.training.trainer import Trainer, seed_everything


class StreamingAutoEmb:
    """A network on a :class:`PopularityMixture` that predicts every batch of a stream, and then learns from it.

    For every batch: (1) the controllers take a step on the batch before it, whose ids stand as they stood when it
    came, and only then is that batch observed; (2) the batch is predicted; (3) the weights take a step on it. So
    neither a prediction nor a decision ever sees what came later, and controllers learn before the weights do.

    On several ranks each goes through the whole stream, since what an id has shown is state that all must share.

    Attributes:
        embedding: the mixture, with the popularity so far.
        network: the host's network around it.
    """

    def __init__(self, schema: Schema, host: Host, settings: AutoEmb) -> None:
        self.settings, self.host = settings, host
        self.embedding = PopularityMixture(schema, settings.candidates, host.dim, settings.min_vocab, settings.hidden,
                                           settings.context)
        # Normalised candidates have the same norm whatever their tables hold, so that a penalty would be in vain.
        self.network = replace(host, l2=0.0).build(schema, ArchSpec.dense(schema, host.dim), self.embedding)
        controllers = list(self.embedding.controllers.parameters())
        config = host.train
        self.trainer = Trainer(self.network, config, Optimisers.of(
            self.network, config.learning_rate, config.table_optimiser, config.table_learning_rate,
            exclude=controllers))
        self.architecture = torch.optim.Adam(controllers, lr=settings.learning_rate)
        self.past: tuple[Batch, Tensor] | None = None

    def begin(self) -> None:
        """A stream begins: nothing has been observed. What was learnt stays."""
        self.embedding.forget()
        self.past = None

    def step(self, batch: Batch) -> Tensor:
        """Predict ``batch``, then learn from it; [B] probabilities."""
        batch = batch.to(self.trainer.device)
        if self.past is not None:
            self.network.train()
            if self.trainer.taken % self.settings.every == 0:
                self._decide(self.past[0])
            self.embedding.observe(self.network.encoder.layout(self.past[0]), self.past[1])
        logit = self._logits(batch)
        label = batch.labels[:, self.network.column]
        self.past = batch, F.binary_cross_entropy_with_logits(logit, label, reduction="none")
        self.network.train()
        with self.embedding.deciding(False):
            self.trainer.step(batch)
        return torch.sigmoid(logit)

    def run(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Go through ``batches``; ``logloss`` and ``auc`` of what was predicted before it was learnt from."""
        scores, labels = [], []
        for batch in batches:
            scores.append(self.step(batch).cpu().numpy())
            labels.append(batch.labels[:, self.network.column].numpy())
        score, label = np.concatenate(scores), np.concatenate(labels)
        known = ~np.isnan(label)
        return {"logloss": metrics.logloss(label[known], score[known]), "auc": metrics.auc(label[known], score[known])}

    @torch.no_grad()
    def _logits(self, batch: Batch) -> Tensor:
        self.network.eval()
        return self.network(batch)

    def _decide(self, past: Batch) -> None:
        """One step of the controllers."""
        controllers = list(self.embedding.controllers.parameters())
        for parameter, gradient in zip(controllers, torch.autograd.grad(
                self.trainer.loss(past), controllers, allow_unused=True), strict=True):
            parameter.grad = gradient
        ranks.average_gradients(controllers)
        self.architecture.step()


@dataclass(frozen=True)
class AutoEmb:
    """Width by popularity.

    Attributes:
        candidates: widths.
    """

    candidates: tuple[int, ...] = (2, 4, 8, 16)
    context: bool = True
    learning_rate: float = 1e-3
    every: int = 2
    epochs: int = 1
    hidden: int = 64
    min_vocab: int = 100

    name: ClassVar[str] = "autoemb"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    def search(self, rows: SearchRows, host: Host, seed: int) -> Found:
        """Widths by bucket of popularity.

        Raises:
            ValueError: the widest candidate exceeds the host's width.
        """
        check_widths(self.candidates, host)
        seed_everything(seed)
        model, size = StreamingAutoEmb(rows.schema, host, self), host.train.batch_size
        found = Found({})
        for epoch in range(self.epochs):
            model.begin()
            found.trace.append({"epoch": epoch, "rows": "train", **model.run(stream(rows.train, size))})
        if len(rows.arch):
            found.trace.append({"epoch": self.epochs, "rows": "arch", **model.run(stream(rows.arch, size))})
        found.steps = model.trainer.taken
        return found
