"""Set-up: what is missing is said in one line, and a second call installs nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "setup.py"


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("project_setup", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def unprivileged(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return setup


def test_everything_missing_is_said_at_once_with_the_command(
        unprivileged: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        unprivileged.require_system()
    assert stopped.value.code == ("Missing: git, a C++ compiler, Java 17 or 21. "
                                  "Type: sudo apt-get install -y git g++ openjdk-17-jre-headless")


@pytest.mark.parametrize(("version", "status", "usable"), [
    ("17.0.9", 0, True), ("21.0.1", 0, True), ("11.0.2", 0, False), ("1.8.0_292", 0, False), ("17.0.9", 1, False)])
def test_java_is_tried_not_only_found(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                      version: str, status: int, usable: bool) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\nexit {status}\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert setup.java() is usable


def test_an_unsuitable_java_home_is_named(
        unprivileged: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=r"JAVA_HOME = .* is no Java 17 or 21; unset it, or set it to one"):
        unprivileged.require_system()


def test_another_python_is_refused(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "PYTHON", (3, 99))
    with pytest.raises(SystemExit, match="but the project needs"):
        setup.require_system()


def test_a_second_call_installs_nothing_and_extras_stay(
        setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def record(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (tmp_path / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / ".venv" / "bin" / "python").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(setup.subprocess, "run", record)
    monkeypatch.setattr(setup, "PROJECT", tmp_path)
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")

    setup.install([])
    assert [command[2] for command in calls] == ["venv", "pip", "ctrmodels.native"]
    setup.install([])
    assert len(calls) == 3
    setup.install(["test"])
    assert calls[-2][-1] == f"{tmp_path}[test]"
    setup.install([])
    assert len(calls) == 5
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6")
    setup.install([])
    assert calls[-2][-1] == f"{tmp_path}[test]"


def test_kernels_that_cannot_be_compiled_do_not_stop_the_installation(
        setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(setup.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(
        command, int("ctrmodels.native" in command)))
    monkeypatch.setattr(setup, "VENV", tmp_path)
    setup.install([])
    assert (tmp_path / "installed").exists() and "could not be compiled" in capsys.readouterr().out


def test_a_failed_installation_is_not_remembered(
        setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    monkeypatch.setattr(setup, "VENV", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    with pytest.raises(SystemExit, match="pip could not install"):
        setup.install([])
    assert not (tmp_path / "installed").exists()


def test_the_script_runs_without_site_packages() -> None:
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='setup')"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
