"""Processes that train one network together under ``torchrun``; with one process everything here does nothing.

Every rank holds the whole network and trains on its part of every batch. Gradients of layers are averaged; of
tables only the rows that some rank touched travel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: torch.device) -> None:
    """Join the other ranks, if ``torchrun`` started this process and nobody did so before."""
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def local() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(value: Tensor) -> Tensor:
    """Mean of ``value`` over the ranks, through which gradients flow to all of them."""
    return value if count() == 1 else cast(Tensor, _Sum.apply(value)) / count()


class _Sum(torch.autograd.Function):
    """Sum over the ranks; every rank's result depends on every rank's value, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


@torch.no_grad()
def share_state(network: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if count() > 1:
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


@torch.no_grad()
def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace every gradient by its mean over the ranks."""
    if count() == 1:
        return
    # A rank whose rows did not use a parameter must take part all the same.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter, mean_ in zip(parameters, averaged(gradients), strict=True):
        parameter.grad = mean_


@torch.no_grad()
def averaged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over the ranks, which all give tensors of the same shapes; of sparse ones the rows may differ."""
    if count() == 1:
        return list(tensors)
    dense = [t for t in tensors if not t.is_sparse]
    means: Iterator[Tensor] = iter(())
    if dense:
        flat = torch.cat([t.flatten() for t in dense])
        dist.all_reduce(flat)
        flat /= count()
        means = (part.view_as(t) for t, part in zip(dense, flat.split([t.numel() for t in dense]), strict=True))
    return [_exchange_rows(t) if t.is_sparse else next(means) for t in tensors]


def _exchange_rows(gradient: Tensor) -> Tensor:
    """Mean over the ranks of a table's gradient; ranks send the rows that they touched."""
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(count())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(s) for s in sizes]

    def gather(part: Tensor) -> Tensor:
        padded = part.new_zeros(max(lengths), *part.shape[1:])
        padded[:len(part)] = part
        received = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(received, padded)
        return torch.cat([r[:n] for r, n in zip(received, lengths, strict=True)])

    return torch.sparse_coo_tensor(gather(rows).unsqueeze(0), gather(values) / count(), gradient.shape,
                                   check_invariants=False).coalesce()
