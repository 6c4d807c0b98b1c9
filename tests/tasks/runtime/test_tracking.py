"""Publishing to W&B: what an offline run holds, and that no fault of W&B reaches the stage."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import config
from tasks.rendering import wandb_report
from tasks.runtime import manifest, tracking
from tasks.runtime.figure import Axis, Figure, Series

REPOSITORY = Path(__file__).resolve().parents[3]
CANARY = "canary-5f1c0b9e-secret"
FAKE_KEY = "0123456789abcdef" * 2 + "01234567"
BLOCK = 32768
FIGURES = [
    Figure("curves", "Training", "line", "Rises.", Axis("epoch"), Axis("AUC"), [Series("seed 0", [1, 2], [.7, .75])]),
    Figure("expectations", "Expectations", "table", columns=["name", "outcome"], values=[["nulls", "passed"]]),
    Figure("gates", "Gates", "heatmap", rows=["a"], columns=["b", "c"], values=[[.5, None]]),
]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No W&B setting of the machine takes part; secrets that must not leak do."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL", "WANDB_DIR",
                 "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "CTRMODELS_WANDB_DEADLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("CTRMODELS_RUN_ID", "manual__1")
    monkeypatch.setenv("CTRMODELS_REVISION", "c0ffee")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)


def publish(root: Path, stage: str = "search_embedding", key: str | None = "autodim") -> dict[str, Any]:
    """Publish a small finished stage of the workspace ``root``."""
    params = config.load(REPOSITORY / "params.yaml")
    folder = root / "outputs" / f".partial-{stage}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("{}")
    (folder / "predictions.parquet").write_bytes(b"rows of the user")
    for figure in FIGURES:
        figure.save(folder / "figures")
    manifest.write(folder)
    return tracking.publish(stage=stage, key=key, params=params, metrics={"valid.auc.like@all": .78},
                            measurements={"seconds": 1.5}, figures=FIGURES, folder=folder)


def frames(path: Path) -> Iterator[bytes]:
    """Records of an offline run's log: blocks of 32 KiB, each record in one or more checksummed fragments."""
    data = path.read_bytes()
    assert struct.unpack("<4sHB", data[:7])[0] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position:position + 7])
        parts += data[position + 7:position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole record, or its last fragment
            yield parts
            parts = b""


def read_back(root: Path) -> dict[str, Any]:
    """The last offline run under ``root``: run, config, summary, history and artifacts."""
    from wandb.proto import wandb_internal_pb2

    log = sorted(root.glob(".scratch/wandb/wandb/offline-run-*/run-*.wandb"))[-1]
    found: dict[str, Any] = {"history": {}, "summary": {}, "artifacts": []}
    for frame in frames(log):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(frame)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] = {i.key: json.loads(i.value_json) for i in record.run.config.update}
        elif kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            found[kind] |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
        elif kind == "artifact":
            found["artifacts"].append(record.artifact)
    return found


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """One published stage: its workspace, what publish returned, and what the offline log holds."""
    root = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", FAKE_KEY)
        patch.setenv("CTRMODELS_RUN_ID", "manual__1")
        patch.setenv("CTRMODELS_REVISION", "c0ffee")
        patch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
        patch.delenv("WANDB_DIR", raising=False)
        (root / "dvc.yaml").write_text("stages: {search_embedding: {deps: [outputs/encode, ctrmodels]}}")
        encoded = root / "outputs" / "encode"
        encoded.mkdir(parents=True)
        manifest.write(encoded)
        identity = publish(root)
    yield root, identity, read_back(root)


def test_a_stage_becomes_a_run_named_by_run_stage_and_key(offline) -> None:
    _, identity, record = offline
    expected = hashlib.sha1(b"manual__1/search_embedding/autodim", usedforsecurity=False).hexdigest()[:16]
    run = record["run"]
    assert (run.run_id, run.run_group, run.job_type) == (expected, "manual__1", "search_embedding")
    assert (run.display_name, run.project) == ("search_embedding@autodim", "ctrmodels")
    assert identity["wandb"] == {"id": expected, "group": "manual__1", "project": "ctrmodels", "mode": "offline",
                                 "name": "search_embedding@autodim", "url": None, "report": None}


def test_the_config_is_the_stages_own_section_and_the_lineage(offline) -> None:
    _, _, record = offline
    assert record["config"]["search_embedding"]["seeds"] == 3
    assert record["config"]["training"]["embedding_dim"] == 16
    assert (record["config"]["run_id"], record["config"]["revision"]) == ("manual__1", "c0ffee")
    assert "tune_fusion" not in record["config"]


def test_metrics_and_measurements_are_in_the_summary(offline) -> None:
    _, _, record = offline
    assert record["summary"]["valid.auc.like@all"] == .78
    assert record["summary"]["measurement/seconds"] == 1.5


def test_every_figure_is_a_table_or_chart_and_an_image(offline) -> None:
    root, _, record = offline
    kinds = {key.removesuffix("/_type"): value for key, value in record["history"].items() if key.endswith("/_type")}
    assert kinds["figures/curves"] == kinds["figures/gates"] == "image-file"
    assert kinds["tables/expectations"] == kinds["tables/gates"] == "table-file"
    tables = [json.loads(p.read_text()) for p in root.glob("**/media/table/**/*.json")]
    assert {"columns": ["name", "outcome"], "data": [["nulls", "passed"]]} in [
        {k: t[k] for k in ("columns", "data")} for t in tables]
    assert any(t["data"] == [["seed 0", 1, .7, None, None], ["seed 0", 2, .75, None, None]] for t in tables)


def test_the_artifact_has_results_and_lineage_but_no_rows(offline) -> None:
    root, identity, record = offline
    artifact, = (a for a in record["artifacts"] if a.type == "search_embedding")
    assert artifact.name == "search_embedding-autodim"
    paths = {entry.path for entry in artifact.manifest.contents}
    assert {"MANIFEST.json", "metrics.json", "figures/curves.json"} <= paths
    assert "predictions.parquet" not in paths
    lineage = json.loads(artifact.metadata)
    assert lineage["manifest"] == identity["manifest"]
    assert lineage["inputs"] == {"encode": manifest.sha256(root / "outputs" / "encode" / manifest.NAME)}


def test_no_secret_and_no_host_is_in_any_file(offline) -> None:
    root, identity, _ = offline
    everything = json.dumps(identity).encode() + b"".join(p.read_bytes() for p in root.rglob("*") if p.is_file())
    for secret in (CANARY, FAKE_KEY):
        assert secret.encode() not in everything
    assert not list(root.rglob("wandb-metadata.json")) + list(root.rglob("requirements.txt"))


def test_a_retry_has_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    first, again, other = publish(tmp_path), publish(tmp_path), publish(tmp_path, key="pep")
    assert first["wandb"]["id"] == again["wandb"]["id"] != other["wandb"]["id"]
    assert first["wandb"]["mode"] == "disabled"
    assert not (tmp_path / ".scratch").exists()


def test_without_a_key_the_run_is_kept_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ctrmodels"):
        identity = publish(tmp_path)
    assert identity["wandb"]["mode"] == "offline"
    assert read_back(tmp_path)["run"].run_id == identity["wandb"]["id"]
    line, = (r.getMessage() for r in caplog.records)
    assert line.startswith("W&B: search_embedding@autodim recorded offline")


def test_a_server_that_never_answers_costs_a_bounded_wait_and_the_run_is_kept_offline(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
        monkeypatch.setenv("CTRMODELS_WANDB_DEADLINE", "24")
        with caplog.at_level(logging.INFO, "ctrmodels"):
            identity = publish(tmp_path)
    assert identity["wandb"]["mode"] == "offline"
    assert read_back(tmp_path)["run"].run_id == identity["wandb"]["id"]
    assert "not sent" in caplog.text
    assert not any(FAKE_KEY.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a module called wandb before the real one, for the child."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "wandb.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{REPOSITORY}")


def test_a_wandb_that_hangs_is_stopped_at_the_deadline(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fake_wandb(tmp_path, monkeypatch, "import time\ntime.sleep(3600)\n")
    monkeypatch.setenv("CTRMODELS_WANDB_DEADLINE", "1")
    identity = publish(tmp_path)
    assert identity["wandb"]["mode"] == "failed"
    assert "stopped after 1 s" in caplog.text


def test_a_wandb_that_breaks_is_told_in_one_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fake_wandb(tmp_path, monkeypatch, "raise ImportError('broken installation')\n")
    identity = publish(tmp_path)
    assert identity["wandb"]["mode"] == "failed"
    assert [r.getMessage() for r in caplog.records] == [
        "W&B: search_embedding@autodim not recorded: ImportError: broken installation (exit status 1)"]


ONLINE = '''
import json, pathlib, sys, types
LOG = pathlib.Path({log!r})
def note(**entry):
    with LOG.open("a") as stream:
        stream.write(json.dumps(entry) + chr(10))
class errors:
    class UsageError(Exception): pass
    class CommError(Exception): pass
class Anything:
    def __init__(self, *a, **k): self.a, self.k = a, k
    def add_file(self, *a, **k): pass
Settings = Table = Image = Artifact = Anything
plot = types.SimpleNamespace(line=Anything, scatter=Anything)
def login(): return True
class Run:
    url, entity, offline, summary = "https://wandb.test/run", "team", False, {{}}
    def __enter__(self): return self
    def __exit__(self, *_): {at_exit}
    def log(self, media): pass
    def log_artifact(self, artifact, aliases): note(logged=artifact.a[0], aliases=aliases)
    def use_artifact(self, name):
        note(used=name)
        raise errors.CommError("not on this server")
def init(**k):
    note(mode=k["mode"], id=k["id"], resume=k["resume"])
    return Run()
'''


def test_online_the_inputs_are_linked_by_content_and_an_absent_one_is_no_fault(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wandb(tmp_path, monkeypatch, ONLINE.format(log=str(tmp_path / "calls"), at_exit="pass"))
    (tmp_path / "dvc.yaml").write_text("stages: {search_embedding: {deps: [outputs/encode]}}")
    (tmp_path / "outputs" / "encode").mkdir(parents=True)
    manifest.write(tmp_path / "outputs" / "encode")
    identity = publish(tmp_path)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    digest = identity["inputs"]["encode"][:16]
    assert calls == [{"mode": "online", "id": identity["wandb"]["id"], "resume": "allow"},
                     {"used": f"encode:content-{digest}"},
                     {"logged": "search_embedding-autodim", "aliases": [f"content-{identity['manifest'][:16]}"]}]
    assert (identity["wandb"]["mode"], identity["wandb"]["url"]) == ("online", "https://wandb.test/run")


def test_an_upload_cut_short_is_still_the_online_run(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    hang = "import time; time.sleep(3600)"
    fake_wandb(tmp_path, monkeypatch, ONLINE.format(log=str(tmp_path / "calls"), at_exit=hang))
    monkeypatch.setenv("CTRMODELS_WANDB_DEADLINE", "8")
    identity = publish(tmp_path)
    assert (identity["wandb"]["mode"], identity["wandb"]["url"]) == ("online", "https://wandb.test/run")
    assert "`wandb sync` sends what is missing" in caplog.text


def test_a_path_that_holds_a_password_is_not_in_the_config(tmp_path: Path) -> None:
    raw = config.load(REPOSITORY / "params.yaml").model_dump(mode="json", by_alias=True)
    raw["data"] |= {"source": "files", "files": {"path": f"s3a://user:{CANARY}@bucket/log"}}
    assert CANARY not in json.dumps(tracking._config(config.parse(raw, "test"), "search_embedding"))


@pytest.mark.parametrize("incumbent", [f"/home/{CANARY}/fusion.json", None])
def test_of_the_incumbent_the_config_shows_only_whether_there_is_one(incumbent: str | None) -> None:
    raw = config.load(REPOSITORY / "params.yaml").model_dump(mode="json", by_alias=True)
    raw["tune_fusion"] |= {"incumbent": incumbent, "incumbent_digest": CANARY}
    shown = tracking._config(config.parse(raw, "test"), "tune_fusion")
    assert CANARY not in json.dumps(shown)
    assert shown["tune_fusion"]["incumbent"] is (incumbent is not None)
    assert "incumbent_digest" not in shown["tune_fusion"]
    assert shown["tune_fusion"]["trials"] == raw["tune_fusion"]["trials"]


def test_the_wandb_report_compares_the_runs_of_this_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb_workspaces.reports.v2.interface as interface

    sent: list[dict[str, Any]] = []

    def answer(api: Any, query: Any, variables: dict[str, Any]) -> dict[str, Any]:
        sent.append(variables)
        if "spec" not in variables:
            return {"project": {"internalId": "UHJvamVjdDE="}}
        view = {"id": "Vmlldzox", "name": "n", "displayName": variables["displayName"], "description": "",
                "project": {"name": "ctrmodels", "entityName": "team"}, "createdAt": None, "updatedAt": None,
                "spec": variables["spec"]}
        return {"upsertView": {"view": view, "inserted": True}}

    class Api:
        default_entity = "team"

        def projects(self, entity: str) -> list[Any]:
            return [type("Project", (), {"name": "ctrmodels"})()]

    monkeypatch.setattr(interface, "_get_api", Api)
    monkeypatch.setattr(interface, "execute_graphql", answer)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "http://localhost")
    url = wandb_report.save("team", "ctrmodels", "manual__1", {
        "title": "MovieLens", "verdict": ["esmm wins."], "metrics": ["valid.auc.like@all"],
        "leaderboards": {"Models": [["candidate", "valid auc"], ["esmm | a", "0.79"]]}})
    spec = sent[-1]["spec"]
    assert url.startswith("http://localhost/team/ctrmodels/reports/")
    assert sent[-1]["displayName"] == "MovieLens: manual__1"
    for text in ("esmm wins.", "valid.auc.like@all", "manual__1", "retrain"):
        assert text in spec
