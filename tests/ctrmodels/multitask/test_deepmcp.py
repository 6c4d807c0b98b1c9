"""DeepMCP: what its subnets teach the embeddings, whom their gradients reach, and that nothing of them serves.

Planted: 12 clusters of users and as many of items, a click's logit is the clusters' affinity - 1.2; histories are
browsing, a few items of one cluster at a time.

Mean cosine of two items of a cluster less that of others, and AUC of the click on 6,000 rows, seeds 0 to 2:

    prediction alone       .180 .120 .212   .607 .570 .594
    with matching          .214 .139 .264   .609 .572 .598
    with correlation       .374 .271 .346   .610 .572 .603
    with both              .312 .173 .337   .614 .573 .609

Prediction reads the histories as well, which teach it some of the clusters. The AUC moves too little at this size to
claim more than that it does not fall.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.data.planted import in_memory
from ctrmodels.data.schema import Field, Objective, Schema
from ctrmodels.errors import InputError
from ctrmodels.metrics import auc
from ctrmodels.multitask import ModelConfig, MultiObjectiveModel, build_model
from ctrmodels.multitask.models.deepmcp import Correlation, DeepMCPOptions, Matching
from ctrmodels.multitask.parts import Auxiliary, Pass
from ctrmodels.multitask.train import train
from ctrmodels.training import TrainConfig, predict, seed_everything

USERS, ITEMS, CLUSTERS, STEPS, TRAIN, TEST, DIM = 600, 600, 12, 12, 22_000, 6_000, 10


def clusters(seed: int) -> tuple[Rows, Rows, np.ndarray]:
    """Rows to learn from, others, and the cluster of every item."""
    rng = np.random.default_rng(seed)
    of_user, of_item = rng.integers(CLUSTERS, size=USERS), rng.permutation(np.arange(ITEMS) % CLUSTERS)
    affinity = 1.2 * rng.standard_normal((CLUSTERS, CLUSTERS))
    members = np.stack([np.flatnonzero(of_item == c) for c in range(CLUSTERS)])
    appeal = np.exp(affinity[of_user] - 1.2)
    chosen = np.stack([rng.choice(CLUSTERS, size=STEPS // 3, p=row / row.sum()) for row in appeal])
    browsed = members[np.repeat(chosen, 3, 1), rng.integers(members.shape[1], size=(USERS, STEPS))]
    exposure = np.arange(1, ITEMS + 1) ** -0.9
    n = TRAIN + TEST
    user, item = rng.integers(USERS, size=n), rng.choice(ITEMS, size=n, p=exposure / exposure.sum())
    click = rng.random(n) < 1 / (1 + np.exp(1.2 - affinity[of_user[user], of_item[item]]))
    schema = Schema((Field("user", "categorical", USERS, "user"), Field("item", "categorical", ITEMS, "item"),
                     Field("seen", "sequence", ITEMS, "user", "item", STEPS)),
                    (Objective("click"),), {"train": 1}, "v", "r")
    ids = np.stack([user, item], 1)

    def part(rows: slice) -> Rows:
        return in_memory(schema, ids[rows], click[rows], sequences={"seen": browsed[user[rows]].astype(np.int32)})

    return part(slice(TRAIN)), part(slice(TRAIN, None)), of_item


@cache
def learned(seed: int, alpha: float, beta: float) -> tuple[float, float]:
    """How much more alike items of one cluster are than items of two (mean cosine), and the AUC on other rows."""
    rows, test, of_item = clusters(seed)
    seed_everything(seed)
    spec = replace(ArchSpec.dense(rows.schema, DIM), interactions=())
    options = DeepMCPOptions(alpha=alpha, beta=beta)
    model = build_model("deepmcp", rows.schema, spec, ModelConfig((64,), (32,), options=options))
    train(model, rows, test, TrainConfig(epochs=3, patience=3, batch_size=256, learning_rate=5e-3, device="cpu",
                                         seed=seed))
    table = model.encoder.embedding.table.weight.detach().numpy()[USERS:]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosine, same = unit @ unit.T, of_item[:, None] == of_item
    pairs = ~np.eye(ITEMS, dtype=bool)
    gap = cosine[same & pairs].mean() - cosine[~same].mean()
    return float(gap), auc(test.labels[:, 0], predict(model, test)["click@all"])


def test_correlation_brings_items_of_a_cluster_together() -> None:
    """The stub, prediction alone, fails the bound."""
    alone, helped = learned(0, 0.0, 0.0), learned(0, 0.0, 0.1)
    assert helped[0] >= 0.28 and helped[1] >= alone[1] - 0.01
    assert not alone[0] >= 0.28


@pytest.mark.slow
def test_correlation_brings_them_together_and_matching_does_not() -> None:
    """Three seeds."""
    gap = {key: np.mean([learned(seed, *key)[0] for seed in range(3)]) for key in (
        (0.0, 0.0), (1.0, 0.0), (0.0, 0.1))}
    assert gap[0.0, 0.1] >= gap[0.0, 0.0] + 0.1
    assert not gap[1.0, 0.0] >= gap[0.0, 0.0] + 0.1
    both, alone = ([learned(seed, *key)[1] for seed in range(3)] for key in ((1.0, 0.1), (0.0, 0.0)))
    assert (np.array(both) >= np.array(alone) - 0.01).all()


DEFAULTS = DeepMCPOptions()
FIELDS = (Field("hour", "categorical", 5), Field("user", "categorical", 20, "user"), Field("age", "numeric", 0, "user"),
          Field("item", "categorical", 30, "item"), Field("seen", "sequence", 30, "user", "item", 6))


def few(n: int = 64, fields: tuple[Field, ...] = FIELDS) -> tuple[Schema, Batch]:
    rng = np.random.default_rng(0)
    schema = Schema(fields, (Objective("click"), Objective("buy", after="click")), {"train": 1}, "v", "r")
    length = rng.integers(7, size=(n, 1))
    steps = np.where(np.arange(6) < length, rng.integers(30, size=(n, 6)), -1)
    ids = np.stack([rng.integers(v, size=n) for v in (5, 20, 30)], 1)
    click = rng.random(n) < 0.5
    labels = np.stack([np.where(rng.random(n) < 0.1, np.nan, click), click & (rng.random(n) < 0.5)], 1)
    rows = Rows.of(schema, ids.astype(np.int32), rng.standard_normal((n, 1)).astype(np.float32),
                   {"seen": steps.astype(np.int32)}, labels.astype(np.float32), np.zeros(n, np.int32),
                   np.zeros(n, np.int64), np.zeros(n, np.int64))
    return schema, rows.take(slice(None))


def model_of(schema: Schema, options: DeepMCPOptions = DEFAULTS) -> MultiObjectiveModel:
    torch.manual_seed(0)
    return build_model("deepmcp", schema, ArchSpec.dense(schema, 4), ModelConfig((8,), (6,), options=options))


def auxiliary_loss(model: MultiObjectiveModel, batch: Batch, kind: type[Auxiliary]) -> Tensor:
    (subnet,) = [a for a in model.auxiliaries if isinstance(a, kind)]
    encoded = model.encoder(batch)
    (value,) = subnet(Pass(batch, encoded, torch.zeros(len(batch), 2), {})).values()
    return value


def touched(model: MultiObjectiveModel, schema: Schema) -> set[str]:
    """The id spaces whose embeddings have a gradient that is not zero."""
    gradient = model.encoder.embedding.table.weight.grad
    assert gradient is not None
    rows = gradient.to_dense().any(1)
    return {f.name for f in schema.id_spaces if rows[schema.offsets[f.name]:schema.offsets[f.name] + f.vocab].any()}


@pytest.mark.parametrize(("kind", "options", "expected"), [
    (Matching, DeepMCPOptions(), {"user", "item"}), (Matching, DeepMCPOptions(user=("hour",)), {"hour", "item"}),
    (Correlation, DeepMCPOptions(), {"item"})])
def test_a_subnets_gradient_reaches_what_it_reads_and_nothing_else(
        kind: type[Auxiliary], options: DeepMCPOptions, expected: set[str]) -> None:
    """``user`` has the history in it by default, which is of items."""
    schema, batch = few()
    model = model_of(schema, options)
    auxiliary_loss(model, batch, kind).backward()
    assert touched(model, schema) == expected
    for part in (model.trunk, model.towers, model.wide):
        assert all(p.grad is None for p in part.parameters())


def test_matching_learns_from_rows_with_a_known_label_of_its_objective() -> None:
    schema, batch = few()
    for objective, k in ((None, 0), ("click", 0), ("buy", 1)):
        model = model_of(schema, DeepMCPOptions(alpha=2.0, objective=objective))
        known = ~batch.labels[:, k].isnan()
        alone = batch.select(known.nonzero().squeeze(1))
        torch.testing.assert_close(auxiliary_loss(model, batch, Matching), auxiliary_loss(model, alone, Matching))
        fit = model.auxiliaries[0]
        encoded = model.encoder(alone)
        score = (fit.of_user(fit.user(encoded.fields, encoded.numeric))
                 * fit.of_item(fit.item(encoded.fields, encoded.numeric))).sum(1)
        expected = 2 * torch.nn.functional.binary_cross_entropy_with_logits(score, alone.labels[:, k])
        torch.testing.assert_close(auxiliary_loss(model, alone, Matching), expected)


def test_vectors_end_in_tanh_and_may_point_anywhere() -> None:
    schema, _ = few()
    subnet = model_of(schema).auxiliaries[0]
    vectors = subnet.of_user(torch.randn(500, subnet.user.width))
    assert (vectors < 0).any() and (vectors > 0).any() and (vectors.abs() < 1).all()


def test_pairs_are_close_steps_of_one_row_and_negatives_of_others_do_count() -> None:
    schema, batch = few(400)
    (subnet,) = [a for a in model_of(schema, DeepMCPOptions(window=2)).auxiliaries if isinstance(a, Correlation)]
    ids = batch.sequences["seen"]
    distances = set()
    for _ in range(20):
        target, context, negatives, counts = subnet.drawn(batch)
        assert torch.equal(target // 6, context // 6) and len(target) == ((ids >= 0).sum(1) > 1).sum()
        assert (ids.flatten()[torch.cat([target, context, negatives.flatten()])] >= 0).all()
        distances |= set((target - context).tolist())
        own = (ids.flatten()[negatives].unsqueeze(2) == ids[target // 6].unsqueeze(1)).any(2)
        assert torch.equal(counts, ~own) and own.any()
    assert distances == {-2, -1, 1, 2}


def test_negatives_follow_the_frequency_to_a_power() -> None:
    schema, batch = few(4)
    steps = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2], [3, 3, -1, -1, -1, -1]])
    batch = replace(batch, sequences={"seen": steps.int()})
    counts = torch.tensor([16.0, 1.0, 1.0, 2.0])
    for power in (0.0, 0.75, 1.0):
        options = DeepMCPOptions(power=power, negatives=5000)
        (subnet,) = [a for a in model_of(schema, options).auxiliaries if isinstance(a, Correlation)]
        drawn = steps.flatten()[subnet.drawn(batch)[2]].flatten().bincount(minlength=4).float()
        expected = counts ** power
        torch.testing.assert_close(drawn / drawn.sum(), expected / expected.sum(), atol=0.02, rtol=0)


def test_histories_without_a_pair_teach_nothing() -> None:
    schema, batch = few()
    batch = replace(batch, sequences={"seen": torch.full((64, 6), -1, dtype=torch.int32)})
    model = model_of(schema)
    assert auxiliary_loss(model, batch, Correlation) == 0
    model.loss(batch).backward()


def test_the_subnets_add_to_the_loss_and_change_no_score() -> None:
    schema, batch = few()
    both, plain = model_of(schema), model_of(schema, DeepMCPOptions(alpha=0.0, beta=0.0))
    plain.load_state_dict({k: v for k, v in both.state_dict().items() if not k.startswith("auxiliaries")})
    assert not len(plain.auxiliaries) and both.loss(batch) > plain.loss(batch)
    for model in (both, plain):
        model.eval()
    for name, score in plain.predict(batch).items():
        assert torch.equal(both.predict(batch)[name], score)
    assert both.cost() == plain.cost()


@pytest.mark.parametrize(("fields", "options", "problem"), [
    (FIELDS[:4], DeepMCPOptions(), "deepmcp needs a sequence `of` a field with `side: item`.*add a field"),
    (tuple(replace(f, side="context") if f.side == "user" else f for f in FIELDS), DeepMCPOptions(),
     "deepmcp needs a field with `side: user`"),
    (FIELDS, DeepMCPOptions(user=("item",)), r"deepmcp\.user = 'item': no field of the user.*use hour, user, age"),
    (FIELDS, DeepMCPOptions(objective="like"), r"deepmcp\.objective = 'like': no binary objective; use click, buy"),
    (FIELDS, DeepMCPOptions(histories=("hour",)), r"deepmcp\.histories = 'hour': not a history.*use seen")])
def test_a_log_that_lacks_what_it_needs_is_refused(fields: tuple[Field, ...], options: DeepMCPOptions,
                                                   problem: str) -> None:
    schema = Schema(fields, (Objective("click"), Objective("buy", after="click")), {"train": 1}, "v", "r")
    with pytest.raises(InputError, match=problem):
        model_of(schema, options)


def test_without_correlation_no_history_is_needed() -> None:
    schema = few(fields=FIELDS)[0]
    model_of(replace(schema, fields=FIELDS[:4]), DeepMCPOptions(beta=0.0))
