"""dvc.yaml as a list of stages."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from dags import graph
from tests.support.fake_project import DVC_YAML

ROOT = Path(__file__).resolve().parents[2]
META = {"group": "g", "queue": "q", "pool": "p", "timeout_minutes": 5}


def write(folder: Path, stages: dict[str, dict[str, object]]) -> Path:
    path = folder / "dvc.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}))
    return path


def test_stages_keys_and_upstream_are_read(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    ingest, search, report = graph.load(tmp_path / "dvc.yaml")
    assert (ingest.name, ingest.upstream, ingest.keys, ingest.pool) == ("ingest", (), None, "spark")
    assert (search.upstream, search.keys, search.queue) == (("ingest",), "search_embedding.methods", "gpu")
    assert report.upstream == ("ingest", "search_embedding")
    assert report.timeout == timedelta(minutes=5)
    params = {"search_embedding": {"methods": ["uniform", "pep"]}}
    assert search.addresses(params) == ["search_embedding@uniform", "search_embedding@pep"]
    assert ingest.addresses(params) == ["ingest"]


def test_the_graph_of_the_project_is_the_one_dvc_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo

    monkeypatch.chdir(ROOT)
    with Repo() as repo:
        seen = {(a.addressing.split("@")[0], b.addressing.split("@")[0]) for a, b in repo.index.graph.edges}
        names = {stage.addressing for stage in repo.index.stages}
    stages = graph.load(ROOT / "dvc.yaml")
    assert {(stage.name, upstream) for stage in stages for upstream in stage.upstream} == seen
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert {address for stage in stages for address in stage.addresses(params)} == names


@pytest.mark.parametrize(("dep", "out", "related"), [
    ("outputs/a", "outputs/a", True),
    ("outputs/a/metrics.json", "outputs/a", True),
    ("outputs/a", "outputs/a/${item.m}", True),
    ("outputs/a/x", "outputs/a/${item.m}", True),
    ("measurements", "measurements/a@${item.m}.json", True),
    ("measurements/a@x.json", "measurements/a@${item.m}.json", True),
    ("measurements/b.json", "measurements/a@${item.m}.json", False),
    ("outputs/ab", "outputs/a", False),
    ("outputs/a", "outputs/ab", False),
])
def test_a_stage_is_upstream_when_one_path_lies_in_the_other(
        tmp_path: Path, dep: str, out: str, related: bool) -> None:
    path = write(tmp_path, {"first": {"desc": "d", "meta": META, "outs": [{out: {"cache": False}}]},
                            "second": {"desc": "d", "meta": META, "deps": [dep]}})
    assert graph.load(path)[1].upstream == (("first",) if related else ())


@pytest.mark.parametrize(("stage", "message"), [
    ({"desc": "d"}, "stage s lacks group, pool, queue, timeout_minutes"),
    ({"meta": META}, "stage s lacks desc"),
    ({"desc": "d", "meta": META, "matrix": {"a": "${x}", "b": "${y}"}}, "must be one axis"),
    ({"desc": "d", "meta": META, "matrix": {"a": [1, 2]}}, "must be one axis"),
])
def test_an_incomplete_stage_is_refused(tmp_path: Path, stage: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph.load(write(tmp_path, {"s": stage}))


def test_lookup_fails_on_an_absent_key() -> None:
    assert graph.lookup({"a": {"b": 1}}, "a.b") == 1
    with pytest.raises(KeyError):
        graph.lookup({"a": {}}, "a.b")
