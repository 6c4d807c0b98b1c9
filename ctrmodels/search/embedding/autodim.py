"""AutoDim: one embedding width per field, from a differentiable mixture of candidate widths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ctrmodels import ranks
from ctrmodels.archspec import ArchSpec, PerField
from ctrmodels.data.loader import endless
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.relaxation import MixtureEmbedding
from ctrmodels.training.optimisers import Optimisers
from ctrmodels.training.trainer import Trainer, seed_everything

FINAL_TEMPERATURE = 0.01


@dataclass(frozen=True)
class AutoDim:
    """Width per field by a Gumbel-softmax mixture, trained bi-level to first order.

    "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW 2021. Weights learn from
    ``train``; the architecture logits take a step on a batch of ``arch`` every ``every`` weight steps
    (equation 7 with the one-step look-ahead left out). There is no penalty on size: small widths win where
    they generalise better, so both kinds of step on the same rows would favour the widest.

    Attributes:
        candidates: the widths to choose from, rising; the largest is at most the host's width.
        learning_rate: of Adam on the architecture logits.
        warm_up: share of the planned steps in which all candidates weigh the same, since small widths learn
            faster at first.
        every: weight steps per architecture step.
        epochs: passes over ``train``. The temperature falls from 1 to 0.01 linearly over the steps after
            the warm-up (the published schedule counts absolute steps, which never cools on a short run).
    """

    candidates: tuple[int, ...] = (2, 4, 8, 16)
    learning_rate: float = 0.02
    warm_up: float = 0.2
    every: int = 2
    epochs: int = 6

    name: ClassVar[str] = "autodim"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    def temperature(self, fraction: float) -> float:
        """tau when ``fraction`` of the planned steps is done; 1 during the warm-up."""
        past = max(0.0, fraction - self.warm_up) / (1 - self.warm_up)
        return max(FINAL_TEMPERATURE, 1 - past * (1 - FINAL_TEMPERATURE))

    def search(self, rows: SearchRows, host: Host, seed: int) -> Found:
        """Widths of every id space.

        Raises:
            ValueError: the widest candidate exceeds the host's width.
        """
        if max(self.candidates) > host.dim:
            raise ValueError(f"candidate width {max(self.candidates)} exceeds the host's {host.dim}")
        seed_everything(seed)
        schema, config = rows.schema, host.train
        embedding = MixtureEmbedding(schema, self.candidates)
        wide = ArchSpec.dense(schema, max(self.candidates))
        # Normalised candidates have the same norm whatever their tables hold: a penalty on it would only pull
        # the probabilities towards mixtures that cancel out.
        network = replace(host, l2=0.0).build(schema, wide, embedding)
        trainer = Trainer(network, config, Optimisers.of(
            network, config.learning_rate, config.table_optimiser, config.table_learning_rate,
            exclude=[embedding.theta]))
        architecture = torch.optim.Adam([embedding.theta], lr=self.learning_rate)
        train, arch = trainer.loader(rows.train, seed), endless(trainer.loader(rows.arch, seed))
        planned = self.epochs * train.steps(0)
        found = Found({})
        for epoch in range(self.epochs):
            for step in trainer.epoch(train, epoch):
                done = step.taken / planned
                embedding.uniform, embedding.temperature = done < self.warm_up, self.temperature(done)
                if not embedding.uniform and step.taken % self.every == 0:
                    embedding.theta.grad, = torch.autograd.grad(trainer.loss(next(arch)), [embedding.theta])
                    ranks.average_gradients([embedding.theta])
                    architecture.step()
            share = torch.softmax(embedding.theta.detach(), 1).cpu().numpy()
            found.trace.append({"epoch": epoch, "temperature": round(embedding.temperature, 6),
                                "probability": share.round(6).tolist()})
        found.steps = trainer.taken
        found.specs[self.name] = ArchSpec.of(
            schema, self.name, host.dim, alloc=PerField(embedding.chosen()), seed=seed,
            config=configuration(self))
        return found
