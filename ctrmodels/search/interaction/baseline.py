"""Plain models beside the searched interactions: what their own, fixed interactions are worth on the same log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ctrmodels.archspec import ArchSpec, all_pairs
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows
from ctrmodels.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Baseline:
    """No search: a plain model of ``ctrmodels.zoo``, on the host's embedding. The host must be that model.

    Attributes:
        name: the model, a key of ``MODELS``.
    """

    name: str

    part: ClassVar[Part] = "interaction"
    kind: ClassVar[Kind] = "baseline"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """The embedding alone decides such a model; its interactions are its own."""
        spec = ArchSpec.of(rows.schema, self.name, host.dim, interactions=all_pairs(rows.schema), seed=seed)
        return Found({self.name: spec})
