"""The UI's way: Airflow standalone, a run triggered by the REST API with values of the form, a clean stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.support.fake_project import ROOT, FakeProject

pytestmark = pytest.mark.slow
PATIENCE = 900

SERVE = "import sys; from pathlib import Path; from tasks.runtime.run import main; " \
        "sys.exit(main(['ui'], Path(sys.argv[1])))"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Api:
    """Airflow's REST API as the one user that the embedded installation knows."""

    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.headers = {"Content-Type": "application/json"}

    def log_in(self) -> None:
        self.headers["Authorization"] = f"Bearer {self('GET', '/auth/token')['access_token']}"

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, self.headers, method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - an http address of ours
            return json.load(answer)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeProject, Api, subprocess.Popen[str]]]:
    """A project whose UI is open; interrupted at the end if a test has not done so."""
    project, port = FakeProject(tmp_path_factory.mktemp("served")), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "CTRMODELS"))}
    environment |= {"AIRFLOW__API__PORT": str(port), "FAKE_CONTROL": str(project.control)}
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(project.path)], cwd=ROOT, env=environment,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert server.stdout is not None
        shown = []
        for line in server.stdout:
            shown.append(line)
            if "Airflow is ready" in line:
                break
        else:
            pytest.fail("".join(shown) + (project.path / ".airflow/logs/ui.log").read_text()[-3000:])
        api = Api(port)
        api.log_in()
        yield project, api, server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                server.wait(120)
        server.kill()


def wait_for_dag(api: Api) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(urllib.error.HTTPError):
            if not api("GET", "/api/v2/dags/ctr_automl")["is_paused"]:
                return
        time.sleep(1)
    pytest.fail("the DAG never appeared")


def finished(api: Api, run: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        state = api("GET", f"/api/v2/dags/ctr_automl/dagRuns/{run}")["state"]
        if state in ("success", "failed"):
            return str(state)
        time.sleep(2)
    pytest.fail("the run never ended")


def test_a_run_triggered_with_form_values_succeeds(
        served: tuple[FakeProject, Api, subprocess.Popen[str]]) -> None:
    project, api, _ = served
    wait_for_dag(api)
    conf = {"search_embedding.methods": ["uniform", "pep"], "training.epochs": 4}
    run = api("POST", "/api/v2/dags/ctr_automl/dagRuns",
              {"dag_run_id": "from-the-form", "logical_date": None, "conf": conf})["dag_run_id"]

    assert finished(api, run) == "success"

    tasks = api("GET", f"/api/v2/dags/ctr_automl/dagRuns/{run}/taskInstances")["task_instances"]
    assert {t["rendered_map_index"] for t in tasks if t["task_id"] == "search_embedding"} == {
        "search_embedding@uniform", "search_embedding@pep"}
    assert "epochs: 4" in project.git("show", "runs/from-the-form:params.yaml")
    links = api("GET", f"/api/v2/dags/ctr_automl/dagRuns/{run}/taskInstances/search_embedding/links"
                       "?map_index=0")["extra_links"]
    assert links["W&B run"] == "https://w/search_embedding@uniform"
    links = api("GET", f"/api/v2/dags/ctr_automl/dagRuns/{run}/taskInstances/report/links")["extra_links"]
    with urllib.request.urlopen(links["Report"], timeout=60) as page:  # noqa: S310 - an http address of ours
        assert page.read() == b"<p>the report</p>"


def test_a_value_outside_the_form_is_refused(served: tuple[FakeProject, Api, subprocess.Popen[str]]) -> None:
    _, api, _ = served
    with pytest.raises(urllib.error.HTTPError) as refused:
        api("POST", "/api/v2/dags/ctr_automl/dagRuns",
            {"logical_date": None, "conf": {"data.source": "movielens-100k; rm -rf /"}})
    assert refused.value.code == 400


def test_a_second_scheduler_is_refused(served: tuple[FakeProject, Api, subprocess.Popen[str]]) -> None:
    project, _, _ = served
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "CTRMODELS"))}
    done = subprocess.run([sys.executable, "-c", SERVE, str(project.path)], cwd=ROOT, env=environment, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 2
    assert "is running already; trigger the DAG in the UI, or stop the other one first" in done.stderr


def test_an_interrupt_stops_every_process(served: tuple[FakeProject, Api, subprocess.Popen[str]]) -> None:
    _, api, server = served
    family = psutil.Process(server.pid).children(recursive=True)
    assert len(family) > 3
    server.send_signal(signal.SIGINT)
    assert server.wait(120) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    with pytest.raises(OSError):
        api("GET", "/api/v2/monitor/health")
