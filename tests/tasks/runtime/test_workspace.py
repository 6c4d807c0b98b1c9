"""Attempts of stages: hand-over of results, the cache, faults, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.runtime import revision
from tasks.runtime.failures import StageFailed, StageRefused
from tasks.runtime.workspace import Workspace, open_workspace
from tests.support.fake_project import FakeProject

SEARCHES = ["search_embedding@uniform", "search_embedding@pep"]
FORM = {"search_embedding.methods": ["uniform", "pep"]}
Locks = list[dict[str, Any]]


def attempt(project: FakeProject, stage: str, run: str, commit: str, locks: Locks) -> tuple[dict[str, Any], bool]:
    with open_workspace(project.path, stage, run, commit) as workspace:
        workspace.prepare(commit, locks)
        return workspace.reproduce(), workspace.cached


def chain(project: FakeProject, run: str, form: dict[str, Any]) -> tuple[str, list[bool]]:
    """The whole chain, searches side by side; the final revision, and which stages came from the cache."""
    commit = revision.begin(project.path, run, FORM | form)
    first, cached = attempt(project, "ingest", run, commit, [])
    with ThreadPoolExecutor() as pool:
        searched = list(pool.map(lambda stage: attempt(project, stage, run, commit, [first]), SEARCHES))
    locks = [first, *(lock for lock, _ in searched)]
    last, reported = attempt(project, "report", run, commit, locks)
    return (revision.finish(project.path, run, commit, [*locks, last]),
            [cached, *(c for _, c in searched), reported])


def dvc(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "the stage never got there"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeProject, str]]:
    """A project with one finished run, and that run's final revision."""
    project = FakeProject(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_CONTROL", str(project.control))
        final, cached = chain(project, "first", {})
        assert cached == [False] * 4
        assert sorted(project.executed()) == sorted(["ingest", *SEARCHES, "report"])
        yield project, final


def test_every_stage_reads_what_earlier_stages_recorded(finished: tuple[FakeProject, str], tmp_path: Path) -> None:
    project, final = finished
    clone = tmp_path / "clone"
    project.git("clone", "--quiet", "--branch", "runs/first", str(project.path), str(clone))
    dvc(clone, "cache", "dir", "--local", str(project.path / ".dvc" / "cache"))
    dvc(clone, "checkout")
    report = (clone / "outputs" / "report" / "result.txt").read_text()
    assert all(stage in report for stage in ("ingest", *SEARCHES))
    assert "autodim" not in report
    assert project.git("rev-parse", "HEAD", cwd=clone) == final


def test_a_second_run_takes_every_stage_from_the_cache(finished: tuple[FakeProject, str]) -> None:
    project, final = finished
    again, cached = chain(project, "second", {})
    assert cached == [True] * 4
    assert project.executed() == []
    assert project.git("show", f"{again}:dvc.lock") == project.git("show", f"{final}:dvc.lock")


def test_a_fresh_clone_of_the_final_revision_executes_nothing(
        finished: tuple[FakeProject, str], tmp_path: Path) -> None:
    project, _ = finished
    clone = tmp_path / "clone"
    project.git("clone", "--quiet", "--branch", "runs/first", str(project.path), str(clone))
    dvc(clone, "cache", "dir", "--local", str(project.path / ".dvc" / "cache"))
    dvc(clone, "repro", "--pull")
    assert project.executed() == []
    assert "up to date" in dvc(clone, "status")


def test_dvc_repro_in_the_checkout_gives_the_same_hashes(finished: tuple[FakeProject, str], tmp_path: Path) -> None:
    project, final = finished
    clone = tmp_path / "clone"
    project.git("clone", "--quiet", "--branch", "runs/first", str(project.path), str(clone))
    (clone / "dvc.lock").unlink()
    dvc(clone, "repro")
    assert sorted(project.executed()) == sorted(["ingest", *SEARCHES, "report"])
    recorded = yaml.safe_load(project.git("show", f"{final}:dvc.lock"))
    assert yaml.safe_load((clone / "dvc.lock").read_text()) == recorded


def test_runs_with_different_parameters_do_not_disturb_each_other(project: FakeProject) -> None:
    def run(epochs: int) -> dict[str, Any]:
        name = f"epochs{epochs}"
        commit = revision.begin(project.path, name, {"training.epochs": epochs})
        first, _ = attempt(project, "ingest", name, commit, [])
        return first | attempt(project, SEARCHES[0], name, commit, [first])[0]

    with ThreadPoolExecutor() as pool:
        locks = list(pool.map(run, (3, 4)))

    assert sorted(project.executed()) == sorted(["ingest", SEARCHES[0]] * 2)
    for epochs, lock in zip((3, 4), locks, strict=True):
        assert lock["ingest"]["params"]["params.yaml"]["training"]["epochs"] == epochs
        digest = lock[SEARCHES[0]]["outs"][1]["md5"]
        cache = project.path / ".dvc" / "cache" / "files" / "md5"
        (file,) = json.loads((cache / digest[:2] / digest[2:]).read_text())
        text = (cache / file["md5"][:2] / file["md5"][2:]).read_text()
        assert text.count(f"epochs={epochs}") == text.count("epochs=") == 2


def test_refused_input_is_told_in_the_stages_own_line_and_leaves_nothing(project: FakeProject) -> None:
    commit = revision.begin(project.path, "bad", {"training.epochs": 13})
    with pytest.raises(StageRefused) as refused:
        attempt(project, "ingest", "bad", commit, [])
    assert str(refused.value) == ("ingest: params.yaml: training.epochs = 13: an unlucky number; "
                                  "choose another")
    assert list((project.path / ".scratch" / "workspaces").iterdir()) == []


def test_a_fault_may_be_retried(project: FakeProject) -> None:
    commit = revision.begin(project.path, "fault", {})
    (project.control / "break ingest").touch()
    with pytest.raises(StageFailed, match=r"dvc repro of ingest ended with status 1:\n(.*\n)*broken once"):
        attempt(project, "ingest", "fault", commit, [])
    assert attempt(project, "ingest", "fault", commit, [])[1] is False


@pytest.mark.parametrize("victim", ["stage", "dvc"])
def test_an_attempt_killed_half_way_leaves_no_orphan_and_the_retry_gives_the_same_output(
        project: FakeProject, tmp_path: Path, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = revision.begin(project.path, "killed", {})
    (project.control / "hold ingest").touch()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(attempt, project, "ingest", "killed", commit, [])
        wait_for((project.control / "pid ingest").exists)
        wait_for(lambda: (project.control / "pid ingest").read_text() != "")
        pid = int((project.control / "pid ingest").read_text())
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(pid if victim == "stage" else parent, signal.SIGKILL)
        with pytest.raises(StageFailed):
            running.result()
        wait_for(lambda: not alive(pid))
    (project.control / "hold ingest").unlink()

    retried, cached = attempt(project, "ingest", "killed", commit, [])

    assert not cached
    untouched = FakeProject(tmp_path / "untouched")
    monkeypatch.setenv("FAKE_CONTROL", str(untouched.control))
    same = revision.begin(untouched.path, "same", {})
    assert attempt(untouched, "ingest", "same", same, [])[0] == retried


def test_stop_ends_the_stage(project: FakeProject) -> None:
    commit = revision.begin(project.path, "stopped", {})
    (project.control / "hold ingest").touch()
    opened: list[Workspace] = []

    def run() -> None:
        with open_workspace(project.path, "ingest", "stopped", commit) as workspace:
            opened.append(workspace)
            workspace.prepare(commit, [])
            with pytest.raises(StageFailed):
                workspace.reproduce()

    thread = threading.Thread(target=run)
    thread.start()
    wait_for((project.control / "pid ingest").exists)
    wait_for(lambda: (project.control / "pid ingest").read_text() != "")
    pid = int((project.control / "pid ingest").read_text())
    opened[0].stop()
    thread.join(60)
    assert not thread.is_alive()
    wait_for(lambda: not alive(pid))


def test_folders_of_dead_attempts_are_removed_and_those_of_live_ones_kept(project: FakeProject) -> None:
    commit = revision.begin(project.path, "sweep", {})
    with open_workspace(project.path, "ingest", "sweep", commit) as live:
        dead = live.path.with_name("ingest-dead")
        (dead / "outputs").mkdir(parents=True)
        dead.with_name("ingest-dead.lock").touch()
        with open_workspace(project.path, "ingest", "sweep", commit):
            assert live.path.is_dir()
            assert not dead.exists()
    assert list(live.path.parent.iterdir()) == []


def test_a_remote_carries_results_to_a_machine_without_the_cache(project: FakeProject) -> None:
    dvc(project.path, "remote", "add", "--default", "shared", "../storage")
    commit = revision.begin(project.path, "remote", {})
    first, _ = attempt(project, "ingest", "remote", commit, [])
    shutil.rmtree(project.path / ".dvc" / "cache")

    second, _ = attempt(project, SEARCHES[0], "remote", commit, [first])

    assert second[SEARCHES[0]]["deps"][0]["md5"] == first["ingest"]["outs"][0]["md5"]


def test_a_stage_finds_what_it_reads_and_leaves_pages(project: FakeProject) -> None:
    commit = revision.begin(project.path, "inputs", FORM)
    first, _ = attempt(project, "ingest", "inputs", commit, [])
    with open_workspace(project.path, SEARCHES[0], "inputs", commit) as workspace:
        workspace.prepare(commit, [first])
        files = [p for p in (workspace.path / "outputs").rglob("*") if p.is_file()]
        assert files == [workspace.path / "outputs" / "ingest" / "result.txt"]
        assert files[0].stat().st_mode & 0o222 == 0
        assert workspace.pages() == {}
        workspace.reproduce()
        assert workspace.pages() == {"W&B run": f"https://w/{SEARCHES[0]}"}
