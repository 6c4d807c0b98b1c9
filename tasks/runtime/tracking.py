"""Publishes a finished stage to W&B. A fault of W&B never fails or stalls a stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.runtime.figure import Figure


def publish(*, stage: str, key: str | None, params: Params, metrics: Mapping[str, float],
            measurements: Mapping[str, Any], figures: Sequence[Figure], folder: Path) -> dict[str, Any]:
    """Send one stage's results to W&B; returns what identifies the run (for the lineage)."""
    return {}
