"""Optimisers of architecture parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class GRDA(torch.optim.Optimizer):
    """Generalised regularised dual averaging: gradient steps whose iterates become exactly zero.

    After step t an accumulator ``v_t = v_0 - gamma * sum of gradients`` (``v_0`` = the initial value) gives
    ``x_t = sign(v_t) * max(|v_t| - g(t), 0)`` with ``g(t) = c * gamma^(1/2) * (t * gamma)^mu``; a value can come
    back from zero. From "AutoFIS: Automatic Feature Interaction Selection in Factorization Models for
    Click-Through Rate Prediction", KDD 2020, section 3.3.

    ``c`` has no meaning of its own: what decides is the threshold at the end of the run. It is therefore
    derived from ``target_threshold = g(steps)``, which carries over between run lengths.

    Args:
        parameters: the gates.
        target_threshold: g after ``steps`` steps; about twice the gates' initial value prunes well.
        steps: planned number of steps T.
        gamma: step size; 1 as published, not the weights' learning rate.
        mu: how late the threshold rises, 0.5 < mu < 1.
    """

    def __init__(self, parameters: Iterable[Tensor], target_threshold: float, steps: int, gamma: float = 1.0,
                 mu: float = 0.8) -> None:
        if target_threshold <= 0 or steps < 1 or gamma <= 0:
            raise ValueError("target_threshold, steps and gamma must be positive")
        c = target_threshold * gamma**-0.5 * (gamma * steps) ** -mu
        super().__init__(parameters, {"c": c, "gamma": gamma, "mu": mu})
        self.t = 0

    def threshold(self, t: int) -> float:
        """g(t)."""
        group = self.param_groups[0]
        return group["c"] * group["gamma"] ** 0.5 * (t * group["gamma"]) ** group["mu"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; all gates share the step counter."""
        loss = closure() if closure is not None else None
        self.t += 1
        level = self.threshold(self.t)
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                state = self.state[x]
                if not state:
                    state["v"] = x.detach().clone()
                state["v"].add_(x.grad, alpha=-group["gamma"])
                x.copy_(torch.sign(state["v"]) * (state["v"].abs() - level).clamp_(min=0.0))
        return loss
