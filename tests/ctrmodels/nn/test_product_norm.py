"""Interactions are normalised and gated as the formula says, in one pass or several, and alike for all orders."""

from __future__ import annotations

import pytest
import torch

from ctrmodels.archspec import Interaction
from ctrmodels.native import kernels
from ctrmodels.nn.embedding import INIT_SD
from ctrmodels.nn.heads import ProductNorm
from ctrmodels.nn.products import Interacting, Products

B, M = 500, 7
FOUND = [Interaction(tuple(range(2 + m % 3))) for m in range(M)]


MIXED = [Interaction((1, 2), "outer"), Interaction((0, 3)), Interaction((0, 1, 4), table="other"),
         Interaction((2, 5), "vector_kernel", table="other"), Interaction((0, 1)), Interaction((3, 4), "scalar_kernel"),
         Interaction((0, 2, 4), table="other")]


def test_gated_without_a_product_written_down_is_normalised_then_multiplied(monkeypatch):
    """Values, gradients and running statistics, of several orders, functions and embeddings in any order."""
    assert kernels(torch.empty(0)) is not None, "this machine has no C++ compiler: the kernels cannot be tested"
    torch.manual_seed(0)
    fields = {name: torch.randn(B, 6, width, requires_grad=True) for name, width in (("", 4), ("other", 5))}
    products = Products(MIXED, 6, {"": 4, "other": 5})
    for parameter in products.parameters():
        torch.nn.init.normal_(parameter)
    gates, g = torch.randn(len(MIXED), 1, requires_grad=True), torch.randn(B, 1)
    leaves, found = [*fields.values(), gates, *products.parameters()], []
    for compiled in (True, False):
        norm = ProductNorm(MIXED)
        if not compiled:
            monkeypatch.setattr("ctrmodels.nn.products.kernels", lambda *_: None)
        out = norm.gated(Interacting(products, fields), gates)
        found.append([out, *torch.autograd.grad(out, leaves, g), norm.running_mean, norm.running_var])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * max(0.1, float(theirs.detach().abs().max())))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_precision_of_the_training_is_not_theirs(outputs, compiled, monkeypatch):
    """Of one output or several, with kernels or without: what gates add up is the same under autocast."""
    if not compiled:
        monkeypatch.setattr("ctrmodels.nn.products.kernels", lambda *_: None)
    torch.manual_seed(0)
    fields = {name: torch.randn(B, 6, width) for name, width in (("", 4), ("other", 5))}
    products, gates = Products(MIXED, 6, {"": 4, "other": 5}), torch.randn(len(MIXED), outputs)
    found = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(ProductNorm(MIXED).gated(Interacting(products, fields), gates))
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_judged_by_the_running_statistics():
    """What training gathers is what the evaluation normalises with, whichever way it is computed."""
    torch.manual_seed(0)
    fields, products = {"": torch.randn(B, 3, 4)}, Products([Interaction((0, 1))], 3, {"": 4})
    norm, gates = ProductNorm([Interaction((0, 1))]), torch.ones(1, 1)
    norm.gated(Interacting(products, fields), gates)
    norm.eval()
    expected = (products(fields) - norm.running_mean) / (norm.running_var + 1e-3).sqrt()
    torch.testing.assert_close(norm.gated(Interacting(products, fields), gates), expected)


def test_the_formula():
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(B, M, generator=generator) + 2) * torch.tensor([INIT_SD**i.order for i in FOUND])
    norm = ProductNorm(FOUND)
    eps = torch.tensor([1e-3 * INIT_SD ** (2 * (i.order - 2)) for i in FOUND])
    expected = (x - x.mean(0)) / (x.var(0, unbiased=False) + eps).sqrt()
    torch.testing.assert_close(norm(x), expected)
    norm.eval()
    torch.testing.assert_close(norm(x), (x - norm.running_mean) / (norm.running_var + eps).sqrt())
    torch.testing.assert_close(norm.running_mean, 0.01 * x.mean(0).detach())


@pytest.mark.parametrize("order", [3, 4])
def test_small_embeddings_are_as_loud_in_products_of_every_order(order):
    """As they start, each with a standard deviation of INIT_SD."""
    torch.manual_seed(0)
    e = INIT_SD * torch.randn(20_000, order, 8)
    pair, more = (ProductNorm([Interaction(tuple(range(n)))])(e[:, :n].prod(1).sum(1, keepdim=True)).std()
                  for n in (2, order))
    assert float(more / pair) == pytest.approx(1.0, rel=0.1)
