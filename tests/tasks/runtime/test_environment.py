"""The embedded installation: defaults that any variable replaces, closed to other machines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tasks.runtime import run, summary
from tasks.runtime.environment import embedded, pools


def test_defaults_stay_in_the_checkout_and_on_the_loopback_address(tmp_path: Path) -> None:
    found = embedded(tmp_path, {"PATH": "/bin"})
    assert found["AIRFLOW_HOME"] == str(tmp_path / ".airflow")
    assert found["AIRFLOW__CORE__DAGS_FOLDER"] == str(tmp_path / "dags")
    assert found["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert found["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:8080"
    assert found["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "True"
    assert found["PATH"].endswith(":/bin")


def test_a_login_is_asked_for_where_other_machines_can_connect(tmp_path: Path) -> None:
    found = embedded(tmp_path, {"AIRFLOW__API__HOST": "192.0.2.1"})
    assert found["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"
    assert found["CTRMODELS_REPORTS_URL"].startswith("http://127.0.0.1:")


def test_what_is_set_already_wins(tmp_path: Path) -> None:
    given = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://db/airflow", "AIRFLOW__API__PORT": "9090",
             "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor", "AIRFLOW__CORE__PARALLELISM": "64"}
    found = embedded(tmp_path, given)
    assert {name: found[name] for name in given} == given
    assert found["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:9090"


def test_the_secret_is_made_once_and_for_the_owner_only(tmp_path: Path) -> None:
    first, again = (embedded(tmp_path, {})["AIRFLOW__API_AUTH__JWT_SECRET"] for _ in range(2))
    assert first == again
    assert len(first) == 64
    assert (tmp_path / ".airflow" / "jwt_secret").stat().st_mode & 0o777 == 0o600
    assert embedded(tmp_path / "other", {})["AIRFLOW__API_AUTH__JWT_SECRET"] != first


def test_every_pool_has_a_slot() -> None:
    assert set(pools()) == {"git", "spark", "gpu"}
    assert all(pool["slots"] >= 1 and pool["description"] for pool in pools().values())
    assert pools()["git"]["slots"] == 1
    assert pools()["gpu"]["slots"] == 1  # nothing here gives stages side by side a GPU each


def test_outputs_that_cannot_be_replaced_leave_the_lock_as_it_was(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvc checkout` fails where it would lose an output that no cache has."""
    for before in ("stages: {}\n", None):
        file = tmp_path / "dvc.lock"
        file.unlink(missing_ok=True) if before is None else file.write_text(before)
        for status, whole in ((255, False), (0, True)):
            done = subprocess.CompletedProcess(["dvc"], status)
            monkeypatch.setattr(run.subprocess, "run", lambda *_, done=done, **__: done)
            assert run._checked_out(tmp_path, "stages: {a: {}}\n") == whole
            expected = "stages: {a: {}}\n" if whole else before
            assert (file.read_text() if file.exists() else None) == expected
        assert [f.name for f in tmp_path.iterdir()] == ["dvc.lock"]


def test_the_summary_shows_leaderboards_test_metrics_and_the_report(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    for folder in ("select_model", "tune_fusion", "report"):
        (outputs / folder).mkdir(parents=True)
    rows = [{"candidate": "mmoe", "chosen": True, "valid": 0.79, "valid_sd": 0.001, "parameters": 12345.0},
            {"candidate": "esmm", "chosen": False, "valid": 0.78, "valid_sd": 0.002, "parameters": 999.0}]
    (outputs / "select_model" / "leaderboard.json").write_text(json.dumps({"metric": "auc", "rows": rows}))
    (outputs / "select_model" / "metrics.json").write_text(json.dumps(
        {"test.auc.like@all": 0.78125, "test.auc.like@all.low": 0.77, "valid.auc": 0.79, "test.ece": None}))
    (outputs / "report" / "report.html").touch()

    text = summary.text(tmp_path)

    assert "* mmoe" in text
    assert "  esmm" in text
    assert "12,345" in text
    assert "auc.like@all" in text
    assert "0.7812" in text
    assert "low" not in text
    assert text.endswith(f"Report      {outputs / 'report' / 'report.html'}")


def test_the_summary_of_a_chain_without_these_stages_is_empty(tmp_path: Path) -> None:
    assert summary.text(tmp_path) == ""
