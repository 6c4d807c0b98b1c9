"""Target attention in multi-objective models: it finds what a mean hides, in every model, and is paid for in the cost.

Planted log: labels are likely 1 exactly if the candidate is in the history, which is what only both together say. Worse
of both objectives' AUC (.9 is the best there is) with all pairs of fields, seeds 0 to 4:

    shared_bottom   mean   .770 .773 .762 .766 .767    mmoe   .761 .778 .762 .763 .779
                    blind  .782 .778 .787 .780 .799           .790 .778 .770 .786 .791
                    din    .898 .885 .891 .889 .905           .897 .888 .898 .889 .908

``blind`` is the stub, attention whose weights do not see the candidate; the bar lies between it and ``din``. The
product of mean and item lifts the mean: without pairs it has .645 to .680.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec, all_pairs
from ctrmodels.data.dataset import Rows
from ctrmodels.data.schema import Field
from ctrmodels.errors import InputError
from ctrmodels.multitask import MODELS as EVERY_MODEL
from ctrmodels.multitask import ModelConfig, MultiObjectiveModel, OneScoreModel, build, load_model
from ctrmodels.multitask.balancers import build_balancer
from ctrmodels.multitask.checkpoint import WEIGHTS, save_description, save_weights
from ctrmodels.multitask.parts import History
from ctrmodels.multitask.train import train
from ctrmodels.nn.attention import InterestPooling
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.nn.interest import Interests
from ctrmodels.training import TrainConfig, predict, seed_everything
from tests.support.seen_before import seen_before
from tests.support.served_models import ALLOCS, DIM, GROUPS, GROWN, SCHEMA, TABLES, batch_of, draw

MODELS = [name for name in EVERY_MODEL if name != "esm2"]  # which needs another funnel: test_esm2.py
EVERY = [*MODELS, "bpr", "weighted"]
CONFIG = ModelConfig(bottom=(8,), tower=(6,), history="din")
BAR = 0.07


def built(name: str, rows: Rows, config: ModelConfig = CONFIG) -> MultiObjectiveModel | OneScoreModel:
    torch.manual_seed(0)
    model = build(name, rows.schema, ArchSpec.dense(rows.schema, 4), config)
    if isinstance(model, MultiObjectiveModel):
        model.fit_targets(rows.labels)
    return model


def interests(model: torch.nn.Module) -> list[Interests]:
    return [m for m in model.modules() if isinstance(m, Interests)]


class Blind(InterestPooling):
    """The stub: weights that do not see the candidate."""

    def _score(self, q: Tensor, k: Tensor) -> Tensor:
        return super()._score(torch.zeros_like(q), k)


@cache
def found(name: str, kind: str, seed: int) -> tuple[float, float]:
    """Of ``blind`` or a history: the worse objective's AUC; and how often the step that is the candidate has
    the weight farthest from the row's others, where it is there (0 for ``mean``)."""
    rows, test = (seen_before(2 * seed + part, n, ("click", "like")) for part, n in enumerate((6000, 2000)))
    seed_everything(seed)
    config = ModelConfig((32,), (16,), history=cast(History, "din" if kind == "blind" else kind))
    model = build(name, rows.schema, ArchSpec.dense(rows.schema, 8), config)
    if kind == "blind":
        for pooling in interests(model)[0]:
            pooling.__class__ = Blind
    train(model, rows, test, TrainConfig(epochs=8, patience=8, batch_size=100, learning_rate=1e-2, device="cpu",
                                         seed=seed))
    scores = predict(model, test)
    area = min(metrics.auc(test.labels[:, k], scores[f"{o}@all"]) for k, o in enumerate(("click", "like")))
    return area, 0.0 if kind == "mean" else at_the_candidate(model, test)


@torch.no_grad()
def at_the_candidate(model: torch.nn.Module, rows: Rows) -> float:
    attention, encoder = interests(model)[0], next(m for m in model.modules() if isinstance(m, FeatureEncoder))
    batch = rows.take(slice(None))
    steps = attention.steps(encoder.embedding, batch)["seen"]
    candidate = encoder(batch).fields[:, attention.places[0][1]]
    weights = attention[0].weights(candidate, *steps).masked_fill(~steps.there, torch.nan)
    far = (weights - weights.nanmedian(1, keepdim=True).values).abs().nan_to_num(-1.0).argmax(1)
    same = batch.sequences["seen"] == batch.ids[:, :1]
    return float(same.gather(1, far[:, None])[same.any(1)].float().mean())


QUICK = ("shared_bottom", "din", 0)


@pytest.mark.parametrize(("name", "history", "seed"), [
    pytest.param(*case, marks=[] if case == QUICK else [pytest.mark.slow])
    for case in product(("shared_bottom", "mmoe"), ("din", "din_softmax"), range(5))])
def test_attention_sees_a_candidate_in_the_history_where_a_mean_does_not(name: str, history: str, seed: int) -> None:
    (mean, _), (blind, by_chance), (area, looked) = (found(name, kind, seed) for kind in ("mean", "blind", history))
    assert area >= mean + BAR
    assert blind < mean + BAR
    assert looked >= 0.9
    assert by_chance < 0.9


def test_by_default_there_is_no_attention_and_nothing_is_drawn_for_it(rows: Rows) -> None:
    """The model is the one that was there before the choice, to the last bit."""
    default, mean = (built("mmoe", rows, c) for c in (ModelConfig((8,), (6,)), replace(CONFIG, history="mean")))
    assert not [name for name in default.state_dict() if "interests" in name]
    assert all(torch.equal(a, b) for a, b in zip(default.parameters(), mean.parameters(), strict=True))
    din = built("mmoe", rows)
    names = din.state_dict().keys() - default.state_dict().keys()
    assert {name.rpartition(".unit.")[0] for name in names} == {"encoder.interests.0"}


def test_the_mean_stays_where_it_was_and_the_interest_stands_behind_it(rows: Rows) -> None:
    """So that interactions read what they were searched with."""
    batch, (mean, din) = rows.take(slice(0, 64)), (built("mmoe", rows, replace(CONFIG, history=h)).eval()
                                                   for h in ("mean", "din"))
    before, after = mean.encoder(batch), din.encoder(batch)
    assert torch.equal(before.fields, after.fields) and torch.equal(before.products, after.products)
    plain = mean.encoder.width
    assert din.encoder.width == plain + 8 and torch.equal(before.flat, after.flat[:, :plain])
    (interest,), there = after.interests, batch.sequences["seen"][:, 0] >= 0
    assert torch.equal(after.flat[:, plain:plain + 4], interest) and torch.equal(interest.any(1), there)


@pytest.mark.parametrize("name", EVERY)
def test_every_model_learns_from_it_and_scores_by_it(name: str, rows: Rows) -> None:
    """Its loss reaches every unit, and other units give other outputs."""
    model, batch = built(name, rows), rows.take(slice(0, 200))
    batch.group = torch.from_numpy(rows.group[:200])
    model.loss(batch).backward()
    found = interests(model)
    assert len(found) == (len(rows.schema.objectives) if name == "single" else 1)
    for p in (p for each in found for p in each.parameters()):
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any()
    before = model.eval()(batch)
    with torch.no_grad():
        for p in (p for each in found for p in each.parameters()):
            p.add_(1.0)
    assert not torch.equal(model(batch), before)


@pytest.mark.parametrize("name", EVERY)
def test_padding_and_other_rows_do_not_matter(name: str, rows: Rows) -> None:
    model = built(name, rows).eval()
    batch, wider, alone = (rows.take(slice(*part)) for part in ((0, 40), (0, 40), (7, 8)))
    wider.sequences = {field: F.pad(steps, (0, 3), value=-1) for field, steps in batch.sequences.items()}
    for score, padded, of_one in zip(*(model.predict(b).values() for b in (batch, wider, alone)), strict=True):
        torch.testing.assert_close(padded, score)
        torch.testing.assert_close(of_one, score[7:8])


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_learns_the_same(name: str, rows: Rows) -> None:
    batch, losses = rows.take(slice(0, 64)), []
    batch.group = torch.from_numpy(rows.group[:64])
    for half in (False, True):
        model = built(name, rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses.append(model.loss(batch))
        losses[-1].backward()
        assert all(torch.isfinite(p.grad).all() for each in interests(model) for p in each.parameters())
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.02)


@pytest.mark.parametrize("balancer", ["gradnorm", "pcgrad", "mgda"])
def test_gradients_are_balanced_on_the_units_too(balancer: str, rows: Rows) -> None:
    model = built("esmm", rows)  # without a layer of its own that objectives share
    units = [p.detach().clone() for p in interests(model)[0].parameters()]
    shared = {id(p) for p in model.shared_parameters()}
    assert all(id(p) in shared for p in interests(model)[0].parameters())
    train(model, rows, rows, TrainConfig(epochs=1, batch_size=100, device="cpu"),
          balancer=build_balancer(balancer, model))
    moved = list(interests(model)[0].parameters())
    assert all(torch.isfinite(p).all() and not torch.equal(p, q) for p, q in zip(moved, units, strict=True))


@pytest.mark.parametrize("alloc", ALLOCS)
@pytest.mark.parametrize("merged", [False, True], ids=["pairs", "merged"])
def test_it_works_on_every_embedding_and_with_searched_interactions(alloc: str, merged: bool) -> None:
    """Steps and candidate come from the network's own embedding: the interest is that of what both embed to."""
    spec = ArchSpec.of(SCHEMA, "test", DIM, alloc=ALLOCS[alloc], interactions=GROWN if merged else all_pairs(SCHEMA),
                       groups=GROUPS if merged else (), tables=TABLES if merged else {})
    torch.manual_seed(0)
    model = build("mmoe", SCHEMA, spec, CONFIG).eval()
    (attention,), encoder = interests(model), model.encoder
    batch = batch_of(draw(20))
    encoded = encoder(batch)
    assert [f.name for f in attention.histories] == ["seen"] and attention.places == [(3, 2)]
    expected = attention[0](encoded.fields[:, 2], encoded.steps("seen"), batch.sequences["seen"] >= 0)
    assert torch.equal(encoded.interests[0], expected) and encoded.flat.shape == (20, encoder.width)
    model.loss(batch).backward()


@pytest.mark.parametrize("name", EVERY)
def test_the_cost_has_the_units_and_what_they_compute(name: str, rows: Rows, torch_alone: None) -> None:
    """Parameters one by one; operations as torch counts them at full histories, beyond those of the mean's model."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = rows.take(slice(0, 10))
    batch.sequences = {"seen": torch.randint(30, (10, 4), dtype=torch.int32)}
    ours, theirs = [], []
    for history in ("mean", "din"):
        model = built(name, rows, replace(CONFIG, history=history)).eval()
        with FlopCounterMode(display=False) as counter:
            model(batch)
        ours.append(model.cost())
        theirs.append(counter.get_total_flops() / 10)
    mean, din = ours
    units = [p.numel() for each in interests(model) for p in each.parameters()]
    widened = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in built(name, rows, replace(CONFIG, history="mean")).parameters()) - sum(units)
    assert units and widened > 0 and din.parameters_embedding == mean.parameters_embedding
    assert din.parameters_other - mean.parameters_other == sum(units) + widened
    products = 2 * 4 * 4 * len(interests(model))  # q - k and q * k, element by element, which torch does not count
    assert din.flops - mean.flops == theirs[1] - theirs[0] + products


@pytest.mark.parametrize("name", ["mmoe", "dupn", "single", "jrc"])
def test_a_saved_model_is_rebuilt_with_it(name: str, rows: Rows, tmp_path: Path) -> None:
    spec, model = ArchSpec.dense(rows.schema, 4), built(name, rows)
    save_description(tmp_path, name, rows.schema, spec, CONFIG)
    save_weights(tmp_path / WEIGHTS, model)
    again = load_model(tmp_path)
    assert len(interests(again)) == len(interests(model)) > 0
    for score, expected in zip(predict(again, rows).values(), predict(model, rows).values(), strict=True):
        np.testing.assert_array_equal(score, expected)


@pytest.mark.parametrize("name", ["mmoe", "bpr"])
def test_a_log_without_a_history_of_a_field_is_refused(name: str, rows: Rows) -> None:
    for fields, named in ((rows.schema.fields[:3], "none"),
                          ((*rows.schema.fields[:3], Field("tags", "sequence", 5, "item", None, 3)), "tags")):
        schema = replace(rows.schema, fields=fields)
        with pytest.raises(InputError, match=rf"retrain\.history = 'din': .* are {named}; give the history .* to mean"):
            build(name, schema, ArchSpec.dense(schema, 4), CONFIG)
    with pytest.raises(InputError, match=r"retrain\.history = 'lstm': .*use mean, din, din_softmax"):
        built(name, rows, replace(CONFIG, history="lstm"))  # type: ignore[arg-type]


def test_sequences_of_no_field_stay_a_mean() -> None:
    """And every one of a field is looked at from its own."""
    schema = replace(SCHEMA, fields=(*SCHEMA.fields, Field("friends", "sequence", 40, "user", "user", 3)))
    model = build("shared_bottom", schema, ArchSpec.dense(schema, 4), CONFIG)
    (attention,) = interests(model)
    assert [(f.name, f.of) for f in attention.histories] == [("seen", "item"), ("friends", "user")]
    assert attention.places == [(3, 2), (5, 0)] and attention.width == 8
