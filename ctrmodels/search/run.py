"""A whole search as a resumable list of trials: search, retrain, and retrain the equal-cost random control."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctrmodels.archspec import ArchSpec, Cost
from ctrmodels.data.dataset import Dataset
from ctrmodels.errors import InputError
from ctrmodels.metrics import HIGHER_IS_BETTER
from ctrmodels.search.base import Host, SearchMethod, SearchRows
from ctrmodels.search.controls import random_control
from ctrmodels.search.trial import retrain
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.parallel import iterate_trials

ROLES = ("train", "arch", "valid")  # never test


@dataclass(frozen=True)
class Candidate:
    """One line of a leaderboard: an architecture, or a control, over its seeds.

    Attributes:
        name: method, or method and level.
        kind: ``searched``, ``rule`` (follows from counts alone), ``control`` (the unsearched model), ``baseline`` (a
            plain model, never chosen) or ``random`` (equal cost, not searched).
        seeds: the seeds it was run with.
        valid: metric → value per seed.
        costs: cost per seed.
        steps: optimiser steps of the search alone, mean over the seeds.
        retrain_steps: optimiser steps of its retraining, mean over the seeds.
        spec: folder of every seed's ArchSpec, relative to the outcome's; ``None`` for random controls.
        interactions: of its ArchSpec, groups included, mean over the seeds; 0 where it does not speak of them.
    """

    name: str
    kind: str
    seeds: tuple[int, ...]
    valid: dict[str, tuple[float, ...]]
    costs: tuple[Cost, ...]
    steps: float
    retrain_steps: float
    spec: str | None
    interactions: float = 0.0

    def best_spec(self, metric: str = "auc") -> str:
        """Folder of the ArchSpec of the seed that ``metric`` likes best, relative to the outcome's."""
        values = np.array(self.valid[metric]) * (1 if HIGHER_IS_BETTER[metric] else -1)
        return f"{self.spec}/{self.seeds[int(values.argmax())]}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "kind": self.kind, "seeds": list(self.seeds),
                "valid": {k: list(v) for k, v in self.valid.items()},
                "costs": [vars(c) for c in self.costs], "steps": self.steps,
                "retrain_steps": self.retrain_steps, "spec": self.spec, "interactions": self.interactions}

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Candidate:
        """From what :meth:`document` gave."""
        return cls(raw["name"], raw["kind"], tuple(raw["seeds"]),
                   {k: tuple(v) for k, v in raw["valid"].items()},
                   tuple(Cost(**c) for c in raw["costs"]), raw["steps"], raw["retrain_steps"], raw["spec"],
                   raw["interactions"])


class Trace:
    """Finished trials, one JSON line each; what is in it is not run again.

    A kill can leave half a line at the end, which is cut off, so that the next trial has a line of its own.

    Raises:
        InputError: a whole line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)
            for number, line in enumerate(content[:whole].splitlines(), 1):
                entry = self._parse(number, line)
                self.done[entry["trial"]] = entry

    def add(self, entry: dict[str, Any]) -> None:
        """Append a finished trial and bring it to disk."""
        self.done[entry["trial"]] = entry
        with self.path.open("a") as stream:
            stream.write(json.dumps(entry, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError:  # no JSON, or no text at all
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("trial"), str):
            raise InputError(self.path, f"line {number}", line.decode(errors="replace"), "is not a finished trial",
                             "delete the line, and its trial runs again")
        return entry

    def save(self, path: Path) -> None:
        """Write all trials in order of their names."""
        path.write_text("".join(json.dumps(self.done[k], sort_keys=True) + "\n" for k in sorted(self.done)))


def search_trial(encoded: Path, method: SearchMethod, host: Host, seed: int, scratch: Path, every: int
                 ) -> dict[str, Any]:
    """Run ``method`` once, from where an interrupted attempt left it; its specs go to ``scratch/specs/SEED``."""
    started = time.perf_counter()
    data = Dataset(encoded, ROLES)
    checkpoint = Checkpoint(scratch / f"search-{seed}.safetensors", every)
    found = method.search(SearchRows(data.role("train"), data.role("arch")), host, seed, checkpoint)
    partial, final = scratch / f"specs/.{seed}", scratch / f"specs/{seed}"
    for folder in (partial, final):
        shutil.rmtree(folder, ignore_errors=True)
    for level, spec in found.specs.items():
        spec.save(partial / level)
    partial.replace(final)
    checkpoint.remove()
    return {"trial": f"search/{seed}", "levels": list(found.specs), "steps": found.steps, "trace": found.trace,
            "seconds": time.perf_counter() - started}


def retrain_trial(encoded: Path, host: Host, seed: int, scratch: Path, level: str, random: bool,
                  every: int) -> dict[str, Any]:
    """Retrain one found spec, or its random control, from where an interrupted attempt left it."""
    started = time.perf_counter()
    data = Dataset(encoded, ROLES)
    spec = ArchSpec.load(scratch / f"specs/{seed}/{level}")
    if random:
        spec = random_control(spec, data.schema, seed)
    kind = "random" if random else "found"
    trained = retrain(spec, SearchRows(data.role("train"), data.role("arch")), data.role("valid"), host, seed,
                      Checkpoint(scratch / f"{kind}-{level}-{seed}.safetensors", every))
    return {"trial": f"retrain/{level}/{kind}/{seed}", "level": level, "seed": seed,
            "random": random, "spec": spec.id, "interactions": len(spec.interactions or ()) + len(spec.groups),
            **trained.summary(), "seconds": time.perf_counter() - started}


def run_search(method: SearchMethod, encoded: Path, host: Host, seeds: Sequence[int], scratch: Path, out: Path,
               workers: int | None = None, checkpoint_steps: int = 1000) -> tuple[list[Candidate], dict[str, float]]:
    """Search and judge ``method`` over ``seeds``.

    Writes ``trace.jsonl``, ``candidates.json`` and ``specs/LEVEL/SEED/`` into ``out``. What
    ``scratch`` holds of an interrupted run is not run again: finished trials, and of a trial in flight the steps up to
    its last checkpoint, of which there is one every ``checkpoint_steps``.

    Returns:
        The candidates (every level and its random control), and the seconds of every kind of trial.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "specs").mkdir(exist_ok=True)
    trace = Trace(scratch / "trace.jsonl")
    seconds = {"search": 0.0, "retrain": 0.0}

    def run(function: Callable[..., dict[str, Any]], arguments: list[dict[str, Any]], kind: str) -> None:
        for _, result in iterate_trials(function, arguments, workers):
            seconds[kind] += result.pop("seconds")
            trace.add(result)

    run(search_trial, [{"encoded": encoded, "method": method, "host": host, "seed": s, "scratch": scratch,
                        "every": checkpoint_steps} for s in seeds if f"search/{s}" not in trace.done], "search")
    by_seed = [trace.done[f"search/{s}"]["levels"] for s in seeds]
    levels = by_seed[0]
    if any(found != levels for found in by_seed):
        raise RuntimeError(f"{method.name} found other levels with other seeds: {by_seed}")
    kinds = [False, True] if method.kind == "searched" else [False]
    run(retrain_trial, [{"encoded": encoded, "host": host, "seed": s, "scratch": scratch, "level": level,
                         "random": random, "every": checkpoint_steps}
                        for level in levels for random in kinds for s in seeds
                        if f"retrain/{level}/{'random' if random else 'found'}/{s}" not in trace.done], "retrain")

    candidates = []
    search_steps = float(np.mean([trace.done[f"search/{s}"]["steps"] for s in seeds]))
    for level in levels:
        for random in kinds:
            trials = [trace.done[f"retrain/{level}/{'random' if random else 'found'}/{s}"] for s in seeds]
            candidate = Candidate(
                name=f"random({level})" if random else level,
                kind="random" if random else method.kind,
                seeds=tuple(seeds),
                valid={k: tuple(t["valid"][k] for t in trials) for k in trials[0]["valid"]},
                costs=tuple(Cost(**t["cost"]) for t in trials),
                steps=0.0 if random else search_steps,
                retrain_steps=float(np.mean([t["steps"] for t in trials])),
                spec=None if random else f"specs/{level}",
                interactions=float(np.mean([t["interactions"] for t in trials])))
            candidates.append(candidate)
            for i, seed in enumerate(() if random else seeds):
                replace(ArchSpec.load(scratch / f"specs/{seed}/{level}"), cost=candidate.costs[i],
                        result={f"valid.{k}": v[i] for k, v in candidate.valid.items()}
                        ).save(out / "specs" / level / str(seed))
    trace.save(out / "trace.jsonl")
    (out / "candidates.json").write_text(
        json.dumps([c.document() for c in candidates], indent=1, sort_keys=True) + "\n")
    return candidates, seconds
