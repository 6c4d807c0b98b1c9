"""Interactions that somebody named: what domain knowledge says, or the truth of a simulated log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctrmodels.allocation import Uniform
from ctrmodels.archspec import MAIN, ArchSpec, Interaction, model_fields, table_of_order
from ctrmodels.errors import InputError
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Listed:
    """No search: the interactions that the user lists, by the inner product.

    Attributes:
        interactions: names of two fields or more, each. Those of three and more read an embedding of their own per
            order, as AutoFIS's do.
    """

    interactions: tuple[tuple[str, ...], ...] = ()

    name: ClassVar[str] = "listed"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "rule"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The set as listed.

        Raises:
            InputError: nothing is listed, a name is no field of the log, or an interaction names a field twice or one
                field only.
        """
        order = {name: n for n, name in enumerate(model_fields(rows.schema))}
        key = "search_interaction.listed.interactions"
        if not self.interactions:
            raise InputError("params.yaml", key, [], "nothing is listed", "name the fields of an interaction, or "
                             "take `listed` out of search_interaction.methods")
        found = set()
        for names in self.interactions:
            for unknown in (n for n in names if n not in order):
                raise InputError("params.yaml", key, unknown, "is no field with ids", f"use {', '.join(order)}")
            if len(set(names)) < max(2, len(names)):
                raise InputError("params.yaml", key, list(names), "an interaction has two different fields or more",
                                 "mend the list")
            found.add(tuple(sorted(order[n] for n in names)))
        interactions = tuple(Interaction(fields, table=table_of_order(len(fields))) for fields in sorted(found))
        tables = {i.table: Uniform(host.dim) for i in interactions if i.table != MAIN}
        return Found({self.name: ArchSpec.of(rows.schema, self.name, host.dim, interactions=interactions, tables=tables,
                                             seed=seed, config=configuration(self))})
