"""The kernel of groups' powers computes what torch's operations do, of fields and of rows, in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import Tensor

from ctrmodels import native
from ctrmodels.archspec import ArchSpec, Group, Uniform
from ctrmodels.data.planted import planted_groups
from ctrmodels.nn.group import drawn
from ctrmodels.nn.table import Lookup
from ctrmodels.search.bilevel import frozen
from ctrmodels.zoo import AutoDeepFM, AutoIPNN

B, F = 77, 5
SHAPES = [(8, 16), (16, 4), (3, 3), (24, 19)]  # widths and groups, in whole registers and not


@pytest.fixture
def operations():  # type: ignore[no-untyped-def]
    found = native.kernels()
    assert found is not None, "this machine has no C++ compiler: the kernels cannot be tested"
    return found


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_torch(fields: Tensor, inside: Tensor, own: Tensor, order: int, lambda_c: float) -> Tensor:
    sums = torch.einsum("bfd,fg->bgd", fields, inside)
    if order == 1:
        return sums.flatten(1)
    alone = (fields.unsqueeze(2) * own.unsqueeze(2)).pow(order)  # [B, F, G, D]
    return sums.pow(order).sum(2) - lambda_c * alone.sum((1, 3))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    largest = max(1e-9, float(theirs.detach().abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * largest)


def lookup() -> Lookup:
    drawn_ids = torch.randint(0, 9, (B, F), generator=torch.Generator().manual_seed(1))
    return Lookup((drawn_ids + 9 * torch.arange(F)).int().flatten(), None, (B, F))


@pytest.mark.parametrize("lambda_c", [0.0, 0.7])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("width", "groups"), SHAPES)
@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("some", [True, False])
def test_values_and_gradients_are_those_of_torch(operations, some: bool, by_row: bool, width: int, groups: int,
                                                 order: int, apart: bool, lambda_c: float) -> None:
    """``apart``: the compensation has weights of its own; ``some``: only some fields are members, one of weight 0."""
    torch.manual_seed(0)
    found = lookup()
    rows = len(found.segments.rows) if by_row else B * F
    members = (torch.rand(F, groups) < 0.5).float() if some else torch.ones(F, groups)
    if some:
        members[:, 0], members[2], members[1, 1] = 0.0, 0.0, 1.0  # a group of nobody, a field in none
    inside = torch.randn(F, groups) * members
    inside[1, 1] = 0.0
    vectors, inside = torch.randn(rows, width, requires_grad=True), inside.requires_grad_()
    own = torch.randn(F, groups, requires_grad=True) if apart else None
    fields = (vectors[found.places.long()] if by_row else vectors).view(B, F, width)
    expected = by_torch(fields, inside, inside if own is None else own, order, lambda_c)
    leaves = [vectors, inside, *([] if own is None else [own])]
    g = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, leaves, g, allow_unused=True)

    fixed = [t.detach() for t in leaves]
    rest = (fixed[1], fixed[2] if apart else None, order, lambda_c)
    places = found.places if by_row else None
    result = torch.zeros(B, expected.shape[1] + 3)
    own_sums = operations.power_sums(result, 2, fixed[0], places, *rest)
    close(result[:, 2:-1], expected)
    assert not result[:, :2].any() and not result[:, -1].any()
    above = torch.nn.functional.pad(g, (2, 1), value=7.0)
    for wanted, counted in product((True, False), (None, members)):
        gradients = list(operations.power_sums_backward(
            above, 2, fixed[0], places, *rest[:2], counted, own_sums, *rest[2:], wanted))
        assert len(gradients[0]) == (rows if wanted else 0)
        theirs = [torch.zeros_like(ours) if g is None else g for ours, g in zip(fixed, expected_gradients, strict=True)]
        if counted is not None:
            gradients[1], theirs[1] = gradients[1] * counted, theirs[1] * counted
        for i in range(0 if wanted else 1, len(theirs)):
            close(gradients[i], theirs[i])


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("width", "groups"), SHAPES)
def test_in_bfloat16_values_are_the_rounded_ones(operations, width: int, groups: int, order: int) -> None:
    torch.manual_seed(0)
    found = lookup()
    vectors, inside = torch.randn(len(found.segments.rows), width), torch.randn(F, groups)
    columns = groups * (width if order == 1 else 1)
    exact, rounded = torch.zeros(B, columns), torch.zeros(B, columns, dtype=torch.bfloat16)
    for result in (exact, rounded):
        own_sums = operations.power_sums(result, 0, vectors, found.places, inside, None, order, 0.5)
    assert torch.equal(exact.bfloat16(), rounded)
    g = torch.randn(B, columns).bfloat16()
    rest = (vectors, found.places, inside, None, None, own_sums, order, 0.5, True)
    for ours, theirs in zip(operations.power_sums_backward(g, 0, *rest),
                            operations.power_sums_backward(g.float(), 0, *rest), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("order", [1, 3])
def test_the_same_bits_on_any_number_of_threads(operations, threads, order: int) -> None:
    torch.manual_seed(0)
    rows, many = 3000, 4096
    ids = torch.randint(0, rows, (many, F)) + rows * torch.arange(F)
    found = Lookup(ids.int().flatten(), None, (many, F))
    vectors, inside = torch.randn(len(found.segments.rows), 8), torch.randn(F, 16)
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        result = torch.zeros(many, 16 * (8 if order == 1 else 1))
        own_sums = operations.power_sums(result, 0, vectors, found.places, inside, None, order, 1.0)
        results.append([result, own_sums, *(g for wanted in (True, False) for g in operations.power_sums_backward(
            result, 0, vectors, found.places, inside, None, None, own_sums, order, 1.0, wanted))])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_a_place_that_is_not_there_is_refused(operations) -> None:
    for place in (-1, 3):
        with pytest.raises(IndexError, match="a place behind the last of 3"):
            operations.power_sums(torch.empty(1, 2), 0, torch.randn(3, 4), torch.tensor([place, 0]).int(),
                                  torch.randn(2, 2), None, 2, 1.0)


@pytest.mark.parametrize("compensation", ["formula", "code"])
@pytest.mark.parametrize("relaxed", [True, False])
def test_a_training_step_has_the_gradients_that_it_has_without_kernels(operations, monkeypatch, relaxed: bool,
                                                                      compensation) -> None:
    """Of the whole network, by rows with the kernels and by fields without, drawn and not; with running statistics."""
    log = planted_groups(0, rows=2000)
    batch = log.roles["train"].take(slice(0, 500))
    everyone = tuple(range(10))
    groups = [Group(everyone[:7] if not relaxed and j else everyone, order, "" if order == 1 else f"order{order}", 0.5,
                    compensation) for order in (1, 2, 3) for j in range(3)]
    spec = ArchSpec.of(log.schema, "test", 4, alloc=Uniform(4), interactions=(), groups=tuple(groups),
                       tables={"order2": Uniform(3), "order3": Uniform(8)})
    found = []
    for compiled in (True, False):
        torch.manual_seed(0)
        model = AutoDeepFM(log.schema, spec, "click", hidden=(8,))
        for embedding in model.encoder.embeddings:
            torch.nn.init.normal_(embedding.table.weight)
        memberships = model.encoder.groups.relax(1.0) if relaxed else None
        with monkeypatch.context() as patch:
            if not compiled:
                patch.setattr(native, "_load", lambda: None)
            with drawn(memberships) if memberships is not None else nullcontext():
                model.loss(batch).backward()
        gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
        found.append([*gradients, *(b for name, b in model.named_buffers() if "running" in name)])
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs, 1e-3)


@pytest.mark.parametrize("model", [AutoDeepFM, AutoIPNN])
def test_memberships_that_learn_alone_have_the_gradient_that_they_have_among_others(operations, model) -> None:
    """Where no weight wants one, that of the network's own fields is left out."""
    log = planted_groups(0, rows=2000)
    batch, everyone = log.roles["train"].take(slice(0, 500)), tuple(range(10))
    groups = [Group(everyone, order, "" if order == 1 else f"order{order}") for order in (1, 2, 3) for _ in range(3)]
    spec = ArchSpec.of(log.schema, "test", 4, alloc=Uniform(4), interactions=(), groups=tuple(groups),
                       tables={"order2": Uniform(3), "order3": Uniform(8)})
    torch.manual_seed(0)
    network = model(log.schema, spec, "click", hidden=(8,))
    memberships = network.encoder.groups.relax(1.0)
    weights = [p for p in network.parameters() if p is not memberships.logits]
    gradients = []
    for alone in (False, True):
        torch.manual_seed(1)
        with drawn(memberships), frozen(weights) if alone else nullcontext():
            gradients.append(torch.autograd.grad(network.loss(batch), [memberships.logits]))
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.any()
        close(ours, theirs, 1e-5)
