"""Embeddings by touched rows give the looked-up fields themselves only where somebody reads them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec, Group, Interaction, Uniform
from ctrmodels.data.planted import planted_pairs
from ctrmodels.native import kernels
from ctrmodels.search.relaxation import SoftThresholdEmbedding
from ctrmodels.zoo import FM, AutoDeepFM, DeepFM
from ctrmodels.zoo.base import CTRModel

LOG = planted_pairs(0, rows=2000)
DIM = 16


def built(kind: type[CTRModel], **settings: float) -> CTRModel:
    torch.manual_seed(0)
    embedding = SoftThresholdEmbedding(LOG.schema, DIM, -6.0)
    return kind(LOG.schema, ArchSpec.dense(LOG.schema, DIM), "click", embedding=embedding, **settings)


def trained_on(model: CTRModel) -> list[Tensor]:
    """The loss in bfloat16, and the gradients of table and thresholds."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(LOG.roles["train"].take(slice(0, 400)))
    loss.backward()
    embedding = model.encoder.embedding
    return [loss.detach(), *(p.grad.to_dense() for p in (embedding.table.weight, embedding.parameter))]


@pytest.mark.parametrize("model, read", [(built(DeepFM), False), (built(DeepFM, l2=0.1), True), (built(FM), True)])
def test_a_model_has_the_fields_that_it_reads(model: CTRModel, read: bool) -> None:
    assert model.encoder.embedding.read == read
    with torch.autocast("cpu", torch.bfloat16):
        encoded = model.encoder(LOG.roles["train"].take(slice(0, 50)))
    if read:
        assert encoded.fields.shape == (50, model.encoder.n_fields, DIM)


@pytest.mark.parametrize("kind", ["SoftThresholdEmbedding", "RowEmbedding"])
def test_fields_that_nobody_reads_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "RowEmbedding":  # by the look-up that all of them share
        monkeypatch.delattr(SoftThresholdEmbedding, "laid_out")
    without, with_fields = built(DeepFM), built(DeepFM)
    with_fields.encoder.embedding.read = True
    for a, b in zip(trained_on(without), trained_on(with_fields), strict=True):
        assert a.abs().max() > 0 and torch.equal(a, b)


def test_fields_that_nobody_reads_are_not_written() -> None:
    assert kernels() is not None, "this machine has no C++ compiler: the kernels cannot be tested"
    model = built(DeepFM)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encoder(LOG.roles["train"].take(slice(0, 50))).fields.shape == (0, model.encoder.n_fields, DIM)


def test_fields_that_groups_read_by_row_are_not_written() -> None:
    assert kernels() is not None, "this machine has no C++ compiler: the kernels cannot be tested"
    groups = (Group((0, 1, 2), 1), Group((1, 2), 2, "order2"))
    for interactions, written in (((), 0), ((Interaction((0, 1)),), 50)):
        spec = ArchSpec.of(LOG.schema, "test", DIM, alloc=Uniform(DIM), interactions=interactions, groups=groups,
                           tables={"order2": Uniform(8)})
        model = AutoDeepFM(LOG.schema, spec, "click")
        with torch.autocast("cpu", torch.bfloat16):
            encoded = model.encoder(LOG.roles["train"].take(slice(0, 50)))
        assert encoded.fields.shape == (written, model.encoder.n_fields, DIM)
