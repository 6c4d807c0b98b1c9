"""AutoDim: one embedding width per field, from a differentiable mixture of candidate widths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from ctrmodels.archspec import ArchSpec, PerField
from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.search.base import Found, Host, Part, SearchRows, configuration
from ctrmodels.search.relaxation import MixtureEmbedding
from ctrmodels.training.trainer import resolve_device, seed_everything

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
    is_control: ClassVar[bool] = False

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
        device = resolve_device(config.device)
        embedding = MixtureEmbedding(schema, self.candidates)
        wide = ArchSpec.dense(schema, max(self.candidates))
        # Normalised candidates have the same norm whatever their tables hold: a penalty on it would only pull
        # the probabilities towards mixtures that cancel out.
        network = replace(host, l2=0.0).build(schema, wide, embedding).to(device)
        weights = torch.optim.Adam(
            [p for n, p in network.named_parameters() if p is not embedding.theta],
            lr=config.learning_rate, fused=True)
        architecture = torch.optim.Adam([embedding.theta], lr=self.learning_rate)
        rng = np.random.default_rng([seed, 0x64696D])
        arch = _endless(rows.arch, config.batch_size, rng)
        planned = self.epochs * -(-len(rows.train) // config.batch_size)
        found, step = Found({}), 0
        network.train()
        for epoch in range(self.epochs):
            for batch in rows.train.batches(config.batch_size, rng):
                embedding.uniform = step < self.warm_up * planned
                embedding.temperature = self.temperature(step / planned)
                if not embedding.uniform and step % self.every == 0:
                    architecture.zero_grad()
                    network.loss(next(arch).to(device)).backward()
                    architecture.step()
                weights.zero_grad()
                network.loss(batch.to(device)).backward()
                weights.step()
                step += 1
            share = torch.softmax(embedding.theta.detach(), 1).cpu().numpy()
            found.trace.append({"epoch": epoch, "temperature": round(embedding.temperature, 6),
                                "probability": share.round(6).tolist()})
        found.steps = step
        found.specs[self.name] = ArchSpec.of(
            schema, self.name, host.dim, alloc=PerField(embedding.chosen()), seed=seed,
            config=configuration(self))
        return found


def _endless(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    while True:
        yield from rows.batches(min(size, len(rows)), rng)
