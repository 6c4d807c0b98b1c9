"""Optimisers of architecture parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from ctrmodels.native import kernels
from ctrmodels.training.optimisers import RowWise, touched

Number = TypeVar("Number", float, Tensor)

# For so many steps after a touch, the mean square of a gradient is much the same: longer strides come later.
STEADY = 32


class Late(NamedTuple):
    """What the kernels of :class:`CoupledAdam` take, beside the table.

    Attributes:
        state: the moments [V, D], and int32 [V] how many steps each row has taken.
        settings: learning rate, betas, epsilon, decay, steps so far.
    """

    state: tuple[Tensor, Tensor, Tensor]
    settings: tuple[float, float, float, float, float, int]


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
        positive: a gate below zero is zero as well; its accumulator goes on, and may bring it back.
    """

    def __init__(self, parameters: Iterable[Tensor], target_threshold: float, steps: int, gamma: float = 1.0,
                 mu: float = 0.8, positive: bool = False) -> None:
        if target_threshold <= 0 or steps < 1 or gamma <= 0:
            raise ValueError("target_threshold, steps and gamma must be positive")
        c = target_threshold * gamma**-0.5 * (gamma * steps) ** -mu
        super().__init__(parameters, {"c": c, "gamma": gamma, "mu": mu, "positive": positive})
        for x in self.param_groups[0]["params"]:
            self.state[x]["step"] = torch.zeros((), dtype=torch.float64, device=x.device)

    def threshold(self, t: Number) -> Number:
        """g(t)."""
        group = self.param_groups[0]
        return cast(Number, group["c"] * group["gamma"] ** 0.5 * (t * group["gamma"]) ** group["mu"])

    @property
    def level(self) -> Tensor:
        """The threshold after the steps so far, a scalar on the gates' device."""
        steps: Tensor = self.state[self.param_groups[0]["params"][0]]["step"]
        return self.threshold(steps).float()

    def _count(self) -> None:
        for x in self.param_groups[0]["params"]:
            self.state[x]["step"] += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; all gates share the step counter."""
        loss = closure() if closure is not None else None
        self._count()
        level = self.level
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is None:
                    continue
                state = self.state[x]
                if "v" not in state:
                    state["v"] = x.detach().clone()
                state["v"].add_(x.grad, alpha=-group["gamma"])
                x.copy_(torch.sign(state["v"]) * (state["v"].abs() - level).clamp(min=0.0))
                if group["positive"]:
                    x.clamp_(min=0.0)
        return loss


class RowGRDA(GRDA):
    """:class:`GRDA` for gates of which a batch touches few: parameters are the accumulators v.

    A gate is computed where it is read, from ``v`` and :attr:`level`, so that rows without a gradient need no step.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Move the accumulators of the rows that the last gradient touched."""
        loss = closure() if closure is not None else None
        self._count()
        for group in self.param_groups:
            for v in group["params"]:
                if v.grad is not None:
                    rows, gradient = touched(v.grad)
                    compiled = kernels(v)
                    if compiled:
                        compiled.descend(v, rows, gradient.contiguous(), group["gamma"])
                    else:
                        v.index_add_(0, rows, gradient, alpha=-group["gamma"])
        return loss


class CoupledAdam(RowWise):
    """Adam with its decay inside the gradient, on tables of which a batch touches few rows.

    The decay moves every row at every step, by about the learning rate whatever its weight is, since Adam
    normalises it; PEP's thresholds rise by nothing else. A row that batches leave alone makes up what it missed by
    :meth:`catch_up` before it is next read, or at the latest with its next gradient: in strides, whose means of
    gradients are summed exactly for a pull that falls evenly on the way, while the mean square is that of the middle.
    None moves a value by more than a half. A row touched at every step takes exactly the steps of
    ``torch.optim.Adam``.

    "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1.

    Args:
        parameters: weights of tables.
        lr, betas, eps: of Adam.
        weight_decay: added to the gradient, times the value.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float,
                 betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, state: dict[str, Tensor],
               group: dict[str, Any]) -> None:
        """See :class:`RowWise`."""
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            state["last"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        state["step"] += 1
        self._move(table, rows, gradient, state, group)

    @torch.no_grad()
    def catch_up(self, rows: Tensor | None = None) -> None:
        """Bring ``rows`` int64 [U] of the tables, rising, to the present; all by default."""
        for group in self.param_groups:
            for table in group["params"]:
                if self.state[table]:
                    late = torch.arange(len(table), device=table.device) if rows is None else rows
                    self._move(table, late, None, self.state[table], group)

    def late(self, table: Tensor) -> Late | None:
        """What it takes to bring rows of ``table`` to the present, where all are before its first step: ``None``."""
        for group in self.param_groups:
            if any(table is t for t in group["params"]) and self.state[table]:
                return _late(self.state[table], group)
        return None

    @staticmethod
    def _move(table: Tensor, rows: Tensor, gradient: Tensor | None, state: dict[str, Tensor],
              group: dict[str, Any]) -> None:
        (beta1, beta2), step = group["betas"], int(state["step"])
        compiled = kernels(table)
        if compiled:
            late = _late(state, group)
            compiled.coupled_adam(table, *late.state, rows, gradient, *late.settings)
            return
        whole = (table, state["exp_avg"], state["exp_avg_sq"])
        value, mean, square = (t.index_select(0, rows) for t in whole)
        at = state["last"].index_select(0, rows).double().unsqueeze(1)

        def total(n: Tensor) -> Tensor:
            """``beta1 + beta1^2 + .. + beta1^n``."""
            return beta1 * (1 - beta1**n) / (1 - beta1)

        def move(strides: Tensor, pushed: Tensor | None) -> None:
            """Every row by its number of steps [U, 1], which may be none, from ``at`` on."""
            nonlocal value, mean, square
            pull = group["weight_decay"] * value if pushed is None else group["weight_decay"] * value + pushed
            n, half, keep1, keep2 = strides.clamp(min=1), (strides + 1) / 2, beta1**strides, beta2**strides
            late = n - 1 - total(n - 1)  # of pulls that are 0, 1, 2, ..: the last mean, and the sum of all means
            lates = n * (n - 1) / 2 - beta1 / (1 - beta1) * (n - total(n) / beta1)
            root = torch.sqrt((beta2**half).float() * square + (1 - beta2**half).float() * pull.square())
            size = group["lr"] / (1 - beta1 ** (at + half)) / (root / (1 - beta2 ** (at + half)).sqrt() + group["eps"])
            way = size * (total(strides) * mean + (strides - total(strides)) * pull)
            way = way * (1 - size * group["weight_decay"] * lates / n)
            slack = group["weight_decay"] * way
            value = (value - way).float()
            mean = (keep1 * mean + (1 - keep1) * pull - late / n * slack).float()
            square = (keep2 * square + (1 - keep2) * (pull - (n - 1) / n / 2 * slack).square()).float()
            at.add_(strides)

        longest = min(max(int(0.5 / max(group["lr"], 1e-6)), 1), 512)
        first, stop = at.clone(), step - (gradient is not None)
        while bool((at < stop).any()):
            limit = 1 + torch.minimum(at // 2, at - first + STEADY)
            move(torch.minimum(limit.clamp(max=longest), stop - at), None)
        if gradient is not None:
            move(torch.ones_like(at), gradient)
        for t, part in zip(whole, (value, mean, square), strict=True):
            t.index_copy_(0, rows, part)
        state["last"][rows] = step


def _late(state: dict[str, Tensor], group: dict[str, Any]) -> Late:
    return Late((state["exp_avg"], state["exp_avg_sq"], state["last"]),
                (group["lr"], *group["betas"], group["eps"], group["weight_decay"], int(state["step"])))
