"""Trains one multi-objective model from scratch on the chosen architecture, once per seed.

Learns from ``train`` and ``arch`` (the architecture is fixed by now), stops and compares by ``valid``. The
scores of ``test`` are written for the stages that may read them once; no metric of them is computed here.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Dataset
from ctrmodels.errors import InputError
from ctrmodels.multitask.balancers import BALANCERS as BALANCER_KINDS
from ctrmodels.multitask.balancers import build_balancer
from ctrmodels.multitask.checkpoint import WEIGHTS, load_weights, save_description, save_weights
from ctrmodels.multitask.evaluation import evaluate_scores, mean_over_objectives
from ctrmodels.multitask.gates import GateReport, gate_report
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.multitask.models import build, options_of
from ctrmodels.multitask.one_score import LOSSES, OneScoreModel
from ctrmodels.multitask.parts import ModelConfig
from ctrmodels.multitask.predictions import Predictions
from ctrmodels.multitask.spaces import ALL, space_mask
from ctrmodels.multitask.train import train
from ctrmodels.training import TrainConfig, predict, run_trials, seed_everything
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import resolve_device
from tasks import model_figures
from tasks.config import BALANCERS, MODELS, ONE_SCORE, Params, model_and_balancer
from tasks.runtime.stage import Stage, main
from tasks.training import train_config

LEARNS_FROM = ("train", "arch")
# model → the section that its settings are in
SHARED_SECTIONS = {"omoe": "mmoe", "mmoe_esmm": "mmoe", "cgc": "ple", **dict.fromkeys(LOSSES, "ranking")}
GATE_ROWS = 100_000  # rows of `valid` that the use of the experts is measured on


def run(stage: Stage) -> None:
    """Train every seed, keep the best by ``valid``, and write its weights and predictions."""
    model_name, _ = model_and_balancer(str(stage.key))
    encoded, spec_folder = stage.input("encode"), stage.input("select_interaction") / "spec"
    dataset = Dataset(encoded, (*LEARNS_FROM, "valid"))
    schema, spec = dataset.schema, ArchSpec.load(spec_folder)
    spec.check(schema, spec_folder)
    check_labels(dataset)
    config, balancing = model_config(stage.params, str(stage.key)), balancing_of(stage.params, str(stage.key))
    model = build(model_name, schema, spec, config)
    if balancing is not None and isinstance(model, MultiObjectiveModel):
        build_balancer(balancing.name, model, balancing.options)  # refused before any training

    trials = [{"encoded": encoded, "spec_folder": spec_folder, "name": model_name, "config": config,
               "balancing": balancing, "training": train_config(stage.params.training, seed),
               "checkpoint_steps": stage.params.training.checkpoint_steps, "out": stage.scratch / f"seed={seed}"}
              for seed in range(stage.params.retrain.seeds)]
    with stage.timed("training"):
        results = run_trials(train_seed, trials)
    stage.measure("seconds.per_seed", [r.pop("seconds") for r in results])
    metric = "gauc" if is_relative(model) else "auc"
    best = max(results, key=lambda r: (mean_over_objectives(schema, r["metrics"], metric), -r["seed"]))

    save_description(stage.out, model_name, schema, spec, config)
    keep_weights(stage, [r["seed"] for r in results], best["seed"])
    load_weights(stage.out / WEIGHTS, model)
    if isinstance(model, MultiObjectiveModel) and model.side is not None:
        model.side.save(stage.out)
    model.to(resolve_device(stage.params.training.device))
    with stage.timed("prediction"):  # on one thread like the trials, so that no bit depends on the cores
        (valid, gates), = run_trials(score, [{"model": model, "encoded": encoded,
                                              "out": stage.out / "predictions"}], workers=1)

    record(stage, results, model)
    stage.metric("best_seed", best["seed"])
    stage.figure(model_figures.training_curves(results))
    if balancing is not None:
        stage.figure(model_figures.loss_weights(best))
    if not valid.relative:
        stage.figure(model_figures.calibration(schema, valid, f"Calibration of {stage.key} on valid"))
    if gates is not None:
        stage.metrics(gates.values(model.names), "gates.")
        stage.figure(model_figures.gates(gates, model.names))
    stage.facts |= {"schema_hash": schema.hash, "rows": len(valid.row)}


def train_seed(encoded: Path, spec_folder: Path, name: str, config: ModelConfig, training: TrainConfig,
               checkpoint_steps: int, out: Path, balancing: Balancing | None = None) -> dict[str, Any]:
    """Train one seed, from where an interrupted attempt left it in ``out``; a finished one is only read.

    Returns:
        ``seed``, ``best_epoch``, ``history``, ``metrics`` (on ``valid``), ``seconds``.
    """
    finished = out / "result.json"
    if finished.is_file():
        found: dict[str, Any] = json.loads(finished.read_text())
        return found
    started = time.perf_counter()
    seed_everything(training.seed)
    dataset = Dataset(encoded, (*LEARNS_FROM, "valid"))
    model = build(name, dataset.schema, ArchSpec.load(spec_folder), config)
    valid = dataset.role("valid")
    balancer = None
    if balancing is not None and isinstance(model, MultiObjectiveModel):
        balancer = build_balancer(balancing.name, model, balancing.options, training.seed)
    fitted = train(model, dataset.role(*LEARNS_FROM), valid, training,
                   Checkpoint(out / "training.safetensors", checkpoint_steps), balancer)
    scores = predict(model, valid)
    found = {"seed": training.seed, "best_epoch": fitted.best_epoch, "history": fitted.history,
             "metrics": evaluate_scores(dataset.schema, valid.labels, scores, valid.group, is_relative(model)),
             "seconds": round(time.perf_counter() - started, 3)}
    out.mkdir(parents=True, exist_ok=True)
    save_weights(out / WEIGHTS, model)
    partial = out / "result.json.partial"
    partial.write_text(json.dumps(found))
    partial.replace(finished)
    return found


@dataclass(frozen=True)
class Balancing:
    """Which balancer a model is trained with, and its options."""

    name: str
    options: Any


def balancing_of(params: Params, key: str) -> Balancing | None:
    """How the losses of ``key`` are balanced; ``None`` where a (weighted) sum is all."""
    _, name = model_and_balancer(key)
    if name is None or name == "fixed":
        return None
    options, section = BALANCER_KINDS[name].options, getattr(params.retrain.balancers, name, None)
    return Balancing(name, None if options is None or section is None else options(**section.model_dump()))


def model_config(params: Params, key: str) -> ModelConfig:
    """The sizes and loss weights that params.yaml asks for of the model that ``key`` names."""
    r, t = params.retrain, params.training
    name, balancer = model_and_balancer(key)
    section = getattr(r, SHARED_SECTIONS.get(name, name), None)
    options = options_of(name)(**({} if section is None else section.model_dump()))
    return ModelConfig(bottom=r.bottom, tower=r.tower, dropout=t.dropout, l2=t.l2, gate_init=t.gate_init,
                       history=r.history, loss_weights=r.loss_weights if balancer in ("fixed", "decay") else {},
                       regression=r.regression, duration=r.duration, options=options)


def is_relative(model: MultiObjectiveModel | OneScoreModel) -> bool:
    """Whether its scores say something inside a list only."""
    return isinstance(model, OneScoreModel) and model.relative


def check_labels(dataset: Dataset) -> None:
    """Refuse a log on which an objective cannot be learned or compared.

    Raises:
        InputError: a binary objective has one class only, on the rows it is learned from or on ``valid``.
    """
    schema = dataset.schema
    for roles in (LEARNS_FROM, ("valid",)):
        labels = np.concatenate([dataset.role(r).labels for r in roles])
        for o in (o for o in schema.objectives if o.kind == "binary"):
            label = labels[space_mask(schema, labels, o.name, ALL), schema.objective_index(o.name)]
            positives = int(label.sum())
            if positives in (0, len(label)):
                raise InputError(dataset.folder, o.name, f"{positives} positives of {len(label)} rows",
                                 f"one class only on {' + '.join(roles)}",
                                 "widen data.split or mend the objective's `label:`")


def keep_weights(stage: Stage, seeds: Sequence[int], best: int) -> None:
    """Copy every seed's weights, and the best one's under the model's own name."""
    (stage.out / "weights").mkdir()
    for seed in seeds:
        shutil.copyfile(stage.scratch / f"seed={seed}" / WEIGHTS, stage.out / "weights" / f"seed={seed}.safetensors")
    shutil.copyfile(stage.scratch / f"seed={best}" / WEIGHTS, stage.out / WEIGHTS)


def score(model: MultiObjectiveModel | OneScoreModel, encoded: Path,
          out: Path) -> tuple[Predictions, GateReport | None]:
    """Write the predictions of ``valid`` and ``test`` into ``out``.

    Returns:
        Those of ``valid``, and what the gates do there if the model has any.
    """
    dataset = Dataset(encoded, ("valid", "test"))
    tables = {}
    for role in dataset.allow:
        rows = dataset.role(role)
        number = np.load(encoded / role / "row.npy", mmap_mode="r", allow_pickle=False)
        tables[role] = Predictions.of(dataset.schema, number, rows.group, rows.position, rows.labels,
                                      predict(model, rows), is_relative(model))
        tables[role].save(out / f"{role}.parquet", dataset.schema)
    sample = dataset.role("valid").take(slice(0, GATE_ROWS)).to(next(model.parameters()).device)
    with torch.no_grad():
        gates = model.gates(sample)
    return tables["valid"], None if gates is None else gate_report(gates.cpu().numpy())


def record(stage: Stage, results: list[dict[str, Any]], model: MultiObjectiveModel | OneScoreModel) -> None:
    """Every ``valid`` metric's mean and standard deviation over the seeds, each seed's own, and the cost."""
    for name in results[0]["metrics"]:
        values = [r["metrics"][name] for r in results]
        stage.metric(f"valid.{name}", np.mean(values))
        stage.metric(f"valid.{name}.sd", np.std(values, ddof=1) if len(values) > 1 else 0.0)
    cost = model.cost()
    stage.metrics({**vars(cost), "parameters": cost.parameters, "seeds": len(results)})
    finite = [{**r, "metrics": {k: v if math.isfinite(v) else None for k, v in r["metrics"].items()}}
              for r in results]
    (stage.out / "seeds.json").write_text(json.dumps(finite, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main("retrain", run, [*MODELS, *(f"{m}-{b}" for m in MODELS for b in BALANCERS), *ONE_SCORE])
