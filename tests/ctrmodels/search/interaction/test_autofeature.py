"""AutoFeature finds the pairs that need a micro-network; random genomes and micro-networks without products do not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest
import torch

from ctrmodels.archspec import all_pairs
from ctrmodels.data.planted import Planted, planted_pairs, planted_triples
from ctrmodels.errors import InputError
from ctrmodels.multitask import ModelConfig, build_model
from ctrmodels.search import AutoFeature, Host, SearchRows, random_control, retrain
from ctrmodels.search.base import Found
from ctrmodels.search.controller import Breeding
from ctrmodels.training import TrainConfig
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer

HOST = Host("click", dim=8, hidden=(), train=TrainConfig(epochs=3, batch_size=100, learning_rate=0.05, device="cpu"))
SMALL = AutoFeature(slots=3, evaluations=14, tie_break=0.01, breeding=Breeding(initial=6, rebuild=4))


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
    assert judged[0] == judged[1] and judged[0][1] == pytest.approx(7 + 2 / 3)
    assert replace(SMALL, epochs=1.5)._judge(nets, rows_of(small()), HOST, 1)[1] == pytest.approx(21 + 2 / 3)


def test_a_killed_search_goes_on_to_the_same_result(tmp_path, monkeypatch):
    path, step, taken = tmp_path / "search.safetensors", Trainer.step, []

    class KilledError(Exception):
        pass

    def dying(self, batch):
        taken.append(self.taken)
        if len(taken) > 14 * 9 + 5:
            raise KilledError
        return step(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Trainer, "step", dying)
        SMALL.search(rows_of(small()), HOST, 1, Checkpoint(path))
    taken.clear()
    torch.manual_seed(5)
    monkeypatch.setattr(Trainer, "step", lambda self, batch: taken.append(self.taken) or step(self, batch))
    again = SMALL.search(rows_of(small()), HOST, 1, Checkpoint(path))
    assert len(taken) == 14 * 5  # the evaluations that were done are not done again
    assert again.trace == found().trace and again.steps == found().steps
    assert again.specs["autofeature"].id == found().specs["autofeature"].id
    with pytest.raises(InputError, match="slots"):
        replace(SMALL, slots=2).search(rows_of(small()), HOST, 1, Checkpoint(path))


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
