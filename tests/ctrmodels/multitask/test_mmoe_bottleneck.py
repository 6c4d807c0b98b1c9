"""Two objectives of disjoint features through a representation too narrow for both.

``y1 = |q1 x| + |q2 x|`` and ``y2 = |q3 x| + |q4 x|`` with orthonormal q in R^20. Width 4 cannot hold the four
absolute values that both objectives together need, since each takes two ReLUs; experts of width 4 can.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels.multitask import PLE, MMoE, SharedBottom, Trunk
from ctrmodels.multitask.gates import gate_report
from ctrmodels.nn.towers import MLP

SOLVED, UNSOLVED = 0.05, 0.2  # mean squared error of standardised labels


def draw(seed: int, same: bool, rows: int = 7000, train: int = 5000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((20, 4)))
    x = rng.standard_normal((rows, 20))
    parts = np.abs(x @ q)
    first = parts[:, 0] + parts[:, 1]
    y = np.stack([first, first if same else parts[:, 2] + parts[:, 3]], 1) + 0.05 * rng.standard_normal((rows, 2))
    y = (y - y[:train].mean(0)) / y[:train].std(0)
    features, labels = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    return features[:train], labels[:train], features[train:], labels[train:]


def trained_error(trunk: Trunk, seed: int, same: bool = False) -> float:
    """Test error after training ``trunk`` with a small tower per objective."""
    x, y, x_test, y_test = draw(seed, same)
    towers = nn.ModuleList(MLP(trunk.width, (8,), width_out=1) for _ in range(2))
    optimizer = torch.optim.Adam([*trunk.parameters(), *towers.parameters()], lr=1e-2)
    order = torch.Generator().manual_seed(seed)

    def output(features: Tensor) -> Tensor:
        return torch.cat([tower(h) for tower, h in zip(towers, trunk(features), strict=True)], dim=1)

    for _ in range(30):
        for index in torch.randperm(len(x), generator=order).split(250):
            optimizer.zero_grad()
            (output(x[index]) - y[index]).square().mean(0).sum().backward()
            optimizer.step()
    with torch.no_grad():
        return (output(x_test) - y_test).square().mean().item()


def build(kind: str, seed: int) -> Trunk:
    torch.manual_seed(seed)
    if kind == "cgc":
        return PLE(20, 2, specific=2, shared=2, levels=[(4,)])
    return SharedBottom(20, 2, (4,)) if kind == "shared_bottom" else MMoE(20, 2, experts=8, hidden=(4,))


def initialised_alike(trunk: MMoE) -> MMoE:
    """What a constant initialisation makes of a mixture: eight copies of one expert, equally weighted."""
    for parameter in (*trunk.experts.weights, *trunk.experts.biases):
        parameter.data[:] = parameter.data[:1].clone()
    trunk.gate.data[:] = trunk.gate.data[:, :1].clone()
    return trunk


def divergence(trunk: Trunk, seed: int, same: bool) -> float:
    gates = trunk.gates(draw(seed, same)[2])
    assert gates is not None
    return float(gate_report(gates.detach().numpy()).divergence[0, 1])


@pytest.mark.parametrize("kind", ["mmoe", "cgc"])
def test_a_mixture_solves_what_a_shared_bottom_of_the_same_width_cannot(kind: str) -> None:
    assert trained_error(build(kind, 0), 0) <= SOLVED


def test_a_shared_bottom_of_that_width_cannot() -> None:
    assert trained_error(build("shared_bottom", 0), 0) >= UNSOLVED


def test_a_mixture_initialised_alike_fails_where_the_mixture_passes() -> None:
    """The stub: all of MMoE but the start that lets its experts part."""
    trunk = build("mmoe", 0)
    assert isinstance(trunk, MMoE)
    assert trained_error(initialised_alike(trunk), 0) >= UNSOLVED


@pytest.mark.slow
def test_the_gates_part_when_the_objectives_do() -> None:
    """Four seeds: MMoE solves both problems; its gates differ more when the objectives share nothing."""
    apart: list[float] = []
    together: list[float] = []
    for seed in range(4):
        assert trained_error(build("shared_bottom", seed), seed) >= UNSOLVED
        for same, found in ((False, apart), (True, together)):
            trunk = build("mmoe", seed)
            assert trained_error(trunk, seed, same) <= SOLVED
            found.append(divergence(trunk, seed, same))
    assert np.mean(apart) >= 1.5 * np.mean(together)
