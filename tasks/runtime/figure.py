"""Figures as data: what a stage found, free of any renderer. The report and W&B draw the same files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["line", "bar", "scatter", "heatmap", "table"]


@dataclass(frozen=True)
class Series:
    """One named set of points. ``x`` may hold numbers or category names; ``error`` is a half-width of y.

    ``labels``, where given, name the points one by one (a scatter's candidates).
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    error: Sequence[float] | None = None
    labels: Sequence[str] | None = None


@dataclass(frozen=True)
class Axis:
    """An axis: its label (with unit) and scale."""

    label: str
    scale: Literal["linear", "log"] = "linear"


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        id: file name and key in W&B, ``[a-z0-9_]+``.
        title: the heading a reader sees.
        kind: ``line``, ``bar``, ``scatter`` use ``x``, ``y``, ``series``; ``heatmap`` uses ``rows``,
            ``columns``, ``values``; ``table`` uses ``columns`` and ``values`` (a list of rows of any values).
        caption: one or two sentences that say what to see in it.
    """

    id: str
    title: str
    kind: Kind
    caption: str = ""
    x: Axis | None = None
    y: Axis | None = None
    series: Sequence[Series] = ()
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    values: Sequence[Sequence[Any]] = field(default_factory=tuple)

    def save(self, folder: Path) -> Path:
        """Write ``folder/ID.json``, NaN and infinity as null; returns the path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.id}.json"
        path.write_text(json.dumps(finite(asdict(self)), indent=1, sort_keys=True) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Figure:
        """Read what :meth:`save` wrote."""
        raw = json.loads(path.read_text())
        raw["x"] = Axis(**raw["x"]) if raw["x"] else None
        raw["y"] = Axis(**raw["y"]) if raw["y"] else None
        raw["series"] = tuple(Series(**s) for s in raw["series"])
        return cls(**raw)


def finite(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinity as null, numbers to ten digits after the point."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return round(value, 10) if math.isfinite(value) else None
    return value
