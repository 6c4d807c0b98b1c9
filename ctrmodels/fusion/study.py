"""A search as an Optuna study: its trials outlive the process, and several processes may share them."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ctrmodels.errors import InputError
from ctrmodels.fusion.functions import LOG_WEIGHT_BOUND, FusionFunction, Range
from ctrmodels.fusion.goal import Goal, Point, Window
from ctrmodels.fusion.tuners import Tuner
from ctrmodels.fusion.tuners.base import SeededByTrial, Space

INFEASIBLE = -1e6
"""What points below a floor are worth to a tuner that knows no floors, less their distance to it."""


@dataclass(frozen=True)
class Problem:
    """What is searched, by what rule and how.

    Attributes:
        function: its weights and searched constants are sought; its other constants stay.
        goal: the rule.
        windows: trial t is judged on ``windows[t mod len]``. One window gives every trial the same rows, so that
            differences between trials are no sampling noise.
        tuner: how.
        seed: of the search.
    """

    function: FusionFunction
    goal: Goal
    windows: tuple[Window, ...]
    tuner: Tuner
    seed: int

    @cached_property
    def scores(self) -> int:
        """K."""
        return self.windows[0].scores.shape[1]

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """What is searched, by name."""
        return self.function.ranges(self.scores, self.goal.primary)

    @cached_property
    def space(self) -> Space:
        """The same as Optuna's distributions."""
        return {name: FloatDistribution(r.low, r.high) for name, r in self.ranges.items()}

    @cached_property
    def _judges(self) -> list[Any]:
        return [w.judge_any(self.function) for w in self.windows]

    def at(self, theta: Mapping[str, float]) -> tuple[FusionFunction, tuple[float, ...]]:
        """The function with its constants and the weights at a point of the search."""
        return self.function.at(theta, self.scores, self.goal.primary)

    def judge(self, theta: Mapping[str, float], number: int) -> tuple[float, ...]:
        """Metrics of a point, as trial ``number`` sees them."""
        return self._judges[number % len(self.windows)](*self.at(theta))

    def starts(self) -> list[dict[str, float]]:
        """Where the search starts: equal weights, then one score far above the others, for each score."""
        usual = {name: r.start for name, r in self.ranges.items()}
        weights = [name for name in usual if name.startswith("log_weight_")]
        rulers = [{name: LOG_WEIGHT_BOUND if name == f"log_weight_{i}" else -LOG_WEIGHT_BOUND for name in weights}
                  for i in range(self.scores)]
        return [usual, *(usual | ruler for ruler in rulers if weights)]

    def value(self, metrics: Sequence[float]) -> float | Sequence[float]:
        """What the tuner maximises."""
        if self.tuner.front:
            return metrics
        shortfall = self.goal.shortfall(metrics)
        return metrics[self.goal.primary] if self.tuner.takes_floors or not shortfall else INFEASIBLE - shortfall

    def digest(self) -> str:
        """sha256 of everything that trials depend on: two searches of one digest may share theirs."""
        equal = self.function.at(self.starts()[0], self.scores, self.goal.primary)
        rows = [[hashlib.sha256(np.ascontiguousarray(w.scores).data).hexdigest(),
                 [float(f"{m:.9g}") for m in judge(*equal)]]
                for w, judge in zip(self.windows, self._judges, strict=True)]
        whole = [self.function.to_json(), asdict(self.goal), self.tuner.id, asdict(self.tuner), self.seed, rows]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


class Trials:
    """The trials of one problem in a storage.

    Args:
        problem: what is searched.
        storage: where trials are kept.
        where: the storage's name in messages.

    Raises:
        InputError: the storage has trials of another problem with this function.
    """

    def __init__(self, problem: Problem, storage: BaseStorage, where: object) -> None:
        self.problem = problem
        sampler = SeededByTrial(lambda seed: problem.tuner.sampler(seed, problem.goal, problem.space), problem.seed)
        count = len(problem.goal.floors) if problem.tuner.front else 1
        with _quiet():
            self._study = optuna.create_study(storage=storage, sampler=sampler, study_name=problem.function.id,
                                              directions=["maximize"] * count, load_if_exists=True)
        digest = problem.digest()
        found = self._study.user_attrs.get("problem")
        if found is None:
            self._study.set_user_attr("problem", digest)
        elif found != digest:
            raise InputError(where, "study", problem.function.id, "is a search on other rows or with other settings",
                             "name another storage, or delete this one")

    def points(self) -> list[Point]:
        """All finished trials in the order they were started."""
        return [self._point(t) for t in self._finished()]

    def explored(self) -> int:
        """Trials that were proposed by the tuner or the start, unfinished ones among them."""
        return len(self._proposed())

    @property
    def begun(self) -> bool:
        """Whether the starts have been queued."""
        return bool(self._starts())

    def begin(self, trials: int) -> None:
        """Queue the starts, at most ``trials``, those queued before among them. Nobody else may do so meanwhile."""
        starts = self.problem.starts()[:trials]
        for place in range(len(self._starts()), len(starts)):
            equal = place == 0 and len(set(self.problem.at(starts[0])[1])) == 1
            self._study.enqueue_trial(dict(starts[place]), user_attrs={"source": "equal" if equal else "start",
                                                                       "place": place})

    def adopt(self) -> None:
        """Judge what nobody is at work on any more: a worker died before its trial was done."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._judge(optuna.Trial(self._study, trial._trial_id))

    def explore(self, trials: int) -> None:
        """Let the tuner propose until there are ``trials`` proposed ones, or no more points."""
        if (size := self.problem.tuner.points(len(self.problem.space))) is not None:
            trials = min(trials, len(self.problem.starts()) + size)
        while self.explored() < trials:
            trial = self._study.ask(dict(self.problem.space))
            if sum(t.number < trial.number for t in self._proposed()) >= trials:  # another worker was faster
                self._study.tell(trial, state=TrialState.FAIL)
                return
            self._judge(trial)

    def attempt(self, theta: Mapping[str, float], stage: int) -> tuple[float, ...]:
        """Metrics of a point that the local search after ``stage`` proposals asks for; known ones are not judged
        again.
        """
        for trial in self._finished():
            if trial.user_attrs.get("stage") == stage and trial.params == theta:
                return tuple(trial.user_attrs["metrics"])
        if not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.enqueue_trial(dict(theta), user_attrs={"source": "local", "stage": stage})
        return self._judge(self._study.ask(dict(self.problem.space)))

    def polished(self, before: int) -> int:
        """Trials of local searches after fewer than ``before`` proposals."""
        return sum(t.user_attrs.get("stage", before) < before for t in self._finished())

    def theta(self, point: Point) -> dict[str, float]:
        """Where in the space a point of :meth:`points` lies."""
        return next(dict(t.params) for t in self._finished() if self._point(t) == point)

    def _starts(self) -> list[FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if "place" in t.user_attrs]

    def _judge(self, trial: optuna.Trial) -> tuple[float, ...]:
        goal, number = self.problem.goal, 0 if "stage" in trial.user_attrs else trial.number
        theta = {name: trial.suggest_float(name, d.low, d.high) for name, d in self.problem.space.items()}
        metrics = self.problem.judge(theta, number)
        trial.set_user_attr("metrics", list(metrics))
        if any(f is not None for f in goal.floors):
            trial.set_constraint("floors", goal.shortfall(metrics))
        self._study.tell(trial, self.problem.value(metrics))
        return metrics

    def _finished(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _proposed(self) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        return [t for t in trials if "stage" not in t.user_attrs]

    def _point(self, trial: FrozenTrial) -> Point:
        source = trial.user_attrs.get("source", self.problem.tuner.id)
        return Point.of(*self.problem.at(trial.params), trial.user_attrs["metrics"], source)


class Storage:
    """Where trials are kept: in memory, or in a journal file that any number of processes may share.

    A process that works on a file holds a shared lock beside it, which ends with the process, however it ends.
    Who gets the lock alone knows that nobody else is at work.

    Args:
        path: the journal file, ``None`` = in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.trials: BaseStorage = InMemoryStorage()
        self._lock = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.trials = JournalStorage(JournalFileBackend(str(path)))
            self._lock = path.with_name(f"{path.name}.workers")

    @contextmanager
    def shared(self) -> Iterator[Worker]:
        """As one of the workers."""
        if self._lock is None:
            yield Worker(None)
            return
        with self._lock.open("w") as handle:
            yield Worker(handle)


class Worker:
    """A process at work on a storage."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def alone_now(self) -> bool:
        """Whether nobody else is at work; if so, others wait until :meth:`together`."""
        if self._handle is None:
            return True
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def together(self) -> None:
        """Work beside others."""
        if self._handle is not None:
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def alone(self) -> None:
        """Wait until all others are done."""
        if self._handle is not None:
            fcntl.flock(self._handle, fcntl.LOCK_UN)
            fcntl.flock(self._handle, fcntl.LOCK_EX)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's remarks on every study."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
