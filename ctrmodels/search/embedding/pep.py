"""PEP: embedding values that stay under a learned threshold are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec, ValueMask
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.optimiser import CoupledAdam
from ctrmodels.search.progress import Progress
from ctrmodels.search.relaxation import Granularity, SoftThresholdEmbedding
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.optimisers import DenseAdam
from ctrmodels.training.trainer import Trainer, seed_everything

# Rows whose values are counted to see whether a target is reached. Ids fall in frequency, so evenly spaced rows are a
# fair sample: the share of so many is within .006 (standard error) even where the values of a row all agree.
SAMPLE = 1 << 13


@dataclass(frozen=True)
class PEP:
    """Pruning by learned soft thresholds, kept values rewound to where they started.

    "Learnable Embedding Sizes for Recommender Systems", ICLR 2021. Table and thresholds learn together; when the share
    of values above their thresholds has fallen to a target, the pattern is kept. The retraining starts the kept
    values from their initial ones (lottery ticket) with the thresholds off.

    What moves the thresholds is Adam's *coupled* weight decay: their loss gradient underflows where
    ``sigmoid(s)`` is tiny, while Adam normalises ``weight_decay * s`` to a step of about its learning rate.
    Decoupled decay (AdamW), or leaving the thresholds out of it, disables the method. The learning rate is therefore
    said as what it does, in terms of the planned steps: values that are worth keeping have to outgrow thresholds that
    rise in time, and where these rise slowly, noise outgrows them too.

    Thresholds of rows that a batch leaves alone catch up (:class:`~ctrmodels.search.optimiser.CoupledAdam`), so that a
    step costs what the batch costs. The values themselves are trained as anywhere else, by the host's optimiser of
    tables: in the published code the decay also pulls absent values to zero.

    Attributes:
        granularity: one threshold for everything (``global``), per ``dimension``, per ``field``, per
            ``field_dimension``, per ``value`` (an id's row) or per ``value_dimension``.
        targets: shares of the dense table's values to stop at, falling.
        threshold_init: s at the start. The table starts at sd 0.01, which ``sigmoid(-4.6)`` equals.
        rise: how far ``epochs`` would take a threshold at Adam's full step; where nothing but the decay moves it, it
            goes somewhat slower, and towards 0.
        weight_decay: of the thresholds, coupled.
        checks: how often per epoch the share is looked at.
        epochs: at most so many passes; the search ends with the last target.
    """

    granularity: Granularity = "value_dimension"
    targets: tuple[float, ...] = (0.5, 0.3, 0.15)
    threshold_init: float = -7.0
    rise: float = 10.0
    weight_decay: float = 1e-5
    checks: int = 8
    epochs: int = 3

    name: ClassVar[str] = "pep"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    def thresholds_optimiser(self, thresholds: Tensor, by_row: bool, steps: int) -> torch.optim.Optimizer:
        """Adam with coupled decay, at the rate that ``rise`` in ``steps`` takes."""
        rate = self.rise / steps
        if by_row:
            return CoupledAdam([thresholds], rate, self.weight_decay)
        return DenseAdam([thresholds], lr=rate, weight_decay=self.weight_decay, fused=True)

    @staticmethod
    def _margins(embedding: SoftThresholdEmbedding, selection: torch.optim.Optimizer, every: int) -> Tensor:
        """How far the values of every ``every``-th row are above their thresholds, which are brought to the present."""
        if isinstance(selection, CoupledAdam):
            selection.catch_up(torch.arange(0, len(embedding.parameter), every, device=embedding.parameter.device))
        return embedding.margins(every)

    def _share(self, embedding: SoftThresholdEmbedding, selection: torch.optim.Optimizer, every: int) -> float:
        """Share of the same values that are above their thresholds."""
        margins = self._margins(embedding, selection, every)
        if margins.isnan().any():  # which would pass for pruned
            raise FloatingPointError("values of the embedding are no numbers any more: lower training.learning_rate")
        return float((margins > 1).float().mean())

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """One mask per target that was reached, named by the target.

        Raises:
            RuntimeError: a target was not reached within ``epochs``.
            FloatingPointError: the training diverged.
        """
        seed_everything(seed)
        schema = rows.schema
        embedding = SoftThresholdEmbedding(schema, host.dim, self.threshold_init, self.granularity)
        start = embedding.table.weight.detach().numpy().copy()
        network = host.build(schema, ArchSpec.dense(schema, host.dim), embedding)
        trainer = Trainer(network, host.train, [embedding.parameter])
        train = trainer.loader(rows.both(), seed)
        trainer.planned = self.epochs * train.steps(0)
        selection = self.thresholds_optimiser(embedding.parameter, embedding.by_row, trainer.planned)
        trainer.optimisers.add_architecture(selection)
        if isinstance(selection, CoupledAdam):
            embedding.optimiser = selection
        every = max(1, train.steps(0) // self.checks)
        progress = Progress(self, seed, trainer, checkpoint)
        found, share = progress.found, 1.0
        sampled = max(1, len(embedding.table.weight) // SAMPLE)
        waiting = sorted(self.targets, reverse=True)[len(found.specs):]
        for epoch in progress.epochs(self.epochs):
            for step in progress.steps(train):
                if step.taken % every:
                    continue
                share = self._share(embedding, selection, sampled)
                if waiting and share <= waiting[0]:
                    margins = self._margins(embedding, selection, 1)
                while waiting and share <= waiting[0]:
                    target = waiting.pop(0)
                    found.specs[f"{self.name}-{target:g}"] = ArchSpec.of(
                        schema, self.name, host.dim, alloc=ValueMask(largest(margins, target), start), seed=seed,
                        config={**configuration(self), "target": target})
                    found.trace.append({"step": step.taken, "target": target, "kept": round(share, 6)})
                if not waiting:
                    return found
            share = self._share(embedding, selection, sampled)
            found.trace.append({"epoch": epoch, "step": trainer.taken, "kept": round(share, 6)})
        raise RuntimeError(f"PEP kept {share:.3f} of the values after {self.epochs} epochs and did not reach the "
                           f"targets {tuple(waiting)}: raise search_embedding.pep.rise")


def largest(margins: Tensor, share: float) -> np.ndarray:
    """bool [V, D]: the ``share`` of all values that lie highest above their thresholds."""
    mask = torch.zeros(margins.numel(), dtype=torch.bool, device=margins.device)
    mask[torch.topk(margins.flatten(), round(share * margins.numel()), sorted=False).indices] = True
    return mask.view(margins.shape).cpu().numpy()
