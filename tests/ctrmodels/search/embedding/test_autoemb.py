"""AutoEmb's widths follow popularity (calibrated); shuffled popularity and constant widths do not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

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
        there = occurrences > 0
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
        order = np.concatenate([rng.permutation(np.arange(a, b)) for a, b in pairwise(self.bounds.tolist())])
        self.occurrences = true[torch.from_numpy(order)]
        found = super().alphas(rows, spaces)
        self.occurrences = true
        return found


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_expected_width_follows_popularity(seeds):
    """Measured, seeds 0 to 4: users 0.56, 0.53, 0.51, 0.52, 0.498; items 0.81, 0.83, 0.82, 0.81, 0.82.

    Users are near the threshold because most of them are in one bucket, where all have one width: they are ties.
    """
    found = [correlations(streamed(planted_stream(seed), seed)[0].embedding) for seed in range(seeds)]
    assert_width_follows_popularity(found)


@pytest.mark.parametrize("seeds", SEEDS)
def test_neither_shuffled_popularity_nor_a_constant_width_passes(seeds, monkeypatch):
    """Measured with shuffled popularity, seeds 0 to 4: -0.08 to 0.03."""
    logs = [planted_stream(seed) for seed in range(seeds)]
    stub = replace(SEARCH, learning_rate=0.0)
    constant = [correlations(streamed(log, seed, stub)[0].embedding) for seed, log in enumerate(logs)]
    monkeypatch.setattr(autoemb, "PopularityMixture", Shuffled)
    shuffled = [correlations(streamed(log, seed)[0].embedding) for seed, log in enumerate(logs)]
    assert np.abs(shuffled).max() < 0.2
    for found in (constant, shuffled):
        with pytest.raises(AssertionError):
            assert_width_follows_popularity(found)


@pytest.mark.slow
def test_controllers_that_learn_from_rows_just_learnt_do_not_pass():
    """The batch before, as in public code: rare ids seem to need width. Measured, seeds 0 to 4: users
    0.48, 0.42, 0.42, 0.43, 0.36; items 0.74 to 0.83.
    """
    settings = replace(SEARCH, decide_on="previous")
    found = [correlations(streamed(planted_stream(seed), seed, settings)[0].embedding) for seed in range(5)]
    with pytest.raises(AssertionError):
        assert_width_follows_popularity(found)


@pytest.mark.parametrize("seeds", SEEDS)
def test_predictions_ahead_are_better_than_with_either_width_alone(seeds):
    """Measured log-loss, seeds 0 to 4: 0.647, 0.600, 0.605, 0.597, 0.629; smallest alone 0.669, 0.631,
    0.631, 0.629, 0.653; largest alone 0.662, 0.616, 0.614, 0.617, 0.649.
    """
    for seed in range(seeds):
        log = planted_stream(seed)
        ours, narrow, wide = (streamed(log, seed, replace(SEARCH, candidates=c))[1]["logloss"]
                              for c in ((2, 16), (2,), (16,)))
        assert ours < min(narrow, wide)


@pytest.mark.parametrize("seeds", SEEDS)
def test_an_id_that_becomes_frequent_is_given_width(seeds):
    """Measured over the second half, seeds 0 to 4: users 5.9 to 9.7, 4.5 to 10.5, 6.5 to 11.6, 5.2 to 10.2, 5.1 to
    10.7; items 7.1 to 10.8, 5.6 to 11.8, 8.2 to 10.6, 4.8 to 10.9, 6.7 to 10.2.
    """
    for seed in range(seeds):
        log = planted_stream(seed)
        batches = list(stream(whole(log), HOST.train.batch_size))
        seed_everything(seed)
        model = StreamingAutoEmb(log.schema, HOST, SEARCH)
        ids = [log.schema.offsets[name] + i for name, i in log.truth["switched"].items()]
        model.run(batches[:len(batches) // 2])
        before = model.embedding.expected_widths()[ids]
        model.run(batches[len(batches) // 2:])
        assert torch.all(model.embedding.expected_widths()[ids] > before + 1)


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_static_form_retrains_better_than_random_widths(seeds):
    """Measured AUC, seeds 0 to 4: 0.684, 0.762, 0.775, 0.759, 0.745; mean of three random controls each: 0.676, 0.759,
    0.773, 0.755, 0.720.
    """
    for seed in range(seeds):
        log = planted_stream(seed)
        spec = SEARCH.search(rows_of(log), HOST, seed).specs["autoemb"]
        auc = retrain(spec, rows_of(log), log.roles["valid"], RETRAINED, seed).valid["auc"]
        assert auc >= mean_random(spec, log, seed)
        turned = replace(spec, alloc=replace(spec.alloc, dims=tuple(d[::-1] for d in spec.alloc.dims)))
        assert retrain(turned, rows_of(log), log.roles["valid"], RETRAINED, seed).valid["auc"] < auc


class Watched(StreamingAutoEmb):
    """Keeps the occurrences that every batch's prediction and learning found."""

    def step(self, batch):
        self.found = []
        alphas = self.embedding.alphas

        def watch(rows, spaces):
            self.found.append((rows.clone(), self.embedding.occurrences[rows].clone()))
            return alphas(rows, spaces)

        self._settle()
        self.embedding.alphas = watch
        scores = super().step(batch)
        self.embedding.alphas = alphas
        return scores


@pytest.mark.parametrize("decide_on", ["incoming", "previous"])
def test_popularity_is_what_occurred_in_earlier_batches(decide_on):
    log = planted_stream(0, rows=2000)
    rows, size = log.roles["train"], 100
    model = Watched(log.schema, HOST, replace(SEARCH, decide_on=decide_on, context=True))
    offsets = np.array([log.schema.offsets[f.name] for f in log.schema.id_fields])
    for n, batch in enumerate(stream(rows, size)):
        model.step(batch)
        before = np.bincount((rows.ids[:n * size] + offsets).ravel(), minlength=log.schema.total_vocab)
        for ids, occurrences in model.found:
            assert np.array_equal(occurrences.numpy(), before[ids.numpy()])
    assert model.found


def test_rows_come_in_the_order_of_their_time():
    log = planted_stream(0, rows=1000)
    rows, order = log.roles["train"], np.random.default_rng(0).permutation(700)
    mixed = in_memory(log.schema, rows.ids[order], rows.labels[order], time=rows.time[order])
    ids = torch.cat([batch.ids for batch in stream(mixed, 64)])
    assert np.array_equal(ids.numpy(), rows.ids)


def test_every_candidate_is_normalised_by_itself():
    log = planted_stream(0, rows=4000)
    batch = log.roles["train"].take(slice(0, 500))

    def statistics(scale):
        torch.manual_seed(0)
        model = StreamingAutoEmb(log.schema, HOST, AutoEmb(candidates=(2, 8)))
        with torch.no_grad():
            model.embedding.projections[0].mul_(scale)
        model.network(batch)
        return model.embedding.norm.variance.view(2, 2, 16)

    variance, larger = statistics(1.0), statistics(1000.0)
    assert torch.allclose(variance[:, 1], larger[:, 1]) and not torch.allclose(variance[:, 0], larger[:, 0], rtol=0.01)


@pytest.mark.parametrize("context", [True, False])
def test_alphas_sum_to_one_and_what_was_observed_carries_no_gradient(context):
    log = planted_stream(0, rows=3000)
    model = StreamingAutoEmb(log.schema, HOST, replace(SEARCH, context=context, learning_rate=0.01))
    assert torch.equal(model.embedding.last_alpha[:, 0], torch.ones(log.schema.total_vocab))
    assert torch.all(model.embedding.last_loss == 1)
    model.run(stream(log.roles["train"], 200))
    embedding = model.embedding
    assert torch.allclose(embedding.present_alphas().sum(1), torch.ones(log.schema.total_vocab))
    for name in ("occurrences", "last_alpha", "last_loss"):
        assert not getattr(embedding, name).requires_grad
    moved = (embedding.last_loss != 1).any() and (embedding.last_alpha[:, 0] != 1).any()
    assert bool(moved) == context
    assert int(embedding.occurrences.sum()) == 2 * len(log.roles["train"])


def test_unknown_labels_are_occurrences_but_not_losses():
    log = planted_stream(0, rows=3000)
    batch = log.roles["train"].take(slice(0, 200))
    batch.labels[:] = float("nan")
    model = StreamingAutoEmb(log.schema, HOST, replace(SEARCH, context=True))
    model.step(batch)
    model._settle()
    assert torch.all(model.embedding.last_loss == 1)
    assert int(model.embedding.occurrences.sum()) == 400


def test_only_ids_with_a_popularity_take_part():
    schema = Schema(
        (Field("item", "categorical", 200, "item"), Field("age", "numeric", 150), Field("sex", "categorical", 3),
         Field("history", "sequence", 200, "user", of="item", max_length=4)),
        (Objective("click"),), {}, vocab_hash="v", roles_hash="r")
    mixture = PopularityMixture(schema, (2, 8), 8)
    assert mixture.taking == [True, False, False] and mixture.counted.tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="no id space"):
        PopularityMixture(schema, (2, 8), 8, min_vocab=1000)


def test_the_spec_has_a_bucket_per_popularity_and_the_same_seed_gives_it_again():
    log = planted_stream(0, rows=4000)
    first, again = (SEARCH.search(rows_of(log), HOST, 3) for _ in range(2))
    assert first.specs["autoemb"].id == again.specs["autoemb"].id and first.trace == again.trace
    alloc = first.specs["autoemb"].alloc
    assert isinstance(alloc, PerBucket)
    for field, cuts in zip(log.schema.id_spaces, alloc.cuts, strict=True):
        start = log.schema.offsets[field.name]
        places = bucket(torch.from_numpy(log.counts[start:start + field.vocab])).numpy()
        assert np.array_equal(np.flatnonzero(np.diff(places)) + 1, cuts)


def test_a_candidate_wider_than_the_host_is_refused():
    log = planted_stream(0, rows=2000)
    with pytest.raises(ValueError, match="exceeds"):
        AutoEmb(candidates=(2, 32)).search(rows_of(log), HOST, 0)
