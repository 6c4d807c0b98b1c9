"""Weights that make the summed gradient as short as possible: where it is zero, no direction improves every loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ctrmodels.errors import InputError
from ctrmodels.fusion.pe_ltr import pareto_weights
from ctrmodels.multitask.balancers.base import GradientBalancer, Problem

Normalisation = Literal["none", "l2", "loss", "both"]


class _MinNorm(GradientBalancer):
    """``min_a ||sum_k a_k g_k / n_k||`` with ``sum_k a_k = 1`` and ``a_k >= c_k``.

    A loss of a small scale has a short gradient and would get all the weight: the units ``n_k`` put them on one scale.
    The step takes ``K mean(n) sum_k a_k g_k / n_k``, which is as long as the plain sum's where all gradients are alike,
    and so penalties keep their share. A loss without any gradient, since none of its rows is in the batch, has no say:
    it would get all the weight, and the others' step would be lost.
    """

    def __init__(self, problem: Problem, options: Any, bounds: np.ndarray) -> None:
        super().__init__(problem, options)
        self.bounds = bounds

    @abstractmethod
    def units(self, gram: np.ndarray, values: np.ndarray, step: int) -> np.ndarray:
        """n [K]."""

    def shares(self, found: np.ndarray, present: np.ndarray, step: int) -> np.ndarray:
        """a [K] from the minimum of this step, which is 0 for losses that are not ``present``, bool [K]."""
        return found

    def combine(self, gram: Tensor, values: Tensor, step: int) -> Tensor:
        """See :class:`GradientBalancer`."""
        products, present = gram.numpy(), np.diagonal(gram.numpy()) > 0
        units = self.units(products, values.numpy(), step)
        units = np.where(present & (units > 0), units, 1.0)
        found = np.zeros(len(units))
        if present.any():
            inner = (products / np.outer(units, units))[np.ix_(present, present)]
            found[present] = pareto_weights(_factor(inner), self.bounds[present])
        scale = present.sum() * units.mean(where=present) if present.any() else 0.0
        return torch.from_numpy(scale * self.shares(found, present, step) / units)


def _factor(gram: np.ndarray) -> np.ndarray:
    """K vectors of K numbers with the inner products ``gram``."""
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(np.maximum(values, 0.0))


@dataclass(frozen=True)
class MgdaOptions:
    """On which scale gradients are compared.

    Attributes:
        normalisation: ``none``; ``l2``: each gradient by its length; ``loss``: by its loss; ``both``.
    """

    normalisation: Normalisation = "none"


class Mgda(_MinNorm):
    """Multiple-gradient descent: the shortest convex combination of the losses' gradients.

    "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, equation 3, solved exactly
    (:func:`ctrmodels.fusion.pe_ltr.pareto_weights`) instead of by Frank-Wolfe, on the gradients of the parameters.
    """

    def __init__(self, problem: Problem, options: MgdaOptions = MgdaOptions()) -> None:
        super().__init__(problem, options, np.zeros(len(problem.names)))
        self.normalisation = options.normalisation

    def units(self, gram: np.ndarray, values: np.ndarray, step: int) -> np.ndarray:
        """See :class:`_MinNorm`."""
        lengths = np.sqrt(np.diagonal(gram)) if self.normalisation in ("l2", "both") else np.ones(len(gram))
        return lengths * values if self.normalisation in ("loss", "both") else lengths


@dataclass(frozen=True)
class ParetoOptions:
    """Which part of the front is wanted.

    Attributes:
        bounds: objective → least share of its loss, 0 where absent; they sum to less than 1.
        memory: share of the old weights that a step keeps: batches are noisy.
        initial_steps: losses count relative to their means over so many first steps, in which the shares rest.
    """

    bounds: Mapping[str, float] = field(default_factory=dict)
    memory: float = 0.9
    initial_steps: int = 20


class Pareto(_MinNorm):
    """Pareto-efficient weights: :class:`Mgda` on relative losses with a least share for every objective.

    "A Pareto-efficient algorithm for multiple objective optimization in e-commerce recommendation", RecSys 2019
    (PE-LTR), with the exact minimum. An objective's bound is divided among its losses. As for all balancers of this
    family, parameters that are not shared keep the gradient of the plain sum.

    Raises:
        InputError: the bounds sum to 1 or more.
    """

    initial: Tensor
    current: Tensor

    def __init__(self, problem: Problem, options: ParetoOptions = ParetoOptions()) -> None:
        owners = [name.partition("@")[0] for name in problem.names]
        bounds = np.array([options.bounds.get(o, 0.0) / owners.count(o) for o in owners])
        if bounds.sum() >= 1:
            raise InputError("params.yaml", "retrain.balancers.pareto.bounds", dict(options.bounds),
                             "shares that sum to 1 or more leave nothing to choose", "lower them")
        super().__init__(problem, options, bounds)
        self.options = options
        k = len(bounds)
        self.register_buffer("initial", torch.zeros(k, dtype=torch.float64))
        self.register_buffer("current", torch.from_numpy(bounds + (1 - bounds.sum()) / k))

    def units(self, gram: np.ndarray, values: np.ndarray, step: int) -> np.ndarray:
        """See :class:`_MinNorm`."""
        if step < self.options.initial_steps:
            self.initial += torch.from_numpy(values).to(self.initial) / self.options.initial_steps
            return np.ones(len(values))
        return self.initial.cpu().numpy()

    def shares(self, found: np.ndarray, present: np.ndarray, step: int) -> np.ndarray:
        """See :class:`_MinNorm`."""
        if step >= self.options.initial_steps and present.all():
            memory = self.options.memory
            self.current.copy_(memory * self.current + (1 - memory) * torch.from_numpy(found).to(self.current))
        return self.current.cpu().numpy()
