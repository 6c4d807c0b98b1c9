"""Res-embedding: items of one interest share what they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctrmodels.allocation import CentralResidual, Fusion
from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.search.embedding.interests import interest_domains, interest_graph
from ctrmodels.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class ResEmbedding:
    """Item embeddings from a graph of what users saw together, plus small residuals.

    "Res-embedding for Deep Learning Based Click-Through Rate Prediction Modeling", DLP-KDD 2019: the closer the
    embeddings of items of one interest lie, the smaller the bound on the generalisation error. There is nothing to
    optimise: the graph is built from the histories of ``train``, once, and what is searched is how to weigh it. The
    network is that of :class:`~ctrmodels.nn.residual.ResidualEmbedding`; it serves as a plain table.

    What the paper's bound grows with, the radii of the domains, is measured by
    :func:`~ctrmodels.search.embedding.interests.envelope`.

    Attributes:
        item: the field whose ids the graph joins; ``None`` = the one that sequences are ``of``, of several that with
            the most ids.
        window: steps between two items of a history that count as near.
        neighbours: kept per item.
        fusions: one level each.
        penalty: weight of the squared norm of the residuals that a batch touches.
    """

    item: str | None = None
    window: int = 2
    neighbours: int = 10
    fusions: tuple[Fusion, ...] = ("avg", "gcn", "attention")
    penalty: float = 1e-2

    name: ClassVar[str] = "res_embedding"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "searched"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """One spec per fusion, all of one graph; the trace says how much of the items it covers.

        Raises:
            ValueError: the log has no sequence ``of`` the item field, or none of ``train`` has two items close
                together.
        """
        schema = rows.schema
        item = self._item(schema)
        near, weights = interest_graph(rows.train, item, self.window, self.neighbours)
        joined = near[:, 1:] >= 0
        if not joined.any():
            raise ValueError(f"no history of `{item}` on train has two items within {self.window} steps more often "
                             "than chance has it: there is no graph to build")
        found = Found({})
        for fusion in self.fusions:
            alloc = CentralResidual(item, near, weights, fusion, self.penalty)
            found.specs[f"{self.name}-{fusion}"] = ArchSpec.of(
                schema, self.name, host.dim, alloc=alloc, seed=seed, config={**configuration(self), "fusion": fusion})
        domains = interest_domains(CentralResidual(item, near, weights))
        found.trace.append({
            "item": item, "edges": int(joined.sum()), "joined": round(float(joined[:, 0].mean()), 6),
            "domains": int(domains.max()) + 1, "largest_domain": int(np.bincount(domains[domains >= 0]).max())})
        return found

    def _item(self, schema: Schema) -> str:
        """The field whose ids the graph joins."""
        possible = {f.of: f.vocab for f in schema.sequence_fields if f.of is not None}
        if self.item is None and possible:
            return max(possible, key=lambda name: possible[name])
        if self.item is None or self.item not in possible:
            raise ValueError(f"res_embedding needs behaviour histories: a sequence field `of` "
                             f"{'an item field' if self.item is None else f'`{self.item}`'}; the log has "
                             f"{[(f.name, f.of) for f in schema.sequence_fields] or 'no sequence'}")
        return self.item
