"""The real stages from end to end on a small simulated log: by the DAG, from the cache, and by DVC alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> str:
    """Output of a command that must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "CTRMODELS"))}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                          env={**environment, "WANDB_MODE": "offline"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A clone of this checkout, edits included, after `make run` on a few simulated rows; and what it printed."""
    clone = tmp_path_factory.mktemp("chain") / "project"
    run(ROOT, "git", "clone", "--quiet", str(ROOT), str(clone))
    for name in run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        source, target = ROOT / name, clone / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    params = yaml.safe_load((ROOT / "presets" / "simulated.yaml").read_text())
    params["data"]["simulated"]["rows"] = 6000
    params["training"] |= {"epochs": 1, "embedding_dim": 4}
    params["search_embedding"] |= {"methods": ["uniform", "autodim"], "seeds": 1, "autodim": {"candidates": [2, 4],
                                                                                             "epochs": 1}}
    params["search_interaction"] |= {"seeds": 1, "autofis": {"epochs": 1}}
    params["retrain"] |= {"models": ["shared_bottom", "esmm"], "seeds": 1}
    params["tune_fusion"] |= {"trials": 5}
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    yield clone, run(clone, sys.executable, "-m", "tasks.runtime.run", "run")


def test_one_command_gives_leaderboards_test_metrics_and_a_report(ran: tuple[Path, str]) -> None:
    clone, shown = ran
    report = clone / "outputs" / "report" / "report.html"
    assert report.stat().st_size > 10_000
    for expected in ("select_embedding (* = chosen)", "select_interaction (* = chosen)", "select_model (* = chosen)",
                     "select_model on test", str(report), "Revision    branch runs/"):
        assert expected in shown


def test_a_second_run_takes_every_stage_from_the_cache(ran: tuple[Path, str]) -> None:
    clone, first = ran
    again = run(clone, sys.executable, "-m", "tasks.runtime.run", "run")
    assert again.count("taken from the cache") == first.count("done in") - 2
    assert first.split("select_embedding (*")[1].split("Revision")[0] in again


def test_dvc_executes_nothing_on_the_revision_of_the_run(ran: tuple[Path, str], tmp_path: Path) -> None:
    clone, shown = ran
    branch = shown.split("Revision    branch ")[1].split()[0]
    run(tmp_path, "git", "clone", "--quiet", "--branch", branch, str(clone), "fresh")
    run(tmp_path / "fresh", "dvc", "cache", "dir", "--local", str(clone / ".dvc" / "cache"))
    assert "Running stage" not in run(tmp_path / "fresh", "dvc", "repro", "--pull")


def test_a_stage_repeated_by_dvc_gives_the_same_bytes(ran: tuple[Path, str]) -> None:
    clone, _ = ran
    before = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
    for stage in ("ingest", "encode", "search_embedding@autodim", "retrain@esmm"):
        run(clone, "dvc", "repro", "--force", "--single-item", stage)
        after = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
        results = [[out for out in lock[stage]["outs"] if out["path"].startswith("outputs/")]
                   for lock in (before, after)]
        assert results[0] == results[1], stage
