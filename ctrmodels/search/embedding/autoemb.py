"""AutoEmb: embedding widths that follow the popularity of ids in a stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ctrmodels import metrics, ranks
from ctrmodels.archspec import ArchSpec, PerBucket
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Schema
from ctrmodels.data.stream import stream
from ctrmodels.nn.losses import known_cross_entropy
from ctrmodels.nn.table import Lookup
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.bilevel import frozen
from ctrmodels.search.embedding.rules import by_space, check_widths
from ctrmodels.search.popularity import PopularityMixture, bucket
from ctrmodels.search.progress import Progress
from ctrmodels.training.checkpoint import Checkpoint, unflatten
from ctrmodels.training.optimisers import Optimisers
from ctrmodels.training.trainer import Trainer, seed_everything
from ctrmodels.zoo import CTRModel


@dataclass(frozen=True)
class AutoEmb:
    """Width by popularity, from a mixture of widths that learns along a stream.

    "AutoEmb: Automated Embedding Dimensionality Search in Streaming Recommendations", ICDM 2021. The rows of ``train``
    come in the order of their time, those of ``arch`` after them; every batch is predicted before it is learnt from.
    Controllers that know how often an id has occurred so far weigh its candidate widths; they and the weights learn in
    turn, to first order. The published method serves the mixture itself (:class:`StreamingAutoEmb`). The spec is a
    static form of it, which is not in the paper: by bucket of popularity on ``train``, the candidate that weighs most
    in the mean alpha of its ids at the end of the stream.

    On which batch the controllers learn matters. The public code takes the batch before, which the weights have just
    learnt: there a rare id seems to need the width that fits its few rows best. Of the incoming batch, between its
    prediction and the weights' step, the weights know as little as of what comes.

    Attributes:
        candidates: the widths, rising; at most the host's. Few that differ much take fewer events to tell apart.
        context: whether controllers read an id's last alpha and last loss as well. On a short stream these are noise
            around what its popularity says.
        decide_on: ``incoming`` or ``previous`` batch, as above.
        every: weight steps per controller step.
        learning_rate: of Adam on the controllers.
        hidden: width of the controllers' layer (512 in the public code).
        min_vocab: ids that an id space needs to take part; smaller ones and numbers keep the host's width.
        epochs: passes over ``train``, each from no occurrences on; the rows of all but the first are known already.
    """

    candidates: tuple[int, ...] = (2, 16)
    context: bool = False
    decide_on: Literal["incoming", "previous"] = "incoming"
    every: int = 4
    learning_rate: float = 1e-3
    hidden: int = 64
    min_vocab: int = 100
    epochs: int = 1

    name: ClassVar[str] = "autoemb"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """Widths by bucket of popularity.

        Raises:
            ValueError: a candidate exceeds the host's width, or no id space takes part.
        """
        seed_everything(seed)
        model, size = StreamingAutoEmb(rows.schema, host, self), host.train.batch_size
        progress = Progress(self, seed, model.trainer, checkpoint, {"stream": model})
        found = progress.found
        passes = [*[("train", rows.train)] * self.epochs, *([("arch", rows.arch)] if len(rows.arch) else [])]
        model.trainer.planned = sum(-(-len(part) // size) for _, part in passes)
        for number in progress.epochs(len(passes)):
            name, part = passes[number]
            if name == "train" and not progress.step:
                model.begin()
            for batch in islice(stream(part, size), progress.step, None):
                before = model.decisions
                model.step(batch)
                found.steps += model.decisions - before
                progress.done()
            found.trace.append({"epoch": min(number, self.epochs - 1), "rows": name, **model.quality()})
        alloc, profile = self.allocation(model.embedding, rows)
        found.trace += profile
        found.specs[self.name] = ArchSpec.of(
            rows.schema, self.name, host.dim, alloc=alloc, seed=seed, config=configuration(self))
        return found

    def allocation(self, embedding: PopularityMixture, rows: SearchRows) -> tuple[PerBucket, list[dict[str, Any]]]:
        """The static form of ``embedding``, and what it makes of every bucket."""
        spaces, n = rows.schema.id_spaces, len(self.candidates)
        alphas = np.split(embedding.present_alphas().cpu().numpy(), embedding.bounds[1:-1].cpu().numpy())
        cuts: list[tuple[int, ...]] = []
        dims: list[tuple[int, ...]] = []
        profile: list[dict[str, Any]] = []
        for space, takes, alpha, counts in zip(spaces, embedding.taking, alphas, by_space(rows), strict=True):
            # An id's count may be below that of the last, unknown id.
            place = np.minimum.accumulate(bucket(torch.from_numpy(counts)).numpy())
            starts = np.flatnonzero(np.diff(place, prepend=-1)) if takes else np.zeros(1, int)
            means = np.add.reduceat(alpha.astype(float), starts) / np.diff(starts, append=space.vocab)[:, None]
            cuts.append(tuple(int(a) for a in starts[1:]))
            dims.append(tuple(self.candidates[i] for i in means.argmax(1)) if takes else (embedding.dim,))
            if takes:
                profile += [{"space": space.name, "from": int(a), "bucket": int(place[a]), "alpha": m.round(6).tolist()}
                            for a, m in zip(starts, means.reshape(-1, n), strict=True)]
        return PerBucket(tuple(cuts), tuple(dims)), profile


class StreamingAutoEmb:
    """A network on a :class:`PopularityMixture` that predicts every batch of a stream, and then learns from it.

    What a batch shows of its ids is observed when the next one comes: every step on a batch finds its ids as they stood
    when it came. On several ranks each goes through the whole stream, since all must know what an id has shown.

    Shapes: B rows.

    Example::

        model = StreamingAutoEmb(schema, host, AutoEmb())
        model.run(stream(rows, 500))  # {"logloss": .., "auc": ..}, prequential

    Args:
        schema: the log.
        host: the network around the mixture.
        settings: of the method.

    Attributes:
        embedding: the mixture, with the popularity so far.
        network: the host's network around it.
        decisions: steps of the controllers so far.

    Raises:
        ValueError: a candidate exceeds the host's width, or no id space takes part.
    """

    def __init__(self, schema: Schema, host: Host, settings: AutoEmb) -> None:
        check_widths(settings.candidates, host)
        self.settings = settings
        self.embedding = PopularityMixture(schema, settings.candidates, host.dim, settings.min_vocab, settings.hidden,
                                           settings.context)
        # Normalised candidates have the same norm whatever their tables hold: a penalty on it would only pull the
        # alphas towards mixtures that cancel out.
        self.network = replace(host, l2=0.0).build(schema, ArchSpec.dense(schema, host.dim), self.embedding)
        self.controllers = list(self.embedding.controllers.parameters())
        self.reader = _Reader(self.network)
        self.trainer = Trainer(self.reader, host.train, self.controllers)
        self.weights = self.trainer.optimisers.weights()
        self.architecture = torch.optim.Adam(self.controllers, lr=settings.learning_rate, fused=True)
        self.waiting: tuple[Batch, Tensor] | None = None
        self.decisions = 0
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []

    def begin(self) -> None:
        """A stream begins: no id has occurred. What was learnt stays."""
        self.waiting = None
        self.embedding.forget()

    def step(self, batch: Batch) -> Tensor:
        """Predict ``batch``, then learn from it: [B] probabilities."""
        self._settle()
        batch = batch.to(self.trainer.device)
        if not self.network.training:
            self.network.train()
        self.reader.turn_to(batch)
        with self.embedding.sharing():
            if self._decides("incoming"):
                self._decide(batch)
            with frozen(self.controllers):
                self.trainer.step(batch)
        logit = self.reader.prediction
        self.waiting = batch, logit
        score = torch.sigmoid(logit)
        self.scores.append(score.cpu())
        self.labels.append(batch.labels[:, self.network.column].cpu())
        return score

    def run(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Go through ``batches``, then say how good the predictions were."""
        for batch in batches:
            self.step(batch)
        return self.quality()

    def quality(self) -> dict[str, float]:
        """A stream ends: ``logloss`` and ``auc`` of its predictions, each made before its batch was learnt from."""
        self._settle()
        score, label = torch.cat(self.scores).numpy(), torch.cat(self.labels).numpy()
        self.scores, self.labels = [], []
        known = ~np.isnan(label)
        return {"logloss": round(metrics.logloss(label[known], score[known]), 8),
                "auc": round(metrics.auc(label[known], score[known]), 8)}

    def state(self) -> dict[str, Tensor]:
        """What the trainer does not know of: the controllers' optimiser, and the stream so far."""
        found = {f"architecture/{k}": t for k, t in Optimisers([self.architecture]).state().items()}
        found |= {"decisions": torch.tensor(self.decisions), "scores": torch.cat([torch.empty(0), *self.scores]),
                  "labels": torch.cat([torch.empty(0), *self.labels])}
        if self.waiting is not None:
            batch, logit = self.waiting
            found |= {f"sequence/{k}": t for k, t in batch.sequences.items()}
            found |= {"logit": logit, "ids": batch.ids, "numeric": batch.numeric, "label": batch.labels,
                      "position": batch.position}
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        parts = unflatten(state)
        Optimisers([self.architecture]).load(parts["architecture"])
        self.decisions, self.scores, self.labels = int(state["decisions"]), [state["scores"]], [state["labels"]]
        self.waiting = None
        if "logit" in state:
            device = self.trainer.device
            batch = Batch(state["ids"], state["numeric"], dict(parts["sequence"]), state["label"], state["position"])
            batch = batch.to(device)
            self.reader.turn_to(batch)
            self.waiting = batch, state["logit"].to(device)

    def _settle(self) -> None:
        """What the last batch showed is the past."""
        if self.waiting is None:
            return
        batch, logit = self.waiting
        if self._decides("previous"):
            self._decide(batch)
        self.embedding.observe(self.reader.lookup, logit, batch.labels[:, self.network.column])
        self.waiting = None

    def _decides(self, on: str) -> bool:
        """Whether it is the controllers' turn, and they learn ``on`` that batch."""
        return self.settings.decide_on == on and self.trainer.taken % self.settings.every == 0

    def _decide(self, batch: Batch) -> None:
        """A step of the controllers."""
        with frozen(self.weights):
            self.trainer.loss(batch).backward()
        ranks.average_gradients(self.controllers)
        self.architecture.step()
        self.architecture.zero_grad()
        self.decisions += 1


class _Reader(nn.Module):
    """A network that is trained in several passes over one batch after the other, each looked up once.

    The first pass comes before anything has learnt from the batch's labels: its logits are a prediction that costs
    nothing beyond the learning. As it is a pass of training, the statistics are those of the batch's own features.

    Attributes:
        lookup: of the batch, in the layout of all fields.
        logits: [B] of each pass.
    """

    lookup: Lookup

    def __init__(self, network: CTRModel) -> None:
        super().__init__()
        self.network = network
        self.logits: list[Tensor] = []

    def turn_to(self, batch: Batch) -> None:
        """The next passes are over ``batch``."""
        self.lookup, self.logits = self.network.encoder.layout(batch), []

    @property
    def prediction(self) -> Tensor:
        """[B] logits of the first pass."""
        return self.logits[0]

    def loss(self, batch: Batch) -> Tensor:
        """Scalar."""
        logit = self.network.score(self.network.encoder(batch, self.lookup)).float()
        self.logits.append(logit.detach())
        return known_cross_entropy(logit, batch.labels[:, self.network.column])

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """As the network does."""
        return self.network.predict(batch)
