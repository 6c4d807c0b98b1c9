"""The residual embedding is W C + R, gradients included, and serves as a plain table."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ctrmodels.allocation import CentralResidual, Fusion
from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Batch, Field, Objective, Schema
from ctrmodels.nn.encoder import FeatureEncoder, build_embedding
from ctrmodels.nn.residual import ResidualEmbedding
from ctrmodels.nn.table import Layout
from ctrmodels.zoo import DIN

SCHEMA = Schema(
    fields=(Field("user", "categorical", 5, "user"), Field("item", "categorical", 7, "item"),
            Field("tags", "sequence", 3, "item", None, 3), Field("recent", "sequence", 7, "user", "item", 4)),
    objectives=(Objective("click"),), rows={"train": 2}, vocab_hash="v", roles_hash="r")
BATCH = Batch(
    ids=torch.tensor([[0, 1], [4, 6], [4, 1]], dtype=torch.int32), numeric=torch.zeros(3, 0),
    sequences={"tags": torch.tensor([[0, 2, -1], [-1, -1, -1], [1, -1, -1]], dtype=torch.int32),
               "recent": torch.tensor([[1, 1, 3, -1], [6, -1, -1, -1], [-1] * 4], dtype=torch.int32)},
    labels=torch.tensor([[1.0], [0.0], [1.0]]), position=torch.zeros(3, dtype=torch.int32))
DIM, COLD = 4, 6
NEAR = np.array([[0, 1, -1], [1, 3, 2], [2, 1, -1], [3, 1, 5], [4, 0, 2], [5, 3, 0], [COLD, -1, -1]], np.int32)
WEIGHTS = np.where(NEAR >= 0, np.random.default_rng(0).uniform(0.5, 2, NEAR.shape), 0).astype(np.float32)
GRAPH = CentralResidual("item", NEAR, WEIGHTS, lambda_r=0.3)
LOOKUP = Layout(SCHEMA)(BATCH)
FUSIONS = get_args(Fusion)


def embedding_of(fusion: Fusion, sd: float = 1.0) -> ResidualEmbedding:
    torch.manual_seed(0)
    built = build_embedding(SCHEMA, replace(GRAPH, fusion=fusion), DIM)
    assert isinstance(built, ResidualEmbedding)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=sd)
    return built


def dense_links(fusion: Fusion, basis: torch.Tensor) -> torch.Tensor:
    """W [I, I] by the formulas alone."""
    z = torch.zeros(7, 7)
    for i, row in enumerate(NEAR):
        for j, weight in zip(row, WEIGHTS[i], strict=True):
            if j >= 0:
                z[i, j] = float(weight)
    root = torch.diag(z.sum(1).rsqrt())
    if fusion == "avg":
        return torch.diag(1 / z.sum(1)) @ z
    return root @ z @ root if fusion == "gcn" else torch.softmax(basis @ basis.T + torch.log(z), 1)


def dense_table(table: torch.Tensor, basis: torch.Tensor, fusion: Fusion) -> torch.Tensor:
    """All rows, the items' as W C + R."""
    return table + F.pad(dense_links(fusion, basis) @ basis, (0, 0, 5, 3))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("compiled", [True, False])
def test_embeddings_and_gradients_are_those_of_the_dense_form(fusion: Fusion, compiled: bool, request) -> None:
    if not compiled:
        request.getfixturevalue("torch_alone")
    embedding = embedding_of(fusion)
    out = embedding(BATCH, LOOKUP)
    table, basis = (t.weight.detach().clone().requires_grad_() for t in (embedding.table, embedding.central))
    rows = dense_table(table, basis, fusion)
    pooled = torch.stack([(2 * rows[6] + rows[8]) / 3, rows[11], torch.zeros(DIM)])
    tags = torch.stack([(rows[12] + rows[14]) / 2, torch.zeros(DIM), rows[13]])
    expected = torch.stack([rows[[0, 4, 4]], rows[[6, 11, 6]], tags, pooled], 1)
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for ours, theirs in ((embedding.table, table), (embedding.central, basis)):
        assert ours.weight.grad.is_sparse
        torch.testing.assert_close(ours.weight.grad.to_dense(), theirs.grad)


def test_weights_sum_to_one_where_they_are_a_mean() -> None:
    for fusion in ("avg", "attention"):
        embedding = embedding_of(fusion)
        with torch.no_grad():
            embedding.central.weight.copy_(torch.randn(DIM).expand(7, DIM))  # any mean of equal vectors is that vector
        torch.testing.assert_close(embedding.centres(torch.arange(7)), embedding.central.weight)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_item_without_neighbours_has_a_basis_vector_of_its_own(fusion: Fusion) -> None:
    embedding = embedding_of(fusion)
    torch.testing.assert_close(embedding.centres(torch.tensor([COLD]))[0], embedding.central.weight[COLD])


def test_a_batch_without_items_touches_no_basis() -> None:
    embedding = embedding_of("avg")
    user = Layout(SCHEMA, [0])(BATCH)
    torch.testing.assert_close(embedding(BATCH, user)[:, 0], embedding.table.weight[[0, 4, 4]])


def test_the_penalty_counts_every_touched_residual_once_and_is_part_of_the_loss() -> None:
    spec = ArchSpec.of(SCHEMA, "test", DIM, alloc=GRAPH, interactions=())
    encoder = FeatureEncoder(SCHEMA, spec, l2=0.5)
    encoded, residuals = encoder(BATCH), encoder.embedding.table.weight[[6, 8, 11]]
    expected = 0.5 * encoded.fields.square().sum() / 3 + 0.3 * residuals.square().sum()
    torch.testing.assert_close(encoded.penalty, expected)
    plain = FeatureEncoder(SCHEMA, ArchSpec.dense(SCHEMA, DIM))
    assert plain(BATCH).penalty == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_folding_gives_a_plain_table_and_draws_nothing(fusion: Fusion) -> None:
    embedding, state = embedding_of(fusion), torch.get_rng_state()
    plain = embedding.folded()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(plain(BATCH, LOOKUP), embedding(BATCH, LOOKUP))
    torch.testing.assert_close(plain.steps(BATCH, "recent"), embedding.steps(BATCH, "recent"))
    dense = dense_table(embedding.table.weight, embedding.central.weight, fusion)
    torch.testing.assert_close(plain.table.weight, dense)
    assert embedding.stored_values() == plain.stored_values() == SCHEMA.total_vocab * DIM
    assert plain.folded() is plain


def test_a_model_that_reads_single_steps_can_have_it() -> None:
    model = DIN(SCHEMA, ArchSpec.of(SCHEMA, "test", DIM, alloc=GRAPH, interactions=()), "click", hidden=(4,))
    model.loss(BATCH).backward()
    assert model.encoder.embedding.central.weight.grad.coalesce().indices().tolist() == [[1, 2, 3, 5, 6]]
