"""What a stage imports is what it depends on in dvc.yaml: changes of code neither go unnoticed nor cost too much."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def file_of(module: str) -> Path | None:
    """The project's file that ``module`` is, if it is one of the project's."""
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imports(path: Path) -> set[Path]:
    """The project's files that ``path`` imports directly, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        for name in names:
            if name.split(".")[0] in ("ctrmodels", "tasks"):
                found |= {f for f in [file_of(name)] if f}
    return found


def reached(start: Path) -> set[Path]:
    """Everything that ``start`` imports, directly or not."""
    done, waiting = set(), {start}
    while waiting:
        path = waiting.pop()
        done.add(path)
        waiting |= imports(path) - done
    return done


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_file_is_a_dependency(stage):
    deps = [ROOT / d for d in STAGES[stage]["deps"]]
    files = {f for f in reached(ROOT / "tasks" / f"{stage}.py") if f.name != "__init__.py"}
    missing = [str(f.relative_to(ROOT)) for f in files if not any(f == d or f.is_relative_to(d) for d in deps)]
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {sorted(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_dependency_on_code_is_imported(stage):
    """Or a change of it would search and train again for nothing."""
    files = reached(ROOT / "tasks" / f"{stage}.py")
    code = [ROOT / d for d in STAGES[stage]["deps"] if d.split("/")[0] in ("ctrmodels", "tasks")]
    idle = [str(d.relative_to(ROOT)) for d in code if not any(f == d or f.is_relative_to(d) for f in files)]
    assert not idle, f"take out of the deps of {stage} in dvc.yaml: {sorted(idle)}"
