"""Ingest gives the same bytes on any number of cores, as processes of their own show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from raw_logs import OTHER_SECTIONS, data, folders, log, parquet

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_one_and_four_cores_write_the_same_bytes(tmp_path: Path) -> None:
    for part, rows in enumerate((300, 5000, 40)):
        parquet(tmp_path / "log" / f"{part}.parquet", log(rows, seed=part))
    section = data(
        tmp_path / "log", timestamp="ts", split={"by": "time"},
        fields=[{"name": "item", "kind": "categorical"}, {"name": "price", "kind": "numeric"},
                {"name": "recent", "kind": "sequence", "of": "item", "max_length": 5,
                 "build": {"by": "user", "order": "ts", "where": "click = 1"}}])
    written = []
    for cores in (1, 4):
        workspace = tmp_path / f"{cores}-cores"
        workspace.mkdir()
        (workspace / "params.yaml").write_text(yaml.safe_dump({"data": section, **OTHER_SECTIONS}))
        environment = {**os.environ, "CTRMODELS_SPARK_MASTER": f"local[{cores}]", "WANDB_MODE": "disabled",
                       "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "tasks.ingest"], cwd=workspace, env=environment, check=True)
        out = workspace / "outputs" / "ingest"
        written.append({name: (out / name).read_bytes() for name in folders(out)})
    assert written[0] == written[1]


def test_bad_input_is_one_line_on_stderr_and_exit_status_2(tmp_path: Path) -> None:
    section = data(tmp_path / "nowhere.parquet")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": section, **OTHER_SECTIONS}))
    done = subprocess.run([sys.executable, "-m", "tasks.ingest"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 2
    assert "nowhere.parquet" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
