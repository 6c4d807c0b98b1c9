"""AutoFIS: a gate per pair of fields, and per triple; gates that reach zero drop their interaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctrmodels.archspec import MAIN, ArchSpec, Uniform, all_combinations, table_of_order
from ctrmodels.search.base import Found, Host, SearchRows, configuration
from ctrmodels.search.interaction.gated import GatedSearch
from ctrmodels.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class AutoFIS(GatedSearch):
    """Selection of pairs and triples, all in one stage.

    "AutoFIS: Automatic Feature Interaction Selection in Factorization Models for Click-Through Rate Prediction", KDD
    2020: pairs ``<e_i, e_j>`` of the network's own embedding (equation 4), triples ``<e'_i, e'_j, e'_k>`` of one that
    only they read (equation 5), on a factorisation machine, a DeepFM (the host ``autodeepfm`` without and with hidden
    widths) or an IPNN (``autoipnn``). The retraining keeps trainable gates on what stays, started afresh, which act as
    attention. See :class:`GatedSearch` for the other settings.

    Attributes:
        orders: how many fields the candidates have.
    """

    orders: tuple[int, ...] = (2,)

    name: ClassVar[str] = "autofis"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The interactions whose gate is not zero at the end; none, if none helps or the threshold is too high."""
        schema = rows.schema
        table = {order: table_of_order(order) for order in self.orders}
        tables = {name: Uniform(host.dim) for name in table.values() if name != MAIN}
        candidates = [i for order in self.orders for i in all_combinations(schema, order, table=table[order])]
        spec = ArchSpec.of(schema, self.name, host.dim, interactions=(), tables=tables)
        selection = self.select(spec, candidates, rows, host, seed, checkpoint)
        used = {i.table for i in selection.kept}
        selection.found.specs[self.name] = ArchSpec.of(
            schema, self.name, host.dim, interactions=selection.kept, seed=seed, config=configuration(self),
            tables={name: alloc for name, alloc in tables.items() if name in used})
        return selection.found
