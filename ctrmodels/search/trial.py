"""Retraining: the only judge of an architecture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec, Cost
from ctrmodels.data.dataset import Rows
from ctrmodels.search.base import Host, SearchRows
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import FitResult, fit, predict, seed_everything
from ctrmodels.zoo import CTRModel


@dataclass
class Trained:
    """A retrained architecture.

    Attributes:
        model: with its best weights.
        valid: ``auc`` and ``logloss`` of the host's objective on ``valid``.
        cost: of the built model.
        fit: what the training did.
    """

    model: CTRModel
    valid: dict[str, float]
    cost: Cost
    fit: FitResult

    def summary(self) -> dict[str, Any]:
        """Plain numbers, for a trace."""
        return {"valid": {k: round(v, 8) for k, v in self.valid.items()}, "cost": vars(self.cost),
                "best_epoch": self.fit.best_epoch, "steps": self.fit.steps,
                "history": [{k: round(v, 8) for k, v in e.items()} for e in self.fit.history]}


def known(rows: Rows, objective: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N'] of the rows where ``objective`` is known, and the bool mask [N] of those rows."""
    label = np.asarray(rows.labels[:, rows.schema.objective_index(objective)])
    there = ~np.isnan(label)
    return label[there], there


def evaluate(model: CTRModel, rows: Rows) -> dict[str, float]:
    """``auc`` and ``logloss`` of the model's objective on ``rows``."""
    label, there = known(rows, model.objective)
    score = predict(model, rows)[f"{model.objective}@all"][there]
    return {"auc": metrics.auc(label, score), "logloss": metrics.logloss(label, score)}


def retrain(spec: ArchSpec, rows: SearchRows, valid: Rows, host: Host, seed: int,
            checkpoint: Checkpoint | None = None) -> Trained:
    """Train the network of ``spec`` from scratch on ``train`` and ``arch``, stop on ``valid``.

    ``arch`` served the search; once the architecture is fixed its rows are training rows like any others.

    Raises:
        InputError: the spec was found on another log.
    """
    schema = rows.schema
    spec.check(schema)
    seed_everything(seed)
    model = host.build(schema, host.complete(spec, schema))
    label, there = known(valid, host.objective)

    def auc(scores: dict[str, np.ndarray], _: Rows) -> float:
        return metrics.auc(label, scores[f"{host.objective}@all"][there])

    result = fit(model, rows.both(), valid, replace(host.train, seed=seed), auc, checkpoint)
    return Trained(model, evaluate(model, valid), model.cost(), result)
