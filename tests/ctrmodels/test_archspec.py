"""ArchSpec: round trip, identity, refusal of other logs, and merging."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ctrmodels.archspec import ArchSpec, Cost, FieldDimMask, Interaction, PerBucket, PerField, Uniform, ValueMask, merge
from ctrmodels.data.planted import planted_widths
from ctrmodels.errors import InputError
from ctrmodels.search import Host

SCHEMA = planted_widths(0, rows=1000).schema


def mask() -> np.ndarray:
    return np.random.default_rng(0).random((SCHEMA.total_vocab, 8)) < 0.3


SPECS = [
    ArchSpec.of(SCHEMA, "a", 8, alloc=Uniform(8)),
    ArchSpec.of(SCHEMA, "b", 8, alloc=PerField((8, 4, 2, 0, 8, 8, 2, 2)), config={"candidates": [2, 4, 8]}, seed=3),
    ArchSpec.of(SCHEMA, "c", 8, alloc=ValueMask(mask())),
    ArchSpec.of(SCHEMA, "d", 8, alloc=ValueMask(mask(), np.ones((SCHEMA.total_vocab, 8), np.float32))),
    ArchSpec.of(SCHEMA, "e", 8, interactions=(Interaction((0, 1), strength=0.25), Interaction((2, 5)))),
    replace(ArchSpec.dense(SCHEMA, 8), cost=Cost(10, 2, 30, 48), result={"valid.auc": 0.75}),
    ArchSpec.of(SCHEMA, "buckets", 8, alloc=PerBucket(((5,),) * 8, ((8, 2),) * 8)),
    ArchSpec.of(SCHEMA, "rare", 8, alloc=PerBucket(((5,),) * 8, ((8, 2),) * 8, shared=True)),
    ArchSpec.of(SCHEMA, "dims", 8, alloc=FieldDimMask(np.eye(8, dtype=bool))),
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
