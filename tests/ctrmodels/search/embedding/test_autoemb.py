"""AutoEmb's widths follow popularity (calibrated); shuffled popularity and constant widths do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from ctrmodels.archspec import ArchSpec, PerBucket
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted import Planted, in_memory, planted_stream
from ctrmodels.data.schema import Field, Objective, Schema
from ctrmodels.data.stream import stream
from ctrmodels.search import AutoEmb, Host, SearchRows, StreamingAutoEmb, random_control, retrain
from ctrmodels.search.embedding import autoemb
from ctrmodels.search.popularity import PopularityMixture, bucket
from ctrmodels.training import TrainConfig
from ctrmodels.training.trainer import seed_everything

SEARCH = AutoEmb(every=1)
HOST = Host("click", model="fm", dim=16, train=TrainConfig(batch_size=200, learning_rate=1e-2))
RETRAINED = replace(HOST, train=TrainConfig(epochs=10, batch_size=500, learning_rate=5e-3))
SEEDS = [1, pytest.param(5, marks=pytest.mark.slow)]


def rows_of(log: Planted) -> SearchRows:
    return SearchRows(log.roles["train"], log.roles["arch"])


def whole(log: Planted) -> Rows:
    return Rows.concatenate(list(log.roles.values()))


def streamed(log: Planted, seed: int, settings: AutoEmb = SEARCH) -> tuple[StreamingAutoEmb, dict[str, float]]:
    """A model after all rows of ``log``, and its prequential metrics."""
    seed_everything(seed)
    model = StreamingAutoEmb(log.schema, HOST, settings)
    return model, model.run(stream(whole(log), HOST.train.batch_size))


def correlations(embedding: PopularityMixture) -> list[float]:
    """Of popularity and expected width by Spearman, over the ids that occurred: user's and item's."""
    found = []
    for space in range(2):
        part = slice(int(embedding.bounds[space]), int(embedding.bounds[space + 1]))
        occurrences = embedding.occurrences[part].numpy()
        widths = embedding.expected_widths()[part].detach().numpy()
        there = (occurrences > 0) & (widths > -1)
        constant = np.ptp(widths[there]) == 0
        found.append(0.0 if constant else float(spearmanr(occurrences[there], widths[there])[0]))
    return found


def assert_width_follows_popularity(found: list[list[float]]) -> None:
    """On both sides, in four seeds of five."""
    assert np.mean([min(sides) >= 0.5 for sides in found]) >= 0.8


def mean_random(spec: ArchSpec, log: Planted, seed: int) -> float:
    """Mean AUC of three random controls."""
    controls = [random_control(spec, log.schema, n) for n in range(3)]
    return float(np.mean([
        retrain(c, rows_of(log), log.roles["valid"], RETRAINED, seed).valid["auc"] for c in controls]))


class Shuffled(PopularityMixture):
    """Ablation: every id has the popularity of another one of its space."""

    def alphas(self, rows, spaces):
        true, rng = self.occurrences, np.random.default_rng(0)
        bounds = self.bounds.tolist()
        order = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)])
        self.occurrences = true[torch.from_numpy(order)]
        found = super().alphas(rows, spaces)
        self.occurrences = true
        return found
