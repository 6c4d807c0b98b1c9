"""Every multi-objective model on one encoded log with one recipe, over seeds.

    python -m benchmarks.models --encoded outputs/encode --params presets/census-income.yaml --results /tmp/census

The recipe is what a params.yaml says of ``training`` and ``retrain``; the architecture is the unsearched one, every
field at full width and every pair of fields, so that models differ and nothing else. They learn from train and arch,
stop by valid, and are judged on test. Every finished training is kept as ``RESULTS/MODEL/seed=N.json`` and not
repeated, so that models and seeds can be added later; remove the files of a model whose code has changed. Last comes
``RESULTS/table.md``, also printed.

Models of one score are trained where ``--models`` names them, such as ``--models shared_bottom bpr jrc``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Dataset, Rows, Schema
from ctrmodels.data.lists import ListLoader
from ctrmodels.errors import InputError
from ctrmodels.multitask import MODELS, ONE_SCORE, MultiObjectiveModel
from ctrmodels.multitask.evaluation import evaluate_scores
from ctrmodels.multitask.models import build
from ctrmodels.multitask.train import train
from ctrmodels.training import predict, run_trials, seed_everything
from tasks import config
from tasks.config import Params
from tasks.retrain import LEARNS_FROM, is_relative, model_config
from tasks.training import train_config

DECIDING = {"binary": ("auc", "gauc"), "regression": ("xauc",)}  # GAUC alone judges relative scores
JUDGED = ("valid", "test")


def train_one(encoded: Path, params: Params, name: str, seed: int, out: Path) -> None:
    """One training, written to ``out`` when it has ended."""
    data = Dataset(encoded, (*LEARNS_FROM, *JUDGED))
    seed_everything(seed)
    model = build(name, data.schema, dense(data.schema, params), model_config(params, name))
    began = time.perf_counter()
    fitted = train(model, data.role(*LEARNS_FROM), data.role("valid"), train_config(params.training, seed))
    cost = model.cost()
    seconds = round(time.perf_counter() - began, 1)
    found = {"recipe": recipe(params, name), "log": identity(data.schema), "seconds": seconds,
             "epochs": len(fitted.history), "best_epoch": fitted.best_epoch, **asdict(cost)}
    for role in JUDGED:
        rows = data.role(role)
        found[role] = evaluate_scores(data.schema, rows.labels, predict(model, rows), rows.group, is_relative(model))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    partial.replace(out)
    print(f"{name} seed {seed}: {seconds:.0f} s, {len(fitted.history)} epochs", flush=True)


def dense(schema: Schema, params: Params) -> ArchSpec:
    """The architecture of all models."""
    return ArchSpec.dense(schema, params.training.embedding_dim)


def recipe(params: Params, name: str) -> dict[str, Any]:
    """All settings of a training but its seed, as JSON would give them back."""
    training = asdict(train_config(params.training, 0))
    del training["seed"]
    settings = {"embedding_dim": params.training.embedding_dim, **training, **asdict(model_config(params, name))}
    found: dict[str, Any] = json.loads(json.dumps(settings))
    return found


def identity(schema: Schema) -> str:
    """Which log: its fields and objectives, its ids and its split."""
    return " ".join(part[:12] for part in (schema.hash, schema.vocab_hash, schema.roles_hash))


def read(path: Path, schema: Schema, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A finished training. Settings that did not exist when it was made are not held against it.

    Raises:
        InputError: it is of another log, or by another recipe.
    """
    found: dict[str, Any] = json.loads(path.read_text())
    remedy = "give another --results folder, or remove it"
    if found["log"] != identity(schema):
        raise InputError(path, "log", found["log"], f"the log is {identity(schema)}", remedy)
    for key, value in found["recipe"].items():
        if wanted.get(key) != value:
            raise InputError(path, key, value, f"the recipe says {wanted.get(key)!r}", remedy)
    return found


def possible(names: Sequence[str], rows: Rows, params: Params) -> tuple[list[str], dict[str, str]]:
    """The models that can learn from the rows, and why the others cannot."""
    able, reasons = [], {}
    for name in names:
        try:
            model = build(name, rows.schema, dense(rows.schema, params), model_config(params, name))
            if isinstance(model, MultiObjectiveModel):
                model.check_spaces(rows.labels)
                if model.side is not None:
                    model.side.check(rows)
            elif model.whole_lists:
                ListLoader(rows, params.training.batch_size, 0)
            able.append(name)
        except InputError as error:
            reasons[name] = f"{error.problem} ({error.remedy})"
    return able, reasons


def tables(schema: Schema, found: Mapping[str, Sequence[Mapping[str, Any]]], reasons: Mapping[str, str],
           role: str = "test") -> str:
    """Markdown: an overview, then every metric of every score."""
    keys = list(dict.fromkeys(key for runs in found.values() for key in runs[0][role]))
    scores = list(dict.fromkeys(key.partition(".")[2] for key in keys))
    kinds = {o.name: o.kind for o in schema.objectives}
    deciding = [f"{metric}.{score}" for score in scores for metric in DECIDING[kinds[score.partition("@")[0]]]
                if f"{metric}.{score}" in keys]
    lines = [f"| model | seeds | parameters | beside embedding | s per seed | {' | '.join(deciding)} |",
             "|-" * (5 + len(deciding)) + "|"]
    for name, runs in found.items():
        first = runs[0]
        parameters = first["parameters_embedding"] + first["parameters_other"]
        seconds = np.mean([r["seconds"] for r in runs])
        cells = [name, str(len(runs)), f"{parameters:,}", f"{first['parameters_other']:,}", f"{seconds:.0f}"]
        lines.append(f"| {' | '.join([*cells, *(spread(runs, role, key) for key in deciding)])} |")
    lines += [f"| {name} | not possible: {reason} |{' |' * (3 + len(deciding))}" for name, reason in reasons.items()]
    means = {key: [float(np.mean([r[role][key] for r in runs])) for runs in found.values() if key in runs[0][role]]
             for key in deciding}
    apart = ", ".join(f"{key} {max(values) - min(values):.4f}" for key, values in means.items())
    lines += ["", f"Mean over the seeds on {role}, ± one standard deviation.", "",
              f"Distance from the best to the worst model: {apart}."]
    for score in scores:
        names = [key.partition(".")[0] for key in keys if key.partition(".")[2] == score]
        lines += ["", f"**{score}**", "", f"| model | {' | '.join(names)} |", "|-" * (1 + len(names)) + "|"]
        lines += [f"| {model} | {' | '.join(spread(runs, role, f'{name}.{score}') for name in names)} |"
                  for model, runs in found.items()]
    return "\n".join(lines) + "\n"


def spread(runs: Sequence[Mapping[str, Any]], role: str, key: str) -> str:
    """Mean and standard deviation over the seeds; a dash if the model has no such score, or it is no such measure."""
    if key not in runs[0][role]:
        return "-"
    values = [r[role][key] for r in runs]
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def main() -> None:
    """Train what is missing, then write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoded", type=Path, required=True, help="output folder of the stage encode")
    parser.add_argument("--params", type=Path, required=True, help="a params.yaml, for the recipe")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *ONE_SCORE], default=list(MODELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side, one thread each")
    arguments = parser.parse_args()
    params, rows = config.load(arguments.params), Dataset(arguments.encoded, LEARNS_FROM).role(*LEARNS_FROM)
    schema = rows.schema
    able, reasons = possible(arguments.models, rows, params)
    paths = {name: [arguments.results / name / f"seed={seed}.json" for seed in range(arguments.seeds)] for name in able}
    for name in able:  # before anything is trained
        for path in filter(Path.is_file, paths[name]):
            read(path, schema, recipe(params, name))
    run_trials(train_one, [
        {"encoded": arguments.encoded, "params": params, "name": name, "seed": seed, "out": path}
        for name in able for seed, path in enumerate(paths[name]) if not path.is_file()], arguments.workers)
    found = {name: [read(path, schema, recipe(params, name)) for path in paths[name]] for name in able}
    text = tables(schema, found, reasons)
    (arguments.results / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
