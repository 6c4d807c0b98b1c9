"""Independent trials (seeds) side by side on the cores of one machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import connection
from typing import Any


def default_workers() -> int:
    """Number of trials that run at once: the environment's CTRMODELS_WORKERS, else one where there is a GPU, which all
    would share, else the cores."""
    import torch

    return int(os.environ.get("CTRMODELS_WORKERS", 0)) or (
        1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)))


def _prepare() -> None:
    """One thread per worker: results do not depend on the number of cores, and workers share them evenly."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)


def _end_with_parent() -> None:
    """End this worker when the process that started the trials ends, however that happens."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def iterate_trials(function: Callable[..., Any], arguments: Sequence[Mapping[str, Any]],
                   workers: int | None = None) -> Iterator[tuple[int, Any]]:
    """Call ``function(**a)`` for every ``a`` in ``arguments``; yield (index, result) as each one ends.

    ``function`` and its arguments must be picklable. With one worker everything runs in this process, on one
    thread as well, so that both ways give the same result.
    """
    count = min(workers or default_workers(), len(arguments))
    if count <= 1:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for index, a in enumerate(arguments):
                yield index, function(**a)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "ctrmodels.training"])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_prepare)
    futures = {pool.submit(function, **a): index for index, a in enumerate(arguments)}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        # Not by `with`, which would let everything that waits run to its end when a trial has failed.
        pool.shutdown(cancel_futures=True)


def run_trials(function: Callable[..., Any], arguments: Sequence[Mapping[str, Any]],
               workers: int | None = None) -> list[Any]:
    """Results of ``function(**a)`` for every ``a``, in the order of ``arguments``."""
    results: list[Any] = [None] * len(arguments)
    for index, result in iterate_trials(function, arguments, workers):
        results[index] = result
    return results
