"""Where a log comes from. A source is a function ``prepare(data, scratch, out) -> Files``.

It makes the log's files ready (fetches or generates them into ``scratch``, where they are not there already)
and says where they lie; whatever describes the log beside its rows may go to ``out``. Reading is the same for
all of them: :func:`tasks.sources.files.read`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tasks.config import Data, Files

MODULES = {"files": "files", "movielens-100k": "movielens", "simulated": "simulated"}


def prepare(data: Data, scratch: Path, out: Path) -> Files:
    """Make the files of ``data.source`` ready and return their description."""
    module = import_module(f"tasks.sources.{MODULES[data.source]}")
    files: Files = module.prepare(data, scratch, out)
    return files
