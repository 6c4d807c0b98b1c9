"""ESM²: purchases by two ways, after an action such as the cart or without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.multitask.chains import Chain, Event, Factor
from ctrmodels.multitask.models.esmm import Identity
from ctrmodels.multitask.parts import Parts, Site
from ctrmodels.multitask.spaces import ALL


@dataclass(frozen=True)
class ESM2Options:
    """Of ESM².

    Attributes:
        action: the binary objective that is the deterministic action between click and purchase, such as the cart.
            Several actions are one objective, whose label is 1 where any of them happened.
    """

    action: str | None = None


def esm2(site: Site) -> Parts:
    """Towers on the embeddings alone, as ESMM's, under the graph of behaviours after the click."""
    c, objectives = site.config, site.schema.objectives
    action, outcomes = around(objectives, site.options.action)
    trunk = Identity(site.width, site.n_objectives + len(outcomes))
    return Parts(trunk, behaviour_graph(objectives, action, outcomes), (*c.bottom, *c.tower),
                 further=tuple(without(o, action) for o in outcomes))


def behaviour_graph(objectives: Sequence[Objective], action: str, outcomes: Sequence[str]) -> Chain:
    """The chain of "Entire Space Multi-Task Modeling via Post-Click Behavior Decomposition for Conversion Rate
    Prediction", SIGIR 2020.

    With click y1, action after the click y2, purchase after the action y3 and purchase without it y4:

        pCTR = y1      pCTAVR = y1 y2      pCVR = y2 y3 + (1 - y2) y4      pCTCVR = y1 pCVR

    The joint events are trained, all on all rows. Only the label of the action tells y3 from y4: where it says nothing
    about the purchase the two cannot be told apart, which does not matter to pCVR. With y3 = y4 it is ESMM's chain.

    Args:
        objectives: parents before children.
        action: after the click.
        outcomes: after the click too; the head of an outcome is y3, that of ``without(outcome, action)`` is y4.
    """
    joint: dict[str, tuple[tuple[Factor, ...], ...]] = {}
    events = []
    for o in objectives:
        if o.kind != "binary":
            continue
        own: tuple[tuple[Factor, ...], ...] = ((Factor(o.name),),)
        if o.name in outcomes:
            own = ((Factor(action), Factor(o.name)),
                   (Factor(action, complement=True), Factor(without(o.name, action))))
        before = ((),) if o.after is None else joint[o.after]
        joint[o.name] = tuple((*a, *b) for a in before for b in own)
        events.append(Event(o.name, ALL, joint[o.name]))
        if o.after is not None:
            events.append(Event(o.name, o.after, own))
    return Chain(tuple(events), tuple(e.name for e in events if e.space == ALL))


def around(objectives: Sequence[Objective], action: str | None) -> tuple[str, tuple[str, ...]]:
    """The action and the binary objectives that share its parent.

    Raises:
        InputError: no such action, it comes after nothing, or nothing else comes after the same.
    """
    binary = {o.name: o for o in objectives if o.kind == "binary"}
    if action is None or action not in binary:
        raise InputError("params.yaml", "retrain.esm2.action", action,
                         "esm2 needs the binary objective that is the action between click and purchase",
                         f"name one of {', '.join(binary)}, or take esm2 out of retrain.models")
    parent = binary[action].after
    if parent is None:
        raise InputError("params.yaml", "retrain.esm2.action", action, "esm2 needs an action after a click, and this "
                         "objective has no `after:`", "declare what it follows, or take esm2 out of retrain.models")
    outcomes = tuple(o.name for o in binary.values() if o.after == parent and o.name != action)
    if not outcomes:
        raise InputError("params.yaml", "retrain.esm2.action", action,
                         f"esm2 needs a purchase that may happen without this action, and no other binary objective "
                         f"is `after: {parent}`", f"declare the purchase `after: {parent}`, or use esmm instead")
    return action, outcomes


def without(outcome: str, action: str) -> str:
    """Name of the head of an outcome that no action came before."""
    return f"{outcome} without {action}"
