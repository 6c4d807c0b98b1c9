"""Loss balancing: how much every objective's loss counts, and where their gradients go on shared parameters.

The plain sum, with or without fixed weights, is the model's own ``loss`` and needs nothing from here. A balancer goes
to :func:`ctrmodels.training.fit`, which keeps its state with the training's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ctrmodels.errors import InputError
from ctrmodels.multitask.balancers.base import Balanced, Balancer, GradientBalancer, LossBalancer, Problem
from ctrmodels.multitask.balancers.decay import Decay, DecayOptions
from ctrmodels.multitask.balancers.dwa import Dwa, DwaOptions
from ctrmodels.multitask.balancers.gradnorm import GradNorm, GradNormOptions
from ctrmodels.multitask.balancers.min_norm import Mgda, MgdaOptions, Pareto, ParetoOptions
from ctrmodels.multitask.balancers.pcgrad import PCGrad
from ctrmodels.multitask.balancers.random_weights import RandomWeights
from ctrmodels.multitask.balancers.uncertainty import Uncertainty, UncertaintyOptions

__all__ = ["BALANCERS", "Balanced", "Balancer", "Decay", "DecayOptions", "Dwa", "DwaOptions", "GradNorm",
           "GradNormOptions", "GradientBalancer", "LossBalancer", "Mgda", "MgdaOptions", "PCGrad", "Pareto",
           "ParetoOptions", "Problem", "RandomWeights", "Uncertainty", "UncertaintyOptions", "build_balancer"]


@dataclass(frozen=True)
class Kind:
    """A named balancer: its class, and the dataclass of its options if it has any."""

    build: Callable[..., Balancer]
    options: type | None = None


BALANCERS: Mapping[str, Kind] = {
    "decay": Kind(Decay, DecayOptions),
    "uncertainty": Kind(Uncertainty, UncertaintyOptions),
    "dwa": Kind(Dwa, DwaOptions),
    "gradnorm": Kind(GradNorm, GradNormOptions),
    "pcgrad": Kind(PCGrad),
    "mgda": Kind(Mgda, MgdaOptions),
    "pareto": Kind(Pareto, ParetoOptions),
    "random": Kind(RandomWeights),
}


def build_balancer(name: str, model: Balanced, options: Any = None, seed: int = 0) -> Balancer:
    """The balancer ``name`` for ``model``.

    Args:
        name: a key of ``BALANCERS``.
        model: whose losses are balanced.
        options: of that balancer; ``None`` = as published.
        seed: of random weights and orders.

    Raises:
        InputError: unknown balancer, options of an objective that the model does not have, a single loss, or nothing
            that several losses reach.
    """
    if name not in BALANCERS:
        raise InputError("params.yaml", "retrain.models", name, "unknown balancer", f"use {', '.join(BALANCERS)}")
    problem = Problem.of(model, seed)
    if len(problem.names) < 2:
        raise InputError("params.yaml", "retrain.models", name, f"one loss only ({', '.join(problem.names)})",
                         "train the model without a balancer")
    if not problem.shared:
        raise InputError("params.yaml", "retrain.models", name, "the model's objectives share no parameter",
                         "train it without a balancer: each of its losses is minimised as if alone")
    objectives = list(dict.fromkeys(n.partition("@")[0] for n in problem.names))
    for key, value in vars(options).items() if options is not None else ():
        for unknown in sorted(set(value) - set(objectives)) if isinstance(value, Mapping) else ():
            raise InputError("params.yaml", f"retrain.balancers.{name}.{key}", unknown, "no such objective",
                             f"use {', '.join(objectives)}")
    return BALANCERS[name].build(problem) if options is None else BALANCERS[name].build(problem, options)
