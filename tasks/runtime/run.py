"""Run the chain on the embedded Airflow, or open its UI: what `make run` and `make ui` call.

The chain runs by ``dag.test``: Airflow's own scheduling loop in this process, without servers or ports. On one
machine it is sturdier than a scheduler with its five processes, and nothing is left behind when it ends. The
run is recorded in Airflow's database all the same and shows in the UI.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

from ctrmodels.errors import InputError
from tasks.runtime import revision, summary
from tasks.runtime.environment import embedded, pools
from tasks.runtime.workspace import share_cache

DAG_ID = "ctr_automl"
STARTING_SECONDS = 600
STOPPING_SECONDS = 30


def main(arguments: Sequence[str], project: Path) -> int:
    """Exit status of ``run`` or ``ui``."""
    os.environ.update(embedded(project))
    home = Path(os.environ["AIRFLOW_HOME"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _only_scheduler(home):
            _prepare(home)
            _close_abandoned_runs(home / "unfinished")
            return {"run": run, "ui": ui}[arguments[0]](project, home)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def run(project: Path, home: Path) -> int:
    """Run the DAG once and print what came out."""
    log = home / "logs" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.log"
    print(f"Running {DAG_ID}; everything it prints goes to {log}", flush=True)
    unfinished = home / "unfinished"
    with _output_to(log) as terminal:
        unfinished.touch()
        run_id, state = _run_dag(project, terminal)
        unfinished.unlink()
    if state != "success":
        print(f"\nThe run failed. Its log: {log}", file=sys.stderr)
        return 1
    print(summary.text(_outputs(project, run_id)))
    print(f"Revision    branch {revision.branch(run_id)}\n"
          f"Airflow UI  make ui, then {os.environ['AIRFLOW__API__BASE_URL']}/dags/{DAG_ID}\n"
          "W&B         .venv/bin/wandb login && .venv/bin/wandb sync .scratch/wandb/wandb/offline-run-*")
    return 0


def ui(project: Path, home: Path) -> int:
    """Serve Airflow until it is interrupted."""
    address = os.environ["AIRFLOW__API__BASE_URL"]
    host, port = os.environ["AIRFLOW__API__HOST"], int(os.environ["AIRFLOW__API__PORT"])
    for wanted in (port, port + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, wanted))
            except OSError as error:
                raise InputError("environment", "AIRFLOW__API__PORT", port, f"port {wanted} cannot be used ({error})",
                                 f"choose another: make ui PORT={port + 10}") from None
    log = home / "logs" / "ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"Starting Airflow; it prints to {log}", flush=True)
    with log.open("w") as stream:
        # A session of its own, so that Ctrl-C reaches this process alone, which then stops the others in order.
        server = subprocess.Popen(["airflow", "standalone"], stdout=stream, stderr=subprocess.STDOUT,
                                  start_new_session=True)
        try:
            _serve_reports(Path(os.environ["CTRMODELS_REPORTS"]), port + 1)
            _await_health(server, f"{address}/api/v2/monitor/health")
            access = "no login: it answers this machine only" if host == "127.0.0.1" else "log in"
            print(f"Airflow is ready at {address}/dags/{DAG_ID} ({access}). Ctrl-C stops it.", flush=True)
            return server.wait()
        except KeyboardInterrupt:
            print("Stopping Airflow", flush=True)
            return 0
        finally:
            _stop(server)


def _run_dag(project: Path, terminal: IO[str]) -> tuple[str, str]:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.listener import get_listener_manager

    from tasks.runtime.progress import Progress

    bag = DagBag(str(project / "dags"))
    if bag.import_errors:
        raise RuntimeError("\n".join(bag.import_errors.values()))
    get_listener_manager().add_listener(Progress(terminal))
    finished = bag.dags[DAG_ID].test()
    return str(finished.run_id), str(getattr(finished.state, "value", finished.state))


def _outputs(project: Path, run_id: str) -> Path:
    """Folder with the outputs of a finished run: the working tree, unless it was edited since the run began, or holds
    outputs that no cache has, which a checkout would lose."""
    branch = revision.branch(run_id)
    if not revision.unchanged_since(project, f"{branch}^", {}):
        reason = "The working tree changed during the run"
    elif _checked_out(project, revision.git(project, "show", f"{branch}:dvc.lock") + "\n"):
        return project
    else:
        reason = "The working tree has outputs of its own, which stay"
    place = project / ".scratch" / branch
    shutil.rmtree(place, ignore_errors=True)
    revision.git(project, "clone", "--quiet", "--shared", "--branch", branch, str(project), str(place))
    share_cache(project, place)
    subprocess.run(["dvc", "checkout", "--quiet"], cwd=place, check=True)
    print(f"{reason}; those of the run are in {place}")
    return place


def _checked_out(project: Path, lock: str) -> bool:
    """Bring the outputs that ``lock`` names to the working tree; if that cannot be done, dvc.lock stays as it was."""
    file, new = project / "dvc.lock", project / ".dvc.lock.partial"
    before = file.read_text() if file.exists() else None
    new.write_text(lock)
    new.replace(file)
    if subprocess.run(["dvc", "checkout", "--quiet"], cwd=project).returncode == 0:
        return True
    if before is None:
        file.unlink()
    else:
        new.write_text(before)
        new.replace(file)
    return False


@contextmanager
def _only_scheduler(home: Path) -> Iterator[None]:
    """Hold the lock of whoever schedules: two schedulers on one database would run every task twice."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "scheduler.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(home, "scheduler.lock", "held", "`make run` or `make ui` is running already",
                             "trigger the DAG in the UI, or stop the other one first") from None
        yield


def _prepare(home: Path) -> None:
    """Create or upgrade Airflow's database and its pools; nothing to do when this version did so before."""
    from importlib.metadata import version

    wanted = json.dumps({"airflow": version("apache-airflow-core"), "pools": pools()}, indent=1)
    stamp = home / "prepared.json"
    if not stamp.exists() or stamp.read_text() != wanted:
        print("Preparing Airflow's database", flush=True)
        (home / "pools.json").write_text(json.dumps(pools(), indent=1))
        for command in (["db", "migrate"], ["pools", "import", str(home / "pools.json")]):
            done = subprocess.run(["airflow", *command], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"airflow {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        stamp.write_text(wanted)


def _close_abandoned_runs(marker: Path) -> None:
    """Mark runs as failed whose `make run` was killed, or the UI's scheduler would go on with them."""
    if marker.exists():
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType
        from sqlalchemy import select

        with create_session() as session:
            for abandoned in session.scalars(select(DagRun).where(
                    DagRun.state == DagRunState.RUNNING, DagRun.triggered_by == DagRunTriggeredByType.TEST)):
                abandoned.state = DagRunState.FAILED
        marker.unlink()


@contextmanager
def _output_to(path: Path) -> Iterator[IO[str]]:
    """Send what this process and its children print to ``path``; yields the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as terminal, path.open("w") as stream:
        error = os.dup(2)
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            os.dup2(terminal.fileno(), 1)
            os.dup2(error, 2)
            os.close(error)


def _serve_reports(folder: Path, port: int) -> None:
    """Serve the reports of all runs, to which the UI links, to this machine as long as this process lives."""
    folder.mkdir(parents=True, exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Requests are not worth a line."""


def _await_health(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"Airflow ended with status {server.returncode} while starting")
        with contextlib.suppress(OSError, ValueError, KeyError):
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - an http address of ours
                health = json.load(answer)
            if all(health[part]["status"] == "healthy" for part in ("scheduler", "dag_processor")):
                return
        time.sleep(1)
    raise RuntimeError(f"Airflow was not ready after {STARTING_SECONDS} s")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Interrupt Airflow, and end what is left of it, running stages included, after a grace period."""
    import psutil

    try:
        family = [parent := psutil.Process(server.pid), *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    server.send_signal(signal.SIGINT)  # the one signal on which `airflow standalone` stops its children
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(STOPPING_SECONDS)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parents[2]))
