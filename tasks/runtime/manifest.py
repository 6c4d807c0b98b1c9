"""MANIFEST.json: what a stage wrote, so that a reader notices a file that changed or broke since."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ctrmodels.errors import InputError

NAME = "MANIFEST.json"


def sha256(path: Path) -> str:
    """Digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(folder: Path, **facts: Any) -> None:
    """List every file under ``folder`` with size and digest, and ``facts`` such as rows or schema_hash."""
    files = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)}
        for p in sorted(folder.rglob("*")) if p.is_file() and p.name != NAME
    }
    (folder / NAME).write_text(json.dumps({"files": files, **facts}, indent=1, sort_keys=True) + "\n")


def verify(folder: Path) -> dict[str, Any]:
    """Check ``folder`` against its manifest and return the manifest.

    Raises:
        InputError: the manifest or a listed file is absent, or a file's size or digest differs.
    """
    path = folder / NAME
    stage = folder.name
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        listed = manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(path, "manifest", type(error).__name__, "absent or not readable",
                         f"run the stage that writes {stage} again") from error
    for name, entry in listed:
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry["bytes"] or sha256(file) != entry["sha256"]:
            raise InputError(file, "sha256", entry["sha256"][:12], "the file differs from what its stage wrote",
                             f"run the stage that writes {stage} again")
    return manifest
