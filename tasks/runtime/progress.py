"""Tells a terminal what Airflow is doing, a line per task."""

from __future__ import annotations

import time
from datetime import datetime
from typing import IO, Any

from airflow.listeners import hookimpl


class Progress:
    """An Airflow listener that writes to ``terminal`` when a task begins and ends."""

    def __init__(self, terminal: IO[str]) -> None:
        self._terminal = terminal
        self._began: dict[Any, float] = {}

    @hookimpl
    def on_task_instance_running(self, task_instance: Any) -> None:
        """A task begins."""
        self._began[task_instance.id] = time.monotonic()
        self._tell(task_instance, "...")

    @hookimpl
    def on_task_instance_success(self, task_instance: Any) -> None:
        """A task has ended well."""
        cached = ", taken from the cache" if getattr(task_instance.task, "cached", False) else ""
        self._tell(task_instance, f"done in {self._seconds(task_instance):.0f} s{cached}")

    @hookimpl
    def on_task_instance_failed(self, task_instance: Any, error: object) -> None:
        """An attempt of a task has failed."""
        again = "; trying again" if task_instance.state == "up_for_retry" else ""
        self._tell(task_instance, f"failed after {self._seconds(task_instance):.0f} s{again}: {error}")

    def _seconds(self, task_instance: Any) -> float:
        return time.monotonic() - self._began[task_instance.id]

    def _tell(self, task_instance: Any, what: str) -> None:
        if not task_instance.task_id.endswith("_keys"):
            name = task_instance.rendered_map_index or task_instance.task_id
            print(f"  {datetime.now():%H:%M:%S}  {name:<28} {what}", file=self._terminal, flush=True)
