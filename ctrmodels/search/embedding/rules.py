"""Allocations that follow a rule instead of a search: what every search has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctrmodels.archspec import ArchSpec, PerBucket, PerField
from ctrmodels.search.base import Found, Host, Kind, Part, SearchRows, configuration
from ctrmodels.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class NarrowWidth:
    """A single narrower width for every field: the cheapest way to a smaller table.

    Attributes:
        widths: one level each, at most the host's width.
    """

    widths: tuple[int, ...] = (8, 4, 2)

    name: ClassVar[str] = "narrow"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "rule"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """One spec per width.

        Raises:
            ValueError: a width exceeds the host's.
        """
        check_widths(self.widths, host)
        return Found({f"{self.name}-{width}": ArchSpec.of(
            rows.schema, self.name, host.dim, alloc=PerField((width,) * len(rows.schema.id_spaces)), seed=seed,
            config={**configuration(self), "width": width}) for width in self.widths})


@dataclass(frozen=True)
class RareIds:
    """Ids under a number of occurrences have no embedding of their own: they share one per field, or have none.

    So does the last id of every space, which stands for unknown values.

    Attributes:
        thresholds: occurrences on ``train`` from which an id has its own embedding; one level each.
        shared: whether the others share a row per field; otherwise they are zero.
    """

    thresholds: tuple[int, ...] = (3, 10, 30)
    shared: bool = True

    name: ClassVar[str] = "rare_ids"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "rule"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """One spec per threshold."""
        found = Found({})
        for threshold in self.thresholds:
            cuts = tuple((int((counts[:-1] >= threshold).sum()),) for counts in by_space(rows))
            rest = host.dim if self.shared else 0
            alloc = PerBucket(cuts, ((host.dim, rest),) * len(cuts), shared=self.shared)
            found.specs[f"{self.name}-{threshold}"] = ArchSpec.of(
                rows.schema, self.name, host.dim, alloc=alloc, seed=seed,
                config={**configuration(self), "threshold": threshold})
        return found


@dataclass(frozen=True)
class FrequencyRule:
    """The rule of thumb that an id's width grows with the fourth root of its count.

    Attributes:
        shares: of the dense table's values, one level each: the widths are scaled until the ids have that many. The
            linear maps to the common width come on top.
        candidates: the widths there are, rising; 0 gives an id no embedding.
        power: of the count.
    """

    shares: tuple[float, ...] = (0.5, 0.25)
    candidates: tuple[int, ...] = (0, 2, 4, 8, 16)
    power: float = 0.25

    name: ClassVar[str] = "frequency_rule"
    part: ClassVar[Part] = "embedding"
    kind: ClassVar[Kind] = "rule"

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        """One spec per share.

        Raises:
            ValueError: a candidate exceeds the host's width, or the narrowest costs more than a share.
        """
        check_widths(self.candidates, host)
        found = Found({})
        for share in self.shares:
            found.specs[f"{self.name}-{share:g}"] = ArchSpec.of(
                rows.schema, self.name, host.dim, alloc=self._allocation(rows, host.dim, share), seed=seed,
                config={**configuration(self), "share": share})
        return found

    def _allocation(self, rows: SearchRows, dim: int, share: float) -> PerBucket:
        """The largest scale whose widths, rounded down to candidates, cost at most ``share``."""
        wanted = [counts.astype(float) ** self.power for counts in by_space(rows)]
        choices = np.array(sorted(self.candidates))

        def places(scale: float) -> list[np.ndarray]:
            """By id space the place of every id's width among the choices."""
            return [np.searchsorted(choices, scale * w, side="right").clip(1) - 1 for w in wanted]

        if choices[0] > share * dim:
            raise ValueError(f"a share of {share:g} of the dense table is less than width {choices[0]} everywhere, "
                             f"{choices[0] / dim:g}")
        low, high = 0.0, float(dim) / max(min(float(w[w > 0].min(initial=1.0)) for w in wanted), 1e-9)
        for _ in range(50):
            middle = (low + high) / 2
            cost = sum(int(choices[p].sum()) for p in places(middle))
            low, high = (middle, high) if cost <= share * dim * rows.schema.total_vocab else (low, middle)
        cuts, dims = [], []
        for place in places(low):
            falling = np.minimum.accumulate(place)  # an id's count may be below a later one's by the last, unknown id
            cuts.append(tuple(int((falling >= n).sum()) for n in range(len(choices) - 1, 0, -1)))
            dims.append(tuple(int(w) for w in choices[::-1]))
        return PerBucket(tuple(cuts), tuple(dims))


def by_space(rows: SearchRows) -> list[np.ndarray]:
    """Occurrences on ``train`` of every id, id space by id space; ids rise by falling frequency.

    Buckets of a number are in the order of the number, and none is rare: all count as the most frequent one.
    """
    spaces = rows.schema.id_spaces
    counts = np.split(rows.counts, np.cumsum([f.vocab for f in spaces])[:-1])
    return [np.full_like(c, c.max()) if f.kind == "numeric" else c for f, c in zip(spaces, counts, strict=True)]


def check_widths(widths: tuple[int, ...], host: Host) -> None:
    """Refuse widths that the host cannot hold.

    Raises:
        ValueError: one exceeds the host's.
    """
    if max(widths) > host.dim:
        raise ValueError(f"a width of {max(widths)} exceeds the host's {host.dim}")
