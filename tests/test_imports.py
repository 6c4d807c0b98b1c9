"""Who may import whom, and how commands are started: the rules of the layout, held by a walk over the code."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"ctrmodels", "tasks", "dags"}
HEAVY = {"airflow", "dvc", "wandb", "wandb_workspaces", "pyspark", "great_expectations"}
# The modules that know a tool; nobody else imports it, not even inside a function.
HOMES = {
    "airflow": {"tasks/runtime/progress.py", "tasks/runtime/run.py"},
    "dvc": set(),
    "great_expectations": {"tasks/expectations.py"},
    "wandb": {"tasks/runtime/wandb_run.py"},
    "wandb_workspaces": {"tasks/rendering/wandb_report.py"},
}
# The tools that starting a module may load, with all that it imports; by default none.
LOADS = {
    "tasks/ingest.py": {"pyspark"},
    "tasks/frequency.py": {"pyspark"},
    "tasks/validate.py": {"pyspark", "great_expectations"},
    "tasks/encode.py": {"pyspark"},
    "tasks/runtime/wandb_run.py": {"wandb"},
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, at import time) of everything that ``path`` imports; what only type checkers see is left out."""
    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, top
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                for alias in child.names:
                    yield f"{child.module}.{alias.name}", top
            yield from walk(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
    yield from walk(ast.parse(path.read_text()), True)


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name, _ in imported(path)}


def reached(path: Path) -> set[Path]:
    """``path`` and every module of ours that importing it loads."""
    found, todo = {path}, [path]
    while todo:
        for name, top in imported(todo.pop()):
            parts = name.split(".")
            if top and parts[0] in OURS:
                for depth in range(1, len(parts) + 1):
                    module = ROOT.joinpath(*parts[:depth])
                    for file in (module.with_suffix(".py"), module / "__init__.py"):
                        if file.is_file() and file not in found:
                            found.add(file)
                            todo.append(file)
    return found


@pytest.mark.parametrize("path", modules("ctrmodels"), ids=lambda path: str(path.relative_to(ROOT)))
def test_ctrmodels_knows_tensors_and_no_tool(path: Path) -> None:
    assert packages(path) & (HEAVY | {"tasks", "dags"}) == set()


def test_serving_needs_numpy_and_onnxruntime_alone() -> None:
    assert packages(ROOT / "ctrmodels" / "serving.py") - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


@pytest.mark.parametrize("path", modules("tasks"), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_tool_is_known_to_the_modules_that_use_it(path: Path) -> None:
    assert "dags" not in packages(path)
    known = {tool for tool, homes in HOMES.items() if str(path.relative_to(ROOT)) in homes}
    assert packages(path) & set(HOMES) <= known


@pytest.mark.parametrize("path", [path for path in modules("tasks") if '__name__ == "__main__"' in path.read_text()],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_loads_no_tool_but_its_own(path: Path) -> None:
    loaded = {name.split(".")[0] for module in reached(path) for name, top in imported(module) if top}
    assert loaded & HEAVY <= LOADS.get(str(path.relative_to(ROOT)), set())


@pytest.mark.parametrize("path", modules("dags"), ids=lambda path: str(path.relative_to(ROOT)))
def test_dags_load_nothing_heavy(path: Path) -> None:
    for name, top in imported(path):
        package = name.split(".")[0]
        if top and package not in sys.stdlib_module_names:
            assert name.startswith(("airflow.sdk.", "airflow.providers.", "dags.")) or name == "yaml", name
        if package in OURS - {"dags"}:
            assert not top, f"{name} must be imported inside the function that uses it"


@pytest.mark.parametrize("path", [*modules("dags"), *modules("tasks"), *modules("ctrmodels"), *modules("tools")],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_lists_of_arguments(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute | ast.alias):
            name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None)
            assert name != "BashOperator"
        if isinstance(node, ast.keyword) and node.arg == "shell":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"os.system", "os.popen", "subprocess.getoutput", "pickle.load", "pickle.loads",
                                  "yaml.load", "yaml.unsafe_load", "eval", "exec"}, called
            if called.startswith("subprocess."):
                assert not isinstance(node.args[0] if node.args else None, ast.Constant | ast.JoinedStr)


def test_setting_up_needs_nothing_but_python() -> None:
    for path in modules("tools"):
        assert packages(path) <= set(sys.stdlib_module_names)


def test_names_that_others_use_are_no_packages_by_accident() -> None:
    assert not (ROOT / "docker" / "__init__.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()
