"""A run's revision holds what lay in the working tree, and making it disturbs nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from ctrmodels.errors import InputError
from tasks.runtime import revision
from tasks.runtime.failures import StageRefused
from tests.support.fake_project import FakeProject


def test_begin_takes_uncommitted_and_untracked_files_and_leaves_the_checkout_as_it_was(project: FakeProject) -> None:
    project.set("training", "epochs", 7)
    (project.path / "notes.txt").write_text("untracked")
    (project.path / "outputs").mkdir()
    (project.path / "outputs" / "ignored.txt").write_text("ignored")
    project.git("add", "notes.txt")
    before = project.git("status", "--porcelain", "--branch")

    commit = revision.begin(project.path, "first", {})

    assert project.git("status", "--porcelain", "--branch") == before
    assert project.git("rev-parse", "runs/first") == commit
    assert project.git("rev-parse", f"{commit}^") == project.git("rev-parse", "main")
    assert revision.params(project.path, commit)["training"]["epochs"] == 7
    assert project.git("show", f"{commit}:notes.txt") == "untracked"
    assert "outputs" not in project.git("ls-tree", "--name-only", commit).split()


def test_begin_on_a_clean_checkout_is_the_checked_out_commit(project: FakeProject) -> None:
    assert revision.begin(project.path, "clean", {}) == project.git("rev-parse", "main")


def test_begin_keeps_the_text_of_params_unless_the_form_changes_a_value(project: FakeProject) -> None:
    same = revision.begin(project.path, "same", {"training.epochs": 15})
    other = revision.begin(project.path, "other", {"training.epochs": 3, "search_embedding.methods": ["uniform"]})

    assert project.git("show", f"{same}:params.yaml") == (project.path / "params.yaml").read_text().rstrip("\n")
    changed = revision.params(project.path, other)
    assert changed["training"]["epochs"] == 3
    assert changed["search_embedding"]["methods"] == ["uniform"]
    assert {k: v for k, v in changed.items() if k not in ("training", "search_embedding")} == {
        k: v for k, v in yaml.safe_load((project.path / "params.yaml").read_text()).items()
        if k not in ("training", "search_embedding")}


@pytest.mark.parametrize("form", [
    {"training.epochs": 0},
    {"training.epochs": "3; rm -rf /"},
    {"search_embedding.methods": ["uniform", "$(reboot)"]},
    {"search_embedding.methods": ["pep"]},
    {"data.files.path": "/etc/passwd"},
    {"cmd": "true"},
])
def test_begin_refuses_what_params_would_not_accept(project: FakeProject, form: dict[str, object]) -> None:
    with pytest.raises(InputError):
        revision.begin(project.path, "hostile", form)
    assert project.git("branch", "--list", "runs/*") == ""


def test_begin_refuses_a_large_untracked_file(project: FakeProject) -> None:
    with (project.path / "log.parquet").open("wb") as stream:
        stream.truncate(revision.LARGEST_UNTRACKED_FILE + 1)
    with pytest.raises(InputError, match=r"log\.parquet: size = \d+: untracked.*; add it to \.gitignore"):
        revision.begin(project.path, "large", {})


def test_begin_refuses_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a Git checkout with a commit; clone the project"):
        revision.begin(tmp_path, "nowhere", {})


def test_unchanged_since_sees_every_edit(project: FakeProject) -> None:
    commit = revision.begin(project.path, "run", {})
    assert revision.unchanged_since(project.path, commit, {})
    (project.path / "work.py").write_text("changed")
    assert not revision.unchanged_since(project.path, commit, {})


@pytest.mark.parametrize("relative", [True, False])
def test_begin_pins_the_incumbent_by_its_bytes_and_a_new_file_makes_a_new_revision(
        project: FakeProject, tmp_path: Path, relative: bool) -> None:
    path = (project.path if relative else tmp_path) / "in_service.json"
    path.write_bytes(b'{"spec": "yesterday\'s"}\r\n')
    project.set("tune_fusion", "incumbent", path.name if relative else str(path))
    before = (project.path / "params.yaml").read_text()
    commit = revision.begin(project.path, "run", {})
    pinned = revision.params(project.path, commit)["tune_fusion"]
    assert pinned["incumbent_digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert pinned["incumbent"] == (path.name if relative else str(path))
    assert (project.path / "params.yaml").read_text() == before
    assert revision.unchanged_since(project.path, commit, {})
    path.write_bytes(b'{"spec": "today\'s"}')
    assert not revision.unchanged_since(project.path, commit, {})
    project.set("tune_fusion", "incumbent_digest", "of the user")
    own = revision.begin(project.path, "own", {})
    assert revision.params(project.path, own)["tune_fusion"]["incumbent_digest"] == "of the user"


@pytest.mark.parametrize(("name", "problem"), [
    ("absent.json", r"not a readable fusion \(FileNotFoundError\); give the fusion.json that is in service, or null"),
    ("dags", r"not a readable fusion \(IsADirectoryError\); give the fusion.json that is in service, or null"),
    ("outputs/fusion.json", "outside the checkout, or ignored by Git.*; give an absolute path"),
    ("../fusion.json", "outside the checkout, or ignored by Git.*; give an absolute path"),
])
def test_begin_refuses_an_incumbent_that_the_stage_could_not_read(
        project: FakeProject, name: str, problem: str) -> None:
    (project.path / "outputs").mkdir()
    for folder in (project.path / "outputs", project.path.parent):
        (folder / "fusion.json").write_text("{}")
    project.set("tune_fusion", "incumbent", name)
    with pytest.raises(InputError, match=f"^params.yaml: tune_fusion.incumbent = '{name}': {problem}"):
        revision.begin(project.path, "run", {})
    assert project.git("branch", "--list", "runs/*") == ""


def test_finish_puts_the_lock_on_top_and_can_be_repeated(project: FakeProject) -> None:
    commit = revision.begin(project.path, "run", {})
    for _ in range(2):
        final = revision.finish(project.path, "run", commit, [{"a": {"cmd": "x"}}, {"b@k": {"cmd": "y"}}])
        assert project.git("rev-parse", "runs/run") == final
        assert project.git("rev-parse", "runs/run^") == commit
    lock = yaml.safe_load(project.git("show", f"{final}:dvc.lock"))
    assert lock == {"schema": "2.0", "stages": {"a": {"cmd": "x"}, "b@k": {"cmd": "y"}}}
    assert not (project.path / "dvc.lock").exists()


def test_a_stage_without_outputs_is_named_and_not_tried_again() -> None:
    """XCom gives None for a task that was marked as success."""
    with pytest.raises(StageRefused, match=r"marked as success .* clear it.* those of a, b@k"):
        revision.merge([{"b@k": {"cmd": "y"}}, None, {"a": {"cmd": "x"}}])


def test_branches_are_valid_names_and_differ_between_runs(project: FakeProject) -> None:
    ids = ["plain", "manual__2026-11-21T10:00:00+00:00", "manual__2026-11-21T10-00-00-00-00", "..", "a.lock",
           "a-lock", "-x"]
    names = [revision.branch(run_id) for run_id in ids]
    assert len(set(names)) == len(ids)
    assert names[0] == "runs/plain"
    for name in names:
        project.git("check-ref-format", "--branch", name)


@pytest.mark.parametrize(("origin", "page"), [
    ("https://token@git.example.org/team/ctr.git", "https://git.example.org/team/ctr/tree/abc"),
    ("git@git.example.org:team/ctr.git", "https://git.example.org/team/ctr/tree/abc"),
    ("ssh://git@git.example.org/team/ctr", "https://git.example.org/team/ctr/tree/abc"),
    ("/srv/git/ctr", ""),
])
def test_page_leads_to_the_commit_and_never_shows_a_secret(project: FakeProject, origin: str, page: str) -> None:
    assert revision.page(project.path, "abc") == ""
    project.git("remote", "add", "origin", origin)
    assert revision.page(project.path, "abc") == page


def test_a_checkout_elsewhere_obtains_the_revision_by_the_shared_remote(
        project: FakeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.git("clone", "--quiet", "--bare", str(project.path), str(tmp_path / "shared.git"))
    project.git("remote", "add", "origin", str(tmp_path / "shared.git"))
    project.git("clone", "--quiet", str(tmp_path / "shared.git"), str(tmp_path / "elsewhere"))
    project.set("training", "epochs", 5)
    monkeypatch.setenv("CTRMODELS_GIT_REMOTE", "origin")
    commit = revision.begin(project.path, "manual__1+1", {})

    revision.obtain(tmp_path / "elsewhere", "manual__1+1", commit)

    assert revision.params(tmp_path / "elsewhere", commit)["training"]["epochs"] == 5
