"""Scores of an exported model, by ONNX Runtime.

``export_onnx`` copies this file beside the model, so that serving needs NumPy and onnxruntime, but neither
ctrmodels nor torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


class Scorer:
    """An exported model, verified and ready to score. Its ``score`` may be called from several threads.

    Example::

        scorer = Scorer("export")
        scorer.score(ids=ids, numeric=numeric, sequences={"recent": steps})["click@all"]  # float32 [B]

    Args:
        folder: what ``export_onnx`` wrote.
        threads: CPU threads of one call; 0 = all cores.

    Raises:
        ValueError: a file is absent or damaged.
    """

    def __init__(self, folder: Path | str, threads: int = 1) -> None:
        self.folder = Path(folder)
        path = self.folder / "signature.json"
        try:
            signature = json.loads(path.read_text())
            self.inputs: dict[str, dict[str, Any]] = {i["name"]: i for i in signature["inputs"]}
            self.outputs: list[str] = [o["name"] for o in signature["outputs"]]
            digests = dict(signature["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _error(path, "signature", type(error).__name__, "absent or not readable",
                         "export the model again") from error
        for name, digest in digests.items():
            _verify(self.folder / name, digest)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(self.folder / "model.onnx", options,
                                                    providers=["CPUExecutionProvider"])

    def score(self, ids: np.ndarray, numeric: np.ndarray | None = None,
              sequences: Mapping[str, np.ndarray] | None = None,
              state: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Scores of B rows by name, float32 [B] each; fields and their order are those of ``signature.json``.

        Args:
            ids: int32 [B, F]; each field's last id stands for values that the training log does not have.
            numeric: float32 [B, N], standardised, 0 where missing; may be left out if there are no such fields.
            sequences: name of the field → int32 [B, L], oldest step first, padded on the right with -1.
            state: where the model is the half for items of ``export_split``: what the half for users gave of the one
                request that all rows belong to.

        Raises:
            ValueError: an input is absent or unknown, or has another type or shape or values out of range.
        """
        rows = len(ids) if np.ndim(ids) else 0
        given = {"ids": ids, "numeric": np.zeros((rows, 0), np.float32) if numeric is None else numeric}
        given |= {f"sequence.{name}": steps for name, steps in (sequences or {}).items()} | dict(state or {})
        for name in sorted(self.inputs.keys() ^ given.keys()):
            problem, remedy = ("is not given", "give it") if name in self.inputs else ("unknown input", "leave it out")
            raise self._error("input", name, problem, f"{remedy}; the inputs are {', '.join(self.inputs)}")
        for name, values in given.items():
            self._check(self.inputs[name], values, rows)
        return dict(zip(self.outputs, self.session.run(self.outputs, given), strict=True))

    def _check(self, wanted: Mapping[str, Any], values: np.ndarray, rows: int) -> None:
        """Refuse ``values`` that are not the input that ``wanted`` describes."""
        name, dtype, shape = wanted["name"], wanted["dtype"], tuple(
            rows if size == "batch" else size for size in wanted["shape"])
        found = str(values.dtype) if isinstance(values, np.ndarray) else type(values).__name__
        if found != dtype:
            raise self._error(f"type of {name}", found, f"must be a NumPy array of {dtype}",
                              f"convert it by np.asarray(values, np.{dtype})")
        if values.shape != shape:
            raise self._error(f"shape of {name}", values.shape, f"must be {shape} for {rows} rows",
                              f"the columns are those of {', '.join(wanted['fields']) or 'no field'}")
        # What a signature says once of a sequence holds for all its steps: hence the broadcasts.
        sizes = np.broadcast_to(wanted["vocabulary"], shape) if "vocabulary" in wanted else None
        wrong = ~np.isfinite(values) if sizes is None else (values < wanted["lowest"]) | (values >= sizes)
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0].tolist())
            problem, remedy = "must be finite", "0 stands for a missing value"
            if sizes is not None:
                problem = f"must be {wanted['lowest']} to {sizes[place] - 1}"
                remedy = f"use {sizes[place] - 1} for values that the training log does not have"
            raise self._error(f"{name}{list(place)}, field {np.broadcast_to(wanted['fields'], shape)[place]}",
                              values[place].item(), problem, remedy)

    def _error(self, key: str, value: object, problem: str, remedy: str) -> ValueError:
        return _error(self.folder, key, value, problem, remedy)


def _verify(path: Path, digest: str) -> None:
    """Refuse a file that is not the exported one."""
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _error(path, "file", type(error).__name__, "absent or not readable", "export the model again") from error
    if found != digest:
        raise _error(path, "sha256", found[:12], f"signature.json says {digest[:12]}: the file is damaged or foreign",
                     "copy the whole folder again, or export the model again")


def _error(where: object, key: str, value: object, problem: str, remedy: str) -> ValueError:
    """One line: where, which key, which value, what is wrong with it, and what to do."""
    return ValueError(f"{where}: {key} = {' '.join(repr(value).split())}: {problem}; {remedy}")
