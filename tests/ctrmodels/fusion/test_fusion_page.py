"""The worked example of docs/fusion.md does what the page says it does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "fusion.md"


def test_the_worked_example_prints_what_the_page_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = PAGE.read_text().split("## From two columns of scores", 1)[1]
    code, shown = (re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "text"))
    assert code and shown
    (tmp_path / "example.py").write_text(code[1])
    runpy.run_path(str(tmp_path / "example.py"))
    assert capsys.readouterr().out.strip() == shown[1].strip()
