"""What a run found, as text for a terminal: the leaderboards, the test metrics, where the report is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def text(root: Path) -> str:
    """Summary of the outputs under ``root/outputs``; stages that a chain lacks are left out."""
    outputs = root / "outputs"
    parts = [_leaderboard(path) for path in sorted(outputs.glob("select_*/leaderboard.json"))]
    for stage in ("select_model", "tune_fusion"):
        path = outputs / stage / "metrics.json"
        if path.exists():
            parts.append(_test_metrics(stage, json.loads(path.read_text())))
    report = outputs / "report" / "report.html"
    if report.exists():
        parts.append(f"Report      {report}")
    return "\n\n".join(filter(None, parts))


def _leaderboard(path: Path) -> str:
    board = json.loads(path.read_text())
    rows = [[" *"[bool(row["chosen"])] + " " + row["candidate"], f"{row['valid']:.4f}", f"{row['valid_sd']:.4f}",
             f"{row['parameters']:,.0f}"] for row in board["rows"]]
    head = ["  candidate", f"valid {board['metric']}", "sd", "parameters"]
    return f"{path.parent.name} (* = chosen)\n{_table([head, *rows])}"


def _test_metrics(stage: str, metrics: dict[str, float | None]) -> str:
    rows = [["  " + name.removeprefix("test."), "-" if value is None else f"{value:.4f}"]
            for name, value in sorted(metrics.items())
            if name.startswith("test.") and not name.endswith((".low", ".high"))]
    return f"{stage} on test\n{_table(rows)}" if rows else ""


def _table(rows: Sequence[Sequence[Any]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width
                                                          in zip(row[1:], widths[1:], strict=True))])
                     for row in rows)
