"""Compiled kernels of the training step on a CPU, built from ``kernels.cpp`` and the headers beside it on first use.

They fuse what torch does in several passes over memory. Where there is no C++ compiler, or a tensor is on another
device, the callers compute the same by torch's operations: slower, and equal within the rounding of float32.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++20", "-fopenmp", "-shared", "-fPIC")
LIBRARIES = ("-ltorch_cpu", "-lc10")


def kernels(*tensors: Tensor) -> Any | None:
    """The operations of ``kernels.cpp``, or ``None`` where ``tensors`` have to be computed by torch's own."""
    if not all([t.is_cpu for t in tensors]) or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    return _load()


def compiled() -> Any:
    """The operations, where :func:`kernels` has given them for the same tensors before.

    Raises:
        RuntimeError: there are none.
    """
    found = _load()
    if found is None:
        raise RuntimeError("there are no compiled kernels: ask kernels() first")
    return found


def build() -> Path:
    """The compiled library, in the user's cache; compiled first if this source, torch, compiler and processor are new.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: it failed; its ``stderr`` says how.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: install g++, or set CXX")
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ctrmodels"
    library = cache_folder / f"kernels-{_digest(compiler)}.so"
    if library.exists():
        return library
    cache_folder.mkdir(parents=True, exist_ok=True)
    log.info("compiling %s", SOURCE.name)
    with tempfile.TemporaryDirectory(dir=cache_folder) as folder:  # beside it, so that it is renamed into place
        partial = Path(folder) / library.name
        subprocess.run([compiler, *FLAGS, *(f"-I{p}" for p in include_paths()), "-o", str(partial), str(SOURCE),
                        *(f"-L{p}" for p in library_paths()), *LIBRARIES], check=True, capture_output=True, text=True)
        partial.replace(library)
    return library


@cache
def _load() -> Any | None:
    try:
        torch.ops.load_library(str(build()))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        log.warning("training without compiled kernels, which is slower: %s", reason.strip()[-500:])
        return None
    return torch.ops.ctrmodels


def _digest(compiler: str) -> str:
    """Of everything that decides what is compiled."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    digest = hashlib.sha256()
    for source in (SOURCE, *sorted(SOURCE.parent.glob("*.h"))):
        digest.update(source.read_bytes())
    for part in (torch.__version__, version, _processor(), *FLAGS):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What ``-march=native`` looks at."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")
