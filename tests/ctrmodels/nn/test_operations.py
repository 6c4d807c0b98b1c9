"""Interactions have the gradients of their formulas, compiled and by torch, in chunks of rows and as a whole."""

from __future__ import annotations

from itertools import combinations
from math import prod

import pytest
import torch
from torch import Tensor

from ctrmodels import native
from ctrmodels.archspec import Interaction
from ctrmodels.nn import operations
from ctrmodels.nn.operations import OuterProducts, common_prefixes
from ctrmodels.nn.products import Products

F, D, B = 6, 5, 7
OPS = ("inner", "scalar_kernel", "vector_kernel", "outer")


@pytest.fixture(params=["compiled", "torch"])
def _either(request, monkeypatch):
    """The compiled kernels, and what stands in for them; both in chunks of few rows."""
    monkeypatch.setattr(operations, "CHUNK", 64)
    if request.param == "torch":
        monkeypatch.setattr("ctrmodels.nn.products.kernels", lambda *_: None)
    elif native.kernels(torch.empty(0)) is None:
        pytest.skip("no C++ compiler")


def built(found: list[Interaction]) -> Products:
    torch.manual_seed(0)
    products = Products(found, F, {"": D})
    for parameter in products.parameters():
        parameter.data.normal_()
    return products


def by_formula(products: Products, i: Interaction, fields: Tensor) -> Tensor:
    """One interaction [B], where it is the only one."""
    part = products.parts[0]
    chosen = [fields[:, f] for f in i.fields]
    if isinstance(part, OuterProducts):
        return prod((e @ u for e, u in zip(chosen, part.vectors.T, strict=True)), start=torch.ones(len(fields)))
    weight = getattr(part, "kernels", torch.ones(1))[0]
    return (prod(chosen, start=torch.ones_like(chosen[0])) * weight).sum(1)


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("fields", [(0, 3), (1, 2, 5), (0, 2, 3, 4)])
def test_an_interaction_is_its_formula_in_both_directions(op, fields):
    products, found = built([Interaction(fields, op)]), Interaction(fields, op)
    x = torch.randn(B, F, D, dtype=torch.float32, requires_grad=True)
    leaves = [x, *products.parameters()]
    mine, theirs = products({"": x})[:, 0], by_formula(products, found, x)
    torch.testing.assert_close(mine, theirs)
    g = torch.randn(B)
    for a, b in zip(torch.autograd.grad(mine, leaves, g), torch.autograd.grad(theirs, leaves, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("order", [2, 3, 4])
def test_many_at_once_are_each_alone(op, order):
    chosen = [Interaction(c, op) for c in combinations(range(F), order)][::2]
    products = built(chosen)
    x = torch.randn(B, F, D, requires_grad=True)
    together, g = products({"": x}), torch.randn(B, len(chosen))
    alone = []
    for place, i in enumerate(chosen):
        single = built([i])
        with torch.no_grad():
            for name, parameter in single.parts[0].named_parameters():
                of_all = getattr(products.parts[0], name)
                parameter.copy_(of_all if op == "outer" else of_all[place:place + 1])
        alone.append(by_formula(single, i, x))
    expected = torch.stack(alone, 1)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(together, x, g)[0], torch.autograd.grad(expected, x, g)[0],
                               rtol=1e-4, atol=1e-5)


def test_grown_combinations_share_the_pair_they_grew_from():
    grown = sorted({tuple(sorted((2, 7, f))) for f in range(12) if f not in (2, 7)})
    assert {head for head, _ in common_prefixes(grown)} == {(2, 7)}


def test_the_same_interaction_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        Products([Interaction((0, 1)), Interaction((0, 1), strength=0.5)], F, {"": D})
