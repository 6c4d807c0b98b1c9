"""The control of every interaction search: every pair of fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctrmodels.archspec import ArchSpec, all_pairs
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows
from ctrmodels.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class AllPairs:
    """No search: all pairs."""

    name: ClassVar[str] = "all_pairs"
    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "control"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The unsearched interactions."""
        spec = ArchSpec.of(rows.schema, self.name, host.dim, interactions=all_pairs(rows.schema), seed=seed)
        return Found({self.name: spec})
