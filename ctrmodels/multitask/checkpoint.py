"""A trained multi-objective model as a folder, without pickle.

``model.json`` (name and sizes), ``schema.json``, ``spec/`` (the ArchSpec) and ``model.safetensors`` are all
that rebuilding it needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.multitask.models import build, options_of
from ctrmodels.multitask.one_score import OneScoreModel
from ctrmodels.multitask.parts import ModelConfig
from ctrmodels.training.checkpoint import digest_of

WEIGHTS = "model.safetensors"
FILES = ("model.json", "schema.json", "spec", WEIGHTS)


def save_description(folder: Path, name: str, schema: Schema, spec: ArchSpec, config: ModelConfig) -> None:
    """Write everything but the weights into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"model": name, "config": asdict(config)}
    (folder / "model.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    schema.save(folder / "schema.json")
    spec.save(folder / "spec")


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the model's tensors to ``path``; equal weights give equal bytes."""
    state: Mapping[str, Tensor] = model.state_dict()
    save_file({name: state[name].detach().cpu().contiguous() for name in sorted(state)}, path)


def load_weights(path: Path, model: nn.Module) -> None:
    """Read what :func:`save_weights` wrote into ``model``, which is then in evaluation mode.

    Raises:
        InputError: the file is absent, damaged, or holds another model's tensors.
    """
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(path, "weights", type(error).__name__, "not the weights of this model",
                         "run the stage `retrain` again") from error
    model.eval()


def fingerprint(path: Path) -> str:
    """What :func:`ctrmodels.export.fingerprint` gives of the model whose weights :func:`save_weights` wrote.

    Raises:
        InputError: the file is absent or damaged.
    """
    try:
        return digest_of(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(path, "weights", type(error).__name__, "absent or not readable",
                         "run the stage `retrain` again") from error


def load_model(folder: Path) -> MultiObjectiveModel | OneScoreModel:
    """The trained model that ``folder`` describes, in evaluation mode.

    Raises:
        InputError: a file is absent or damaged.
    """
    try:
        raw: dict[str, Any] = json.loads((folder / "model.json").read_text())
        name, sizes = raw["model"], _tuples(raw["config"])
        if sizes["options"] is not None:
            sizes["options"] = options_of(name)(**_tuples(sizes["options"]))
        config = ModelConfig(**sizes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(folder / "model.json", "model", type(error).__name__, "absent or not readable",
                         "run the stage `retrain` again") from error
    schema, spec = Schema.load(folder / "schema.json"), ArchSpec.load(folder / "spec")
    spec.check(schema, folder / "spec")
    model = build(name, schema, spec, config)
    load_weights(folder / WEIGHTS, model)
    return model


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of a JSON document as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
