"""AutoFeature finds planted pairs and leaves out others (calibrated); it does not blindly, nor without paring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch

from ctrmodels.archspec import all_pairs
from ctrmodels.data.planted import Planted, planted_pairs, planted_triples
from ctrmodels.errors import InputError
from ctrmodels.multitask import ModelConfig, build_model
from ctrmodels.search import AutoFeature, Host, SearchRows, random_control, retrain
from ctrmodels.search.base import Found
from ctrmodels.search.controller import Breeding
from ctrmodels.search.interaction.autofeature import Judgement
from ctrmodels.training import TrainConfig
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer

HOST = Host("click", dim=8, hidden=(), train=TrainConfig(epochs=3, batch_size=100, learning_rate=0.05, device="cpu"))
SMALL = AutoFeature(slots=3, evaluations=14, tie_break=0.01, pare=None, breeding=Breeding(initial=6, rebuild=4))

# Evaluations long enough for products of small embeddings to grow: in one pass of batches of 100 at a rate of .05 they
# do not, and a genome's AUC is as much chance as it is the genome.
LEARNS = Host("click", dim=8, hidden=(), train=TrainConfig(
    epochs=8, batch_size=500, learning_rate=0.01, table_learning_rate=0.05, device="cpu"))
SEARCH = AutoFeature(slots=2, evaluations=48, epochs=4, tie_break=0.02, breeding=Breeding(initial=16, rebuild=8))


def rows_of(log: Planted) -> SearchRows:
    return SearchRows(log.roles["train"], log.roles["arch"])


@cache
def small() -> Planted:
    return planted_pairs(0, rows=2000, fields=4, pairs=2)


@cache
def found() -> Found:
    return SMALL.search(rows_of(small()), HOST, 1)


def test_the_spec_is_the_best_genome_and_the_trace_has_all():
    spec, *judged, last = found().specs["autofeature"], *found().trace
    assert len(judged) == 14 and last["best"] == max(range(14), key=lambda k: judged[k]["score"])
    best = judged[last["best"]]
    assert best["kept"] == len(spec.interactions) > 0 and spec.alloc is None
    assert {i.op for i in spec.interactions} == {"micronet"}
    assert {i.fields for i in spec.interactions} <= {i.fields for i in all_pairs(small().schema)}
    assert all(1 <= len(i.genes) <= 3 for i in spec.interactions)
    assert best["operations"] == sum(len(i.genes) for i in spec.interactions)
    assert all(e["score"] == pytest.approx(e["auc"] - 0.01 * e["operations"] / 18) for e in judged)
    assert [e["leaf"] for e in judged[:6]] == [None] * 6 and any(e["leaf"] is not None for e in judged[6:])
    assert found().steps == pytest.approx(14 * (14 + 2 / 3))  # an epoch of 1,400 rows, and a pass over 200


def test_evaluations_of_one_genome_agree_and_a_part_of_an_epoch_is_enough():
    nets = list(found().specs["autofeature"].interactions)
    half = replace(SMALL, epochs=0.5)
    judged = [half._judge(nets, rows_of(small()), HOST, 1) for _ in range(2)]
    assert judged[0].loss_of(judged[1]) == (0.0, 0.0) and judged[0].steps == pytest.approx(7 + 2 / 3)
    assert replace(SMALL, epochs=1.5)._judge(nets, rows_of(small()), HOST, 1).steps == pytest.approx(21 + 2 / 3)


@pytest.mark.parametrize("killed_in", [9, 17], ids=["breeding", "paring"])
def test_a_killed_search_goes_on_to_the_same_result(killed_in, tmp_path, monkeypatch):
    """Of 14 evaluations, one of the best genome, and one per micro-network of it; 14 steps each."""
    method, path, step, taken = replace(SMALL, pare=1.0), tmp_path / "search.safetensors", Trainer.step, []
    whole = method.search(rows_of(small()), HOST, 1)

    class KilledError(Exception):
        pass

    def dying(self, batch):
        taken.append(self.taken)
        if len(taken) > 14 * killed_in + 5:
            raise KilledError
        return step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Trainer, "step", dying)
        method.search(rows_of(small()), HOST, 1, Checkpoint(path))
    taken.clear()
    torch.manual_seed(5)
    monkeypatch.setattr(Trainer, "step", lambda self, batch: taken.append(self.taken) or step(self, batch))
    again = method.search(rows_of(small()), HOST, 1, Checkpoint(path))
    again_too = killed_in > 14  # the best genome, that the others are compared with
    assert len(taken) == 14 * (len(whole.trace) - killed_in + again_too)
    assert again.trace == whole.trace and again.steps == whole.steps
    assert again.specs["autofeature"].id == whole.specs["autofeature"].id
    with pytest.raises(InputError, match="slots"):
        replace(method, slots=2).search(rows_of(small()), HOST, 1, Checkpoint(path))


def test_what_hardly_costs_anything_is_pared_away():
    """The best genome's micro-networks, the weakest first, as long as the loss stays within the error."""
    whole = replace(SMALL, pare=1.0).search(rows_of(small()), HOST, 1)
    judged, pared = whole.trace[:14], whole.trace[14:-1]
    assert judged == found().trace[:14]
    networks = found().specs["autofeature"].interactions
    assert [tuple(p["without"]) for p in pared] == [i.fields for i in sorted(networks, key=lambda i: i.strength)]
    assert all(p["left_out"] == (p["lost"] <= p["error"]) and p["error"] > 0 for p in pared)
    left_out = {tuple(p["without"]) for p in pared if p["left_out"]}
    assert whole.specs["autofeature"].interactions == tuple(i for i in networks if i.fields not in left_out)
    assert whole.steps == pytest.approx((14 + 1 + len(networks)) * (14 + 2 / 3))
    all_out = replace(SMALL, pare=1e6).search(rows_of(small()), HOST, 1).specs["autofeature"]
    assert all_out.interactions == random_control(all_out, small().schema, 0).interactions == ()


@dataclass(frozen=True)
class Outcome:
    """Of one search.

    Attributes:
        recall: share of the planted pairs that have a micro-network.
        left_out: share of the other pairs that have none.
        learned: mean AUC on ``arch`` of the last 20 genomes, less that of the first 20, most of which are random.
    """

    recall: float
    left_out: float
    learned: float


@cache
def outcome(method: AutoFeature, seed: int) -> Outcome:
    log = planted_pairs(seed, rows=20_000, fields=6, pairs=3)
    result, truth = method.search(rows_of(log), LEARNS, seed), set(log.truth["pairs"])
    kept = {i.fields for i in result.specs["autofeature"].interactions}
    judged = [e["auc"] for e in result.trace if "auc" in e]
    return Outcome(len(kept & truth) / len(truth), 1 - len(kept - truth) / (len(all_pairs(log.schema)) - len(truth)),
                   float(np.mean(judged[-20:]) - np.mean(judged[:20])))


@dataclass(frozen=True)
class Blind(AutoFeature):
    """Stub: the AUC of every genome is drawn."""

    def _judge(self, interactions, rows, host, seed) -> Judgement:
        rng = np.random.default_rng([seed, *(v for i in interactions for v in (*i.fields, *i.genes))])
        return Judgement(rng.normal(0.7, 0.5, len(rows.arch)), 1.0)


def assert_finds_the_pairs(method: AutoFeature, seeds: Sequence[int]) -> None:
    """Every planted pair, and the rest in the mean over the seeds.

    Measured over five in a first run, by which the bars were set: .92, .92, .67, .75 and 1 of the other pairs left out;
    .08, .17, .08, .33 and .25 before paring. The last genomes were .087 ahead in the mean, of random ones .003.
    """
    outcomes = [outcome(method, seed) for seed in seeds]
    assert min(o.recall for o in outcomes) == 1
    assert np.mean([o.left_out for o in outcomes]) >= 0.5
    assert np.mean([o.learned for o in outcomes]) >= 0.04


@pytest.mark.slow
def test_the_planted_pairs_are_found_over_five_seeds():
    assert_finds_the_pairs(SEARCH, range(5))


@pytest.mark.parametrize("seeds", [[0], pytest.param(range(5), marks=pytest.mark.slow)], ids=["one log", "five logs"])
def test_a_search_that_sees_nothing_fails_the_same_test(seeds):
    with pytest.raises(AssertionError):
        assert_finds_the_pairs(Blind(SEARCH.triples, SEARCH.slots, SEARCH.evaluations, SEARCH.epochs), seeds)


@pytest.mark.slow
def test_the_best_genome_as_it_is_fails_the_same_test():
    """The paper's result: what a genome has beside the planted pairs hardly changes its AUC."""
    with pytest.raises(AssertionError):
        assert_finds_the_pairs(replace(SEARCH, pare=None), [0])


@pytest.mark.slow
def test_random_genomes_fail_the_same_test():
    """Pared, the best of them leaves out as much; but they do not become better, and it misses a pair on one log."""
    with pytest.raises(AssertionError):
        assert_finds_the_pairs(replace(SEARCH, breeding=Breeding(initial=10**6)), range(5))


def test_it_is_retrained_beside_its_control_and_in_multi_objective_models():
    spec, log = found().specs["autofeature"], small()
    control = random_control(spec, log.schema, 0)
    trained = [retrain(s, rows_of(log), log.roles["valid"], HOST, 0) for s in (spec, control)]
    assert trained[0].cost == trained[1].cost
    model = build_model("mmoe", log.schema, HOST.complete(spec, log.schema), ModelConfig((8,), (4,)))
    model.loss(log.roles["train"].take(slice(0, 100))).backward()
    assert model.encoder.micronets.width == HOST.dim * len(spec.interactions)


def test_other_hosts_are_refused():
    with pytest.raises(ValueError, match="autodeepfm or autoipnn, not deepfm"):
        SMALL.search(rows_of(small()), replace(HOST, model="deepfm"), 0)


def test_triples_take_part_by_what_their_pairs_say():
    log = planted_triples(0, rows=20_000, hidden=1)
    fields = replace(SMALL, triples=12).combinations(rows_of(log), HOST, 0)
    assert len(fields) == 45 + 12 and fields[:45] == [i.fields for i in all_pairs(log.schema)]
    assert set(log.truth["triples"]) <= set(fields)
    assert not set(log.truth["hidden"]) & set(fields)  # none of its pairs says anything
    assert replace(SMALL, triples=120).combinations(rows_of(log), HOST, 0)[45:] == list(combinations(range(10), 3))


def test_a_search_with_triples_makes_micro_networks_of_both_orders():
    method = replace(SMALL, triples=2, evaluations=4, epochs=0.3)
    judged = method.search(rows_of(small()), HOST, 0)
    spec = judged.specs["autofeature"]
    assert {i.order for i in spec.interactions} <= {2, 3}
    assert len(judged.trace) == 5
