"""Every embedding that a search can find goes with every set of interactions that another one can find.

A new kind is one more entry of ``EMBEDDINGS`` or ``INTERACTIONS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from ctrmodels.archspec import (
    Alloc,
    ArchSpec,
    Cost,
    FieldDimMask,
    Group,
    Interaction,
    PerField,
    Uniform,
    all_combinations,
    all_pairs,
    merge,
    model_fields,
)
from ctrmodels.data.dataset import Rows
from ctrmodels.errors import InputError
from ctrmodels.multitask import ModelConfig, build_model
from ctrmodels.nn.encoder import build_embedding
from ctrmodels.nn.micronet import cost_of
from ctrmodels.search import Host, SearchRows, random_control, retrain
from ctrmodels.search.controls import TOLERANCE
from ctrmodels.training import TrainConfig
from ctrmodels.training.trainer import Trainer
from tests.support.served_models import ALLOCS, DIM, SCHEMA, draw, histories

HOST = Host("click", dim=DIM, hidden=(8,), train=TrainConfig(epochs=1, batch_size=64, learning_rate=0.05, device="cpu"))
FIELDS = len(model_fields(SCHEMA))
PAIRS, TRIPLES = all_pairs(SCHEMA), all_combinations(SCHEMA, 3)
EMBEDDINGS: Mapping[str, Alloc] = ALLOCS
INTERACTIONS: Mapping[str, dict[str, Any]] = {
    "none": {"interactions": ()},
    "pairs": {"interactions": PAIRS[::2]},
    "triples_of_the_same_embedding": {"interactions": PAIRS[:3] + TRIPLES[::3]},
    "triples_of_their_own": {"interactions": PAIRS[:3] + tuple(replace(t, table="third") for t in TRIPLES[::3]),
                             "tables": {"third": Uniform(4)}},
    "kernels": {"interactions": (
        *(Interaction(pair.fields, op) for op in ("vector_kernel", "scalar_kernel", "outer") for pair in PAIRS[:4]),
        *(Interaction(triple.fields, op, table="third") for op in ("vector_kernel", "scalar_kernel", "outer")
          for triple in TRIPLES[::4])), "tables": {"third": PerField((2, 5, 3, DIM))}},
    "pruned_tables": {"interactions": tuple(replace(pair, table="second") for pair in PAIRS[::3]),
                      "tables": {"second": FieldDimMask(np.random.default_rng(3).random((4, DIM)) < 0.6)}},
    "micronets": {"interactions": PAIRS[:2] + tuple(
        Interaction(fields, "micronet", genes=genes) for fields, genes in (
            ((0, 1), (2,)), ((1, 3), (3, 1, 3)), ((2, 4), (4, 3, 1, 1)), ((0, 2, 3), (1, 4))))},
    "groups": {"interactions": PAIRS[:2], "tables": {"order2": Uniform(3), "order3": Uniform(5)},
               "groups": (Group((0, 2), 1), Group((0, 1, 4), 2, "order2"), Group((1, 2, 3), 3, "order3"),
                          Group((0, 3, 4), 3, "order3", 0.5, "code"))},
}


def embedding(name: str) -> ArchSpec:
    return ArchSpec.of(SCHEMA, f"embedding_{name}", DIM, alloc=EMBEDDINGS[name])


def interaction(name: str) -> ArchSpec:
    return ArchSpec.of(SCHEMA, f"interaction_{name}", DIM, **INTERACTIONS[name])


def rows(n: int, seed: int = 0) -> Rows:
    rng, drawn = np.random.default_rng(seed), draw(n)
    click = rng.random(n) < 0.5
    buy = click & (rng.random(n) < 0.5)
    dwell = np.where(click, rng.exponential(5.0, n), np.nan)
    zeros = np.zeros(n, np.int64)
    return Rows.of(SCHEMA, drawn["ids"], drawn["numeric"], histories(drawn),
                   np.stack([click, buy, dwell], 1).astype(np.float32), zeros.astype(np.int32), zeros, zeros)


def host_cost(spec: ArchSpec) -> Cost:
    return HOST.build(SCHEMA, spec).cost()


@pytest.fixture(params=[(e, i) for e in EMBEDDINGS for i in INTERACTIONS], ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


def test_every_kind_of_embedding_takes_part() -> None:
    assert {type(alloc) for alloc in EMBEDDINGS.values()} == set(get_args(Alloc))


def test_two_specs_are_one_that_survives_its_file(pair: tuple[str, str], tmp_path: Path) -> None:
    first, second = embedding(pair[0]), interaction(pair[1])
    both = merge(first, second)
    assert both.id == merge(second, first).id == replace(HOST, embedding=first).complete(second, SCHEMA).id
    both.save(tmp_path)
    loaded = ArchSpec.load(tmp_path)
    assert loaded.id == both.id
    assert (loaded.interactions, loaded.groups, set(loaded.tables)) == (
        second.interactions, second.groups, set(second.tables))
    assert host_cost(loaded) == host_cost(both)


def test_it_costs_the_sum_of_its_parts(pair: tuple[str, str]) -> None:
    """What interactions add does not depend on the embedding, and is what their own tables, gates and kernels take."""
    second = interaction(pair[1])
    added = _difference(host_cost(merge(embedding(pair[0]), second)),
                        host_cost(merge(embedding(pair[0]), interaction("none"))))
    assert added == _difference(host_cost(merge(embedding("uniform"), second)),
                                host_cost(merge(embedding("uniform"), interaction("none"))))
    tables = [build_embedding(SCHEMA, alloc, DIM) for alloc in second.tables.values()]
    assert added["parameters_embedding"] == sum(t.stored_values() for t in tables)
    kernels = sum({"vector_kernel": _width(second, i), "scalar_kernel": 1}.get(i.op, 0) for i in second.interactions)
    vectors = sum(order * width for order, width in {
        (i.table, i.order): (i.order, _width(second, i)) for i in second.interactions if i.op == "outer"}.values())
    weights = sum(FIELDS if g.compensation == "code" else len(g.fields) for g in second.groups)
    appended = sum(DIM if g.order == 1 else 1 for g in second.groups) + DIM * len(second.micronets)
    inputs = -(-appended // 8) * 8  # of the MLP
    nets = sum(cost_of(i.genes, i.order, DIM)[0] for i in second.micronets)
    assert added["parameters_other"] == (len(second.products) + kernels + vectors + weights + nets
                                         + HOST.hidden[0] * inputs)
    assert added["bytes"] == 4 * (added["parameters_embedding"] + added["parameters_other"])
    if pair[1] == "pairs":
        assert added["flops"] == len(second.interactions) * (2 * DIM + 2)


def _width(spec: ArchSpec, i: Interaction) -> int:
    return build_embedding(SCHEMA, spec.tables[i.table], DIM).dim if i.table else DIM


def _difference(more: Cost, less: Cost) -> dict[str, int]:
    return {name: value - getattr(less, name) for name, value in vars(more).items()}


@pytest.mark.parametrize("model", ["autodeepfm", "mmoe"])
def test_it_is_built_and_every_part_of_it_learns(pair: tuple[str, str], model: str) -> None:
    spec = merge(embedding(pair[0]), interaction(pair[1]))
    torch.manual_seed(0)
    data = rows(64)
    if model == "autodeepfm":
        network: Any = HOST.build(SCHEMA, spec)
    else:
        network = build_model(model, SCHEMA, spec, ModelConfig((8,), (6,)))
        network.fit_targets(data.labels)
    trainer = Trainer(network, HOST.train)
    batch = data.parts[0].read(0, 64)
    losses = [float(trainer.step(batch)) for _ in range(2)]  # what starts at zero gives others a gradient from then on
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    losses += [float(trainer.step(batch)) for _ in range(6)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    still = [name for name, p in network.named_parameters() if p.numel() and torch.equal(p, before[name])]
    assert still == []


@pytest.mark.parametrize("name", ["schema_hash", "vocab_hash", "roles_hash", "out_dim"])
@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_what_was_found_on_another_log_or_width_is_refused(kind: str, name: str) -> None:
    other = replace(interaction("triples_of_their_own"), **{name: DIM + 1 if name == "out_dim" else "0" * 64})
    with pytest.raises(InputError, match=name):
        merge(embedding(kind), other)
    with pytest.raises(InputError, match=name):
        replace(HOST, embedding=embedding(kind)).complete(other, SCHEMA)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_two_sets_of_interactions_or_two_embeddings_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="interactions"):
        merge(interaction("pairs"), interaction(name))
    with pytest.raises(InputError, match="alloc"):
        merge(embedding("uniform"), merge(embedding("mask"), interaction(name)))


def test_a_retraining_refuses_another_log_before_it_begins() -> None:
    spec = replace(merge(embedding("per_bucket"), interaction("kernels")), vocab_hash="0" * 64)
    with pytest.raises(InputError, match="vocab_hash"):
        retrain(spec, SearchRows(rows(64), rows(64)), rows(64), HOST, 0)


@pytest.mark.parametrize("name", [n for n in INTERACTIONS if n != "none"])
def test_the_random_control_of_the_interactions_goes_with_the_embedding_too(name: str) -> None:
    second = interaction(name)
    drawn = random_control(second, SCHEMA, 1)
    assert drawn.alloc is None
    for kind in ("per_field", "central"):
        found, random = (host_cost(merge(embedding(kind), spec)) for spec in (second, drawn))
        assert random.parameters == pytest.approx(found.parameters, rel=TOLERANCE)  # masks are drawn within it
        assert random.bytes == pytest.approx(found.bytes, rel=TOLERANCE)
