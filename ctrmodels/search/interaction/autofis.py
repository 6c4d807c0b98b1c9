"""AutoFIS: a gate per pair of fields; gates that reach zero drop their pair."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ctrmodels.archspec import ArchSpec, all_pairs
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.optimiser import GRDA
from ctrmodels.search.progress import Progress
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.optimisers import Optimisers
from ctrmodels.training.trainer import Trainer, seed_everything
from ctrmodels.zoo import AutoDeepFM


@dataclass(frozen=True)
class AutoFIS:
    """Pair selection by gates under GRDA, trained one-level with the weights.

    "AutoFIS: Automatic Feature Interaction Selection in Factorization Models for Click-Through Rate
    Prediction", KDD 2020: ``logit = ... + sum_ij alpha_ij BN(<e_i, e_j>)`` (equation 4), Adam on the weights and
    GRDA on the gates from the same backward pass. Pairs whose gate is zero at the end are dropped; the
    retraining keeps trainable gates on the others, started afresh.

    Attributes:
        target_threshold: GRDA's threshold at the last step; twice ``gate_init`` matches the published runs
            (the published constant c belongs to their number of steps and does not carry over).
        gamma, mu: of GRDA.
        gate_init: where gates start.
        epochs: passes over the rows.
    """

    target_threshold: float = 1.16
    gamma: float = 1.0
    mu: float = 0.8
    gate_init: float = 0.6
    epochs: int = 5

    name: ClassVar[str] = "autofis"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "searched"

    def build(self, rows: SearchRows, host: Host) -> AutoDeepFM:
        """The host with a gate on every pair."""
        full = ArchSpec.of(rows.schema, self.name, host.dim, interactions=all_pairs(rows.schema))
        network = host.build(rows.schema, host.complete(full, rows.schema), gate_init=self.gate_init)
        if not isinstance(network, AutoDeepFM):
            raise ValueError(f"AutoFIS needs a host with gated pairs: autodeepfm, not {host.model}")
        return network

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The pairs whose gate is not zero at the end; none, if no pair helps or the threshold is too high."""
        seed_everything(seed)
        config = host.train
        network = self.build(rows, host)
        gates = network.wide.gates
        optimisers = Optimisers.of(network, config.learning_rate, config.table_optimiser,
                                   config.table_learning_rate, config.weight_decay, exclude=[gates])
        trainer = Trainer(network, config, optimisers)
        train = trainer.loader(rows.both(), seed)
        selection = GRDA([gates], self.target_threshold, self.epochs * train.steps(0), self.gamma, self.mu)
        trainer.planned = self.epochs * train.steps(0)
        optimisers.add_architecture(selection)
        progress = Progress(self, seed, trainer, checkpoint)
        found = progress.found
        for epoch in progress.epochs(self.epochs):
            for _ in progress.steps(train):
                pass
            found.trace.append({"epoch": epoch, "threshold": round(float(selection.level), 6),
                                "kept": int((gates != 0).sum())})
        strength = gates.detach().cpu().numpy()[:, 0]
        kept = tuple(replace(pair, strength=float(a))
                     for pair, a in zip(all_pairs(rows.schema), strength, strict=True) if a != 0.0)
        found.trace.append({"strength": [round(float(a), 6) for a in strength]})
        found.specs[self.name] = ArchSpec.of(rows.schema, self.name, host.dim, interactions=kept, seed=seed,
                                             config=configuration(self))
        return found


