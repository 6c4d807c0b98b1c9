"""The DAG itself, run by Airflow on a project whose stages take no time."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import psutil
import pytest

from tests.support.fake_project import ROOT, FakeProject

STAGES = ["ingest", "search_embedding@uniform", "search_embedding@pep", "report"]


def started(project: FakeProject) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "CTRMODELS"))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.run_at_once", str(project.path)], cwd=ROOT, text=True,
        env={**environment, "FAKE_CONTROL": str(project.control)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def make_run(project: FakeProject) -> subprocess.CompletedProcess[str]:
    process = started(project)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeProject, str]]:
    """A project after its first run, in which one search failed once; and what the terminal showed."""
    project = FakeProject(tmp_path_factory.mktemp("ran"))
    project.set("search_embedding", "methods", ["uniform", "pep"])
    (project.control / "break search_embedding@pep").touch()
    done = make_run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    yield project, done.stdout


def test_every_stage_ran_and_the_broken_one_was_tried_again(ran: tuple[FakeProject, str]) -> None:
    project, shown = ran
    assert sorted(project.executed()) == sorted([*STAGES, "search_embedding@pep"])
    assert "search_embedding@pep         failed" in shown
    assert "; trying again" in shown
    assert shown.count("done in") == len(STAGES) + 2


def test_the_outputs_and_the_lock_are_in_the_working_tree(ran: tuple[FakeProject, str]) -> None:
    project, _ = ran
    assert (project.path / "outputs" / "report" / "result.txt").read_text().startswith("report epochs=15")
    branch = project.git("for-each-ref", "--format=%(refname:short)", "refs/heads/runs")
    assert project.git("show", f"{branch}:dvc.lock") == (project.path / "dvc.lock").read_text().strip()
    assert project.git("rev-parse", "--abbrev-ref", "HEAD") == "main"
    status = subprocess.run(["dvc", "status"], cwd=project.path, capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout


def test_a_second_run_executes_nothing(ran: tuple[FakeProject, str]) -> None:
    project, _ = ran
    project.executed()
    done = make_run(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("taken from the cache") == len(STAGES)
    assert project.executed() == []


def test_refused_input_ends_the_run_at_the_first_attempt_with_one_line(ran: tuple[FakeProject, str]) -> None:
    project, _ = ran
    project.executed()
    project.set("training", "epochs", 13)
    done = make_run(project)
    assert done.returncode == 1
    assert "ingest: params.yaml: training.epochs = 13: an unlucky number; choose another" in done.stdout
    assert "trying again" not in done.stdout
    assert project.executed() == ["ingest"]
    assert "The run failed. Its log:" in done.stderr


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_no_run_behind(project: FakeProject) -> None:
    (project.control / "hold ingest").touch()
    process = started(project)
    deadline = time.monotonic() + 300
    while not (project.control / "pid ingest").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert psutil.wait_procs(family, timeout=30)[1] == []
    (project.control / "hold ingest").unlink()

    assert make_run(project).returncode == 0

    with closing(sqlite3.connect(project.path / ".airflow" / "airflow.db")) as database:
        states = [state for state, in database.execute("select state from dag_run order by id")]
    assert states == ["failed", "success"]
