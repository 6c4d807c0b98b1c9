"""Interactions are normalised and gated as the formula says, in one pass or several, and alike for all orders."""

from __future__ import annotations

import pytest
import torch

from ctrmodels.archspec import Interaction
from ctrmodels.native import kernels
from ctrmodels.nn import encoder
from ctrmodels.nn.embedding import INIT_SD
from ctrmodels.nn.encoder import ProductNorm

B, M = 500, 7
FOUND = [Interaction(tuple(range(2 + m % 3))) for m in range(M)]


def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(B, M, generator=generator) + 2) * torch.tensor([INIT_SD**i.order for i in FOUND])
    gates = torch.randn(M, 1, generator=generator)
    return x.requires_grad_(), gates.requires_grad_(), torch.randn(B, 1, generator=generator)


def test_gated_in_one_pass_is_normalised_then_multiplied(monkeypatch):
    """Values, gradients and running statistics."""
    assert kernels(torch.empty(0)) is not None, "this machine has no C++ compiler: the kernels cannot be tested"
    x, gates, g = draw()
    found = []
    for compiled in (True, False):
        norm = ProductNorm(FOUND)
        if not compiled:
            monkeypatch.setattr(encoder, "kernels", lambda *_: None)
        out = norm.gated(x, gates)
        found.append([out, *torch.autograd.grad(out, [x, gates], g), norm.running_mean, norm.running_var])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.detach().abs().max()))


def test_the_formula():
    x, _, _ = draw()
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
