"""Gradients of architecture parameters in a bi-level search: they judge on other rows than the weights learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from ctrmodels import ranks
from ctrmodels.data.dataset import Batch
from ctrmodels.training.optimisers import touched
from ctrmodels.training.trainer import Trainer

Order = Literal["first", "second"]
RADIUS = 0.01  # length of the step of the finite difference


def set_gradients(architecture: Sequence[nn.Parameter], trainer: Trainer, arch: Batch, train: Batch | None = None,
                  rate: float = 0.0) -> None:
    """Set ``grad`` of the architecture parameters to that of the loss on ``arch``, over all ranks.

    To first order the weights W are taken as they are. With ``train``, they are looked ahead by one step of ``rate``:
    ``grad L_arch(W - rate grad_W L_train(W, a), a)``, whose mixed second derivative is a finite difference of two
    gradients (as in "DARTS: Differentiable Architecture Search", ICLR 2019, equations 7-8).

    Args:
        architecture: a.
        trainer: of the network; its other trained parameters are W.
        arch: judges.
        train: the batch that W learns from; ``None`` = first order.
        rate: learning rate of W.
    """
    if train is None:
        own = {id(p) for p in architecture}
        with frozen([p for p in trainer.optimisers.parameters() if id(p) not in own]):
            found = list(torch.autograd.grad(trainer.loss(arch), architecture))
    else:
        found = _second_order(architecture, trainer, arch, train, rate)
    for parameter, gradient in zip(architecture, found, strict=True):
        parameter.grad = gradient
    ranks.average_gradients(list(architecture))


@contextmanager
def frozen(weights: Sequence[Tensor]) -> Iterator[None]:
    """No gradient of the ``weights`` is computed inside: others learn."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _second_order(architecture: Sequence[nn.Parameter], trainer: Trainer, arch: Batch, train: Batch,
                  rate: float) -> list[Tensor]:
    own = {id(p) for p in architecture}
    weights = [p for p in trainer.network.parameters() if p.requires_grad and id(p) not in own]
    n = len(architecture)
    noise = _random(trainer.device)  # all losses share their random draws, or their difference would be noise
    downhill = torch.autograd.grad(trainer.loss(train), weights, allow_unused=True)
    with _moved(weights, downhill, -rate):
        _restore(noise, trainer.device)
        ahead = torch.autograd.grad(trainer.loss(arch), [*architecture, *weights], allow_unused=True)
    direct, towards = ahead[:n], ahead[n:]
    length = torch.stack([torch.linalg.vector_norm(_values(g)) for g in towards if g is not None]).norm()
    step = float(RADIUS / length.clamp(min=1e-12))
    sides = []
    for by in (step, -step):
        with _moved(weights, towards, by):
            _restore(noise, trainer.device)
            sides.append(torch.autograd.grad(trainer.loss(train), architecture))
    return [g - rate * (up - down) / (2 * step) for g, up, down in zip(direct, *sides, strict=True)]


def _random(device: torch.device) -> list[Tensor]:
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_device]


def _restore(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _values(gradient: Tensor) -> Tensor:
    return touched(gradient)[1] if gradient.is_sparse else gradient


@contextmanager
def _moved(weights: Sequence[Tensor], gradients: Sequence[Tensor | None], by: float) -> Iterator[None]:
    """Weights shifted by ``by`` times the gradients inside, and to the bit as before after; tables by touched rows."""
    saved: list[tuple[Tensor, Tensor | None, Tensor]] = []
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is None:
                continue
            if gradient.is_sparse:
                rows, values = touched(gradient)
                saved.append((weight, rows, weight.index_select(0, rows)))
                weight.index_copy_(0, rows, saved[-1][2] + by * values)
            else:
                saved.append((weight, None, weight.clone()))
                weight.add_(gradient, alpha=by)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, at, before in saved:
                if at is None:
                    weight.copy_(before)
                else:
                    weight.index_copy_(0, at, before)
