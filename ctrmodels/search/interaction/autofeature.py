"""AutoFeature: which combinations of fields have a micro-network, and which, by short trainings of many genomes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import combinations, count, islice
from typing import Any, ClassVar

import numpy as np
import torch

from ctrmodels.archspec import ArchSpec, Interaction, all_pairs, model_fields
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.controller import Breeding, NBTreeCRP, Proposal
from ctrmodels.search.controller.genome import canonical
from ctrmodels.search.interaction.columns import IdColumns
from ctrmodels.search.interaction.information import crossed_information
from ctrmodels.search.trial import evaluate
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer, seed_everything
from ctrmodels.zoo import GATED

FILTER_ROWS = 200_000  # of train, that the choice of triples reads at most
PASS = 1 / 3  # of a training step: forward alone


@dataclass(frozen=True)
class AutoFeature:
    """A micro-network per combination of fields, searched as a string of operations each.

    "AutoFeature: Searching for Feature Interactions and Their Architectures for Click-through Rate Prediction", CIKM
    2020; there is no public code, so that the wiring of micro-networks (:mod:`ctrmodels.nn.micronet`) and parts of the
    controller (:mod:`ctrmodels.search.controller`) are reconstructed. Every genome is trained from scratch on
    ``train``, with the same seed, rows, order and steps, and judged by its AUC on ``arch``: what differs between two
    scores is the genome. The best one is the result.

    All pairs of fields take part. Of the triples, of which 39 fields have 9,139, only those whose pairs say most of the
    label together, by their crossed information on ``train``: a triple whose pairs say nothing is missed.

    Attributes:
        triples: number of combinations of three fields that take part.
        slots: operations of a micro-network at most.
        evaluations: genomes to judge.
        epochs: passes over ``train`` per evaluation, or a part of one.
        tie_break: AUC that a genome without micro-networks is worth beside one in which every slot has an operation, in
            proportion to their number; it decides between genomes whose AUC hardly differs.
        breeding: how genomes come about.
    """

    triples: int = 0
    slots: int = 4
    evaluations: int = 100
    epochs: float = 1.0
    tie_break: float = 0.002
    breeding: Breeding = field(default_factory=Breeding)

    name: ClassVar[str] = "autofeature"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "searched"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The micro-networks of the best genome; the checkpoint is written after every evaluation.

        The trace has per evaluation ``auc``, ``score`` (with the tie-break), ``kept`` micro-networks, their
        ``operations`` and the ``leaf`` that the genome was bred in (``None`` = random). A kept micro-network's strength
        is the mean score of the judged genomes that have one there, less that of those that have none.

        Raises:
            ValueError: the host does not read micro-networks.
            InputError: the checkpoint is damaged, or belongs to another search.
        """
        if host.model not in GATED:
            raise ValueError(f"AutoFeature needs a host that reads micro-networks: {' or '.join(GATED)}, "
                             f"not {host.model}")
        fields = self.combinations(rows, host, seed)
        controller = NBTreeCRP(len(fields), self.slots, seed, self.breeding)
        history = _History(checkpoint, {"method": self.name, "seed": seed, **configuration(self),
                                        "training": asdict(host.train)})
        for proposal, entry in zip(history.proposals, history.entries, strict=True):
            controller.observe(proposal, entry["score"])
        while len(history.entries) < self.evaluations:
            proposal = controller.propose()
            interactions = _micronets(fields, proposal.genome)
            auc, steps = self._judge(interactions, rows, host, seed)
            operations = sum(len(i.genes) for i in interactions)
            score = auc - self.tie_break * operations / (len(fields) * self.slots)
            controller.observe(proposal, score)
            history.add(proposal, {
                "evaluation": len(history.entries), "auc": round(auc, 8), "score": score, "kept": len(interactions),
                "operations": operations, "leaf": proposal.leaf, "steps": steps})
        return self._found(rows, host, seed, fields, history)

    def combinations(self, rows: SearchRows, host: Host, seed: int) -> list[tuple[int, ...]]:
        """The fields of every micro-network: all pairs, and the triples that take part."""
        pairs: list[tuple[int, ...]] = [i.fields for i in all_pairs(rows.schema)]
        if not self.triples:
            return pairs
        told = dict(zip(pairs, crossed_information(IdColumns.draw(rows.train, host.objective, FILTER_ROWS, seed)),
                        strict=True))
        every = list(combinations(range(len(model_fields(rows.schema))), 3))
        order = np.argsort([-sum(told[pair] for pair in combinations(triple, 2)) for triple in every], kind="stable")
        return [*pairs, *sorted(every[k] for k in order[:self.triples])]

    def _judge(self, interactions: list[Interaction], rows: SearchRows, host: Host, seed: int) -> tuple[float, float]:
        """AUC on ``arch`` after a short training from scratch, and what that took in steps."""
        seed_everything(seed)
        spec = ArchSpec.of(rows.schema, self.name, host.dim, interactions=tuple(interactions))
        network = host.build(rows.schema, host.complete(spec, rows.schema))
        trainer = Trainer(network, host.train)
        train = trainer.loader(rows.train, seed)
        trainer.planned = max(round(self.epochs * train.steps(0)), 1)
        for epoch in count():
            for _ in islice(trainer.epoch(train, epoch), trainer.planned - trainer.taken):
                pass
            if trainer.taken >= trainer.planned:
                break
        return evaluate(network, rows.arch)["auc"], trainer.taken + PASS * len(rows.arch) / host.train.batch_size

    def _found(self, rows: SearchRows, host: Host, seed: int, fields: list[tuple[int, ...]],
               history: _History) -> Found:
        scores = np.array([entry["score"] for entry in history.entries])
        genomes = np.stack([canonical(p.genome) for p in history.proposals])
        has = genomes[:, :, 0] != 0  # [evaluations, M]
        best = int(scores.argmax())
        strength = {f: float(scores[there].mean() - scores[~there].mean()) if there.any() and not there.all() else 0.0
                    for f, there in zip(fields, has.T, strict=True)}
        kept = tuple(sorted(Interaction(i.fields, i.op, strength[i.fields], genes=i.genes)
                            for i in _micronets(fields, genomes[best])))
        spec = ArchSpec.of(rows.schema, self.name, host.dim, interactions=kept, seed=seed, config=configuration(self))
        trace: list[dict[str, Any]] = [*history.entries, {"best": best}]
        return Found({self.name: spec}, trace, sum(entry["steps"] for entry in history.entries))


def _micronets(fields: list[tuple[int, ...]], genome: np.ndarray) -> list[Interaction]:
    """The micro-networks that a genome has."""
    return [Interaction(f, "micronet", genes=tuple(int(g) for g in genes if g))
            for f, genes in zip(fields, canonical(genome), strict=True) if genes[0]]


class _History:
    """What was judged, kept in a checkpoint; all else of a search follows from it.

    Attributes:
        proposals: the genomes, in turn.
        entries: what came of each.
    """

    def __init__(self, checkpoint: Checkpoint | None, whose: dict[str, Any]) -> None:
        self.checkpoint, self.whose = checkpoint, whose
        self.proposals: list[Proposal] = []
        self.entries: list[dict[str, Any]] = []
        stored = checkpoint.load_of(whose) if checkpoint is not None else None
        if stored is not None:
            self.entries = stored[1]["entries"]
            self.proposals = [Proposal(genome, entry["leaf"])
                              for genome, entry in zip(stored[0]["genomes"].numpy(), self.entries, strict=True)]

    def add(self, proposal: Proposal, entry: dict[str, Any]) -> None:
        """An evaluation is done."""
        self.proposals.append(proposal)
        self.entries.append(entry)
        if self.checkpoint is not None:
            genomes = torch.from_numpy(np.stack([p.genome for p in self.proposals]))
            self.checkpoint.save({"genomes": genomes}, {"whose": self.whose, "entries": self.entries})
