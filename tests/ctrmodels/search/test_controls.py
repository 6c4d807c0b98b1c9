"""The random control costs what the searched architecture costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ctrmodels.archspec import (
    ArchSpec,
    CentralResidual,
    Cost,
    FieldDimMask,
    Group,
    Interaction,
    PerBucket,
    PerField,
    Uniform,
    ValueMask,
    all_combinations,
    all_pairs,
)
from ctrmodels.data.planted import planted_widths
from ctrmodels.search import Host, random_control
from ctrmodels.search.interaction.aim import dimensions_of_fields, lives

SCHEMA = planted_widths(0, rows=1000).schema
HOST = Host("click", dim=16)


def cost(spec: ArchSpec) -> int:
    return HOST.build(SCHEMA, HOST.complete(spec, SCHEMA)).cost().parameters_embedding


def host_cost(spec: ArchSpec) -> Cost:
    return HOST.build(SCHEMA, HOST.complete(spec, SCHEMA)).cost()


def test_random_widths_cost_the_same_within_two_percent_and_differ():
    spec = ArchSpec.of(SCHEMA, "x", 16, alloc=PerField((16, 16, 2, 2, 8, 2, 2, 2)), config={"candidates": (2, 8, 16)})
    draws = [random_control(spec, SCHEMA, seed) for seed in range(5)]
    for draw in draws:
        assert draw.alloc.dims != spec.alloc.dims
        assert cost(draw) == pytest.approx(cost(spec), rel=0.02)
    assert len({d.alloc.dims for d in draws}) > 1


@pytest.mark.parametrize("shared", [False, True])
def test_random_widths_of_buckets_cost_the_same_and_keep_the_buckets(shared: bool):
    n = len(SCHEMA.id_spaces)
    alloc = PerBucket(((10, 40),) * n, ((16, 8, 2),) * (n // 2) + ((8, 2, 0),) * (n - n // 2), shared)
    spec = ArchSpec.of(SCHEMA, "x", 16, alloc=alloc, config={"candidates": (0, 2, 8, 16)})
    for seed in range(3):
        draw = random_control(spec, SCHEMA, seed)
        assert draw.alloc.cuts == alloc.cuts and draw.alloc.shared == shared and draw.alloc.dims != alloc.dims
        assert cost(draw) == pytest.approx(cost(spec), rel=0.02)


def test_random_dimensions_cost_the_same_and_their_numbers_differ():
    mask = np.zeros((len(SCHEMA.id_spaces), 16), bool)
    mask[:3, :12] = mask[3:, 5:7] = True
    spec = ArchSpec.of(SCHEMA, "x", 16, alloc=FieldDimMask(mask))
    draw = random_control(spec, SCHEMA, 0)
    assert cost(draw) == pytest.approx(cost(spec), rel=0.02)
    assert sorted(draw.alloc.mask.sum(1)) != sorted(mask.sum(1))
    assert any(not row[:row.sum()].all() for row in draw.alloc.mask)  # not always the first dimensions


def test_a_random_mask_keeps_as_many_values_and_the_same_initial_ones():
    rng = np.random.default_rng(0)
    init = rng.random((SCHEMA.total_vocab, 16)).astype(np.float32)
    spec = ArchSpec.of(SCHEMA, "x", 16, alloc=ValueMask(init < 0.2, init))
    draw = random_control(spec, SCHEMA, 1)
    assert draw.alloc.mask.sum() == spec.alloc.mask.sum()
    assert not np.array_equal(draw.alloc.mask, spec.alloc.mask)
    assert draw.alloc.init is spec.alloc.init


def test_a_random_graph_has_the_same_edges_between_other_items():
    ids = np.arange(SCHEMA.id_spaces[0].vocab)
    near = np.stack([ids, ids + 1, ids + 2], 1).astype(np.int32)
    near[near >= len(ids)] = -1
    weights = np.where(near >= 0, ids[:, None] + 1, 0).astype(np.float32)
    spec = ArchSpec.of(SCHEMA, "x", 16, alloc=CentralResidual("field_0", near, weights, "gcn", 0.1))
    draw = random_control(spec, SCHEMA, 1)
    draw.alloc.check(SCHEMA)
    assert cost(draw) == cost(spec) == SCHEMA.total_vocab * 16
    place = draw.alloc.weights[:, 0].astype(int) - 1  # the item whose place in the graph each one has taken
    assert (place != ids).mean() > 0.9
    for item in ids:
        there = draw.alloc.neighbours[item] >= 0
        assert np.array_equal(place[draw.alloc.neighbours[item][there]], near[place[item]][there])
        assert np.array_equal(draw.alloc.weights[item], weights[place[item]])


def test_random_pairs_are_as_many_and_distinct():
    spec = ArchSpec.of(SCHEMA, "x", 16, interactions=all_pairs(SCHEMA)[:7])
    draw = random_control(spec, SCHEMA, 1)
    assert len({i.fields for i in draw.interactions}) == 7
    assert draw.interactions != spec.interactions


def test_equal_seeds_draw_the_same_and_a_uniform_width_has_no_control():
    spec = ArchSpec.of(SCHEMA, "x", 16, interactions=all_pairs(SCHEMA)[:7])
    assert random_control(spec, SCHEMA, 3).id == random_control(spec, SCHEMA, 3).id
    with pytest.raises(ValueError):
        random_control(ArchSpec.of(SCHEMA, "x", 16, alloc=Uniform(16)), SCHEMA, 0)


def interactions_of_every_kind() -> ArchSpec:
    triples = all_combinations(SCHEMA, 3)
    found = (*all_pairs(SCHEMA)[:5], *(replace(t, table="third", strength=0.3) for t in triples[::7]),
             *(Interaction(t.fields, "vector_kernel") for t in triples[:4]),
             *(Interaction(p.fields, "outer", table="third") for p in all_pairs(SCHEMA)[:3]),
             *(Interaction(p.fields, "scalar_kernel") for p in all_pairs(SCHEMA)[:3]),
             Interaction((0, 1, 2, 3), "inner"))
    return ArchSpec.of(SCHEMA, "x", 16, interactions=found, tables={"third": Uniform(4)},
                       groups=(Group((0, 1, 5), 2), Group((2, 3), 3, "third"), Group((4,), 1)))


def kinds(spec: ArchSpec) -> Counter:
    return Counter((i.op, i.order, i.table, i.genes) for i in spec.interactions)


def test_random_interactions_are_as_many_of_every_order_operation_and_embedding():
    spec = interactions_of_every_kind()
    for seed in range(3):
        draw = random_control(spec, SCHEMA, seed)
        assert kinds(draw) == kinds(spec)
        assert len({(i.op, i.table, i.fields) for i in draw.interactions}) == len(spec.interactions)
        assert all(list(i.fields) == sorted(set(i.fields)) for i in draw.interactions)
        assert {i.fields for i in draw.interactions} != {i.fields for i in spec.interactions}
        assert draw.tables == spec.tables
        assert [(len(g.fields), g.order, g.table) for g in draw.groups] == [(3, 2, ""), (2, 3, "third"), (1, 1, "")]


def test_random_interactions_cost_the_same_and_triples_within_their_shared_products():
    """Triples of the same first two fields compute these fields' product once, so that others differ by a few."""
    spec = replace(interactions_of_every_kind(), groups=())
    built = HOST.build(SCHEMA, HOST.complete(spec, SCHEMA)).cost()
    for seed in range(3):
        cost = HOST.build(SCHEMA, HOST.complete(random_control(spec, SCHEMA, seed), SCHEMA)).cost()
        assert (cost.parameters, cost.bytes) == (built.parameters, built.bytes)
        assert cost.flops == pytest.approx(built.flops, abs=16 * sum(i.order > 2 for i in spec.interactions))


def test_random_groups_are_as_many_different_ones_as_were_found():
    """Seven of eight groups of one kind, and as many of a kind that differs in its order alone."""
    n = len(SCHEMA.id_spaces)
    groups = tuple(Group(tuple(f for f in range(n) if f != out), order) for order in (2, 3) for out in range(1, n))
    spec = ArchSpec.of(SCHEMA, "x", 16, interactions=(), groups=groups)
    for seed in range(3):
        draw = random_control(spec, SCHEMA, seed)
        assert len(set(draw.groups)) == len(groups)
        assert [(len(g.fields), g.order) for g in draw.groups] == [(len(g.fields), g.order) for g in groups]


@pytest.mark.parametrize("parts", [
    {"interactions": (), "groups": (Group(tuple(range(8)), 2),) * 2},
    {"interactions": (Interaction(tuple(range(8)), "micronet", genes=(1,)),
                      Interaction(tuple(range(8)), "micronet", genes=(2,)))}])
def test_a_spec_that_repeats_all_there_is_has_no_control_without_repetition(parts):
    with pytest.raises(ValueError, match="fewer combinations of 8 fields"):
        random_control(ArchSpec.of(SCHEMA, "x", 16, **parts), SCHEMA, 0)


def masked(alloc: FieldDimMask | ValueMask, keep: bool = False) -> ArchSpec:
    """All pairs and triples that are not zero under a mask, or these too, of two operations."""
    dims = dimensions_of_fields(alloc, SCHEMA)
    found = (i for op in ("inner", "outer") for p in (2, 3) for i in all_combinations(SCHEMA, p, op, "own"))
    return ArchSpec.of(SCHEMA, "aim", 16, tables={"own": alloc},
                       interactions=tuple(i for i in found if keep or lives(i, dims)))


def few_dimensions() -> FieldDimMask:
    """Two to four, most of them in common, which independent draws have seldom."""
    return FieldDimMask(np.arange(16) < np.array([2, 3, 4, 2, 2, 2, 3, 2])[:, None])


def few_values() -> ValueMask:
    return ValueMask(np.random.default_rng(0).random((SCHEMA.total_vocab, 16)) < 0.004)


@pytest.mark.parametrize("alloc", [few_dimensions(), few_values()], ids=["dimensions", "values"])
def test_no_random_interaction_is_zero_under_the_random_mask(alloc: FieldDimMask | ValueMask):
    spec = masked(alloc)
    for seed in range(3):
        draw = random_control(spec, SCHEMA, seed)
        dims = dimensions_of_fields(draw.tables["own"], SCHEMA)
        assert all(lives(i, dims) for i in draw.interactions)
        assert kinds(draw) == kinds(spec)
        assert len(set(draw.interactions)) == len(spec.interactions)
        assert cost(draw) == pytest.approx(cost(spec), rel=0.02)
        assert not np.array_equal(draw.tables["own"].mask, alloc.mask)
        assert draw.id == random_control(spec, SCHEMA, seed).id


def test_a_mask_that_no_random_one_can_stand_for_stays_as_it_is(caplog):
    """One value per field, all of one dimension: eight random values have that nowhere near often enough."""
    mask = np.zeros((SCHEMA.total_vocab, 16), bool)
    mask[list(SCHEMA.offsets.values()), 3] = True
    spec = masked(ValueMask(mask))
    draw = random_control(spec, SCHEMA, 0)
    assert draw.tables == spec.tables and kinds(draw) == kinds(spec)
    assert "own" in caplog.text


def test_a_search_that_keeps_interactions_of_zero_has_a_control_that_may_have_some():
    spec = masked(few_values(), keep=True)
    assert kinds(random_control(spec, SCHEMA, 0)) == kinds(spec)


def micronets_of_two_orders() -> ArchSpec:
    rng, found = np.random.default_rng(0), [*all_pairs(SCHEMA)[:9], *all_combinations(SCHEMA, 3)[:5]]
    return ArchSpec.of(SCHEMA, "x", 16, interactions=tuple(
        Interaction(i.fields, "micronet", genes=tuple(rng.integers(1, 5, rng.integers(1, 5)).tolist())) for i in found))


def test_random_micro_networks_have_other_genes_and_cost_exactly_the_same():
    spec = micronets_of_two_orders()
    draws = [random_control(spec, SCHEMA, seed) for seed in range(3)]
    for draw in draws:
        assert host_cost(draw) == host_cost(spec)
        assert Counter(i.order for i in draw.interactions) == {2: 9, 3: 5}
        assert kinds(draw) != kinds(spec) and all(1 <= len(i.genes) <= 4 for i in draw.interactions)
        assert len({i.fields for i in draw.interactions}) == 14
    assert len({str(sorted(kinds(draw).elements())) for draw in draws}) == 3


def test_one_micro_network_alone_keeps_its_cost():
    """Sum and Hadamard product cost the same; nothing else costs what a single concatenation does."""
    for genes, allowed in (((1, 2), {(1, 1), (1, 2), (2, 1), (2, 2)}), ((3,), {(3,)})):
        spec = ArchSpec.of(SCHEMA, "x", 16, interactions=(Interaction((0, 3), "micronet", genes=genes),))
        assert {random_control(spec, SCHEMA, seed).interactions[0].genes for seed in range(30)} == allowed


def test_all_combinations_have_only_themselves_as_a_control():
    spec = ArchSpec.of(SCHEMA, "x", 16, interactions=all_combinations(SCHEMA, 3))
    assert {i.fields for i in random_control(spec, SCHEMA, 0).interactions} == {i.fields for i in spec.interactions}
