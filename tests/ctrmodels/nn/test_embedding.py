"""Every allocation gives the embeddings that its description promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctrmodels.archspec import ArchSpec, FieldDimMask, PerBucket, Uniform, ValueMask
from ctrmodels.data import Batch, Field, Objective, Schema
from ctrmodels.nn.embedding import FieldEmbedding, PerBucketEmbedding, PerFieldEmbedding, UniformEmbedding
from ctrmodels.nn.encoder import FeatureEncoder, build_embedding
from ctrmodels.nn.heads import WideHead
from ctrmodels.nn.table import Layout

SCHEMA = Schema(
    fields=(Field("user", "categorical", 5, "user"), Field("item", "categorical", 7, "item"),
            Field("age", "numeric", 4, "user"), Field("tags", "sequence", 3, "item", None, 3),
            Field("recent", "sequence", 7, "user", "item", 4)),
    objectives=(Objective("click"),), rows={"train": 2}, vocab_hash="v", roles_hash="r")
BATCH = Batch(
    ids=torch.tensor([[0, 1, 2], [4, 6, 3]], dtype=torch.int32), numeric=torch.tensor([[0.5], [-1.0]]),
    sequences={"tags": torch.tensor([[0, 2, -1], [-1, -1, -1]], dtype=torch.int32),
               "recent": torch.tensor([[1, 1, 3, -1], [6, -1, -1, -1]], dtype=torch.int32)},
    labels=torch.tensor([[1.0], [0.0]]), position=torch.zeros(2, dtype=torch.int32))
DIM = 4
LOOKUP = Layout(SCHEMA)(BATCH)


def spec(alloc) -> ArchSpec:
    return ArchSpec.of(SCHEMA, "test", DIM, alloc=alloc, interactions=ArchSpec.dense(SCHEMA, DIM).interactions)


def test_id_spaces_lie_end_to_end_and_a_history_shares_its_items_rows():
    assert SCHEMA.offsets == {"user": 0, "item": 5, "age": 12, "tags": 16, "recent": 5}
    embedding = UniformEmbedding(SCHEMA, DIM)
    out = embedding(BATCH, LOOKUP)
    assert out.shape == (2, 5, DIM)
    assert torch.equal(out[1, 0], embedding.table.weight[4])
    assert torch.equal(out[0, 1], embedding.table.weight[5 + 1])
    assert torch.allclose(out[0, 4], (2 * embedding.table.weight[5 + 1] + embedding.table.weight[5 + 3]) / 3)
    assert torch.allclose(out[0, 3], (embedding.table.weight[16] + embedding.table.weight[18]) / 2)


def test_an_empty_sequence_is_zero_and_padding_counts_for_nothing():
    embedding = UniformEmbedding(SCHEMA, DIM)
    out = embedding(BATCH, LOOKUP)
    assert torch.equal(out[1, 3], torch.zeros(DIM))
    assert torch.equal(out[1, 4], embedding.table.weight[5 + 6])
    out[1, 3].sum().backward()
    assert torch.all(embedding.table.weight.grad.to_dense() == 0)


def test_per_field_widths_use_their_own_tables_and_projections():
    embedding = PerFieldEmbedding(SCHEMA, (2, 4, 0, 2), DIM)
    out = embedding(BATCH, LOOKUP)
    user = embedding.tables["2"].weight[0] @ embedding.projections["2"][0]
    assert torch.allclose(out[0, 0], user)
    assert torch.equal(out[0, 1], embedding.tables["4"].weight[1])  # full width: no projection
    assert torch.equal(out[:, 2], torch.zeros(2, DIM))  # width 0: dropped
    assert torch.allclose(out[0, 3], ((embedding.tables["2"].weight[5] + embedding.tables["2"].weight[7]) / 2)
                          @ embedding.projections["2"][1])
    assert torch.allclose(out[1, 4], embedding.tables["4"].weight[6])
    assert embedding.stored_values() == 2 * (5 + 3) + 4 * 7 + 2 * (2 * DIM)


def test_equal_per_field_widths_are_the_uniform_embedding():
    torch.manual_seed(0)
    uniform = UniformEmbedding(SCHEMA, DIM)
    per_field = PerFieldEmbedding(SCHEMA, (DIM,) * 4, DIM)
    per_field.tables[str(DIM)].load_state_dict(uniform.table.state_dict())
    assert torch.allclose(uniform(BATCH, LOOKUP), per_field(BATCH, LOOKUP))


def test_masked_values_are_zero_get_no_gradient_and_are_not_stored():
    mask = np.random.default_rng(0).random((SCHEMA.total_vocab, DIM)) < 0.5
    init = np.ones(mask.shape, np.float32)
    embedding = build_embedding(SCHEMA, ValueMask(mask, init), DIM)
    embedding(BATCH, LOOKUP).sum().backward()
    assert torch.equal(embedding.table.weight.detach(), torch.from_numpy(mask.astype(np.float32)))
    assert torch.all(embedding.table.weight.grad.to_dense()[~torch.from_numpy(mask)] == 0)
    assert embedding.stored_values() == mask.sum()
    assert embedding.overhead_bytes() == -(-mask.size // 8)


BUCKETS = PerBucket(cuts=((2,), (1, 4), (), (2,)), dims=((DIM, 2), (DIM, 2, 0), (3,), (2, 1)), shared=True)


def vector(embedding: PerBucketEmbedding, space: int, value: int) -> torch.Tensor:
    """The embedding of an id by the description alone."""
    first = {"4": [(0, 0, 2), (1, 0, 1)], "2": [(0, 2, 5), (1, 1, 4), (3, 0, 2)], "3": [(2, 0, 4)], "1": [(3, 2, 3)]}
    for w, ranges in first.items():
        row = 1
        for owner, begin, end in ranges:
            alone = BUCKETS.shared and end == SCHEMA.id_spaces[owner].vocab
            if owner == space and begin <= value < end:
                found = embedding.tables[w].weight[row if alone else row + value - begin]
                return found if w == str(DIM) else found @ embedding.projections[w][space]
            row += 1 if alone else end - begin
    return torch.zeros(DIM)


def test_widths_per_bucket_are_looked_up_by_popularity_and_the_rare_share_a_row():
    embedding = PerBucketEmbedding(SCHEMA, BUCKETS, DIM)
    assert [f.name for f in SCHEMA.id_spaces] == ["user", "item", "age", "tags"]
    out = embedding(BATCH, LOOKUP)
    for r in range(2):
        for f in range(3):
            assert torch.allclose(out[r, f], vector(embedding, f, int(BATCH.ids[r, f])))
    tags = (vector(embedding, 3, 0) + vector(embedding, 3, 2)) / 2
    recent = (2 * vector(embedding, 1, 1) + vector(embedding, 1, 3)) / 3
    assert torch.allclose(out[0, 3], tags) and torch.allclose(out[0, 4], recent)
    assert torch.equal(out[1, 1], torch.zeros(DIM))  # item 6: width 0
    assert torch.equal(out[1, 3], torch.zeros(DIM))  # no tag
    shared = embedding.tables["2"].weight.shape[0]
    assert shared == 1 + 1 + 3 + 2  # nothing, the users from 2 on as one, three items, two tags
    values = 4 * (2 + 1) + 2 * (1 + 3 + 2) + 3 * 1 + 1 * 1
    assert embedding.stored_values() == values + sum(4 * int(w) * DIM for w in ("1", "2", "3"))


def test_the_row_that_stands_for_nothing_stays_zero_and_the_others_learn():
    embedding = PerBucketEmbedding(SCHEMA, BUCKETS, DIM)
    embedding(BATCH, LOOKUP).square().sum().backward()
    for w in ("1", "2", "3", "4"):
        gradient = embedding.tables[w].weight.grad.to_dense()
        assert torch.all(gradient[0] == 0) and torch.any(gradient[1:] != 0)
        assert torch.all(embedding.tables[w].weight[0] == 0)


def test_one_bucket_of_full_width_is_the_uniform_embedding():
    uniform = UniformEmbedding(SCHEMA, DIM)
    alike = PerBucketEmbedding(SCHEMA, PerBucket(((),) * 4, ((DIM,),) * 4), DIM)
    alike.tables[str(DIM)].weight.data[1:] = uniform.table.weight.data
    assert torch.allclose(uniform(BATCH, LOOKUP), alike(BATCH, LOOKUP))
    assert torch.allclose(uniform.steps(BATCH, "recent"), alike.steps(BATCH, "recent"))
    assert uniform.stored_values() == alike.stored_values()


@pytest.mark.parametrize(("cuts", "dims", "named"), [
    (((),) * 3, ((4,),) * 3, "4 id spaces"), (((2,), (), (), ()), ((4,),) * 4, "user: cuts"),
    (((9,), (), (), ()), ((4, 2), (4,), (4,), (4,)), "of 5 ids"),
    (((3, 2), (), (), ()), ((4, 2, 1), (4,), (4,), (4,)), "user")])
def test_buckets_that_do_not_fit_the_log_are_refused(cuts, dims, named):
    with pytest.raises(ValueError, match=named):
        PerBucketEmbedding(SCHEMA, PerBucket(cuts, dims), DIM)


def test_masked_dimensions_are_zero_and_not_stored():
    mask = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], bool)
    embedding = build_embedding(SCHEMA, FieldDimMask(mask), DIM)
    out = embedding(BATCH, LOOKUP)
    for f, s in enumerate((0, 1, 2, 3, 1)):
        assert torch.all(out[:, f, ~mask[s]] == 0)
    assert torch.equal(out[1, 0, mask[0]], embedding.tables["2"].weight[4])
    assert torch.allclose(out[0, 3, mask[3]], (embedding.tables["2"].weight[5] + embedding.tables["2"].weight[7]) / 2)
    assert torch.equal(embedding.steps(BATCH, "tags")[0, 1][mask[3]], embedding.tables["2"].weight[7])
    assert embedding.stored_values() == 2 * 5 + 4 * 7 + 2 * 3 and embedding.flops() == 0
    with pytest.raises(ValueError, match="3 rows for 4"):
        build_embedding(SCHEMA, FieldDimMask(mask[:3]), DIM)


@pytest.mark.parametrize("alloc", [
    BUCKETS, FieldDimMask(np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]], bool))],
    ids=lambda a: a.kind)
def test_single_steps_have_the_embeddings_that_are_pooled(alloc):
    embedding: FieldEmbedding = build_embedding(SCHEMA, alloc, DIM)
    pooled, steps = embedding(BATCH, LOOKUP), embedding.steps(BATCH, "recent")
    there = (BATCH.sequences["recent"] >= 0).unsqueeze(2)
    assert torch.allclose(pooled[:, 4], (steps * there).sum(1) / there.sum(1), atol=1e-6)


def test_a_mask_of_another_log_is_refused():
    with pytest.raises(ValueError, match="rows"):
        build_embedding(SCHEMA, ValueMask(np.ones((3, DIM), bool)), DIM)


def test_pairs_are_the_inner_products_of_the_specs_fields():
    encoder = FeatureEncoder(SCHEMA, spec(Uniform(DIM)))
    encoded = encoder(BATCH)
    assert encoded.flat.shape == (2, encoder.width) == (2, -(-(5 * DIM + 1) // 8) * 8)
    for m, interaction in enumerate(spec(Uniform(DIM)).interactions):
        i, j = interaction.fields
        assert torch.allclose(encoded.products[:, m], (encoded.fields[:, i] * encoded.fields[:, j]).sum(1))


def test_the_penalty_is_the_squared_norm_per_row():
    encoded = FeatureEncoder(SCHEMA, spec(Uniform(DIM)), l2=0.5)(BATCH)
    assert encoded.penalty.item() == pytest.approx(0.5 * encoded.fields.square().sum().item() / 2)


def test_without_interactions_the_wide_head_is_first_order():
    bare = ArchSpec.of(SCHEMA, "test", DIM, alloc=Uniform(DIM), interactions=())
    encoder, head = FeatureEncoder(SCHEMA, bare), WideHead(SCHEMA, bare, 2)
    encoded = encoder(BATCH)
    assert encoded.products.shape == (2, 0)
    weights = torch.nn.init.normal_(head.weights.weight)
    expected = head.bias + weights[[0, 6, 14]].sum(0) + weights[[16, 18]].mean(0) + weights[[6, 6, 8]].mean(0)
    assert torch.allclose(head(encoded)[0], expected)
