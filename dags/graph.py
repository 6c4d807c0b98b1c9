"""dvc.yaml read as a list of stages: the DAG is drawn from it, so that the two can never differ.

Only yaml is imported: the scheduler reads this file every few seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml


@dataclass(frozen=True)
class Stage:
    """One entry of dvc.yaml.

    Attributes:
        name: the stage's name in DVC, Airflow and W&B.
        doc: its description (``desc:``).
        upstream: names of the stages whose outputs it reads, in the order of dvc.yaml.
        keys: dotted name of the list in params.yaml that gives a matrix stage its keys
            (``search_embedding.methods``); ``None`` for a stage that runs once.
        group, queue, pool, timeout: where and how long it may run (``meta:``).
    """

    name: str
    doc: str
    upstream: tuple[str, ...]
    keys: str | None
    group: str
    queue: str
    pool: str
    timeout: timedelta

    def addresses(self, params: Mapping[str, Any]) -> list[str]:
        """Names as DVC spells them: ``NAME``, or ``NAME@KEY`` for every key that ``params`` lists.

        Raises:
            KeyError: ``params`` lacks the list of keys.
        """
        if self.keys is None:
            return [self.name]
        return [f"{self.name}@{key}" for key in lookup(params, self.keys)]


def load(path: Path) -> list[Stage]:
    """Stages of a dvc.yaml, in its order.

    Raises:
        ValueError: a matrix is not one axis over a list in params.yaml, or ``meta:`` is incomplete.
    """
    entries: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text())["stages"]
    outputs = {name: [PurePosixPath(out) for out in _paths(entry, "outs")] for name, entry in entries.items()}
    stages = []
    for name, entry in entries.items():
        meta = entry.get("meta", {})
        missing = {"group", "queue", "pool", "timeout_minutes"} - meta.keys()
        if missing or not entry.get("desc"):
            raise ValueError(f"{path}: stage {name} lacks {', '.join(sorted(missing)) or 'desc'}")
        inputs = [PurePosixPath(dep) for dep in _paths(entry, "deps")]
        stages.append(Stage(
            name=name,
            doc=entry["desc"],
            upstream=tuple(other for other, outs in outputs.items() if other != name
                           and any(_overlap(dep, out) for dep in inputs for out in outs)),
            keys=_keys(path, name, entry),
            group=meta["group"],
            queue=meta["queue"],
            pool=meta["pool"],
            timeout=timedelta(minutes=meta["timeout_minutes"]),
        ))
    return stages


def lookup(params: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted ``key`` of a read params.yaml.

    Raises:
        KeyError: there is none.
    """
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def _paths(entry: Mapping[str, Any], kind: str) -> list[str]:
    return [next(iter(path)) if isinstance(path, dict) else path for path in entry.get(kind, ())]


def _keys(path: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    matrix = entry.get("matrix")
    if matrix is None:
        return None
    axes = list(matrix.values())
    if len(axes) != 1 or not (isinstance(axes[0], str) and axes[0].startswith("${")):
        raise ValueError(f"{path}: the matrix of stage {name} must be one axis over a list in params.yaml")
    return str(axes[0]).removeprefix("${").removesuffix("}").strip()


def _overlap(dep: PurePosixPath, out: PurePosixPath) -> bool:
    """Whether one lies in the other; a part with ``${...}`` stands for any name."""
    return all(fnmatchcase(a, _pattern(b)) or fnmatchcase(b, _pattern(a))
               for a, b in zip(dep.parts, out.parts, strict=False))


def _pattern(part: str) -> str:
    before, template, rest = part.partition("${")
    return before + "*" + rest.partition("}")[2] if template else part
