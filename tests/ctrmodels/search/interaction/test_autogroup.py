"""AutoGroup finds planted groups (calibrated); groups that nobody searched, and stubs, do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels import metrics
from ctrmodels.archspec import ArchSpec, FieldDimMask, Group, Interaction, Uniform, merge
from ctrmodels.data.dataset import Batch, Rows
from ctrmodels.data.planted import Planted, planted_groups
from ctrmodels.multitask import ModelConfig, build_model
from ctrmodels.nn.group import GumbelMembers
from ctrmodels.search import AutoGroup, Host, SearchMethod, SearchRows, random_control, retrain
from ctrmodels.search.base import Found
from ctrmodels.search.bilevel import set_gradients
from ctrmodels.search.interaction import autogroup
from ctrmodels.training import TrainConfig
from ctrmodels.training.checkpoint import Checkpoint
from ctrmodels.training.trainer import Trainer, predict
from ctrmodels.zoo import CTRModel

# A linear head: what a group gives enters the logit as it is, and no MLP can make up for groups that lack a field.
HOST = Host("click", dim=4, hidden=(),
            train=TrainConfig(epochs=6, patience=6, batch_size=200, learning_rate=1e-2))
SEARCH = AutoGroup(groups=(1, 4, 4), dims=(4, 4), epochs=8)
RATES = (0.01, 0.03, 0.1)
QUICK, ROWS = 16_000, 40_000
TRIPLE = (1, 4, 7)


def rows_of(log: Planted) -> SearchRows:
    return SearchRows(log.roles["train"], log.roles["arch"])


@torch.no_grad()
def contributions(model: CTRModel, rows: Rows, order: int) -> Tensor:
    """[G, F]: standard deviation of the change of every group's number when a field leaves the group."""
    model.eval()
    encoder, batch = model.encoder, rows.take(slice(0, 4000))
    for part in encoder.groups:
        if part.order == order:
            fields = encoder.tables[part.table](batch, encoder.layout(batch))
            whole, members, found = part(fields), part.members.members, []
            for f in range(part.n_fields):
                stays = members[f].clone()
                members[f] = 0
                found.append((part(fields) - whole).std(0))
                members[f] = stays
            return torch.stack(found, 1)
    return torch.zeros(0, encoder.n_fields)


def has(model: CTRModel, rows: Rows, group: Sequence[int]) -> bool:
    """Whether in some group of that order these fields contribute most; idle members do no harm, and prove nothing."""
    by_group = contributions(model, rows, len(group))
    return any(set(c.topk(len(group)).indices.tolist()) == set(group) for c in by_group)


@dataclass(frozen=True)
class Outcome:
    """Of one retrained architecture: AUC by role, and whether the triple was recovered."""

    valid: float
    test: float
    triple: bool


@cache
def outcome(method: SearchMethod, seed: int, rows: int) -> Outcome:
    log = planted_groups(seed, rows)
    spec = method.search(rows_of(log), HOST, seed).specs["autogroup"]
    trained = retrain(spec, rows_of(log), log.roles["valid"], HOST, seed)
    test = log.roles["test"]
    auc = metrics.auc(test.labels[:, 0], predict(trained.model, test)["click@all"])
    return Outcome(trained.valid["auc"], auc, has(trained.model, test, TRIPLE))


def frozen(method: AutoGroup) -> AutoGroup:
    """Ablation: the weights alone learn, on memberships that start at random and stay."""
    return replace(method, learning_rate=0.0, epochs=1)


def assert_finds(methods: Sequence[SearchMethod], seeds: Sequence[int], rows: int) -> None:
    """The best of ``methods`` on valid is ahead of frozen groups on test, and recovers the triple on most seeds."""
    best = max(methods, key=lambda m: np.mean([outcome(m, s, rows).valid for s in seeds]))
    found, control = ([outcome(m, s, rows) for s in seeds] for m in (best, frozen(SEARCH)))
    assert np.mean([o.test for o in found]) >= np.mean([o.test for o in control]) + 0.03
    assert np.mean([o.triple for o in found]) >= 0.6


@dataclass(frozen=True)
class RandomGroups(AutoGroup):
    """Stub: as many groups as the search has, of any three fields."""

    def search(self, rows: SearchRows, host: Host, seed: int, checkpoint: Checkpoint | None = None) -> Found:
        rng = np.random.default_rng([seed, 1])
        groups = tuple(Group(tuple(sorted(rng.choice(10, 3, replace=False).tolist())), order, self.table(order))
                       for order, n in enumerate(self.groups, 1) for _ in range(n))
        return Found({self.name: self.spec(rows, host, groups, seed)})


def test_the_planted_groups_are_found():
    """One quick log. A search misses the triple on some logs, so that only several say how often: below."""
    assert_finds([SEARCH], (3,), QUICK)


@pytest.mark.slow
def test_the_planted_groups_are_found_over_five_seeds():
    assert_finds([replace(SEARCH, learning_rate=rate) for rate in RATES], range(5), ROWS)


@pytest.mark.parametrize("stub", [frozen(SEARCH), RandomGroups(SEARCH.groups, SEARCH.dims)])
def test_groups_that_nobody_searched_fail_the_same_test(stub):
    with pytest.raises(AssertionError):
        assert_finds([stub], (3,), QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("stub", [frozen(SEARCH), RandomGroups(SEARCH.groups, SEARCH.dims)])
def test_groups_that_nobody_searched_fail_the_same_test_over_five_seeds(stub):
    with pytest.raises(AssertionError):
        assert_finds([stub], range(5), ROWS)


SMALL = AutoGroup(groups=(2, 3, 3), dims=(3, 4), epochs=2)


def small() -> tuple[Planted, SearchRows]:
    log = planted_groups(0, rows=4000)
    return log, rows_of(log)


def test_the_spec_says_all_that_the_retraining_builds():
    log, rows = small()
    spec = replace(SMALL, lambda_c=0.5, compensation="code").search(rows, HOST, 0).specs["autogroup"]
    assert spec.interactions == () and spec.alloc is None
    assert {g.order for g in spec.groups} <= {1, 2, 3} and len(set(spec.groups)) == len(spec.groups)
    assert {(g.lambda_c, g.compensation) for g in spec.groups} == {(0.5, "code")}
    assert {g.table for g in spec.groups} - {""} == set(spec.tables) <= {"order2", "order3"}
    assert spec.tables.get("order3", Uniform(4)) == Uniform(4)
    model = retrain(spec, rows, log.roles["valid"], replace(HOST, train=replace(HOST.train, epochs=1)), 0).model
    assert {(p.order, p.lambda_c, p.everyone) for p in model.encoder.groups} == {
        (g.order, 0.5, True) for g in spec.groups}
    assert {p.order: int(p.members().sum()) for p in model.encoder.groups} == {
        order: sum(len(g.fields) for g in spec.groups if g.order == order) for order in {g.order for g in spec.groups}}


def test_groups_in_which_nothing_interacts_and_repeated_ones_are_left_out():
    _, rows = small()
    groups = SMALL.build(rows, HOST).encoder.groups
    wanted = {1: [{3}, set()], 2: [{3}, {1, 2}, {1, 2}], 3: [set(), {4}, {0, 1, 2}]}
    members, everyone = groups.relax(0.1), [g for part in groups for g in wanted[part.order]]
    with torch.no_grad():
        members.logits[..., 0] = torch.tensor([[float(f in g) for g in everyone] for f in range(10)])
        members.logits[..., 1] = 0.5
    assert SMALL.chosen(groups) == (Group((0, 1, 2), 3, "order3"), Group((1, 2), 2, "order2"), Group((3,), 1))


def assert_steps_are_apart(structure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every batch of a search with ``structure`` for the memberships' gradients: they are those of its loss alone,
    and neither weights nor their gradients have changed."""
    trained: list[Batch] = []
    judged: list[Batch] = []

    def watched(architecture: list[nn.Parameter], trainer: Trainer, batch: Batch) -> None:
        weights = trainer.optimisers.parameters()
        assert not {id(p) for p in weights} & {id(p) for p in architecture}
        before = [p.detach().clone() for p in weights]
        theirs = [None if p.grad is None else p.grad.to_dense().clone() for p in weights]
        noise = torch.get_rng_state()
        structure(architecture, trainer, batch)
        assert all(p.requires_grad for p in weights)
        torch.set_rng_state(noise)
        alone = torch.autograd.grad(trainer.loss(batch), architecture)
        assert all(torch.allclose(p.grad, g, rtol=1e-4, atol=1e-5 * float(g.abs().max())) and g.any()
                   for p, g in zip(architecture, alone, strict=True))  # the weights' gradients come with it, or do not
        assert all(torch.equal(p, old) for p, old in zip(weights, before, strict=True))
        assert all(p.grad is None if g is None else torch.equal(p.grad.to_dense(), g)
                   for p, g in zip(weights, theirs, strict=True))
        judged.append(batch)

    step = Trainer.step
    with monkeypatch.context() as patch:
        patch.setattr(autogroup, "set_gradients", watched)
        patch.setattr(Trainer, "step", lambda self, batch: trained.append(batch) or step(self, batch))
        replace(SMALL, epochs=1).search(small()[1], HOST, 0)
    assert len(judged) > 3 and all(a is b for a, b in zip(judged, trained, strict=True))


def test_the_two_steps_on_a_batch_do_not_see_each_others_gradients(monkeypatch):
    assert_steps_are_apart(set_gradients, monkeypatch)


def test_gradients_that_add_up_fail_the_same_test(monkeypatch):
    with pytest.raises(AssertionError):
        assert_steps_are_apart(lambda _, trainer, batch: trainer.loss(batch).backward(), monkeypatch)


def test_weights_learn_with_hard_memberships_without_noise(monkeypatch):
    """Memberships are drawn while their own gradients are taken, and at no other time."""
    states: list[tuple[str, bool]] = []
    step = Trainer.step

    def drawn_now(trainer: Trainer) -> bool:
        (now,) = {m.drawn for m in trainer.network.modules() if isinstance(m, GumbelMembers)}
        return now

    def structure(architecture, trainer, batch) -> None:
        states.append(("structure", drawn_now(trainer)))
        set_gradients(architecture, trainer, batch)

    monkeypatch.setattr(autogroup, "set_gradients", structure)
    monkeypatch.setattr(Trainer, "step", lambda self, batch: states.append(("weights", drawn_now(self)))
                        or step(self, batch))
    replace(SMALL, epochs=1).search(small()[1], HOST, 0)
    assert states == [("weights", False), ("structure", True)] * (len(states) // 2)


def test_equal_seeds_give_the_same_spec():
    _, rows = small()
    first, again, other = (SMALL.search(rows, HOST, seed).specs["autogroup"].id for seed in (3, 3, 4))
    assert first == again != other


def test_a_chosen_embedding_is_what_groups_of_order_one_read():
    log, rows = small()
    mask = np.zeros((10, 4), bool)
    mask[:, :2] = True
    embedding = ArchSpec.of(log.schema, "eds", 4, alloc=FieldDimMask(mask))
    host = replace(HOST, embedding=embedding, train=replace(HOST.train, epochs=1))
    spec = merge(embedding, SMALL.search(rows, host, 0).specs["autogroup"])
    model = retrain(spec, rows, log.roles["valid"], host, 0).model
    assert model.encoder.embedding.stored_values() == 2 * log.schema.total_vocab
    assert [(p.table, p.dim) for p in model.encoder.groups if p.order == 1] == [("", 4)]


def test_the_random_control_has_as_many_members_and_costs_the_same():
    log, rows = small()
    spec = SMALL.search(rows, HOST, 0).specs["autogroup"]
    control = random_control(spec, log.schema, 0)
    assert [(g.order, len(g.fields), g.table) for g in control.groups] == [
        (g.order, len(g.fields), g.table) for g in spec.groups]
    assert control.groups != spec.groups
    costs = [HOST.build(log.schema, HOST.complete(s, log.schema)).cost() for s in (spec, control)]
    assert costs[0] == costs[1]


def test_multi_objective_models_read_the_groups():
    log, rows = small()
    spec = HOST.complete(SMALL.search(rows, HOST, 0).specs["autogroup"], log.schema)
    batch = log.roles["train"].take(slice(0, 100))
    torch.manual_seed(0)
    model = build_model("mmoe", log.schema, spec, ModelConfig((8,), (4,)))
    model.loss(batch).backward()
    assert all(p.weights.grad.any() for p in model.encoder.groups)


@pytest.mark.parametrize(("changes", "says"), [
    ({"groups": (0, 0, 0)}, "one at least"), ({"groups": (1, -1, 2)}, "one at least"),
    ({"dims": (4,)}, "every order from 2 on"), ({"dims": (4, 0)}, "every order from 2 on")])
def test_settings_that_make_no_groups_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(SEARCH, **changes)


def test_a_host_that_does_not_read_groups_is_refused():
    _, rows = small()
    with pytest.raises(ValueError, match="autodeepfm or autoipnn, not deepfm"):
        SMALL.search(rows, replace(HOST, model="deepfm"), 0)


def test_pairs_and_groups_may_stand_side_by_side():
    log, rows = small()
    spec = replace(SMALL.search(rows, HOST, 0).specs["autogroup"], interactions=(Interaction((0, 5)),))
    model = HOST.build(log.schema, HOST.complete(spec, log.schema))
    assert model.encoder.n_products == 1 and model.encoder.groups.width
