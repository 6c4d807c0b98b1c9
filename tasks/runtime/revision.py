"""A run's Git revision: what it started from, and the results it ended with.

A run is a commit on a branch of its own, ``runs/RUN``. It begins as a snapshot of the working tree, with
edits that are not committed yet and the values of the trigger form, and ends with the merged ``dvc.lock`` on
top. Neither the working tree nor the index nor the branch that is checked out is ever touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ctrmodels.errors import InputError
from tasks import config
from tasks.runtime.failures import StageRefused

LARGEST_UNTRACKED_FILE = 20 * 2**20
_IDENTITY = {f"GIT_{role}_{part}": value for role in ("AUTHOR", "COMMITTER")
             for part, value in (("NAME", "ctrmodels"), ("EMAIL", "ctrmodels@localhost"))}


def git(repository: Path, *arguments: str, stdin: str | None = None, **environment: str) -> str:
    """Output of a Git command, without the final line break.

    Raises:
        RuntimeError: Git refused; carries its message.
    """
    result = subprocess.run(["git", *arguments], cwd=repository, env=os.environ | environment, input=stdin,
                            capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"git {arguments[0]} in {repository}: {result.stderr.strip()}")
    return result.stdout.rstrip("\n")


def branch(run_id: str) -> str:
    """Name of a run's branch. An id that Git would refuse gets a digest, so that no two runs share one."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", run_id).strip("-")
    if name != run_id:
        name += f"-{hashlib.sha256(run_id.encode()).hexdigest()[:6]}"
    return f"runs/{name}"


def begin(repository: Path, run_id: str, form: Mapping[str, Any]) -> str:
    """Commit what ``run_id`` shall run on to the run's branch and return the commit.

    Args:
        repository: a checkout of the project.
        run_id: Airflow's id of the run.
        form: dotted keys and values from the trigger form.

    Raises:
        InputError: this is no Git checkout, a value of the form or a key of params.yaml is not accepted, or
            an untracked file is too large for a commit.
    """
    with _snapshot(repository, form) as (tree, _):
        head = git(repository, "rev-parse", "HEAD")
        revision = head
        if tree != git(repository, "rev-parse", "HEAD^{tree}"):
            revision = _commit(repository, tree, head, f"Start run {run_id}")
    _set_branch(repository, run_id, revision)
    return revision


def finish(repository: Path, run_id: str, revision: str, locks: Iterable[Mapping[str, Any]]) -> str:
    """Commit the lock entries of all stages on top of ``revision`` and return the commit.

    ``dvc repro --pull`` on it executes nothing.
    """
    with _index(repository) as index:
        git(repository, "read-tree", revision, **index)
        _put(repository, "dvc.lock", lockfile(merge(locks)), index)
        tree = git(repository, "write-tree", **index)
    final = _commit(repository, tree, revision, f"Finish run {run_id}")
    _set_branch(repository, run_id, final)
    return final


def unchanged_since(repository: Path, revision: str, form: Mapping[str, Any]) -> bool:
    """Whether a run begun now, with the same form, would start from the files of ``revision``."""
    try:
        with _snapshot(repository, form) as (tree, _):
            return tree == git(repository, "rev-parse", f"{revision}^{{tree}}")
    except InputError:  # it would not start at all: a file that it needs is gone, say
        return False


def params(repository: Path, revision: str) -> dict[str, Any]:
    """params.yaml as ``revision`` holds it."""
    loaded: dict[str, Any] = yaml.safe_load(git(repository, "show", f"{revision}:params.yaml"))
    return loaded


def obtain(repository: Path, run_id: str, revision: str) -> None:
    """Make sure that ``repository`` has ``revision``; where it does not, fetch from CTRMODELS_GIT_REMOTE."""
    try:
        git(repository, "cat-file", "-e", f"{revision}^{{commit}}")
    except RuntimeError:
        remote = os.environ.get("CTRMODELS_GIT_REMOTE")
        if not remote:
            raise
        git(repository, "fetch", "--quiet", remote, f"refs/heads/{branch(run_id)}")


def page(repository: Path, revision: str) -> str:
    """Web address of ``revision`` where the remote ``origin`` is on a site; else nothing."""
    try:
        origin = git(repository, "remote", "get-url", "origin")
    except RuntimeError:
        return ""
    site = re.fullmatch(r"(?:https?://(?:[^@/]+@)?|ssh://git@|git@)([\w.-]+)[:/](.+?)(?:\.git)?/?", origin)
    return f"https://{site[1]}/{site[2]}/tree/{revision}" if site else ""


def merge(locks: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Lock entries of several stages as one mapping from stage to entry.

    Raises:
        StageRefused: a stage left none.
    """
    locks = list(locks)
    if None in locks:
        there = sorted({stage for lock in locks if lock for stage in lock})
        raise StageRefused("a stage that this one needs recorded no outputs, as one does that was marked as success by "
                           f"hand: clear it, so that it runs (there are those of {', '.join(there) or 'none'})")
    return {stage: entry for lock in locks if lock for stage, entry in lock.items()}


def lockfile(entries: Mapping[str, Any]) -> str:
    """Text of a dvc.lock that holds ``entries``."""
    return yaml.safe_dump({"schema": "2.0", "stages": dict(entries)}, sort_keys=False)


@contextmanager
def _snapshot(repository: Path, form: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Tree of the working tree's files, untracked ones included, with the form's values in params.yaml."""
    try:
        index_file = repository / git(repository, "rev-parse", "--git-path", "index")
        git(repository, "rev-parse", "--verify", "HEAD")
    except RuntimeError as error:
        raise InputError(repository, "git", str(error).rsplit(": ", 1)[-1], "not a Git checkout with a commit",
                         "clone the project, or run: git init && git add -A && git commit") from None
    for name in filter(None, git(repository, "ls-files", "-z", "--others", "--exclude-standard").split("\0")):
        file = repository / name
        if file.lstat().st_size > LARGEST_UNTRACKED_FILE:
            raise InputError(file, "size", file.lstat().st_size, "untracked, and too large for a commit",
                             "add it to .gitignore, or commit it if it belongs to the project")
    with _index(repository) as index:
        if index_file.exists():
            shutil.copy(index_file, index["GIT_INDEX_FILE"])  # keeps Git from hashing unchanged files
        git(repository, "add", "--all", **index)
        raw = yaml.safe_load(git(repository, "show", ":params.yaml", **index))
        wanted = config.apply_form(raw, dict(form), "params.yaml")
        config.check_sections(wanted, "params.yaml")
        wanted = _pin_files(repository, wanted, index)
        if wanted != raw:
            _put(repository, "params.yaml", yaml.safe_dump(wanted, sort_keys=False), index)
        yield git(repository, "write-tree", **index), index


def _pin_files(repository: Path, raw: dict[str, Any], index: Mapping[str, str]) -> dict[str, Any]:
    """Fill in the digests of the user's files, so that a stage notices when they change during the run.

    DVC takes a result from its cache by its parameters: with the digest among them, never that of other files.

    Raises:
        InputError: a file is not there, or only in this checkout and not in the run's, where its stages look.
    """
    params = config.parse(raw, "params.yaml")
    data, fusion = params.data, params.tune_fusion
    if data.source == "files" and data.files is not None and data.files.digest is None:
        from tasks.sources import files

        raw["data"]["files"]["digest"] = files.digest(data.files)
    if fusion.incumbent is not None:
        found = hashlib.sha256(fusion.read_incumbent(repository)).hexdigest()
        if not Path(fusion.incumbent).is_absolute():
            try:
                git(repository, "ls-files", "--error-unmatch", "--", f":(literal){fusion.incumbent}", **index)
            except RuntimeError:
                raise InputError("params.yaml", "tune_fusion.incumbent", fusion.incumbent,
                                 "outside the checkout, or ignored by Git, so that the run's copy of it lacks the file",
                                 "give an absolute path, or a file that Git does not ignore") from None
        if fusion.incumbent_digest is None:
            raw["tune_fusion"]["incumbent_digest"] = found
    return raw


@contextmanager
def _index(repository: Path) -> Iterator[dict[str, str]]:
    """Environment that points Git to an empty index of its own."""
    with tempfile.TemporaryDirectory(prefix="ctrmodels-") as folder:
        yield {"GIT_INDEX_FILE": str(Path(folder) / "index")}


def _put(repository: Path, path: str, text: str, index: Mapping[str, str]) -> None:
    blob = git(repository, "hash-object", "-w", "--stdin", stdin=text)
    git(repository, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", **index)


def _commit(repository: Path, tree: str, parent: str, message: str) -> str:
    return git(repository, "commit-tree", tree, "-p", parent, "-m", message, **_IDENTITY)


def _set_branch(repository: Path, run_id: str, revision: str) -> None:
    ref = f"refs/heads/{branch(run_id)}"
    git(repository, "update-ref", ref, revision)
    remote = os.environ.get("CTRMODELS_GIT_REMOTE")
    if remote:
        git(repository, "push", "--quiet", remote, f"+{ref}:{ref}")
