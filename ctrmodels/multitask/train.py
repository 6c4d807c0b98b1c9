"""Training a multi-objective model from scratch."""

from __future__ import annotations

import numpy as np
import torch

from ctrmodels.data.dataset import Rows
from ctrmodels.multitask.balancers import Balancer
from ctrmodels.multitask.evaluation import mean_auc
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.training import FitResult, TrainConfig, fit
from ctrmodels.training.checkpoint import Checkpoint


def train(model: MultiObjectiveModel, rows: Rows, valid: Rows, config: TrainConfig,
          checkpoint: Checkpoint | None = None, balancer: Balancer | None = None) -> FitResult:
    """Fit ``model`` on ``rows``, stopping by the mean AUC@all of the binary objectives on ``valid``.

    A model with a side stops by scores that have it: the clicks that a log shows depend on the positions, so that
    judged without them the epoch is best that passes most of their effect off as the items'.

    Around the common loop it sets what a loop cannot: the scale of regression objectives before, and what their
    residuals tell after, both from ``rows``. Without a balancer the (weighted) sum of the losses is minimised.

    Raises:
        InputError: a regression objective has no value in its space, or a negative one; the rows lack what the
            model's side reads; or the checkpoint is damaged or belongs to another training.
        FloatingPointError: the loss is not finite.
    """
    if model.side is not None:
        model.side.check(rows)
    if model.regressions:
        model.fit_targets(rows.labels, rows.ids if model.needs_ids else None)
    with model.explaining():
        result = fit(model, rows, valid, config, mean_auc(rows.schema), checkpoint, balancer)
    if model.regressions:
        model.fit_residuals(_outputs(model, rows), rows.labels)
    return result


@torch.no_grad()
def _outputs(model: MultiObjectiveModel, rows: Rows, batch_size: int = 8192) -> np.ndarray:
    device = next(model.parameters()).device
    return np.concatenate([model(batch.to(device)).cpu().numpy() for batch in rows.batches(batch_size)])
