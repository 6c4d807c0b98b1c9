"""ArchSpec: round trip, identity, refusal of other logs, and merging."""

from __future__ import annotations

import json
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
    merge,
)
from ctrmodels.data.planted import planted_widths
from ctrmodels.errors import InputError
from ctrmodels.search import Host

SCHEMA = planted_widths(0, rows=1000).schema


def mask() -> np.ndarray:
    return np.random.default_rng(0).random((SCHEMA.total_vocab, 8)) < 0.3


def graph(**changes) -> CentralResidual:
    """Every id of the first field beside the next one."""
    ids = np.arange(SCHEMA.id_spaces[0].vocab)
    near = np.stack([ids, (ids + 1) % len(ids), np.full(len(ids), -1)], 1).astype(np.int32)
    return replace(CentralResidual(SCHEMA.id_spaces[0].name, near, (near >= 0).astype(np.float32)), **changes)


SPECS = [
    ArchSpec.of(SCHEMA, "a", 8, alloc=Uniform(8)),
    ArchSpec.of(SCHEMA, "b", 8, alloc=PerField((8, 4, 2, 0, 8, 8, 2, 2)), config={"candidates": [2, 4, 8]}, seed=3),
    ArchSpec.of(SCHEMA, "c", 8, alloc=ValueMask(mask())),
    ArchSpec.of(SCHEMA, "d", 8, alloc=ValueMask(mask(), np.ones((SCHEMA.total_vocab, 8), np.float32))),
    ArchSpec.of(SCHEMA, "e", 8, interactions=(Interaction((0, 1), strength=0.25), Interaction((2, 5)))),
    ArchSpec.of(SCHEMA, "nets", 8, interactions=(Interaction((0, 1), "micronet", genes=(3, 4)),
                                                 Interaction((0, 1, 4), "micronet", genes=(2,)))),
    replace(ArchSpec.dense(SCHEMA, 8), cost=Cost(10, 2, 30, 48), result={"valid.auc": 0.75}),
    ArchSpec.of(SCHEMA, "buckets", 8, alloc=PerBucket(((5,),) * 8, ((8, 2),) * 8)),
    ArchSpec.of(SCHEMA, "rare", 8, alloc=PerBucket(((5,),) * 8, ((8, 2),) * 8, shared=True)),
    ArchSpec.of(SCHEMA, "dims", 8, alloc=FieldDimMask(np.eye(8, dtype=bool))),
    ArchSpec.of(SCHEMA, "graph", 8, alloc=graph()),
    ArchSpec.of(SCHEMA, "fused", 8, alloc=graph(fusion="attention")),
    ArchSpec.of(SCHEMA, "penalised", 8, alloc=graph(lambda_r=0.01)),
    *(ArchSpec.of(SCHEMA, f"groups {i}", 8, interactions=(), groups=(Group((0, 1), 1), group),
                  tables={"own": Uniform(4)}) for i, group in enumerate((
          Group((0, 1, 3), 3, "own"), Group((0, 1, 3), 2, "own"), Group((0, 1, 3), 3),
          Group((0, 1, 3), 3, "own", 0.5), Group((0, 1, 3), 3, "own", 0.5, "code")))),
    ArchSpec.of(SCHEMA, "weighted", 8, alloc=graph(weights=2 * graph().weights)),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.method)
def test_load_gives_back_what_save_wrote(spec, tmp_path):
    spec.save(tmp_path)
    loaded = ArchSpec.load(tmp_path)
    assert loaded.id == spec.id
    loaded.save(tmp_path / "again")
    for path in tmp_path.glob("archspec.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert (loaded.seed, loaded.cost, dict(loaded.result)) == (spec.seed, spec.cost, dict(spec.result))
    assert loaded.groups == spec.groups


def test_the_id_tells_architectures_apart_and_ignores_who_found_them():
    assert len({s.id for s in SPECS}) == len(SPECS)
    assert replace(SPECS[0], method="other", seed=9, result={"x": 1.0}).id == SPECS[0].id


def test_building_twice_gives_the_cost_that_the_spec_states():
    host = Host("click", dim=8)
    for spec in SPECS:
        complete = host.complete(spec, SCHEMA)
        first, again = (host.build(SCHEMA, complete).cost() for _ in range(2))
        assert first == again
    alloc = SPECS[1].alloc.dims
    vocab = [f.vocab for f in SCHEMA.id_spaces]
    projections = sum(w * 8 for w in alloc if w not in (0, 8))
    built = host.build(SCHEMA, host.complete(SPECS[1], SCHEMA)).cost()
    assert built.parameters_embedding == sum(w * v for w, v in zip(alloc, vocab, strict=True)) + projections


@pytest.mark.parametrize("name", ["schema_hash", "vocab_hash", "roles_hash"])
def test_another_log_is_refused(name):
    with pytest.raises(InputError, match=name):
        replace(SPECS[0], **{name: "0" * 64}).check(SCHEMA)
    SPECS[0].check(SCHEMA)


def test_a_damaged_or_newer_file_is_refused(tmp_path):
    SPECS[0].save(tmp_path)
    path = tmp_path / "archspec.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "version": 99}))
    with pytest.raises(InputError, match="version"):
        ArchSpec.load(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match="not readable"):
        ArchSpec.load(tmp_path)
    with pytest.raises(InputError):
        ArchSpec.load(tmp_path / "absent")


def test_a_graph_keeps_its_lists_and_settings(tmp_path):
    ArchSpec.of(SCHEMA, "g", 8, alloc=graph(fusion="gcn", lambda_r=0.01)).save(tmp_path)
    found = ArchSpec.load(tmp_path).alloc
    assert (found.item, found.fusion, found.lambda_r) == ("field_0", "gcn", 0.01)
    for name in ("neighbours", "weights"):
        array, wanted = getattr(found, name), getattr(graph(), name)
        assert np.array_equal(array, wanted) and array.dtype == wanted.dtype


@pytest.mark.parametrize(("changes", "named"), [
    ({"item": "nothing"}, "no id space"), ({"neighbours": graph().neighbours[1:]}, "ids"),
    ({"weights": graph().weights[:, :2]}, "weights"),
    ({"neighbours": graph().neighbours[:, ::-1]}, "its own id"),
    ({"neighbours": graph().neighbours * 2 ** np.array([0, 1, 0])}, "beyond"),
    ({"weights": 0 * graph().weights}, "above 0"),
    ({"fusion": "sum"}, "fusion")])
def test_a_graph_of_other_items_is_refused(changes, named):
    graph().check(SCHEMA)
    with pytest.raises(ValueError, match=named):
        graph(**changes).check(SCHEMA)
    host = Host("click", dim=8)
    with pytest.raises(ValueError, match=named):
        host.build(SCHEMA, host.complete(ArchSpec.of(SCHEMA, "g", 8, alloc=graph(**changes)), SCHEMA))


def test_specs_of_different_parts_merge():
    both = merge(SPECS[1], SPECS[4])
    assert both.alloc == SPECS[1].alloc
    assert both.interactions == SPECS[4].interactions
    assert both.method == "b+e"


def test_overlapping_or_foreign_specs_do_not_merge():
    with pytest.raises(InputError, match="alloc"):
        merge(SPECS[0], SPECS[1])
    with pytest.raises(InputError, match="interactions"):
        merge(SPECS[4], SPECS[5])
    with pytest.raises(InputError, match="vocab_hash"):
        merge(SPECS[0], replace(SPECS[4], vocab_hash="0" * 64))
    with pytest.raises(InputError, match="out_dim"):
        merge(SPECS[0], replace(SPECS[4], out_dim=16))


def test_interactions_read_embeddings_that_are_there():
    with pytest.raises(ValueError, match=r"does not have: \['triples'\]"):
        ArchSpec.of(SCHEMA, "x", 8, interactions=(Interaction((0, 1, 2), table="triples"),))


def test_groups_are_part_of_the_interactions():
    with pytest.raises(ValueError, match="not of interactions"):
        ArchSpec.of(SCHEMA, "x", 8, groups=(Group((0, 1), 2),))
