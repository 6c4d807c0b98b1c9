"""Checkpoints: one file that a training killed at any moment resumes from, to the bit."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ctrmodels import ranks
from ctrmodels.errors import InputError


class Checkpoint:
    """The latest state of one training.

    A new state is written beside the old one, flushed to disk and renamed over it: at every moment there is one
    whole file, or none. Its tensors are verified by their sha256 when read.

    Args:
        path: the file, ``*.safetensors``.
        every: optimiser steps between two writes.
    """

    def __init__(self, path: Path, every: int = 1000) -> None:
        self.path, self.every = path, every

    def save(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
        """Replace the state by ``tensors`` and the JSON ``document``."""
        whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(whole, partial, {"document": json.dumps(document), "sha256": digest_of(whole)})
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(self.path)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state, or ``None`` if there is none.

        Raises:
            InputError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as stream:
                metadata = stream.metadata()
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            document, digest = json.loads(metadata["document"]), metadata["sha256"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(self.path, "checkpoint", type(error).__name__, "not a readable checkpoint",
                             "delete the file; the training then starts afresh") from error
        if digest_of(tensors) != digest:
            raise InputError(self.path, "sha256", digest[:12], "its tensors have another",
                             "delete the file; the training then starts afresh")
        return tensors, document

    def load_of(self, whose: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """:meth:`load`, of what says of itself that it is ``whose``: a document saved under that name.

        Raises:
            InputError: the file is damaged, or another's.
            ValueError: there are several ranks, of which it would hold one's state.
        """
        if ranks.count() > 1:
            raise ValueError(f"{self.path} would hold the state of one of {ranks.count()} ranks: train without a "
                             "checkpoint on several of them")
        found = self.load()
        if found is not None:
            theirs, mine = found[1]["whose"], json.loads(json.dumps(whose))
            for key in mine:
                if theirs.get(key) != mine[key]:
                    raise InputError(self.path, key, theirs.get(key), f"this training has {mine[key]}",
                                     "delete the file, or train as it was begun")
        return found

    def remove(self) -> None:
        """Forget the state: the training is done."""
        self.path.unlink(missing_ok=True)


def flatten(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``PART/NAME`` → tensor of every part's tensors."""
    return {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What :func:`flatten` was given; a part without tensors is empty."""
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    return parts


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and values of CPU tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
