"""Training a multi-objective model from scratch."""

from __future__ import annotations

import numpy as np
import torch

from ctrmodels.data.dataset import Rows
from ctrmodels.multitask.balancers import Balancer
from ctrmodels.multitask.evaluation import mean_auc, mean_gauc
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.multitask.one_score import OneScoreModel
from ctrmodels.training import FitResult, TrainConfig, fit
from ctrmodels.training.checkpoint import Checkpoint


def train(model: MultiObjectiveModel | OneScoreModel, rows: Rows, valid: Rows, config: TrainConfig,
          checkpoint: Checkpoint | None = None, balancer: Balancer | None = None) -> FitResult:
    """Fit ``model`` on ``rows``, stopping by the mean AUC@all of the binary objectives on ``valid``.

    Relative scores stop by the mean GAUC@all. A model with a side stops by scores that have it: the clicks that a log
    shows depend on the positions, so that judged without them the epoch is best that passes most of their effect off as
    the items'.

    Around the common loop it sets what a loop cannot: the scale of regression objectives or the mean weight of a row
    before, and what residuals and mean predictions tell after, all from ``rows``. Without a balancer the (weighted) sum
    of the losses is minimised.

    Raises:
        InputError: an objective never happens where its parent did, though it does elsewhere; a regression objective
            has no value in its space, or a negative one; the rows lack what the model's side reads; lists are needed,
            and there are none or one is longer than a batch; or the checkpoint is damaged or belongs to another
            training.
        FloatingPointError: the loss is not finite.
    """
    if isinstance(model, OneScoreModel):
        model.fit_loss(rows.labels)
        metric = (mean_gauc if model.relative else mean_auc)(rows.schema)
        result = fit(model, rows, valid, config, metric, checkpoint)
        if not model.relative:
            model.fit_scales(_outputs(model, rows), rows.labels)
        return result
    model.check_spaces(rows.labels)
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
def _outputs(model: MultiObjectiveModel | OneScoreModel, rows: Rows, batch_size: int = 8192) -> np.ndarray:
    device = next(model.parameters()).device
    return np.concatenate([model(batch.to(device)).cpu().numpy() for batch in rows.batches(batch_size)])
