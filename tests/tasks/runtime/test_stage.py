"""What every stage has in common: whole outputs or none, one line on bad input, a lock, no orphans."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ctrmodels.errors import InputError
from tasks import config
from tasks.runtime import manifest
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, execute, main

ROOT = Path(__file__).resolve().parents[3]

SLEEPER = """
import sys, time
from pathlib import Path
from tasks.runtime.stage import Stage, main

def run(stage: Stage) -> None:
    (stage.out / "half").write_text("half")
    Path("began").touch()
    time.sleep(600)

main("ingest", run)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace: a folder with params.yaml, which is the working directory."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("CTRMODELS_SCRATCH", raising=False)
    return tmp_path


def stage(root: Path, name: str = "ingest", key: str | None = None) -> Stage:
    return Stage(name, key, config.load(root / "params.yaml"), root)


def write(text: str) -> Callable[[Stage], None]:
    def run(stage: Stage) -> None:
        (stage.out / "data.txt").write_text(text)
        stage.metric("rows", 3)
        stage.measure("seconds.reading", 0.5)
        stage.figure(Figure("rows", "Rows", "line", x=Axis("day"), series=[Series("all", [1], [3.0])]))
        stage.facts["rows"] = 3
    return run


def test_outputs_appear_with_metrics_figures_and_manifest(root: Path) -> None:
    execute(stage(root, "search_embedding", "pep"), write("x"))
    folder = root / "outputs" / "search_embedding" / "pep"
    assert (folder / "data.txt").read_text() == "x"
    assert json.loads((folder / "metrics.json").read_text()) == {"rows": 3.0}
    assert Figure.load(folder / "figures" / "rows.json").title == "Rows"
    assert manifest.verify(folder)["rows"] == 3
    measured = json.loads((root / "measurements" / "search_embedding@pep.json").read_text())
    assert measured["measurements"]["seconds.reading"] == 0.5
    assert list((root / "outputs").glob(".partial*")) == []


def test_the_same_work_gives_the_same_bytes(root: Path) -> None:
    contents = []
    for _ in range(2):
        execute(stage(root), write("x"))
        folder = root / "outputs" / "ingest"
        contents.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]


def test_a_failing_stage_leaves_the_earlier_output_and_nothing_else(root: Path) -> None:
    execute(stage(root), write("good"))

    def fail(stage: Stage) -> None:
        (stage.out / "data.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        execute(stage(root), fail)
    assert [p.name for p in (root / "outputs").iterdir()] == ["ingest"]
    assert (root / "outputs" / "ingest" / "data.txt").read_text() == "good"


def test_an_input_is_verified(root: Path) -> None:
    with pytest.raises(InputError, match="run `dvc repro ingest` first"):
        stage(root, "frequency").input("ingest")
    execute(stage(root), write("x"))
    later = stage(root, "frequency")
    assert later.input("ingest") == root / "outputs" / "ingest"
    (root / "outputs" / "ingest" / "data.txt").write_text("y")
    with pytest.raises(InputError, match="differs from what its stage wrote"):
        later.input("ingest")


def test_scratch_survives_a_failure_and_goes_with_success(root: Path) -> None:
    def fail(stage: Stage) -> None:
        (stage.scratch / "checkpoint").write_text("step 7")
        raise OSError("lost worker")

    with pytest.raises(OSError, match="lost worker"):
        execute(stage(root), fail)
    seen = []

    def resume(stage: Stage) -> None:
        seen.append((stage.scratch / "checkpoint").read_text())

    execute(stage(root), resume)
    assert seen == ["step 7"]
    assert not stage(root).scratch.exists()


def test_scratch_belongs_to_parameters_and_inputs(root: Path) -> None:
    before = stage(root, "frequency").scratch
    assert stage(root, "frequency").scratch == before
    execute(stage(root), write("x"))
    with_input = stage(root, "frequency").scratch
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("seeds: 3", "seeds: 4"))
    assert len({before, with_input, stage(root, "frequency").scratch}) == 3


def test_bad_input_exits_with_status_2_and_one_line(root: Path, capfd: pytest.CaptureFixture[str],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ingest"])

    def refuse(stage: Stage) -> None:
        raise InputError("log.csv", "price", "x", "not a number", "mend the column")

    with pytest.raises(SystemExit) as exit_:
        main("ingest", refuse)
    assert exit_.value.code == 2
    assert capfd.readouterr().err.strip() == "ingest: log.csv: price = 'x': not a number; mend the column"


@pytest.mark.parametrize(("arguments", "keys"), [([], ["pep"]), (["nope"], ["pep"]), (["a", "b"], ["a", "b"]),
                                                 (["pep"], None)])
def test_an_unknown_key_is_bad_input(root: Path, capfd: pytest.CaptureFixture[str], arguments: list[str],
                                     keys: list[str] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main("search_embedding", write("x"), keys)
    assert exit_.value.code == 2
    assert capfd.readouterr().err.startswith("search_embedding: stage search_embedding: key = ")
    assert not (root / "outputs").exists()


def test_the_stage_dies_with_its_parent_and_frees_its_lock(root: Path) -> None:
    (root / "sleeper.py").write_text(SLEEPER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; "
                                 "subprocess.run([sys.executable, 'sleeper.py'])"], cwd=root, env=environment)
    deadline = time.monotonic() + 120
    while not (root / "began").exists():
        assert time.monotonic() < deadline
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()

    execute(stage(root), write("after"))  # would wait for ever if the orphan held the lock

    assert (root / "outputs" / "ingest" / "data.txt").read_text() == "after"
    assert not (root / "outputs" / "ingest" / "half").exists()
