"""What every stage has in common: one main, whole outputs or none, a lock, and death with the parent.

A stage module is a function ``run(stage)`` and one line: ``main("name", run)``. Everything the function
produces goes to ``stage.out``; it appears under ``outputs/`` only when the function has returned.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ctrmodels.errors import InputError
from tasks import config
from tasks.runtime import manifest, tracking
from tasks.runtime.figure import Figure, finite

EXIT_BAD_INPUT = 2
CODE = (".py", ".h", ".cpp")
log = logging.getLogger("ctrmodels")


class Stage:
    """One execution of one stage.

    Attributes:
        name, key: the stage and its matrix key (``None`` for a stage without one).
        params: all of params.yaml, checked.
        out: folder to write into; becomes ``outputs/NAME[/KEY]`` when the stage ends well.
        scratch: folder that survives a killed attempt and is the same for every attempt with the same
            inputs, parameters and code; removed when the stage ends well.
        facts: put into the manifest (``rows``, ``schema_hash``).
    """

    def __init__(self, name: str, key: str | None, params: config.Params, root: Path) -> None:
        self.name, self.key, self.params, self.root = name, key, params, root
        relative = Path(name) / key if key else Path(name)
        self.final = root / "outputs" / relative
        self.out = root / "outputs" / f".partial-{self.title.replace('/', '_')}"
        self.facts: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._figures: list[Figure] = []
        self._measurements: dict[str, Any] = {}
        scratch = Path(os.environ.get("CTRMODELS_SCRATCH", root / ".scratch"))
        self.scratch = scratch / self.title / self._inputs_hash()

    @property
    def title(self) -> str:
        """``NAME`` or ``NAME@KEY``, the name in DVC, Airflow and W&B."""
        return f"{self.name}@{self.key}" if self.key else self.name

    def input(self, name: str, key: str | None = None) -> Path:
        """Output folder of an earlier stage, verified against its manifest.

        Raises:
            InputError: the folder is absent, or differs from its manifest.
        """
        folder = self.root / "outputs" / name / key if key else self.root / "outputs" / name
        if not folder.is_dir():
            title = f"{name}@{key}" if key else name
            raise InputError(folder, "folder", "absent", "an input of this stage is missing",
                             f"run `dvc repro {title}` first")
        manifest.verify(folder)
        return folder

    def metric(self, name: str, value: float) -> None:
        """Record a result that the same inputs reproduce exactly."""
        self._metrics[name] = float(value)

    def metrics(self, values: Mapping[str, float], prefix: str = "") -> None:
        """Record several results under ``prefix``."""
        for name, value in values.items():
            self.metric(f"{prefix}{name}", value)

    def measure(self, name: str, value: Any) -> None:
        """Record a measurement of this machine (seconds, memory), kept apart from results."""
        self._measurements[name] = value

    def figure(self, figure: Figure) -> None:
        """Record a figure."""
        self._figures.append(figure)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the seconds of a block as ``seconds.NAME``."""
        start = time.perf_counter()
        yield
        self.measure(f"seconds.{name}", round(time.perf_counter() - start, 3))

    def _inputs_hash(self) -> str:
        digest = hashlib.sha256(self.params.model_dump_json().encode())
        for package in ("ctrmodels", "tasks"):
            for path in sorted(Path(__file__).parents[2].joinpath(package).rglob("*")):
                if path.suffix in CODE:
                    digest.update(path.read_bytes())
        for path in sorted((self.root / "outputs").glob(f"**/{manifest.NAME}")):
            if not path.is_relative_to(self.final) and ".partial-" not in str(path):
                digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def _finish(self, started: float) -> None:
        (self.out / "metrics.json").write_text(
            json.dumps(finite(self._metrics), indent=1, sort_keys=True) + "\n")
        (self.out / "figures").mkdir(exist_ok=True)
        for figure in self._figures:
            figure.save(self.out / "figures")
        manifest.write(self.out, **self.facts)
        self.measure("seconds", round(time.perf_counter() - started, 3))
        self.measure("peak_memory_mb", round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1))
        identity = tracking.publish(
            stage=self.name, key=self.key, params=self.params, metrics=self._metrics,
            measurements=self._measurements, figures=self._figures, folder=self.out)
        if self.final.exists():
            shutil.rmtree(self.final)
        self.final.parent.mkdir(parents=True, exist_ok=True)
        self.out.replace(self.final)
        if self.name != "report":
            folder = self.root / "measurements"
            folder.mkdir(exist_ok=True)
            partial = folder / f".{self.title}.partial"
            partial.write_text(json.dumps(
                {"stage": self.name, "key": self.key, "measurements": self._measurements, **identity},
                indent=1, sort_keys=True) + "\n")
            partial.replace(folder / f"{self.title}.json")


def main(name: str, run: Callable[[Stage], None], keys: Sequence[str] | None = None) -> NoReturn:
    """Run stage ``name`` from the working directory's params.yaml and exit.

    Exit status: 0 done; 2 something the user gave cannot be used (told in one line on stderr, not to be
    retried); anything else is a fault worth a retry.

    Args:
        name: the stage's name.
        run: the stage's work.
        keys: the keys of a matrix stage; ``None`` for a stage without keys.
    """
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    started = time.perf_counter()
    try:
        key = _key(name, sys.argv[1:], keys)
        root = Path.cwd()
        execute(Stage(name, key, config.load(root / "params.yaml"), root), run, started)
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    sys.exit(0)


def execute(stage: Stage, run: Callable[[Stage], None], started: float | None = None) -> None:
    """Run ``stage`` under its lock; its outputs appear whole, or not at all."""
    stage.scratch.mkdir(parents=True, exist_ok=True)
    with lock(stage.scratch.parent / f"{stage.scratch.name}.lock"):
        shutil.rmtree(stage.out, ignore_errors=True)
        stage.out.mkdir(parents=True)
        stage.scratch.mkdir(parents=True, exist_ok=True)
        try:
            run(stage)
            stage._finish(time.perf_counter() if started is None else started)
        finally:
            shutil.rmtree(stage.out, ignore_errors=True)
        shutil.rmtree(stage.scratch, ignore_errors=True)


def _key(name: str, arguments: Sequence[str], keys: Sequence[str] | None) -> str | None:
    if keys is None:
        if arguments:
            raise InputError(f"stage {name}", "key", arguments[0], "this stage has no keys", "leave it out")
        return None
    if len(arguments) != 1 or arguments[0] not in keys:
        raise InputError(f"stage {name}", "key", " ".join(arguments), "unknown key",
                         f"use one of {', '.join(keys)}")
    return arguments[0]


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, so that no orphan writes on beside a retry.

    DVC that is killed leaves its stage running otherwise. Does nothing on other systems.
    """
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
        if os.getppid() != parent:
            sys.exit("the parent process ended before the stage began")


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; wait, saying so, while another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process with the same inputs to end (%s)", path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
