"""One attempt of one stage: a clone of the run's revision in which DVC runs that stage and no other.

DVC allows one writer per working tree, so attempts never share one. What they share is the DVC cache; what
they hand on is their entry of ``dvc.lock``, a few hundred bytes that say which inputs gave which outputs.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tasks.runtime import revision
from tasks.runtime.failures import StageFailed, StageRefused
from tasks.runtime.stage import EXIT_BAD_INPUT, die_with_parent

GRACE_SECONDS = 20
_EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)")
log = logging.getLogger("ctrmodels.workspace")


class Workspace:
    """A throw-away clone; see :func:`open_workspace`.

    Attributes:
        path: the clone's folder.
        stage: what it is for, ``NAME`` or ``NAME@KEY``.
        cached: whether :meth:`reproduce` took the outputs from the cache.
    """

    def __init__(self, path: Path, repository: Path, stage: str, environment: Mapping[str, str],
                 tell: Callable[[str], None]) -> None:
        self.path, self.repository, self.stage, self.environment = path, repository, stage, environment
        self.cached = False
        self._tell = tell
        self._process: subprocess.Popen[str] | None = None
        self._remote = False

    def prepare(self, commit: str, locks: Iterable[Mapping[str, Any]]) -> None:
        """Check ``commit`` out, take over the lock entries of earlier stages, and fetch the stage's inputs.

        Raises:
            StageFailed: an input is neither in the cache nor in the DVC remote.
        """
        clone = ("clone", "--quiet", "--shared", "--no-checkout", str(self.repository), str(self.path))
        revision.git(self.repository, *clone)
        revision.git(self.path, "checkout", "--quiet", "--detach", commit)
        self._remote = share_cache(self.repository, self.path)
        lock = self.path / "dvc.lock"
        entries = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
        earlier = revision.merge(locks)
        lock.write_text(revision.lockfile(entries | earlier))
        inputs = _inputs(self.path / "dvc.yaml", self.stage, earlier)
        if inputs:
            self._dvc("pull" if self._remote else "checkout", *inputs)

    def reproduce(self) -> dict[str, Any]:
        """Run the stage, or take its outputs from the cache; returns its entry of dvc.lock by its name.

        Raises:
            StageRefused: it exited with status 2, after one line that names fault and remedy.
            StageFailed: it ended in any other way.
        """
        self.cached = True
        self._dvc("repro", "--single-item", self.stage)
        if self._remote:
            self._dvc("push", self.stage)
        return {self.stage: yaml.safe_load((self.path / "dvc.lock").read_text())["stages"][self.stage]}

    def pages(self) -> dict[str, str]:
        """Addresses of what the stage left to look at, by the name of the link that leads there."""
        found = {"Revision": revision.page(self.repository, self.environment["CTRMODELS_REVISION"]),
                 "Report": self._publish_report()}
        try:
            identity = json.loads((self.path / "measurements" / f"{self.stage}.json").read_text())
            found["W&B run"] = identity["wandb"]["url"]
        except (OSError, ValueError, KeyError, TypeError):
            log.debug("%s was not published to W&B", self.stage)
        return {name: url for name, url in found.items() if url}

    def _publish_report(self) -> str:
        """Copy the report, if the stage wrote one, to CTRMODELS_REPORTS; its address there."""
        page, folder = self.path / "outputs" / self.stage / "report.html", os.environ.get("CTRMODELS_REPORTS")
        if not folder or not page.is_file():
            return ""
        run = revision.branch(self.environment["CTRMODELS_RUN_ID"])
        target = Path(folder) / run / page.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(page, partial)
        partial.replace(target)
        site = os.environ.get("CTRMODELS_REPORTS_URL")
        return f"{site}/{run}/{page.name}" if site else target.as_uri()

    def stop(self) -> None:
        """End the running command; the stage dies with DVC."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()

    def _dvc(self, *arguments: str) -> None:
        # No session of its own: Airflow signals the task's process group, and DVC has to be in it.
        self._process = subprocess.Popen(
            ["dvc", *arguments], cwd=self.path, env=self.environment, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        last: deque[str] = deque(maxlen=50)
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                last.append(line.rstrip())
                self._tell(last[-1])
                if line.startswith("Running stage"):
                    self.cached = False
            status = self._process.wait()
        finally:
            self.stop()
        if status:
            raise _failure(self.stage, arguments[0], status, list(last))


@contextmanager
def open_workspace(repository: Path, stage: str, run_id: str, commit: str,
                   tell: Callable[[str], None] = log.info) -> Iterator[Workspace]:
    """An empty workspace under CTRMODELS_WORKSPACES (``.scratch/workspaces``), removed at the end.

    Folders left by attempts that were killed are removed too: an attempt holds a lock as long as it lives.

    Args:
        repository: the checkout whose Git objects and DVC cache are shared.
        stage: ``NAME`` or ``NAME@KEY``.
        run_id: Airflow's id of the run.
        commit: the run's revision.
        tell: gets every line that DVC and the stage print.
    """
    repository = repository.resolve()
    revision.obtain(repository, run_id, commit)
    root = Path(os.environ.get("CTRMODELS_WORKSPACES", repository / ".scratch" / "workspaces"))
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    path = Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=root))
    with _held(path):
        environment = stage_environment(repository, path, run_id, commit)
        workspace = Workspace(path, repository, stage, environment, tell)
        try:
            yield workspace
        finally:
            workspace.stop()
            shutil.rmtree(path, ignore_errors=True)


def stage_environment(repository: Path, path: Path, run_id: str, commit: str) -> dict[str, str]:
    """Environment of DVC and the stage: this process's own, and what names the run."""
    scratch = repository / ".scratch"
    return {
        "CTRMODELS_SCRATCH": str(scratch / "stages"),
        "WANDB_DIR": str(scratch / "wandb"),
        **os.environ,
        "CTRMODELS_RUN_ID": run_id,
        "CTRMODELS_REVISION": commit,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "SHELL": "/bin/bash",  # execs the command, so that the stage is DVC's child and dies with it
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(path / ".dvc" / "tmp" / "site"),  # goes with the clone
    }


def _inputs(dvc_yaml: Path, stage: str, earlier: Mapping[str, Any]) -> list[str]:
    """What ``stage`` reads of the outputs recorded in ``earlier``, as paths, and nothing else."""
    name, _, key = stage.partition("@")
    deps = yaml.safe_load(dvc_yaml.read_text())["stages"][name].get("deps", ())
    needed = [PurePosixPath(re.sub(r"\$\{item\.\w+\}", key, dep)) for dep in deps]
    written = [PurePosixPath(out["path"]) for lock in earlier.values() for out in lock.get("outs", ())]
    return sorted({str(max(dep, out, key=lambda path: len(path.parts))) for dep in needed for out in written
                   if dep.is_relative_to(out) or out.is_relative_to(dep)})


def share_cache(repository: Path, clone: Path) -> bool:
    """Point the clone's DVC to the cache and remotes of ``repository``; whether a default remote is set.

    Large inputs are linked, not copied; DVC makes linked files read-only.
    """
    folder = repository / ".dvc"
    settings = ConfigParser(interpolation=None)
    settings.read_dict({"core": {}, "cache": {"dir": "cache", "type": "reflink,hardlink,copy"}})
    settings.read([folder / "config", folder / "config.local"])
    settings["core"]["autostage"] = "true"  # or DVC advises after every stage to add dvc.lock
    settings["cache"]["dir"] = str((folder / settings["cache"]["dir"]).resolve())
    for section in settings.values():
        if section.name.startswith("'remote ") and "://" not in section.get("url", "://"):
            section["url"] = str((folder / section["url"]).resolve())
    target = clone / ".dvc" / "config.local"
    target.touch(mode=0o600)  # it may hold credentials
    with target.open("w") as stream:
        settings.write(stream)
    return "remote" in settings["core"]


def _failure(stage: str, command: str, status: int, lines: list[str]) -> StageFailed | StageRefused:
    exited = next((match for line in reversed(lines) if (match := _EXITED.search(line))), None)
    if exited and int(exited[1]) == EXIT_BAD_INPUT:
        told = [line for line in lines if line.startswith(f"{stage.partition('@')[0]}: ")]
        if told:
            return StageRefused(told[-1])
    shown = "\n".join(filter(None, lines[-15:]))
    reported = exited[1] if exited else status
    return StageFailed(f"dvc {command} of {stage} ended with status {reported}:\n{shown}")


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold ``PATH.lock``, which tells :func:`_sweep` that ``path`` is in use."""
    fresh, lock = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.lock")
    with fresh.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        fresh.rename(lock)  # never seen under its name while it is not held
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _sweep(root: Path) -> None:
    for lock in root.glob("*.lock"):
        try:
            with lock.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue
