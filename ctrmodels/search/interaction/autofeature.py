"""AutoFeature: which combinations of fields have a micro-network, and which, by short trainings of many genomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, count, islice
from typing import Any, ClassVar

import numpy as np
import torch

from ctrmodels.archspec import ArchSpec, Interaction, all_pairs, model_fields
from ctrmodels.metrics import auc_contributions
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.controller import Breeding, NBTreeCRP, Proposal
from ctrmodels.search.controller.genome import canonical
from ctrmodels.search.interaction.columns import IdColumns
from ctrmodels.search.interaction.information import crossed_information
from ctrmodels.search.trial import known
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer, predict, seed_everything
from ctrmodels.zoo import GATED

FILTER_ROWS = 200_000  # of train, that the choice of triples reads at most
PASS = 1 / 3  # of a training step: forward alone
AFRESH = 0x70617265  # tells the seed of the paring from that of the search


@dataclass(frozen=True)
class Judgement:
    """What a short training came to.

    Attributes:
        contributions: [N] of the known rows of ``arch``, whose mean is the AUC.
        steps: that it took.
    """

    contributions: np.ndarray
    steps: float

    @property
    def auc(self) -> float:
        """On ``arch``."""
        return float(self.contributions.mean())

    def loss_of(self, other: Judgement) -> tuple[float, float]:
        """AUC that ``other`` has less, and its standard error: DeLong's, of two scores on the same rows."""
        difference = self.contributions - other.contributions
        return float(difference.mean()), float(difference.std(ddof=1)) / len(difference) ** 0.5


@dataclass(frozen=True)
class AutoFeature:
    """A micro-network per combination of fields, searched as a string of operations each.

    "AutoFeature: Searching for Feature Interactions and Their Architectures for Click-through Rate Prediction", CIKM
    2020; there is no public code, so that the wiring of micro-networks (:mod:`ctrmodels.nn.micronet`) and parts of the
    controller (:mod:`ctrmodels.search.controller`) are reconstructed. Every genome is trained from scratch on
    ``train``, with the same seed, rows, order and steps, and judged by its AUC on ``arch``: what differs between two
    scores is the genome.

    The paper's result is the best genome. It is the best of many that were judged on the same rows, and where hardly
    any AUC tells a micro-network from none, whether it has one is chance. Hence a step of our own behind the search,
    the one-standard-error rule of "Classification and Regression Trees", 1984, section 3.4.3: from the best genome,
    trained once more from another seed, micro-networks are left out one after the other, the one of least strength
    first, as long as the AUC stays within ``pare`` standard errors of what it was with all of them.

    All pairs of fields take part. Of the triples, of which 39 fields have 9,139, only those whose pairs say most of the
    label together, by their crossed information on ``train``: a triple whose pairs say nothing is missed.

    Attributes:
        triples: number of combinations of three fields that take part.
        slots: operations of a micro-network at most.
        evaluations: genomes to judge.
        epochs: passes over ``train`` per evaluation, or a part of one.
        tie_break: AUC that a genome without micro-networks is worth beside one in which every slot has an operation, in
            proportion to their number; it decides between genomes whose AUC hardly differs.
        pare: standard errors of AUC that leaving out micro-networks of the best genome may cost; ``None`` = none is
            left out, as in the paper.
        breeding: how genomes come about.
    """

    triples: int = 0
    slots: int = 4
    evaluations: int = 100
    epochs: float = 1.0
    tie_break: float = 0.002
    pare: float | None = 1.0
    breeding: Breeding = field(default_factory=Breeding)

    name: ClassVar[str] = "autofeature"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "searched"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The micro-networks of the best genome; the checkpoint is written after every evaluation.

        The trace has per evaluation ``auc``, ``score`` (with the tie-break), ``kept`` micro-networks, their
        ``operations`` and the ``leaf`` that the genome was bred in (``None`` = random); then per micro-network of the
        best one, ``without`` which it was tried, the AUC that was ``lost``, its standard ``error`` and whether it is
        ``left_out``. A kept micro-network's strength is the mean score of the judged genomes that have one there, less
        that of those that have none.

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
            judged = self._judge(interactions, rows, host, seed)
            operations = sum(len(i.genes) for i in interactions)
            score = judged.auc - self.tie_break * operations / (len(fields) * self.slots)
            controller.observe(proposal, score)
            history.add(proposal, {
                "evaluation": len(history.entries), "auc": round(judged.auc, 8), "score": score,
                "kept": len(interactions), "operations": operations, "leaf": proposal.leaf, "steps": judged.steps})
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

    def _judge(self, interactions: Sequence[Interaction], rows: SearchRows, host: Host, seed: int) -> Judgement:
        """A short training from scratch."""
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
        label, there = known(rows.arch, host.objective)
        return Judgement(auc_contributions(label, predict(network, rows.arch)[f"{host.objective}@all"][there]),
                         trainer.taken + PASS * len(rows.arch) / host.train.batch_size)

    def _pared(self, best: Sequence[Interaction], rows: SearchRows, host: Host, seed: int, history: _History
              ) -> list[Interaction]:
        """What is left of the best genome's micro-networks."""
        if self.pare is None or not best:
            return list(best)
        whole = self._judge(best, rows, host, seed ^ AFRESH)
        kept = list(best)
        for k, network in enumerate(sorted(best, key=lambda i: i.strength)):
            fewer = [i for i in kept if i is not network]
            if k == len(history.pared):
                judged = self._judge(fewer, rows, host, seed ^ AFRESH)
                lost, error = whole.loss_of(judged)
                history.tried({"without": list(network.fields), "lost": lost, "error": error,
                               "left_out": lost <= self.pare * error, "steps": judged.steps + whole.steps * (k == 0)})
            if history.pared[k]["left_out"]:
                kept = fewer
        return kept

    def _found(self, rows: SearchRows, host: Host, seed: int, fields: list[tuple[int, ...]],
               history: _History) -> Found:
        scores = np.array([entry["score"] for entry in history.entries])
        genomes = np.stack([canonical(p.genome) for p in history.proposals])
        has = genomes[:, :, 0] != 0  # [evaluations, M]
        best = int(scores.argmax())
        strength = {f: float(scores[there].mean() - scores[~there].mean()) if there.any() and not there.all() else 0.0
                    for f, there in zip(fields, has.T, strict=True)}
        networks = [replace(i, strength=strength[i.fields]) for i in _micronets(fields, genomes[best])]
        kept = tuple(sorted(self._pared(networks, rows, host, seed, history)))
        spec = ArchSpec.of(rows.schema, self.name, host.dim, interactions=kept, seed=seed, config=configuration(self))
        trace: list[dict[str, Any]] = [*history.entries, *history.pared, {"best": best}]
        return Found({self.name: spec}, trace, sum(e["steps"] for e in (*history.entries, *history.pared)))


def _micronets(fields: list[tuple[int, ...]], genome: np.ndarray) -> list[Interaction]:
    """The micro-networks that a genome has."""
    return [Interaction(f, "micronet", genes=tuple(int(g) for g in genes if g))
            for f, genes in zip(fields, canonical(genome), strict=True) if genes[0]]


class _History:
    """What was judged, kept in a checkpoint; all else of a search follows from it.

    Attributes:
        proposals: the genomes, in turn.
        entries: what came of each.
        pared: what came of leaving out each micro-network that was tried of the best one.
    """

    def __init__(self, checkpoint: Checkpoint | None, whose: dict[str, Any]) -> None:
        self.checkpoint, self.whose = checkpoint, whose
        self.proposals: list[Proposal] = []
        self.entries: list[dict[str, Any]] = []
        self.pared: list[dict[str, Any]] = []
        stored = checkpoint.load_of(whose) if checkpoint is not None else None
        if stored is not None:
            self.entries, self.pared = stored[1]["entries"], stored[1]["pared"]
            self.proposals = [Proposal(genome, entry["leaf"])
                              for genome, entry in zip(stored[0]["genomes"].numpy(), self.entries, strict=True)]

    def add(self, proposal: Proposal, entry: dict[str, Any]) -> None:
        """An evaluation is done."""
        self.proposals.append(proposal)
        self.entries.append(entry)
        self._save()

    def tried(self, entry: dict[str, Any]) -> None:
        """A micro-network was tried to be left out."""
        self.pared.append(entry)
        self._save()

    def _save(self) -> None:
        if self.checkpoint is not None:
            genomes = torch.from_numpy(np.stack([p.genome for p in self.proposals]))
            self.checkpoint.save({"genomes": genomes}, {"whose": self.whose, "entries": self.entries,
                                                        "pared": self.pared})
