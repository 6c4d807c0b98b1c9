"""Power sums of groups: their numbers against naive loops, why embeddings are normalised, memberships that learn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels.archspec import ArchSpec, Group, Uniform
from ctrmodels.data.planted import planted_groups
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.nn.group import Groups, GumbelMembers, PowerSums, drawn
from ctrmodels.zoo import AutoDeepFM

LOG = planted_groups(0, rows=2000)
BATCH = LOG.roles["train"].take(slice(0, 700))
FIELDS, DIM = 5, 3
MEMBERS = [(0, 2, 4), (1, 3), (0, 1, 2, 3, 4)]


def groups(order: int, **settings) -> list[Group]:
    return [Group(fields, order, **settings) for fields in MEMBERS]


def fields(rows: int = 40) -> Tensor:
    return torch.randn(rows, FIELDS, DIM, generator=torch.Generator().manual_seed(0)) * 2 + 1


def naive(part: PowerSums, e: Tensor) -> Tensor:
    """The formula, one number after the other; ``part``'s weights are those of members, group after group by field."""
    lambda_c, everyone = part.lambda_c, part.everyone
    e = (e - e.mean(0)) / (e.var(0, unbiased=False) + 1e-5).sqrt()
    weights = {}
    for cell, w in zip(part.cells.tolist(), part.weights.tolist(), strict=True):
        weights[divmod(cell, len(MEMBERS))] = w
    rows = []
    for row in e.tolist():
        numbers = []
        for j, members in enumerate(MEMBERS):
            by_dim = []
            for d in range(DIM):
                total = sum(weights[f, j] * row[f][d] for f in members)
                others = range(FIELDS) if everyone else members
                own = sum((weights[f, j] * row[f][d]) ** part.order for f in others)
                if part.order == 1 and not everyone:
                    own = 0.0
                by_dim.append(total ** part.order - lambda_c * own)
            numbers.append(by_dim if part.order == 1 else [math.fsum(by_dim)])
        rows.append([x for of_group in numbers for x in of_group])
    return torch.tensor(rows)


@pytest.mark.parametrize("compensation", ["formula", "code"])
@pytest.mark.parametrize("lambda_c", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_numbers_are_those_of_a_naive_loop(order, lambda_c, compensation):
    torch.manual_seed(0)
    part = PowerSums(groups(order, lambda_c=lambda_c, compensation=compensation), FIELDS, DIM)
    torch.testing.assert_close(part(fields()), naive(part, fields()), rtol=1e-4, atol=1e-4)
    assert part.width == part(fields()).shape[1]


def test_a_power_of_two_without_its_own_squares_is_twice_the_sum_of_pairs():
    part = PowerSums([Group((0, 2, 4), 2)], FIELDS, DIM)
    e = part.norm(fields().flatten(1)).view(-1, FIELDS, DIM)
    a, b, c = (w * e[:, f] for w, f in zip(part.weights, (0, 2, 4), strict=True))
    pairs = 2 * (a * b + a * c + b * c).sum(1, keepdim=True)
    torch.testing.assert_close(part(fields()), pairs, rtol=1e-4, atol=1e-4)


def test_only_the_weights_that_count_are_there():
    assert len(PowerSums(groups(2), FIELDS, DIM).weights) == sum(map(len, MEMBERS))
    assert len(PowerSums(groups(2, compensation="code"), FIELDS, DIM).weights) == FIELDS * len(MEMBERS)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("members", [10, 30])
def test_what_a_group_gives_starts_with_about_unit_variance(order, members):
    """Whatever its order, width and size; otherwise it would drown the other features, and be given up."""
    torch.manual_seed(0)
    part = PowerSums([Group(tuple(range(members)), order, lambda_c=0.0)] * 100, 30, 8)
    variance = part(torch.randn(2000, 30, 8)).var(0).mean().item()
    assert 0.5 < variance < 2


@pytest.mark.parametrize("order", [3, 4])
def test_without_normalisation_powers_of_large_embeddings_overflow(order):
    part = PowerSums(groups(order), FIELDS, DIM)
    large = fields() * 1e14
    found = part(large)
    found.square().mean().backward()
    assert found.isfinite().all() and part.weights.grad.isfinite().all()
    part.norm = nn.Identity()
    assert not part(large).isfinite().all()


def test_without_normalisation_embeddings_that_grow_stop_the_training():
    """Ablation: plain gradient steps on a target that takes large powers, with and without."""
    def loss_after(normalised: bool) -> float:
        torch.manual_seed(0)
        part, e = PowerSums([Group((0, 1, 2, 3, 4), 4)], FIELDS, DIM), nn.Parameter(fields())
        if not normalised:
            part.norm = nn.Identity()
        target = torch.randn(len(e), 1)
        step = torch.optim.SGD([e, part.weights], lr=1e-3)
        for _ in range(50):
            step.zero_grad()
            loss = (part(e) - target).square().mean()
            loss.backward()
            step.step()
        return loss.item()

    assert math.isfinite(loss_after(True)) and not math.isfinite(loss_after(False))


def test_drawn_memberships_are_hard_noisy_and_have_the_softmax_gradient():
    torch.manual_seed(0)
    members = GumbelMembers(6, 4, temperature=1.0)
    assert torch.equal(members(), members()) and not members().requires_grad
    assert torch.equal(members().bool(), members.logits[..., 0] > members.logits[..., 1])
    with drawn(members):
        first, other = members(), members()
        assert set(first.unique().tolist()) <= {0.0, 1.0} and not torch.equal(first, other)
        scale = torch.arange(24.0).view(6, 4)
        torch.manual_seed(1)
        (members() * scale).sum().backward()
        torch.manual_seed(1)
        noise = -torch.empty_like(members.logits).exponential_().log()
    soft = torch.softmax(members.logits + noise, 2)[..., 0]
    expected, = torch.autograd.grad((soft * scale).sum(), [members.logits])
    torch.testing.assert_close(members.logits.grad, expected)
    assert not members.drawn


def test_decided_logits_draw_what_they_say():
    members = GumbelMembers(6, 4, temperature=0.1)
    wanted = torch.arange(24).view(6, 4) % 2 == 0
    with torch.no_grad():
        members.logits[..., 0] = torch.where(wanted, 50.0, -50.0)
    with drawn(members):
        assert torch.equal(members().bool(), wanted)
    assert torch.equal(members.chosen(), wanted)


def test_a_relaxation_gives_what_the_fixed_memberships_give():
    """The same weights: the search's hard memberships are the network that is built of them."""
    torch.manual_seed(0)
    everyone = [Group(tuple(range(FIELDS)), 3)] * len(MEMBERS)
    relaxed = Groups(everyone, FIELDS, {"": DIM})
    members = relaxed.relax(0.1)
    with torch.no_grad():
        for place, inside in enumerate(MEMBERS):
            members.logits[:, place, 0] = torch.tensor([float(f in inside) for f in range(FIELDS)])
            members.logits[:, place, 1] = 0.5
    fixed = Groups(groups(3), FIELDS, {"": DIM})
    with torch.no_grad():
        part, other = next(iter(fixed)), next(iter(relaxed))
        part.weights.copy_(other.weights[part.cells])
    torch.testing.assert_close(fixed({"": fields()})[0], relaxed({"": fields()})[0])


@pytest.mark.parametrize("group", [Group((), 2), Group((1, 1), 2), Group((0, 1), 0)])
def test_a_group_that_is_none_is_refused(group):
    with pytest.raises(ValueError, match="a group of order"):
        Groups([group], FIELDS, {"": DIM})


def spec(**changes) -> ArchSpec:
    found = (Group((0, 1, 2), 1), Group((3, 4), 1), Group((0, 5), 2, "order2"), Group((1, 4, 7), 3, "order3"))
    return replace(ArchSpec.of(LOG.schema, "test", 4, alloc=Uniform(4), interactions=(), groups=found,
                               tables={"order2": Uniform(3), "order3": Uniform(6)}), **changes)


def test_what_groups_give_lies_behind_the_other_features():
    torch.manual_seed(0)
    encoder = FeatureEncoder(LOG.schema, spec())
    plain = FeatureEncoder(LOG.schema, spec(groups=(), tables={}))
    encoded = encoder(BATCH)
    assert encoded.flat.shape == (700, encoder.width) and encoder.width % 8 == 0
    assert encoder.groups.width == 2 * 4 + 1 + 1
    behind = encoded.flat[:, plain.width:]
    by_name = {"": encoded.fields, **{k: t(BATCH, encoded.lookup) for k, t in encoder.tables.items()}}
    torch.testing.assert_close(behind[:, :10], torch.cat(encoder.groups(by_name), 1))
    assert not behind[:, 10:].any()


def test_each_order_reads_the_embedding_it_names():
    """The gradient of its numbers reaches that table, and no other."""
    encoder = FeatureEncoder(LOG.schema, spec())
    plain = FeatureEncoder(LOG.schema, spec(groups=(), tables={})).width
    tables = {"": encoder.embedding.table.weight, **{k: t.table.weight for k, t in encoder.tables.items()}}
    for first, last, name in ((0, 8, ""), (8, 9, "order2"), (9, 10, "order3")):
        for weight in tables.values():
            weight.grad = None
        encoder(BATCH).flat[:, plain + first:plain + last].square().sum().backward()
        assert {k for k, w in tables.items() if w.grad is not None and w.grad.to_dense().any()} == {name}


def test_costs_are_counted_on_the_built_module():
    groups_of, none = (AutoDeepFM(LOG.schema, s, "click", hidden=(8,)).cost()
                       for s in (spec(), spec(groups=(), tables={})))
    vocab, wider = LOG.schema.total_vocab, FeatureEncoder(LOG.schema, spec()).width - FeatureEncoder(
        LOG.schema, spec(groups=(), tables={})).width
    assert groups_of.parameters_embedding - none.parameters_embedding == vocab * (3 + 6)
    assert groups_of.parameters_other - none.parameters_other == (3 + 2 + 2 + 3) + 8 * wider
    order1 = 2 * 10 * 4 + 2 * 4 * 5
    order2 = 2 * 10 * 3 + 2 * 3 * 2 + 2 * 3 + 2 * 3 * 10 + 2 * 2
    order3 = 2 * 10 * 6 + 2 * 6 * 3 + 3 * 6 + 3 * 6 * 10 + 2 * 3
    assert groups_of.flops - none.flops == order1 + order2 + order3 + 2 * 8 * wider


def test_without_hidden_layers_there_is_a_linear_map_only_if_groups_need_one():
    with_groups, without = (AutoDeepFM(LOG.schema, s, "click", hidden=()) for s in (spec(), spec(groups=(), tables={})))
    assert without.deep is None
    linear = [m for m in with_groups.deep if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(with_groups.encoder.width, 1)]
    assert isinstance(with_groups(BATCH), Tensor) and np.isfinite(with_groups(BATCH).detach().numpy()).all()
