"""Figures of found interactions: any order, operation and embedding, and groups."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ctrmodels.archspec import ArchSpec, Group, Interaction, Uniform, all_pairs
from ctrmodels.data.planted import planted_widths
from tasks.interaction_figures import agreement, found_figures, gates, kept, stability, strongest

SCHEMA = planted_widths(0, rows=1000).schema  # eight fields
SPEC = ArchSpec.of(
    SCHEMA, "x", 8, tables={"third": Uniform(4)}, groups=(Group((0, 1, 2), 2), Group((4,), 1, "third")),
    interactions=(Interaction((0, 1), strength=0.2), Interaction((0, 1), "outer", -0.5),
                  Interaction((2, 3), strength=0.1), Interaction((1, 2, 3), strength=0.9, table="third"),
                  Interaction((4, 5), "micronet", 0.3, genes=(1, 3, 4))))


def of(*interactions: Interaction, groups: tuple[Group, ...] = ()) -> ArchSpec:
    return replace(SPEC, interactions=interactions, groups=groups)


def test_the_heat_map_shows_the_strongest_operation_of_every_pair():
    figure = gates("x", SPEC)
    assert figure.values[0][1] == figure.values[1][0] == -0.5
    assert figure.values[2][3] == 0.1 and figure.values[4][5] == 0.3
    assert sum(v is not None for row in figure.values for v in row) == 6


def test_bars_are_named_by_fields_operation_and_embedding():
    (series,) = strongest("x", SPEC).series
    assert list(series.x) == ["field_1 x field_2 x field_3 [third]", "field_0 x field_1 (outer)",
                              "field_4 x field_5 (micronet 1-3-4)", "field_0 x field_1", "field_2 x field_3"]
    assert list(series.y) == [0.9, -0.5, 0.3, 0.2, 0.1]


def test_the_table_lists_everything_and_how_many_seeds_found_it():
    other = of(Interaction((0, 1), strength=7.0), Interaction((4, 5), "micronet", genes=(2,)),
               Interaction((1, 2, 3)), groups=(Group((0, 1, 2), 2),))
    figure = kept("x", SPEC, [SPEC, other])
    assert [tuple(line) for line in figure.values] == [
        ("field_1 x field_2 x field_3", 3, "inner", "third", 0.9, "1 of 2"),
        ("field_0 x field_1", 2, "outer", "the network's", -0.5, "1 of 2"),
        ("field_4 x field_5", 2, "micronet 1-3-4", "the network's", 0.3, "2 of 2"),
        ("field_0 x field_1", 2, "inner", "the network's", 0.2, "2 of 2"),
        ("field_2 x field_3", 2, "inner", "the network's", 0.1, "1 of 2"),
        ("field_0, field_1, field_2", 2, "group", "the network's", None, "2 of 2"),
        ("field_4", 1, "group", "third", None, "1 of 2")]


def test_what_has_no_strength_has_a_table_alone_and_nothing_has_nothing():
    assert [f.kind for f in found_figures("x", of(*all_pairs(SCHEMA)), [SPEC])] == ["table"]
    assert [f.kind for f in found_figures("x", SPEC, [SPEC])] == ["table", "bar", "heatmap"]
    assert found_figures("x", of(), [SPEC]) == []
    assert {f.id for f in found_figures("Rule-0.5", SPEC, [SPEC])} == {
        "kept_rule_0_5", "strongest_rule_0_5", "gates_rule_0_5"}


def test_agreement_is_by_order_and_knows_operations_and_embeddings():
    a = of(Interaction((0, 1)), Interaction((2, 3)), Interaction((0, 1, 2)), Interaction((3, 4, 5), table="third"))
    b = of(Interaction((0, 1), strength=9.0), Interaction((2, 3), "outer"), Interaction((3, 4, 5)))
    assert agreement(a, b) == {"order 2": 1 / 3, "order 3": 0.0}
    assert agreement(a, a) == {"order 2": 1.0, "order 3": 1.0}
    assert agreement(of(), of()) == {}
    assert agreement(of(), b) == {"order 2": 0.0, "order 3": 0.0}


def test_groups_agree_as_far_as_their_nearest_do():
    a = of(groups=(Group((0, 1, 2), 2), Group((4, 5), 2), Group((1,), 1)))
    b = of(groups=(Group((4, 5), 2), Group((0, 1, 2, 3), 2)))
    assert agreement(a, b) == {"groups of order 1": 0.0, "groups of order 2": pytest.approx((3 / 4 + 1) / 2)}
    assert agreement(of(groups=(Group((), 2),)), of(groups=(Group((), 2),))) == {"groups of order 2": 1.0}


def test_stability_is_told_beside_chance():
    a, b = of(*all_pairs(SCHEMA)[:7]), of(*all_pairs(SCHEMA)[1:8])
    figure, metrics = stability({"x": [a, b, a]}, SCHEMA)
    assert metrics == {"x.jaccard.order_2": pytest.approx((6 / 8 + 1 + 6 / 8) / 3)}
    found, chance = figure.series
    assert (found.name, chance.name, list(found.x)) == ("x", "x, by chance", ["order 2"])
    assert found.y[0] == metrics["x.jaccard.order_2"]
    assert chance.y[0] == pytest.approx(7 / 28 / (2 - 7 / 28), abs=0.06)  # of random sevens among 28 pairs
