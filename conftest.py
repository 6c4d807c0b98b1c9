"""Fixtures that several test folders share. Lies here so that pytest puts the checkout on the path first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_project import FakeProject


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled kernels: every operation is one of torch's own, which its counters see."""
    monkeypatch.setattr("ctrmodels.native._load", lambda: None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProject:
    """A fresh fake project; its stages find their controls by the environment."""
    fake = FakeProject(tmp_path)
    monkeypatch.setenv("FAKE_CONTROL", str(fake.control))
    for name in ("CTRMODELS_WORKSPACES", "CTRMODELS_GIT_REMOTE", "CTRMODELS_REPOSITORY", "CTRMODELS_SCRATCH"):
        monkeypatch.delenv(name, raising=False)
    return fake
