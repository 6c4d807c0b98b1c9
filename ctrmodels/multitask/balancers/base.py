"""What all balancers have in common: what they balance, what they record, and their two families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ctrmodels import ranks
from ctrmodels.multitask.balancers.gradients import backward_each


class Balanced(Protocol):
    """What a balancer asks of a model, beside ``terms`` (:class:`ctrmodels.training.trainer.ManyLosses`)."""

    @property
    def loss_names(self) -> Sequence[str]:
        """Names of its K losses."""
        ...

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that several losses reach."""
        ...

    def last_shared_layer(self) -> list[nn.Parameter]:
        """Those of them that are nearest to the losses."""
        ...


@dataclass(frozen=True)
class Problem:
    """What is balanced.

    Attributes:
        names: of the K losses.
        shared: the parameters that several losses reach; no balancer changes the gradients of others but by a weight.
        last: those of the last shared layer.
        seed: of a balancer that draws at random.
    """

    names: tuple[str, ...]
    shared: tuple[nn.Parameter, ...] = ()
    last: tuple[nn.Parameter, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, model: Balanced, seed: int = 0) -> Problem:
        """That of training ``model``."""
        return cls(tuple(model.loss_names), tuple(p for p in model.shared_parameters() if p.requires_grad),
                   tuple(p for p in model.last_shared_layer() if p.requires_grad), seed)


class Balancer(nn.Module, ABC):
    """Turns K losses into the gradients of a step.

    Everything that changes while training is a buffer or a parameter, so that ``state_dict`` is all that a resumed
    training needs. Nothing is read from the device but once per epoch, unless a subclass says so.

    Args:
        problem: what is balanced.
        options: the balancer's own, a dataclass.
    """

    seen: Tensor
    weight_sums: Tensor
    loss_sums: Tensor

    def __init__(self, problem: Problem, options: Any = None) -> None:
        super().__init__()
        self.names, self.seed = problem.names, problem.seed
        self.settings = {"balancer": type(self).__name__, **({} if options is None else asdict(options))}
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("weight_sums", torch.zeros(len(self.names)))
        self.register_buffer("loss_sums", torch.zeros(len(self.names)))

    def backward(self, losses: Mapping[str, Tensor], rest: Tensor, step: int) -> Tensor:
        """Add the gradients of one step to ``.grad``, which is empty before.

        Args:
            losses: the K scalars, each a mean over its own rows.
            rest: scalar that is minimised as it is: penalties and auxiliary losses.
            step: number of the step, from 0.

        Returns:
            The plain sum of ``losses`` and ``rest``, which is comparable between balancers; a balanced total is not,
            and may be negative.
        """
        scalars = [losses[name] for name in self.names]
        values = torch.stack([loss.detach() for loss in scalars])
        weights = self.descend(scalars, rest, values, step)
        self.seen += 1
        self.weight_sums += weights
        self.loss_sums += values
        return values.sum() + rest.detach()

    @abstractmethod
    def descend(self, losses: Sequence[Tensor], rest: Tensor, values: Tensor, step: int) -> Tensor:
        """The gradients of one step; returns the weights [K] that the losses had on the shared parameters.

        Args:
            losses: K scalars.
            rest: scalar.
            values: [K] of ``losses``, without a graph.
            step: from 0.
        """

    def optimiser(self) -> torch.optim.Optimizer | None:
        """That of the balancer's own parameters; their learning rate is not the network's, and they do not decay."""
        return None

    def end_epoch(self) -> dict[str, float]:
        """Mean weight and mean loss of the epoch, ``weight.NAME`` and ``loss.NAME``; starts the next one."""
        found = self.record()
        for name, buffer in self.named_buffers():
            if name == "seen" or name.endswith("_sums"):
                buffer.zero_()
        return found

    def record(self) -> dict[str, float]:
        """What :meth:`end_epoch` returns."""
        steps = self.seen.clamp(min=1)
        means = {"weight": self.weight_sums / steps, "loss": ranks.mean(self.loss_sums) / steps}
        return {f"{kind}.{name}": value for kind, mean in means.items()
                for name, value in zip(self.names, mean.tolist(), strict=True)}


class LossBalancer(Balancer):
    """Family of those that weigh the losses: one backward pass of ``sum_k w_k L_k + rest``, through all parameters."""

    @abstractmethod
    def weigh(self, step: int) -> Tensor:
        """Weights [K] of the coming step."""

    def descend(self, losses: Sequence[Tensor], rest: Tensor, values: Tensor, step: int) -> Tensor:
        """See :class:`Balancer`."""
        weights = self.weigh(step)
        (torch.stack(list(losses)) @ weights + rest).backward()
        return weights


class GradientBalancer(Balancer):
    """Family of those that combine the losses' gradients on the shared parameters: K backward passes.

    All of them need the inner products of the gradients only, and give ``sum_k w_k g_k``. Parameters that are not
    shared keep the gradient of the plain sum. The K x K inner products are read from the device at every step.

    Args:
        problem: what is balanced.
        options: the balancer's own.
    """

    def __init__(self, problem: Problem, options: Any = None) -> None:
        super().__init__(problem, options)
        self.shared = problem.shared

    @abstractmethod
    def combine(self, gram: Tensor, values: Tensor, step: int) -> Tensor:
        """Weights of the gradients, float64 [K].

        Args:
            gram: float64 [K, K] inner products of the gradients, on the CPU.
            values: float64 [K] of the losses, on the CPU, means over the ranks.
            step: from 0.
        """

    def descend(self, losses: Sequence[Tensor], rest: Tensor, values: Tensor, step: int) -> Tensor:
        """See :class:`Balancer`."""
        gradients = backward_each(losses, self.shared, keep_graph=rest.requires_grad)
        weights = self.combine(gradients.gram().cpu(), ranks.mean(values).double().cpu(), step).to(values)
        gradients.put(weights)
        if rest.requires_grad:
            rest.backward()
        return weights
