"""PEP: embedding values that stay under a learned threshold are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ctrmodels.archspec import ArchSpec, ValueMask
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.relaxation import SoftThresholdEmbedding
from ctrmodels.training.optimisers import DenseAdam, Optimisers
from ctrmodels.training.trainer import Trainer, seed_everything


@dataclass(frozen=True)
class PEP:
    """Pruning by learned soft thresholds, kept values rewound to where they started.

    "Learnable Embedding Sizes for Recommender Systems", ICLR 2021. One optimiser trains table and thresholds
    together; when the number of non-zero values first falls to a target, the pattern is kept. The retraining
    starts the kept values from their initial ones (lottery ticket) with the threshold off.

    What moves the thresholds is Adam's *coupled* weight decay: their loss gradient underflows where
    ``sigmoid(s)`` is tiny, while Adam normalises ``weight_decay * s`` to a step of about its learning rate.
    Decoupled decay (AdamW), or leaving the thresholds out of it, disables the method.

    Attributes:
        granularity: one threshold for everything (``global``), per ``dimension``, per ``value`` (an id's row) or
            per ``value_dimension``.
        targets: shares of the dense table's values to stop at, falling.
        threshold_init: initial s; the table starts at sd 0.01, which ``sigmoid(-4.6)`` equals.
        learning_rate: of the thresholds.
        weight_decay: on table and thresholds, coupled.
        epochs: at most so many passes; the search ends with the last target.
    """

    granularity: str = "value_dimension"
    targets: tuple[float, ...] = (0.5, 0.3, 0.15)
    threshold_init: float = -7.0
    learning_rate: float = 0.02
    weight_decay: float = 1e-5
    epochs: int = 30

    name: ClassVar[str] = "pep"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    def optimisers(self, network: torch.nn.Module, embedding: SoftThresholdEmbedding,
                   learning_rate: float) -> Optimisers:
        """Adam with coupled decay on everything, the thresholds at a rate of their own."""
        others = [p for p in network.parameters() if p is not embedding.threshold]
        return Optimisers([DenseAdam(
            [{"params": others, "lr": learning_rate},
             {"params": [embedding.threshold], "lr": self.learning_rate}],
            weight_decay=self.weight_decay, fused=True)])

    def search(self, rows: SearchRows, host: Host, seed: int) -> Found:
        """One mask per target that was reached, named by the target.

        Raises:
            RuntimeError: no target was reached within ``epochs``.
        """
        seed_everything(seed)
        schema, config = rows.schema, host.train
        embedding = SoftThresholdEmbedding(schema, host.dim, self.threshold_init, self.granularity)
        start = embedding.table.detach().numpy().copy()
        network = host.build(schema, ArchSpec.dense(schema, host.dim), embedding)
        trainer = Trainer(network, config, self.optimisers(network, embedding, config.learning_rate))
        train, total = trainer.loader(rows.both(), seed), embedding.table.numel()
        waiting = sorted(self.targets, reverse=True)
        found = Found({})
        for epoch in range(self.epochs):
            for step in trainer.epoch(train, epoch):
                found.steps = step.taken
                kept = embedding.kept()
                share = int(kept.sum()) / total
                while waiting and share <= waiting[0]:
                    target = waiting.pop(0)
                    found.specs[f"{self.name}-{target:g}"] = ArchSpec.of(
                        schema, self.name, host.dim, alloc=ValueMask(kept.cpu().numpy(), start), seed=seed,
                        config={**configuration(self), "target": target})
                    found.trace.append({"step": found.steps, "target": target, "kept": round(share, 6)})
                if not waiting:
                    return found
            found.trace.append({"epoch": epoch, "step": found.steps, "kept": round(share, 6)})
        if not found.specs:
            raise RuntimeError(
                f"PEP kept {share:.3f} of the values after {self.epochs} epochs and reached none of the targets "
                f"{self.targets}: raise search_embedding.pep.epochs or learning_rate")
        return found
