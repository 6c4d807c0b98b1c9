"""Small logs as users store them, and ``ingest`` run on them: what the tests of ingest share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import config, ingest
from tasks.runtime.stage import Stage

OTHER_SECTIONS: dict[str, Any] = {
    "ingest": {"partitions": 3}, "search_embedding": {"methods": ["uniform"]},
    "search_interaction": {"methods": ["all_pairs"]}, "retrain": {"models": ["shared_bottom"]},
}


@dataclass(frozen=True)
class Ingested:
    """What ``ingest`` made: its rows as a table, its metrics, its folder."""

    table: pa.Table
    metrics: dict[str, float]
    folder: Path

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self.table[name].to_pylist()
        return values


def data(path: Path | dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Section ``data`` for :func:`log`; ``changes`` replace keys (``None`` removes one)."""
    section: dict[str, Any] = {
        "source": "files",
        "files": {"path": path if isinstance(path, dict) else str(path)},
        "fields": [{"name": "user", "kind": "categorical", "side": "user"}, {"name": "price", "kind": "numeric"}],
        "objectives": [{"name": "click", "label": "click"}],
        "split": {"by": "random", "arch": 0.2, "valid": 0.2, "test": 0.2},
    } | changes
    return {key: value for key, value in section.items() if value is not None}


def run(root: Path, section: dict[str, Any], **others: Any) -> Ingested:
    """Run the stage's function in the workspace ``root`` on a log described by ``section``."""
    stage = Stage("ingest", None, config.parse({"data": section, **OTHER_SECTIONS, **others}, "params.yaml"), root)
    stage.out.mkdir(parents=True)
    stage.scratch.mkdir(parents=True)
    ingest.run(stage)
    return Ingested(pq.read_table(stage.out / "log"), stage._metrics, stage.out)


def log(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Users, items, prices, ties in time, and clicks in every part of the log."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "user": [f"u{v}" for v in rng.integers(0, 12, rows)],
        "item": [f"i{v}" for v in rng.integers(0, 30, rows)],
        "price": rng.random(rows).round(3),
        "ts": 1_700_000_000 + rng.integers(0, rows // 4, rows) * 7,
        "click": np.arange(rows) % 2,
    })


def parquet(path: Path, frame: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    return path


def public(*names: str) -> Path:
    """The folder of public data sets for development; skips the test where it, or one of ``names``, is absent."""
    root = os.environ.get("CTRMODELS_DATA")
    if not root:
        pytest.skip("CTRMODELS_DATA is not set")
    missing = [name for name in names if not (Path(root) / name).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is not in CTRMODELS_DATA")
    return Path(root)


def folders(found: Path) -> Sequence[str]:
    """Names of all files under ``found``."""
    return sorted(str(p.relative_to(found)) for p in found.rglob("*") if p.is_file())
