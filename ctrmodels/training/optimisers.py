"""Optimisers of a network: dense ones for its layers, row-wise ones for its tables.

A table's gradient is sparse and holds the rows that the batch touched (:mod:`ctrmodels.nn.table`). A row-wise
optimiser reads and writes those rows alone; the others keep their values and their moments as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ctrmodels.native import kernels
from ctrmodels.nn.table import tables

TableOptimiser = Literal["lazy_adam", "rowwise_adagrad", "adam"]
TABLE_OPTIMISERS: tuple[TableOptimiser, ...] = ("lazy_adam", "rowwise_adagrad", "adam")


def touched(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [U] rows, each once, and float32 [U, D] values of a table's gradient.

    Autograd drops the mark that a sparse gradient is coalesced. A single look-up's rows rise, which is quicker to
    see than to merge them again; only gradients that were added up are merged.
    """
    rows = gradient._indices()[0]
    compiled = kernels(rows)
    rises = compiled.rising(rows) if compiled else bool((rows[1:] > rows[:-1]).all())
    if not rises:
        gradient = gradient.coalesce()
        rows = gradient._indices()[0]
    return rows, gradient._values()


class RowWise(torch.optim.Optimizer, ABC):
    """Base of the optimisers that update the touched rows alone."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the rows that the last gradient touched."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self.update(table, *touched(table.grad), self.state[table], group)
        return loss

    @abstractmethod
    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, state: dict[str, Tensor],
               group: dict[str, Any]) -> None:
        """Update ``rows`` [U] of ``table`` [V, D] by their ``gradient`` [U, D]; ``state`` is empty at first."""


class LazyAdam(RowWise):
    """Adam on the touched rows: the moments of a row that is absent neither decay nor move it.

    "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1, with one step count per table, as in
    ``torch.optim.SparseAdam``; here the rows are gathered once and updated by one fused kernel.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, state: dict[str, Tensor],
               group: dict[str, Any]) -> None:
        """See :class:`RowWise`."""
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=table.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
        compiled = kernels(table)
        if compiled:
            state["step"] += 1
            compiled.lazy_adam(table, state["exp_avg"], state["exp_avg_sq"], rows, gradient, group["lr"],
                               *group["betas"], group["eps"], int(state["step"]))
            return
        whole = (table, state["exp_avg"], state["exp_avg_sq"])
        weight, first, second = (t.index_select(0, rows) for t in whole)
        adam([weight], [gradient], [first], [second], [], [state["step"]], fused=True, amsgrad=False,
             beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=0.0, eps=group["eps"],
             maximize=False)
        for t, part in zip(whole, (weight, first, second), strict=True):
            t.index_copy_(0, rows, part)


class RowwiseAdagrad(RowWise):
    """Adagrad with one accumulator per row: ``s_r += mean(g_r^2)``, ``w_r -= lr * g_r / (sqrt(s_r) + eps)``.

    The state is a single number per row instead of two per value. The row-wise form is that of FBGEMM's and
    TorchRec's embedding tables; Adagrad is from "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", JMLR 2011.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-2, eps: float = 1e-8) -> None:
        super().__init__(parameters, {"lr": lr, "eps": eps})

    def update(self, table: Tensor, rows: Tensor, gradient: Tensor, state: dict[str, Tensor],
               group: dict[str, Any]) -> None:
        """See :class:`RowWise`."""
        if not state:
            state["sum"] = torch.zeros(len(table), dtype=table.dtype, device=table.device)
        compiled = kernels(table)
        if compiled:
            compiled.rowwise_adagrad(table, state["sum"], rows, gradient, group["lr"], group["eps"])
            return
        sums = state["sum"].index_select(0, rows).add_(gradient.square().mean(1))
        state["sum"].index_copy_(0, rows, sums)
        scale = sums.sqrt_().add_(group["eps"]).reciprocal_().mul_(-group["lr"])
        table.index_copy_(0, rows, table.index_select(0, rows).addcmul_(gradient, scale.unsqueeze(1)))


class DenseAdam(torch.optim.Adam):
    """Adam on whole tables: every row moves at every step, as published. The reference of the row-wise ones."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Spread the gradients over their tables, then step."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    table.grad = table.grad.to_dense()
        return super().step(closure)


class Optimisers:
    """Several optimisers of one network, used as one.

    Args:
        parts: each with parameters of its own.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts: list[torch.optim.Optimizer] = []
        self.architecture: list[torch.optim.Optimizer] = []
        self.rates: list[list[float]] = []
        for part in parts:
            self.add(part)

    @classmethod
    def of(cls, network: nn.Module, learning_rate: float, table_optimiser: TableOptimiser = "lazy_adam",
           table_learning_rate: float | None = None, weight_decay: float = 0.0,
           exclude: Sequence[Tensor] = ()) -> Optimisers:
        """Adam for the layers and a row-wise optimiser for the tables of ``network``.

        Args:
            network: whose parameters to train.
            learning_rate: of the layers.
            table_optimiser: ``lazy_adam``, ``rowwise_adagrad`` or ``adam`` (dense, the reference).
            table_learning_rate: of the tables; ``None`` = ``learning_rate``.
            weight_decay: decoupled decay of the layers' weights; tables are penalised in the loss, on touched
                rows.
            exclude: parameters that someone else trains (a search's architecture parameters).
        """
        left_out = {id(p) for p in exclude}
        rows = [t.weight for t in tables(network) if id(t.weight) not in left_out]
        left_out |= {id(p) for p in rows}
        layers = [p for p in network.parameters() if id(p) not in left_out and p.requires_grad]
        parts: list[torch.optim.Optimizer] = []
        if layers:
            parts.append(torch.optim.AdamW(layers, lr=learning_rate, weight_decay=weight_decay, fused=True))
        if rows:
            rate = learning_rate if table_learning_rate is None else table_learning_rate
            parts.append(_table_optimiser(table_optimiser, rows, rate))
        return cls(parts)

    def add(self, part: torch.optim.Optimizer) -> None:
        """One more, for parameters that no other has."""
        self.parts.append(part)
        self.rates.append([group.get("lr", 0.0) for group in part.param_groups])

    def add_architecture(self, part: torch.optim.Optimizer) -> None:
        """One for a search's gates or thresholds, or for a balancer's weights: no schedule scales their steps, and
        their gradients are neither clipped nor counted in the norm of the network's."""
        self.architecture.append(part)

    def parameters(self) -> list[Tensor]:
        """Everything that is trained."""
        return [p for part in self._all for p in _parameters(part)]

    def weights(self) -> list[Tensor]:
        """The same without what a search or a balancer learns beside the network."""
        return [p for part in self.parts for p in _parameters(part)]

    def scale(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times its configured value."""
        for part, rates in zip(self.parts, self.rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                if "lr" in group:
                    group["lr"] = rate * factor

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def step(self) -> None:
        """Update all parameters from their gradients."""
        for part in self._all:
            part.step()

    @property
    def _all(self) -> list[torch.optim.Optimizer]:
        return [*self.parts, *self.architecture]

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs, as named tensors."""
        return {f"{i}.{index}.{name}": value
                for i, part in enumerate(self._all)
                for index, parameter in enumerate(_parameters(part))
                for name, value in part.state.get(parameter, {}).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` gave."""
        places = [_parameters(part) for part in self._all]
        for part in self._all:
            part.state.clear()
        for key, value in state.items():
            number, index, name = key.split(".", 2)
            parameter = places[int(number)][int(index)]
            # Not by load_state_dict, which would turn whole numbers into the parameter's type.
            self._all[int(number)].state[parameter][name] = value.to(parameter.device, copy=True)


def _parameters(part: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in part.param_groups for p in group["params"]]


def _table_optimiser(name: TableOptimiser, tables_: Sequence[Tensor], rate: float) -> torch.optim.Optimizer:
    if name == "lazy_adam":
        return LazyAdam(tables_, lr=rate)
    if name == "rowwise_adagrad":
        return RowwiseAdagrad(tables_, lr=rate)
    return DenseAdam(tables_, lr=rate, fused=True)


def clip_norm(parameters: Sequence[Tensor], limit: float) -> None:
    """Scale the gradients down so that their norm over all parameters is at most ``limit``.

    Rows that were not touched have no gradient, so the norm costs what the batch costs.
    """
    parts = [touched(p.grad)[1] if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
    if parts:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in parts]))
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in parts:
            gradient.mul_(factor)
