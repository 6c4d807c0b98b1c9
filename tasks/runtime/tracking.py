"""Publishes a finished stage to W&B. A fault of W&B never fails or stalls a stage.

W&B runs in a child process (:mod:`tasks.runtime.wandb_run`) that is given a deadline: a server that does not
answer, a broken installation or a crash ends there. What was not sent is on disk for ``wandb sync``.

Environment:
    WANDB_MODE: ``online``, ``offline`` or ``disabled``; unset = online when logged in, else offline.
    WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL, WANDB_API_KEY: as W&B defines them; the project's default
        is ``ctrmodels``.
    WANDB_DIR: where runs are kept; default ``.scratch/wandb`` of the working directory. A launcher that
        throws workspaces away sets it to a folder that stays.
    CTRMODELS_RUN_ID, CTRMODELS_REVISION: the execution of the chain and its Git revision, for the lineage.
    CTRMODELS_WANDB_DEADLINE: seconds for one attempt; default 60.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from tasks.config import Params
from tasks.runtime import manifest
from tasks.runtime.figure import Figure

TRAINING_STAGES = frozenset({"search_embedding", "search_interaction", "retrain"})
log = logging.getLogger("ctrmodels")


@dataclass(frozen=True)
class Attempt:
    """How one child process fared.

    Attributes:
        mode: ``online`` or ``offline``, as the child decided; ``None`` if it did not get that far.
        opened: the run exists (on the server or on disk).
        url: its page, when online.
        report: page of the W&B report, when one was built.
        fault: what went wrong, in one line; ``None`` = nothing.
    """

    mode: str | None = None
    opened: bool = False
    url: str | None = None
    report: str | None = None
    fault: str | None = None


def publish(*, stage: str, key: str | None, params: Params, metrics: Mapping[str, float],
            measurements: Mapping[str, Any], figures: Sequence[Figure], folder: Path) -> dict[str, Any]:
    """Send one stage's results to W&B; returns what identifies the run (for the lineage).

    Args:
        stage: the stage's name; the run's ``job_type``.
        key: its matrix key, or ``None``.
        params: all of params.yaml, of which the run's config gets an allow-listed part.
        metrics: reproducible results, into the run's summary.
        measurements: of this machine, into the summary under ``measurement/``.
        figures: what ``folder/figures`` holds, to be logged as tables, charts and images.
        folder: the stage's whole output, ``ROOT/outputs/...``, with its manifest.

    Returns:
        ``wandb`` (id, group, project, name, mode, url, report), ``run_id``, ``revision``, ``airflow``,
        ``manifest`` (digest of the output) and ``inputs`` (digests of the outputs it was made from).
    """
    root = folder.resolve().parents[1]
    title = f"{stage}@{key}" if key else stage
    lineage = {
        "run_id": run_id(),
        "revision": revision(root),
        "airflow": _airflow(),
        "manifest": manifest.sha256(folder / manifest.NAME),
        "inputs": _inputs(root, stage),
    }
    run: dict[str, Any] = {
        "id": hashlib.sha1(f"{run_id()}/{stage}/{key}".encode(), usedforsecurity=False).hexdigest()[:16],
        "group": run_id(), "project": os.environ.get("WANDB_PROJECT", "ctrmodels"), "name": title,
    }
    mode = os.environ.get("WANDB_MODE", "auto")
    if mode == "disabled":
        return {**lineage, "wandb": {**run, "mode": "disabled", "url": None, "report": None}}
    payload = {
        "run": {**run, "job_type": stage, "tags": [params.data.source]},
        "config": {"stage": stage, "key": key, **_config(params, stage),
                   **{name: lineage[name] for name in ("run_id", "revision", "airflow")}},
        "summary": {**metrics, **{f"measurement/{k}": v for k, v in measurements.items()}},
        "figures": [figure.id for figure in figures],
        "folder": str(folder.resolve()), "lineage": lineage,
        "deadline": float(os.environ.get("CTRMODELS_WANDB_DEADLINE", "60")),
    }
    attempt = _publish(payload, mode, _environment(root), title)
    return {**lineage, "wandb": {**run, "mode": attempt.mode if attempt.opened else "failed",
                                 "url": attempt.url, "report": attempt.report}}


def run_id() -> str:
    """Id of this execution of the chain; ``local`` when nobody gave it one."""
    return os.environ.get("CTRMODELS_RUN_ID", "local")


def revision(root: Path) -> str | None:
    """Git revision of this execution: as the launcher says, else that of ``root``, else ``None``.

    The latter ends with ``-dirty`` when files differ from the commit.
    """
    given = os.environ.get("CTRMODELS_REVISION")
    if given:
        return given
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], cwd=root,
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _publish(payload: dict[str, Any], mode: str, environment: dict[str, str], title: str) -> Attempt:
    """Try ``mode``; where the server could not be reached, keep the run on disk; say what happened."""
    attempt = _attempt(payload, mode, environment)
    where = environment["WANDB_DIR"]
    if not attempt.opened and attempt.mode != "offline":
        first, attempt = attempt, _attempt(payload, "offline", environment)
        if attempt.opened:
            log.warning("W&B: %s kept offline in %s, not sent: %s", title, where, first.fault)
            return attempt
    if not attempt.opened:
        log.warning("W&B: %s not recorded: %s", title, attempt.fault)
    elif attempt.fault:
        log.warning("W&B: %s recorded %s, but %s; `wandb sync` sends what is missing from %s",
                    title, attempt.mode, attempt.fault, where)
    elif attempt.mode == "online":
        report = f", report {attempt.report}" if attempt.report else ""
        log.info("W&B: %s is at %s%s", title, attempt.url, report)
    else:
        log.info("W&B: %s recorded offline in %s (`wandb login` first to send runs)", title, where)
    return attempt


def _attempt(payload: dict[str, Any], mode: str, environment: dict[str, str]) -> Attempt:
    """Run the child once. Files instead of pipes: W&B's own service may outlive the child and hold a pipe."""
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as told, \
            tempfile.TemporaryFile("w+") as complaints:
        json.dump(payload, given)
        given.seek(0)
        child = subprocess.Popen([sys.executable, "-m", "tasks.runtime.wandb_run", mode], stdin=given,
                                 stdout=told, stderr=complaints, env=environment, start_new_session=True)
        try:
            status = child.wait(payload["deadline"])
            fault = None if status == 0 else f"{_last_line(complaints)} (exit status {status})"
        except subprocess.TimeoutExpired:
            fault = f"it was stopped after {payload['deadline']:g} s"
        finally:
            _kill(child)
        told.seek(0)
        return Attempt(**_events(told), fault=fault)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and the service that W&B started, which is in the child's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _events(told: IO[str]) -> dict[str, Any]:
    """Merge the JSON lines the child printed; anything else on its stdout is not ours."""
    known = Attempt.__dataclass_fields__.keys()
    found: dict[str, Any] = {}
    for line in told:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found |= {k: v for k, v in event.items() if k in known}
    return found


def _last_line(stream: IO[str]) -> str:
    stream.seek(0)
    lines = [line.strip() for line in stream if line.strip()]
    return lines[-1][:300] if lines else "no message"


def _environment(root: Path) -> dict[str, str]:
    """The child's environment: W&B's folders inside WANDB_DIR; no code, Git or console recorded."""
    home = Path(os.environ.get("WANDB_DIR", root / ".scratch" / "wandb")).resolve()
    home.mkdir(parents=True, exist_ok=True)
    return {
        "WANDB_DATA_DIR": str(home / "data"), "WANDB_CACHE_DIR": str(home / "cache"),
        **os.environ,
        "WANDB_DIR": str(home), "WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_DISABLE_CODE": "true",
        "WANDB_DISABLE_GIT": "true", "WANDB_ERROR_REPORTING": "false",
    }


def _config(params: Params, stage: str) -> dict[str, Any]:
    """What may be shown of params.yaml: named sections, names of columns; no path, it may hold a secret.

    Of the incumbent, which a path names, only whether there is one.
    """
    everything = params.model_dump(mode="json", by_alias=True)
    del everything["tune_fusion"]["incumbent_digest"]
    everything["tune_fusion"]["incumbent"] = params.tune_fusion.incumbent is not None
    kept = [stage, *(["training"] if stage in TRAINING_STAGES else [])]
    data = params.data
    return {
        **{name: everything[name] for name in kept if name in everything},
        "data": {"source": data.source, "split": data.split.by, "fields": [f.name for f in data.fields],
                 "objectives": [o.name for o in data.objectives]},
    }


def _airflow() -> dict[str, str] | None:
    names = {"dag_id": "AIRFLOW_CTX_DAG_ID", "run_id": "AIRFLOW_CTX_DAG_RUN_ID",
             "try_number": "AIRFLOW_CTX_TRY_NUMBER"}
    found = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
    return found or None


def _inputs(root: Path, stage: str) -> dict[str, str]:
    """Digest of the manifest of every output that dvc.yaml names as a dependency of ``stage``."""
    graph = root / "dvc.yaml"
    if not graph.is_file():
        return {}
    outputs = root / "outputs"
    found = {}
    for dependency in yaml.safe_load(graph.read_text())["stages"].get(stage, {}).get("deps", []):
        path = root / dependency
        if not path.is_relative_to(outputs):
            continue
        top = path if path.is_dir() else path.parent
        for file in sorted(top.glob(f"**/{manifest.NAME}")):
            found["@".join(file.parent.relative_to(outputs).parts)] = manifest.sha256(file)
    return found
