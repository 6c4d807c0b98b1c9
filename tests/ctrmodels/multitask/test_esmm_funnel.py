"""ESMM on a funnel whose truth is known: clicks of 12 %, and clickbait items that convert less.

What is asserted is what the entire-space model promises: joint scores as good as those of a conversion model
trained on clicks, and a conversion score that means something on rows that nobody clicked. It is not asserted
that ESMM ranks clicked rows better than the masked model; it does not on this data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted import Planted, planted_funnel
from ctrmodels.multitask import Chain, Event, Factor, ModelConfig, build_model, esmm, independent
from ctrmodels.multitask.evaluation import evaluate_scores
from ctrmodels.multitask.train import train
from ctrmodels.training import TrainConfig, predict, seed_everything


class Outcome(NamedTuple):
    joint_auc: float
    calibration: float  # sum of joint scores over conversions, on test
    correlation: float  # of the conversion score with the true probability, on all rows
    mean_ratio: float  # mean conversion score over the mean true probability, on all rows


def heads_on_all_rows() -> Chain:
    """The common mistake: the conversion head itself is trained on all rows, with the joint label."""
    return Chain(tuple(Event(n, "all", ((Factor(n),),)) for n in ("click", "conversion")),
                 supervised=("click@all", "conversion@all"))


def outcome(data: Planted, seed: int, trained_with: Chain | None = None, epochs: int = 6) -> Outcome:
    """Train the two towers under a chain, ESMM's by default, and score them as ESMM does."""
    seed_everything(seed)
    model = build_model("esmm", data.schema, ArchSpec.dense(data.schema, 8), ModelConfig((32,), (), l2=1e-3))
    model.chain = trained_with or model.chain
    train(model, Rows.concatenate([data.roles["train"], data.roles["arch"]]), data.roles["valid"],
          TrainConfig(epochs=epochs, batch_size=512, learning_rate=5e-3, device="cpu", seed=seed))
    model.chain = esmm(data.schema.objectives)
    test, truth = data.roles["test"], data.truth["probability"]["conversion@click"]["test"]
    scores = predict(model, test)
    found = evaluate_scores(data.schema, test.labels, scores, test.group)
    return Outcome(found["auc.conversion@all"], found["calibration.conversion@all"],
                   float(np.corrcoef(scores["conversion@click"], truth)[0, 1]),
                   float(scores["conversion@click"].mean() / truth.mean()))


def holds(found: Outcome) -> bool:
    """What ESMM promises on this data. Over five seeds it lies at .80 to .99, .29 to .40 and 1.10 to 1.24; the common
    mistake at .16 to .18, .10 to .17 and .16 to .17."""
    return 0.75 <= found.calibration <= 1.25 and found.correlation >= 0.25 and 0.75 <= found.mean_ratio <= 1.5


def test_esmm_scores_conversions_on_all_rows_and_the_common_mistake_does_not() -> None:
    data = planted_funnel(0)
    right = outcome(data, 0, epochs=3)
    assert holds(right) and right.joint_auc > 0.67, right
    wrong = outcome(data, 0, heads_on_all_rows(), epochs=3)
    assert not holds(wrong), wrong
    assert wrong.mean_ratio < 0.4 and wrong.calibration < 0.4, wrong


@pytest.mark.slow
def test_esmm_keeps_its_promises_beside_a_masked_conversion_model() -> None:
    behind = []
    for seed in range(5):
        data = planted_funnel(seed)
        right, masked = outcome(data, seed), outcome(data, seed, independent(data.schema.objectives))
        assert holds(right), (seed, right)
        assert right.mean_ratio < masked.mean_ratio, "conversions on clicked rows overstate those on all rows"
        assert not holds(outcome(data, seed, heads_on_all_rows()))
        behind.append(masked.joint_auc - right.joint_auc)
    assert np.mean(behind) <= 0.005, behind  # one seed varies by a point of AUC
