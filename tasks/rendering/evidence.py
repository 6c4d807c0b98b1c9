"""Everything the report speaks of, read once from the workspace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ctrmodels.errors import InputError
from tasks.config import Params
from tasks.runtime.figure import Figure


@dataclass(frozen=True)
class StageResult:
    """What one stage, or one key of it, left behind.

    Attributes:
        name, key: the stage and its matrix key.
        metrics: its reproducible numbers.
        figures: its figures, by file name.
        record: its file in ``measurements``: ``measurements``, ``run_id``, ``revision``, ``wandb``, ...;
            empty if it has none.
        digest: DVC's hash of its output; ``None`` where dvc.lock does not have it.
    """

    name: str
    key: str | None
    metrics: Mapping[str, float | None]
    figures: Sequence[Figure]
    record: Mapping[str, Any]
    digest: str | None

    @property
    def title(self) -> str:
        """``NAME`` or ``NAME@KEY``."""
        return f"{self.name}@{self.key}" if self.key else self.name

    def measured(self, name: str) -> float | None:
        """One measurement, or ``None``."""
        value = self.record.get("measurements", {}).get(name)
        return value if isinstance(value, int | float) else None


@dataclass(frozen=True)
class GraphStage:
    """One entry of dvc.yaml: what the flow picture needs of it."""

    name: str
    description: str
    group: str
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """The whole run.

    Attributes:
        params: all of params.yaml.
        graph: the stages of dvc.yaml, in its order.
        results: by title, ``NAME`` or ``NAME@KEY``.
        boards: the leaderboard of every ``select_*`` stage.
        methods: candidate of an embedding or interaction search → title of the stage that found it.
        fusion: ``tune_fusion``'s fusion.json.
        run_id, revision: of this execution.
    """

    params: Params
    graph: Sequence[GraphStage]
    results: Mapping[str, StageResult]
    boards: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, str]
    fusion: Mapping[str, Any]
    run_id: str
    revision: str | None

    def of(self, name: str) -> list[StageResult]:
        """Results of a stage: one, or one for every key."""
        return [r for r in self.results.values() if r.name == name]


BOARDS = ("select_embedding", "select_interaction", "select_model")


def read(root: Path, params: Params, run_id: str, revision: str | None) -> Evidence:
    """Read a workspace in which every stage before the report has run.

    Raises:
        InputError: a file that its stage always writes is absent or broken.
    """
    keys = {"search_embedding": params.search_embedding.methods,
            "search_interaction": params.search_interaction.methods, "retrain": params.retrain.models}
    graph = _graph(root / "dvc.yaml")
    lock = _lock(root / "dvc.lock")
    results: dict[str, StageResult] = {}
    methods: dict[str, str] = {}
    for stage in graph:
        for key in keys.get(stage.name, (None,)):
            if stage.name == "report":
                continue
            result = _result(root, stage.name, key, lock)
            results[result.title] = result
            if stage.name.startswith("search_"):
                found = _json(root / "outputs" / stage.name / str(key) / "candidates.json")
                methods |= {candidate["name"]: result.title for candidate in found}
    return Evidence(params, graph, results, {
        name: _json(root / "outputs" / name / "leaderboard.json") for name in BOARDS}, methods,
        _json(root / "outputs" / "tune_fusion" / "fusion.json"), run_id, revision)


def _result(root: Path, name: str, key: str | None, lock: Mapping[str, Any]) -> StageResult:
    folder = root / "outputs" / name / key if key else root / "outputs" / name
    title = f"{name}@{key}" if key else name
    record = root / "measurements" / f"{title}.json"
    outs = lock.get(title, {}).get("outs", [])
    path = folder.relative_to(root).as_posix()
    return StageResult(
        name, key, _json(folder / "metrics.json"),
        [Figure.load(file) for file in sorted((folder / "figures").glob("*.json"))],
        _json(record) if record.is_file() else {},
        next((out["md5"].removesuffix(".dir") for out in outs if out["path"] == path and "md5" in out), None))


def _graph(path: Path) -> list[GraphStage]:
    """Stages of dvc.yaml; one reads another if one of its dependencies lies in the other's folder."""
    entries: Mapping[str, Any] = _yaml(path)["stages"]

    def reads(entry: Mapping[str, Any], other: str) -> bool:
        return any(d == f"outputs/{other}" or d.startswith(f"outputs/{other}/") for d in entry.get("deps", ()))

    return [GraphStage(name, entry["desc"], entry["meta"]["group"],
                       tuple(other for other in entries if other != name and reads(entry, other)))
            for name, entry in entries.items()]


def _lock(path: Path) -> Mapping[str, Any]:
    stages: Mapping[str, Any] = _yaml(path)["stages"] if path.is_file() else {}
    return stages


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(path, "yaml", type(error).__name__, "absent or not readable",
                         "restore it from the repository") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(path, "json", type(error).__name__, "absent or not readable",
                         "run the stage that writes it again") from error
