"""DBMTL: objectives as a Bayesian network, whose links are small layers between the towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import torch
from torch import Tensor, nn

from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.multitask import chains
from ctrmodels.multitask.models.mixtures import MMoE
from ctrmodels.multitask.models.own_layers import OwnLayers
from ctrmodels.multitask.models.shared_bottom import SharedBottom
from ctrmodels.multitask.parts import Parts, Site, Transfer, Trunk
from ctrmodels.nn.towers import MLP

KEY = "retrain.dbmtl.parents"


@dataclass(frozen=True)
class DBMTLOptions:
    """Of DBMTL.

    Attributes:
        parents: objective → those it depends on, a graph without cycles; ``None`` = what `after:` says.
        experts: of the mixture below the towers; 1 = a shared bottom.
        detach_parents: whether a child's loss stops at its parents' states.
    """

    parents: Mapping[str, Sequence[str]] | None = None
    experts: int = 1
    detach_parents: bool = False


class Relations(Transfer):
    """Every objective with parents reads their states beside its own tower's.

    ``P(l, m, n | x) = P(l | x) P(m | x, l) P(n | x, l, m)`` of "Deep Bayesian Multi-Target Learning for Recommender
    Systems", arXiv 1902.09154: ``r_k = relu(W_k [u_k; r_p for p in parents(k)])``. A child reads a parent's hidden
    state, never its label, which serving does not know. An objective without parents keeps its tower's state, so that
    without any link this is the model below.

    Args:
        width: H.
        parents: of each objective, by number.
        order: all objectives, parents first.
        detach: whether no gradient goes from a child to its parents.
    """

    def __init__(self, width: int, parents: Sequence[Sequence[int]], order: Sequence[int], detach: bool) -> None:
        super().__init__()
        self.parents, self.order, self.detach = parents, order, detach
        self.links = nn.ModuleDict({str(k): MLP(width * (1 + len(p)), (width,)) for k, p in enumerate(parents) if p})

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        """K states u [B, H] → K states r [B, H]."""
        found = list(states)
        for k in self.order:
            if self.parents[k]:
                above = [found[p].detach() if self.detach else found[p] for p in self.parents[k]]
                found[k] = self.links[str(k)](torch.cat([states[k], *above], dim=1))
        return found


def dbmtl(site: Site) -> Parts:
    """A shared bottom or a mixture, a tower each, links between the towers; heads trained in their own spaces."""
    c, o, schema = site.config, site.options, site.schema
    graph = parents_of(schema.objectives, o.parents)
    below: Trunk = (SharedBottom(site.width, site.n_objectives, c.bottom, c.dropout) if o.experts == 1
                    else MMoE(site.width, site.n_objectives, o.experts, c.bottom, c.dropout))
    trunk = OwnLayers(below, c.tower, c.dropout)
    of = schema.objective_index
    links = Relations(trunk.width, [[of(p) for p in graph[x.name]] for x in schema.objectives],
                      [of(name) for name in TopologicalSorter(graph).static_order()], o.detach_parents)
    return Parts(trunk, chains.independent(schema.objectives), (), transfer=links)


def parents_of(objectives: Sequence[Objective], given: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]]:
    """Objective → its parents in the graph that ``given`` describes, or else `after:`.

    Raises:
        InputError: an unknown objective, a cycle, or no link at all.
    """
    names = [o.name for o in objectives]
    after = {o.name: [o.after] for o in objectives if o.after is not None}
    graph: dict[str, list[str]] = {name: [] for name in names}
    for child, parents in (after if given is None else given).items():
        for name in (child, *parents):
            if name not in graph:
                raise InputError("params.yaml", KEY, name, "no such objective", f"use {', '.join(names)}")
        graph[child] = list(parents)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = " → ".join(error.args[1])
        raise InputError("params.yaml", KEY, cycle, "each depends on itself along this way, and none can be "
                         "computed first", "take one of these links out") from error
    if not any(graph.values()):
        raise InputError("params.yaml", KEY, given, "dbmtl needs a link, and no objective has a parent",
                         "name parents there, declare `after:` in data.objectives, or use shared_bottom")
    return graph
