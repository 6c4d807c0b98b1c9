"""The policy of docker/: what the workflow needs is there; nothing is open, privileged, unpinned or readable."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dags import graph

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GPU: dict[str, dict[str, Any]] = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
LASTING = {name: service for name, service in SERVICES.items() if name != "init"}
WORKERS = {name: service for name, service in SERVICES.items() if "worker" in service.get("command", ())}
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
STAGES = graph.load(ROOT / "dvc.yaml")
# Queue and pool of the DAG's own tasks; importing them would need Airflow.
GIT = dict(re.findall(r'"(queue|pool)": "(\w+)"', (ROOT / "dags" / "policies.py").read_text()))

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
every_lasting_service = pytest.mark.parametrize("service", LASTING.values(), ids=LASTING)


def environment(service: dict[str, Any]) -> dict[str, str]:
    return service.get("environment", {})


def option(service: dict[str, Any], name: str) -> str:
    return str(service["command"][service["command"].index(name) + 1])


def secrets(service: dict[str, Any]) -> set[str]:
    return {secret if isinstance(secret, str) else secret["source"] for secret in service.get("secrets", ())}


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Source by target."""
    found = {}
    for volume in service.get("volumes", ()):
        source, target = re.findall(r"^(\$\{[^}]*\}|[^:]+):([^:]+)", volume)[0]
        found[target] = source
    return found


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"^(?:ENV| {3}) (\w+)=(\S+)", DOCKERFILE, re.MULTILINE))


def test_every_queue_has_a_worker() -> None:
    assert {option(worker, "--queues") for worker in WORKERS.values()} == {s.queue for s in STAGES} | {GIT["queue"]}


def test_a_gpu_and_a_machine_for_spark_serve_one_stage_at_a_time() -> None:
    assert option(SERVICES["worker-gpu"], "--concurrency") == option(SERVICES["worker-spark"], "--concurrency") == "1"


def test_every_pool_is_created_before_anything_starts() -> None:
    created = dict(re.findall(r"airflow pools set (\w+) (\S+)", SERVICES["init"]["command"][-1]))
    assert set(created) == ({s.pool for s in STAGES} | {GIT["pool"]}) - {"default_pool"}
    assert created["git"] == "1"
    for name in ("api-server", "scheduler", "dag-processor"):
        assert SERVICES[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}


def test_tokens_and_messages_outlive_the_longest_stage() -> None:
    longest = max(stage.timeout for stage in STAGES).total_seconds()
    for name in ("AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME",
                 "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT"):
        assert int(COMPOSE["x-airflow"]["environment"][name]) > longest


def test_components_of_airflow_share_one_environment() -> None:
    for name in SERVICES.keys() - {"postgres", "redis", "reports"}:
        assert environment(SERVICES[name]) == COMPOSE["x-airflow"]["environment"]
        assert secrets(SERVICES[name]) >= set(COMPOSE["x-airflow"]["secrets"])


@every_service
def test_no_service_is_privileged(service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].startswith("${HOST_UID:?")
    assert service.keys().isdisjoint({"privileged", "cap_add", "network_mode", "pid", "ipc"})
    assert "docker.sock" not in str(service.get("volumes"))


@every_lasting_service
def test_what_lasts_shows_its_health_comes_back_and_ends_in_peace(service: dict[str, Any]) -> None:
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert re.fullmatch(r"\d+[sm]", service["stop_grace_period"])


@every_service
def test_images_have_a_tag_that_stays(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"[\w./-]+:(?!latest)[\w.-]+(@sha256:[0-9a-f]{64})?", service["image"])


@every_service
def test_published_ports_answer_this_machine_alone(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@every_service
def test_secrets_are_files_never_values(service: dict[str, Any]) -> None:
    for name, value in environment(service).items():
        if re.search(r"PASSWORD|SECRET|KEY|TOKEN|CONN|BROKER_URL", name):
            assert name.endswith(("_CMD", "_FILE")), name
        assert not re.search(r"://[^/\s%]*:[^/\s%]+@", value), name
    needed = set(re.findall(r"/run/secrets/(\w+)", str(service)))
    assert needed <= secrets(service) <= set(COMPOSE["secrets"])


def test_secrets_reach_neither_git_nor_the_image() -> None:
    assert {Path(secret["file"]).parent.name for secret in COMPOSE["secrets"].values()} == {"secrets"}
    assert {"/docker/secrets/", "/docker/.env"} <= set((ROOT / ".gitignore").read_text().split())
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[1] == "*"
    kept = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert kept == {"constraints.txt", "ctrmodels", "dags", "dvc.yaml", "params.yaml", "pyproject.toml", "tasks"}


@pytest.fixture
def clone() -> Iterator[tuple[Path, dict[str, Any]]]:
    """A clone's docker folder that belongs to nobody special, and who is to run its scripts."""
    owner = {"user": 1000, "group": 1000, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(DOCKER, Path(folder) / "docker", ignore=shutil.ignore_patterns("secrets", ".env"))
        if owner:
            for path in (Path(folder), *Path(folder).rglob("*")):
                os.chown(path, owner["user"], owner["group"])
        yield Path(folder) / "docker", owner


def test_prepare_makes_every_secret_once(clone: tuple[Path, dict[str, Any]]) -> None:
    folder, owner = clone
    made = []
    for _ in range(2):
        subprocess.run([folder / "prepare"], check=True, capture_output=True, **owner)
        made.append({file.name: file.read_text() for file in (folder / "secrets").iterdir()})
    assert made[0] == made[1]
    assert made[0].keys() == COMPOSE["secrets"].keys()
    filled = [text for name, text in made[0].items() if name != "netrc"]
    assert len(set(filled)) == len(filled)
    assert min(map(len, filled)) >= 44
    assert {file.stat().st_mode & 0o077 for file in [*(folder / "secrets").iterdir(), folder / ".env"]} == {0}
    user = owner.get("user", os.geteuid())
    assert f"HOST_UID={user}\n" in (folder / ".env").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
def test_prepare_refuses_root(clone: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = clone
    refused = subprocess.run([folder / "prepare"], check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "must not be root" in refused.stderr
    assert not (folder / "secrets").exists()


def test_every_variable_of_ours_is_one_that_the_code_reads() -> None:
    code = "".join(path.read_text() for package in ("ctrmodels", "dags", "tasks")
                   for path in (ROOT / package).rglob("*.py"))
    given = set(COMPOSE["x-airflow"]["environment"]) | set(image_environment())
    ours = {name for name in given if name.startswith("CTRMODELS_")}
    assert ours
    assert {name for name in ours if f'"{name}"' not in code} == set()


def test_every_variable_of_airflow_is_one_of_its_settings() -> None:
    """Those of Celery come with its provider, which the tests do without."""
    spec = importlib.util.find_spec("airflow")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    text = (Path(next(iter(spec.submodule_search_locations))) / "config_templates" / "config.yml").read_text()
    settings = yaml.safe_load(text)
    for name in COMPOSE["x-airflow"]["environment"].keys() | image_environment().keys():
        if name.startswith("AIRFLOW__") and not name.startswith("AIRFLOW__CELERY"):
            _, section, key = name.lower().split("__")
            setting = settings[section]["options"][key.removesuffix("_cmd")]
            assert setting.get("sensitive", False) == key.endswith("_cmd"), name


def test_every_choice_has_a_default_or_is_prepared_and_is_explained() -> None:
    text = "".join((DOCKER / name).read_text() for name in ("compose.yaml", "compose.gpu.yaml"))
    page = (DOCKER / "README.md").read_text()
    prepared = re.findall(r"([A-Z_]+)=%s", (DOCKER / "prepare").read_text())
    choices = re.findall(r"(?<!\$)\$\{(\w+)(:-)?", text)
    assert choices
    for name, default in choices:
        assert default or name in prepared, name
        assert f"`{name}`" in page, name


def test_the_image_runs_as_a_user_of_its_own() -> None:
    assert re.findall(r"^USER (.+)", DOCKERFILE, re.MULTILINE) == ["${UID}:${GID}"]
    assert {"UID": "1000", "GID": "1000"}.items() <= dict(re.findall(r"^ARG (\w+)=(\S+)", DOCKERFILE, re.M)).items()


def test_the_image_is_one_base_and_the_versions_that_run_together() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert re.search(r"^ARG BASE=python:3\.11-[\w-]+$", DOCKERFILE, re.MULTILINE)
    assert "--constraint constraints.txt" in DOCKERFILE
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    added = re.search(r"--editable \. \\\n(.*)", DOCKERFILE)
    assert added is not None
    assert set(added[1].split()) <= pinned
    for package in ("git", "g++", "openjdk-17-jre-headless"):  # what tools/setup.py asks of a machine
        assert f" {package}" in DOCKERFILE
        assert f'"{package}"' in (ROOT / "tools" / "setup.py").read_text()


def test_no_registry_is_named() -> None:
    for file in (path for path in DOCKER.iterdir() if path.is_file()):
        addresses = re.findall(r"https?://([\w.-]+)", file.read_text())
        assert set(addresses) <= {"127.0.0.1", "api-server"}, file


def test_stages_run_the_code_of_their_clone() -> None:
    """Python that does not look into the working directory would run the image's code on the run's revision."""
    assert "PYTHONSAFEPATH" not in image_environment().keys() | COMPOSE["x-airflow"]["environment"].keys()
    assert "PYTHONPATH" not in image_environment().keys() | COMPOSE["x-airflow"]["environment"].keys()


def test_folders_that_the_image_names_are_those_that_are_mounted() -> None:
    given = image_environment() | COMPOSE["x-airflow"]["environment"]
    for worker in WORKERS.values():
        assert {given["CTRMODELS_REPOSITORY"], given["CTRMODELS_REPORTS"], given["CTRMODELS_DATA"],
                f"{given['AIRFLOW_HOME']}/logs"} <= mounts(worker).keys()
    assert SERVICES["worker-gpu"]["volumes"] == SERVICES["worker-default"]["volumes"]
    made = re.search(r"install --directory .*\\\n(.*)", DOCKERFILE)
    assert made is not None
    for name in SERVICES.keys() - {"postgres"}:  # whose image cares for its own
        for target, source in mounts(SERVICES[name]).items():
            assert source not in COMPOSE["volumes"] or target in made[1].split(), (name, target)


def test_build_arguments_are_those_of_the_dockerfile() -> None:
    known = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    for service in (SERVICES["init"], GPU["worker-gpu"]):
        assert set(service["build"]["args"]) == known - {"BASE"}
        context = DOCKER / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).resolve() == DOCKER / "Dockerfile"


def test_the_gpu_file_gives_a_gpu_to_the_worker_of_its_queue_and_changes_nothing_else() -> None:
    worker = GPU["worker-gpu"]
    assert GPU.keys() == {"worker-gpu"}
    assert worker.keys() == {"image", "build", "deploy", "healthcheck"}
    assert worker["image"] != SERVICES["worker-gpu"]["image"]
    assert worker["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    ping = SERVICES["worker-gpu"]["healthcheck"]["test"][1]
    assert worker["healthcheck"]["test"] == ["CMD-SHELL", f"nvidia-smi -L && {ping}"]
