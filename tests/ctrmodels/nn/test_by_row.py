"""Interactions and groups read a training batch by its distinct rows: the same loss and gradients as by look-up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec, Group, Interaction, Uniform
from ctrmodels.data.planted import planted_groups
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.zoo import AutoDeepFM, AutoIPNN

LOG = planted_groups(0, rows=2000)
BATCH = LOG.roles["train"].take(slice(0, 700))
SPEC = ArchSpec.of(
    LOG.schema, "test", 4, alloc=Uniform(4), tables={"products": Uniform(3), "groups": Uniform(6)},
    interactions=(Interaction((0, 1)), Interaction((1, 5)), Interaction((2, 3), "outer"), Interaction((0, 2, 4)),
                  Interaction((0, 3), "vector_kernel", "products"), Interaction((1, 4), "scalar_kernel", "products"),
                  Interaction((2, 4), "vector_kernel", "products"), Interaction((1, 2, 3), table="products"),
                  Interaction((0, 4, 5), "outer", "products")),
    groups=(Group((0, 5), 2), Group((1, 4, 7), 3, "groups")))


def trained(model: type, spec: ArchSpec = SPEC, **settings: float) -> list[Tensor]:
    """Loss and gradients of one batch."""
    torch.manual_seed(0)
    network = model(LOG.schema, spec, "click", hidden=(8,), **settings)
    with torch.no_grad():
        for table in (network.encoder.embedding, *network.encoder.tables.values()):
            table.table.weight.mul_(30)
    loss = network.loss(BATCH)
    loss.backward()
    return [loss.detach(), *(p.grad.to_dense() for p in network.parameters() if p.grad is not None)]


def test_the_penalty_is_not_rounded() -> None:
    """Counts of look-ups, of which bfloat16 holds eight bits, and sums of squares."""
    encoder = FeatureEncoder(LOG.schema, SPEC, l2=0.1)
    penalties = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            penalties.append(encoder(BATCH).penalty)
    assert torch.equal(*penalties)


@pytest.mark.parametrize("groups", [SPEC.groups, SPEC.groups[1:]], ids=["of both tables", "of another table"])
@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("model", [AutoDeepFM, AutoIPNN])
def test_by_row_is_by_look_up(monkeypatch, model: type, l2: float, groups: tuple[Group, ...]) -> None:
    """Gated products of all functions and orders, products that are written down, groups and the penalty, of the
    network's own embedding and of others. Its own is read by row whether a group reads it or not."""
    read, spec = [], replace(SPEC, groups=groups)
    by_row = FeatureEncoder._by_row

    def counted(self, batch, lookup):
        found = by_row(self, batch, lookup)
        read.append(set(found))
        return found

    monkeypatch.setattr(FeatureEncoder, "_by_row", counted)
    mine = trained(model, spec, l2=l2)
    assert read == [{"", "products", "groups"}], "nothing was read by row: is there a C++ compiler?"
    monkeypatch.setattr(FeatureEncoder, "_by_row", lambda *_: {})
    for ours, theirs in zip(mine, trained(model, spec, l2=l2), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    if l2:
        without, _, *_ = trained(model, spec)
        assert mine[0] > without * 1.01, "the penalty counts"


def test_fields_that_nobody_reads_are_not_written() -> None:
    """Beside rows, and a flat form in another type."""
    encoder = FeatureEncoder(LOG.schema, SPEC, fields=False)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = encoder(BATCH)
    assert not encoded.fields.numel() and encoded.flat.shape == (700, encoder.width)
