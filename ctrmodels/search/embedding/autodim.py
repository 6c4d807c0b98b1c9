"""AutoDim: one embedding width per field, from a differentiable mixture of candidate widths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch

from ctrmodels.archspec import Alloc, ArchSpec, FieldDimMask, PerField
from ctrmodels.data.loader import Endless
from ctrmodels.data.schema import Schema
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.bilevel import Order, set_gradients
from ctrmodels.search.embedding.rules import check_widths
from ctrmodels.search.progress import Progress, Stateful
from ctrmodels.search.relaxation import MixtureEmbedding, PrefixMixture
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.optimisers import Optimisers
from ctrmodels.training.trainer import Trainer, seed_everything

FINAL_TEMPERATURE = 0.01


@dataclass(frozen=True)
class AutoDim:
    """Width per field by a Gumbel-softmax mixture, trained bi-level.

    "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW 2021. Weights learn from
    ``train``; the architecture logits take a step on a batch of ``arch`` every ``every`` weight steps (equation 7).
    As published there is no penalty on size: small widths win where they generalise better, so both kinds of step on
    the same rows would favour the widest.

    Attributes:
        candidates: the widths to choose from, rising; the largest is at most the host's width.
        layout: ``shared``, a candidate is the first columns of one table; or ``separate``, each has its own.
        projection: how a candidate comes to the common width, in the search and in the retraining: ``zeros`` behind it,
            or a ``linear`` map per field. A shared layout with zeros costs hardly more than plain training.
        order: whether a step of the logits takes the weights as they are (``first``), or one step ahead (``second``),
            which costs four more passes.
        size_penalty: weight in the logits' loss of the expected share of the widest choice's values; 0 = as published.
        learning_rate: of Adam on the architecture logits.
        warm_up: share of the planned steps in which all candidates weigh the same, since small widths learn
            faster at first.
        every: weight steps per architecture step.
        epochs: passes over ``train``. The temperature falls from 1 to 0.01 linearly over the steps after
            the warm-up (the published schedule counts absolute steps, which never cools on a short run).
    """

    candidates: tuple[int, ...] = (2, 4, 8, 16)
    layout: Literal["shared", "separate"] = "shared"
    projection: Literal["linear", "zeros"] = "zeros"
    order: Order = "first"
    size_penalty: float = 0.0
    learning_rate: float = 0.02
    warm_up: float = 0.2
    every: int = 10
    epochs: int = 6

    name: ClassVar[str] = "autodim"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    def temperature(self, fraction: float) -> float:
        """tau when ``fraction`` of the planned steps is done; 1 during the warm-up."""
        past = max(0.0, fraction - self.warm_up) / (1 - self.warm_up)
        return max(FINAL_TEMPERATURE, 1 - past * (1 - FINAL_TEMPERATURE))

    def relaxation(self, schema: Schema) -> PrefixMixture | MixtureEmbedding:
        """All candidates at once."""
        if self.layout == "shared" and self.projection == "zeros":
            return PrefixMixture(schema, self.candidates)
        return MixtureEmbedding(schema, self.candidates, self.layout == "shared", self.projection == "linear")

    def allocation(self, widths: tuple[int, ...], dim: int) -> Alloc:
        """What the retraining builds of the chosen widths: brought to the common width as in the search."""
        if self.projection == "linear":
            return PerField(widths)
        return FieldDimMask(np.arange(dim) < np.array(widths)[:, None])

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """Widths of every id space.

        Raises:
            ValueError: the widest candidate exceeds the host's width.
        """
        check_widths(self.candidates, host)
        seed_everything(seed)
        schema, config = rows.schema, host.train
        embedding = self.relaxation(schema)
        choice = embedding.choice
        wide = ArchSpec.dense(schema, max(self.candidates))
        # Normalised candidates have the same norm whatever their tables hold: a penalty on it would only pull
        # the probabilities towards mixtures that cancel out.
        network = replace(host, l2=0.0).build(schema, wide, embedding)
        trainer = Trainer(network, config, [choice.theta])
        architecture = torch.optim.Adam([choice.theta], lr=self.learning_rate)
        train, arch = trainer.loader(rows.train, seed), Endless(trainer.loader(rows.arch, seed))
        ahead = Endless(trainer.loader(rows.train, seed + 1)) if self.order == "second" else None
        vocab = torch.tensor([float(f.vocab) for f in schema.id_spaces], device=trainer.device)
        share = torch.outer(vocab, vocab.new_tensor(self.candidates)) / (vocab.sum() * max(self.candidates))
        planned = trainer.planned = self.epochs * train.steps(0)
        passes = {"first": 1, "second": 5}[self.order]
        parts: dict[str, Stateful] = {"architecture": Optimisers([architecture]), "arch": arch}
        progress = Progress(self, seed, trainer, checkpoint, parts | ({"ahead": ahead} if ahead else {}))

        def cool() -> None:
            done = trainer.taken / planned
            choice.uniform, choice.temperature = done < self.warm_up, self.temperature(done)

        cool()
        found = progress.found
        for epoch in progress.epochs(self.epochs):
            for step in progress.steps(train):
                cool()
                if not choice.uniform and step.taken % self.every == 0:
                    set_gradients([choice.theta], trainer, next(arch), next(ahead) if ahead else None,
                                  config.learning_rate)
                    if self.size_penalty:
                        (self.size_penalty * (torch.softmax(choice.theta, 1) * share).sum()).backward()
                    architecture.step()
                    found.steps += passes
            probability = torch.softmax(choice.theta.detach(), 1).cpu().numpy()
            found.trace.append({"epoch": epoch, "temperature": round(choice.temperature, 6),
                                "probability": probability.round(6).tolist()})
        found.specs[self.name] = ArchSpec.of(
            schema, self.name, host.dim, alloc=self.allocation(choice.chosen(), host.dim), seed=seed,
            config=configuration(self))
        return found
