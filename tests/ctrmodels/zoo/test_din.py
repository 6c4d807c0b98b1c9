"""DIN finds what a mean of the history hides, whatever the padding, and says which log it cannot use."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from every_kind import DIM, SCHEMA, build, draw
from torch.nn import functional as F

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec, FieldDimMask, PerBucket, PerField, ValueMask
from ctrmodels.data import Field, Rows
from ctrmodels.errors import InputError
from ctrmodels.nn.attention import InterestPooling
from ctrmodels.nn.dice import Dice
from ctrmodels.nn.embedding import FieldEmbedding
from ctrmodels.nn.encoder import build_embedding
from ctrmodels.nn.table import Layout, tables
from ctrmodels.training import TrainConfig, fit, predict, seed_everything
from ctrmodels.zoo import DIN, MODELS
from tests.support.seen_before import seen_before


def auc(scores: dict[str, np.ndarray], rows: Rows) -> float:
    return metrics.auc(rows.labels[:, 0], scores["click@all"])


@cache
def trained(name: str, **settings: bool) -> float:
    """AUC on rows of their own."""
    train, test = seen_before(0, 6000), seen_before(1, 2000)
    seed_everything(0)
    model = MODELS[name](train.schema, ArchSpec.dense(train.schema, 8), "click", hidden=(32,), **settings)
    fit(model, train, test, TrainConfig(epochs=8, patience=8, batch_size=100, learning_rate=1e-2, device="cpu"), auc)
    return auc(predict(model, test), test)


@pytest.mark.parametrize("settings", [{}, {"softmax": True}, {"dice": True}], ids=["plain", "softmax", "dice"])
def test_din_sees_a_candidate_in_the_history_where_the_mean_does_not(settings: dict[str, bool]) -> None:
    assert trained("din", **settings) > trained("dnn") + 0.1


@pytest.mark.parametrize("settings", [{}, {"softmax": True}, {"dice": True}], ids=["plain", "softmax", "dice"])
def test_padding_does_not_matter(settings: dict[str, bool]) -> None:
    model, batch = build("din", **settings), draw(16)
    loss = model.loss(batch)  # in training, where Dice looks at the statistics of the batch
    logits = model.eval()(batch)
    batch.sequences = {name: F.pad(steps, (0, 3), value=-1) for name, steps in batch.sequences.items()}
    assert torch.allclose(model(batch), logits, atol=1e-6)
    assert torch.allclose(model.train().loss(batch), loss, atol=1e-6)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dice", [False, True])
@pytest.mark.parametrize("steps", [0, 1])
def test_empty_histories_give_zero_and_finite_gradients(softmax: bool, dice: bool, steps: int) -> None:
    """Also where the whole batch has no step, or a single one."""
    pooling = InterestPooling(DIM, (5,), softmax, dice)
    candidate, keys = torch.randn(3, DIM, requires_grad=True), torch.randn(3, 6, DIM, requires_grad=True)
    there = torch.zeros(3, 6, dtype=torch.bool)
    there[1, :steps] = True
    interest = pooling(candidate, keys, there)
    interest.sum().backward()
    assert torch.equal(interest.any(1), there.any(1))
    for tensor in (candidate, keys, *pooling.parameters()):
        assert torch.isfinite(tensor.grad).all()
    assert not keys.grad[~there].any()
    assert all(torch.isfinite(b).all() for b in pooling.buffers())


def test_softmax_weights_sum_to_one() -> None:
    pooling = InterestPooling(DIM, (5,), softmax=True)
    same = torch.randn(DIM)
    keys = same.expand(4, 6, DIM)
    there = torch.arange(6) < torch.tensor([[1], [2], [4], [6]])
    assert torch.allclose(pooling(torch.randn(4, DIM), keys, there), same.expand(4, DIM), atol=1e-5)


def test_dice_is_a_prelu_that_turns_at_the_mean() -> None:
    dice, x = Dice(3), 2 * torch.randn(500, 3) + 1
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.25, 1.0]))
    p = torch.sigmoid((x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + 1e-8))
    assert torch.allclose(dice(x), p * x + (1 - p) * dice.alpha * x, atol=1e-5)
    for _ in range(100):
        dice(x)
    with torch.no_grad():
        assert torch.allclose(dice.eval()(x[:1]), (p * x + (1 - p) * dice.alpha * x)[:1], atol=1e-2)


def test_several_histories_each_look_at_their_own_field() -> None:
    fields = (*SCHEMA.fields, Field("friends", "sequence", 5, "user", "user", 3))
    schema = replace(SCHEMA, fields=fields)
    torch.manual_seed(0)
    both = DIN(schema, ArchSpec.dense(schema, DIM), "click")
    assert [f.name for f in both.attention.histories] == ["recent", "friends"]
    assert both.attention.places == [(4, 1), (5, 0)]
    assert both(draw(4, schema)).shape == (4,)
    one = DIN(schema, ArchSpec.dense(schema, DIM), "click", histories=("friends",))
    assert len(one.attention) == 1
    batch = draw(1, schema)
    batch.sequences["friends"] = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    one(batch).sum().backward()
    assert all(p.grad.any() for p in one.attention[0].unit[0].parameters())


@pytest.mark.parametrize(("fields", "histories", "named"), [
    (SCHEMA.fields[:4], None, r"\[\]"), (SCHEMA.fields[:5], None, "tags"), (SCHEMA.fields, ("tags",), "tags"),
    (SCHEMA.fields, ("recent", "item"), "item")])
def test_a_log_without_such_a_history_is_refused(fields, histories, named: str) -> None:
    schema = replace(SCHEMA, fields=fields)
    with pytest.raises(InputError, match=f"data.fields = .*{named}.*sequence `of`"):
        DIN(schema, ArchSpec.dense(schema, DIM), "click", histories=histories)


def embeddings() -> dict[str, FieldEmbedding]:
    mask = np.random.default_rng(0).random((SCHEMA.total_vocab, DIM)) < 0.5
    allocations = {"uniform": ArchSpec.dense(SCHEMA, DIM).alloc, "masked": ValueMask(mask, np.ones(mask.shape)),
                   "projected": PerField((DIM, 2, 0, 3)), "full width": PerField((2, DIM, 2, DIM)),
                   "absent": PerField((2, 0, DIM, 0)),
                   "buckets": PerBucket(((1,),) * 4, ((DIM, 2),) * 4),
                   "dimensions": FieldDimMask(np.random.default_rng(1).random((4, DIM)) < 0.5)}
    torch.manual_seed(0)
    return {name: build_embedding(SCHEMA, alloc, DIM)
            for name, alloc in allocations.items()}


@pytest.mark.parametrize("name", embeddings())
@pytest.mark.parametrize(("sequence", "position"), [("tags", 3), ("recent", 4)])
def test_steps_are_what_the_fields_embedding_is_the_mean_of(name: str, sequence: str, position: int) -> None:
    embedding, batch = embeddings()[name], draw(12)
    steps = embedding.steps(batch, sequence)
    there = batch.sequences[sequence] >= 0
    assert steps.shape == (*there.shape, DIM)
    assert not steps[~there].any()
    mean = steps.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
    assert torch.allclose(mean, embedding(batch, Layout(SCHEMA)(batch))[:, position], atol=1e-6)


@pytest.mark.parametrize("name", ["uniform", "masked", "projected"])
def test_a_step_is_its_items_embedding_and_its_gradient_is_sparse(name: str) -> None:
    embedding, batch = embeddings()[name], draw(12)
    batch.ids[:, 1] = batch.sequences["recent"][:, 0].clamp(min=0)
    there = batch.sequences["recent"][:, 0] >= 0
    steps = embedding.steps(batch, "recent")
    assert torch.allclose(steps[there, 0], embedding(batch, Layout(SCHEMA)(batch))[there, 1], atol=1e-6)
    steps.sum().backward()
    gradients = [t.weight.grad for t in tables(embedding) if t.weight.grad is not None]
    assert len(gradients) == 1
    assert gradients[0].is_sparse
    touched = set(batch.sequences["recent"].flatten().tolist()) - {-1}
    assert gradients[0].coalesce().indices().shape[1] == len(touched)
    if name == "masked":
        assert not gradients[0].to_dense()[~next(tables(embedding)).mask].any()
