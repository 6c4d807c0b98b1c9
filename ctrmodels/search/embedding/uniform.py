"""The control of every embedding search: the same width everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctrmodels.archspec import ArchSpec, Uniform
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows
from ctrmodels.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class UniformWidth:
    """No search: the host's width for every field."""

    name: ClassVar[str] = "uniform"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "control"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The unsearched embedding."""
        spec = ArchSpec.of(rows.schema, self.name, host.dim, alloc=Uniform(host.dim), seed=seed)
        return Found({self.name: spec})
