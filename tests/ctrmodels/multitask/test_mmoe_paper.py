"""The generator of the MMoE paper (KDD 2018, section 3.2): two regressions whose weights have the cosine rho.

``w1 = c u1``, ``w2 = c (rho u1 + sqrt(1 - rho^2) u2)`` with orthonormal u; ``y_t = w_t x + sum_i sin(alpha_i w_t x +
beta_i) + e``. The paper leaves c, the number m of sines and their constants open: c = .3, m = 5, N(0, 1) here, one draw
for all seeds, of which the noise is 1 % of the labels' variance and what no line explains 25 %. Constants drawn anew by
every seed let the sines cancel the line on some of them: four of seeds 0 to 7 had 16 % to 40 % noise, beside which the
models differ by nothing.

What is asserted is the paper's own claim, that MMoE loses least as rho falls from 1 to 0, of the median over paired
seeds: on seeds 10 to 16, on which this was settled, two optimisations got stuck and were .01 worse, which decides a
mean. That MMoE wins at rho = 1 is not asserted; it does not. Measured on seeds 0 to 7, error .014 to .020: the shared
bottom loses .0011, OMoE .0012, MMoE .0001, which is below the shared bottom on every seed at rho = 0.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels.multitask import MMoE, OMoE, SharedBottom, Trunk
from ctrmodels.nn.towers import MLP

D, TRAIN, VALID = 100, 10_000, 2_000
ALPHA, BETA = np.random.default_rng(6).standard_normal((2, 5))
SHARED_WIDTH = 113  # as many parameters as 8 experts of 16 (section 5.1)


def draw(seed: int, rho: float) -> tuple[Tensor, Tensor]:
    """[N, 100] and standardised [N, 2]; equal seeds differ in rho alone."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((D, 2)))
    w = 0.3 * np.stack([u[:, 0], rho * u[:, 0] + np.sqrt(1 - rho**2) * u[:, 1]], 1)
    x = rng.standard_normal((TRAIN + VALID, D))
    z = x @ w
    y = z + np.sin(ALPHA * z[..., None] + BETA).sum(-1) + 0.1 * rng.standard_normal(z.shape)
    y = (y - y[:TRAIN].mean(0)) / y[:TRAIN].std(0)
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def build(kind: str) -> Trunk:
    if kind == "shared_bottom":
        return SharedBottom(D, 2, (SHARED_WIDTH,))
    return MMoE(D, 2, 8, (16,)) if kind == "mmoe" else OMoE(D, 2, 8, (16,))


def error(kind: str, seed: int, rho: float) -> float:
    """Least error on validation rows over 30 epochs."""
    x, y = draw(seed, rho)
    torch.manual_seed(seed)
    trunk = build(kind)
    towers = nn.ModuleList(MLP(trunk.width, (8,), width_out=1) for _ in range(2))
    optimizer = torch.optim.Adam([*trunk.parameters(), *towers.parameters()], lr=3e-3)
    order = torch.Generator().manual_seed(seed)
    best = np.inf

    def loss(rows: Tensor | slice) -> Tensor:
        states = trunk(x[rows])
        outputs = torch.cat([tower(h) for tower, h in zip(towers, states, strict=True)], 1)
        return (outputs - y[rows]).square().mean()

    for _ in range(30):
        for rows in torch.randperm(TRAIN, generator=order).split(128):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        with torch.no_grad():
            best = min(best, loss(slice(TRAIN, None)).item())
    return best


def least_degraded(errors: dict[str, np.ndarray], kind: str) -> bool:
    """Whether ``kind`` loses less than the other two from rho = 1 to rho = 0 in the median; errors [seeds, 2]."""
    loss = {k: float(np.median(e[:, 1] - e[:, 0])) for k, e in errors.items()}
    return all(loss[kind] < loss[other] for other in loss if other != kind)


@pytest.mark.slow
def test_a_gate_per_objective_loses_least_as_the_objectives_part() -> None:
    errors = {kind: np.array([[error(kind, seed, rho) for rho in (1.0, 0.0)] for seed in range(8)])
              for kind in ("shared_bottom", "omoe", "mmoe")}
    assert least_degraded(errors, "mmoe"), errors
    assert not least_degraded(errors, "shared_bottom") and not least_degraded(errors, "omoe")
    apart = errors["mmoe"][:, 1] < errors["shared_bottom"][:, 1]
    assert apart.mean() >= 0.7, errors
