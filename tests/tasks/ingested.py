"""Ingested logs made up in memory, and stages run on them: what the tests of frequency, validate and encode share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import config
from tasks.runtime import manifest, stage

ROLES = ("train", "arch", "valid", "test")
FIELDS: list[dict[str, Any]] = [
    {"name": "user", "kind": "categorical", "side": "user"},
    {"name": "item", "kind": "categorical", "side": "item"},
    {"name": "price", "kind": "numeric"},
    {"name": "constant", "kind": "numeric"},
    {"name": "tags", "kind": "sequence", "max_length": 4},
    {"name": "history", "kind": "sequence", "of": "item", "max_length": 6},
]
OBJECTIVES: list[dict[str, Any]] = [
    {"name": "click", "kind": "binary", "label": "click"},
    {"name": "buy", "kind": "binary", "label": "buy", "after": "click"},
    {"name": "dwell", "kind": "regression", "label": "dwell", "after": "click"},
]


def raw_params(**sections: Any) -> dict[str, Any]:
    """A params.yaml, read, that describes :func:`log`."""
    data = {"source": "files", "files": {"path": "log"}, "fields": FIELDS, "objectives": OBJECTIVES,
            "timestamp": "time", "group": "user", "split": {"by": "time"}, **sections.pop("data", {})}
    return {"data": data, "ingest": {"partitions": 2},
            "search_embedding": {"methods": ["uniform"]}, "search_interaction": {"methods": ["all_pairs"]},
            "retrain": {"models": ["shared_bottom"]}, **sections}


def log(rows: int = 3000, days: int = 3, seed: int = 0) -> pd.DataFrame:
    """A log as ingest leaves it: skewed ids, nulls, ties in time, roles by time; ``buy`` implies ``click``."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, days * 86_400, rows) // 100 * 100)
    item = _ids(rng, rows, 120, "i")
    click = rng.random(rows) < 0.4
    frame = pd.DataFrame({
        "user": _ids(rng, rows, 40, "u"), "item": item,
        "price": np.where(rng.random(rows) < 0.1, np.nan, np.exp(rng.normal(size=rows)).round(2)),
        "constant": 7.0,
        "tags": [[f"t{t}" for t in rng.zipf(1.7, rng.integers(0, 5)) % 9] for _ in range(rows)],
        "history": [list(rng.choice(item, rng.integers(0, 7))) for _ in range(rows)],
        "click": click.astype(np.int8),
        "buy": np.where(rng.random(rows) < 0.1, None, (click & (rng.random(rows) < 0.3)).astype(np.int8)),
        "dwell": np.where(click, rng.exponential(30.0, rows), np.nan),
        "_row": np.arange(rows), "_time": time + 1_700_006_400,
        "_role": np.repeat(ROLES, [rows - 3 * (rows // 10), *[rows // 10] * 3]),
        "_position": rng.integers(0, 10, rows).astype(np.int32),
        "_propensity": rng.integers(0, 5, rows) / 4,
    })
    frame["history"] = [[v for v in h if v is not None] for h in frame["history"]]
    frame["_day"] = pd.to_datetime(frame["_time"], unit="s").dt.strftime("%Y-%m-%d")
    frame["_group"] = frame["user"]
    return frame


def _ids(rng: np.random.Generator, rows: int, values: int, prefix: str) -> np.ndarray:
    ids = np.array([f"{prefix}{v}" for v in rng.zipf(1.3, rows) % values], dtype=object)
    ids[rng.random(rows) < 0.05] = None
    return ids


def write(root: Path, frame: pd.DataFrame, parts: int = 3, **types: pa.DataType) -> None:
    """Write ``frame`` as the output of ``ingest`` of the workspace ``root``; ``types`` by column."""
    folder = root / "outputs" / "ingest" / "log"
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"tags": pa.list_(pa.string()), "history": pa.list_(pa.string()), "click": pa.int8(),
             "buy": pa.int8(), "price": pa.float64(), "constant": pa.float64(), "dwell": pa.float64(),
             "_row": pa.int64(), "_time": pa.int64(), "_position": pa.int32(), "_propensity": pa.float64()}
    schema = pa.schema([(c, types.get(c, kinds.get(c, pa.string()))) for c in frame.columns])
    size = -(-len(frame) // parts)
    for i in range(parts):
        table = pa.Table.from_pandas(frame.iloc[i * size:(i + 1) * size], schema=schema, preserve_index=False)
        pq.write_table(table.replace_schema_metadata(), folder / f"part-{i:05d}.parquet")
    manifest.write(root / "outputs" / "ingest", rows=len(frame))


def run(root: Path, module: Any, raw: dict[str, Any]) -> Path:
    """Run a stage's module in the workspace ``root``; returns its output folder."""
    params = config.parse(raw, "params.yaml")
    this = stage.Stage(module.__name__.rsplit(".", 1)[1], None, params, root)
    stage.execute(this, module.run)
    return this.final


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under ``folder`` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
