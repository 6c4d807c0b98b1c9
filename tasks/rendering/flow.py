"""The picture of the chain: a lane for every group of stages, a box for every stage, what each one took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

BOX_WIDTH, BOX_HEIGHT, LINE = 168, 52, 19
GAP, LANE_GAP, LEFT, TOP = 34, 34, 88, 10


@dataclass(frozen=True)
class Node:
    """One stage.

    Attributes:
        name: its name.
        group: the lane it belongs to.
        upstream: names of the stages it reads.
        note: under its name: how long it took.
        keys: one line for every key of a matrix stage: (key, note, chosen).
        reused: its outputs come from an earlier run.
    """

    name: str
    group: str
    upstream: tuple[str, ...]
    note: str
    keys: tuple[tuple[str, str, bool], ...] = ()
    reused: bool = False


def draw(nodes: Sequence[Node]) -> Markup:
    """The chain as an ``<svg>`` element, stages in the order given (an order they could run in)."""
    lanes = list(dict.fromkeys(n.group for n in nodes))
    spots: dict[str, tuple[float, float, float]] = {}  # name → x, y, height
    parts: list[Markup] = []
    y = float(TOP)
    for lane in lanes:
        members = [n for n in nodes if n.group == lane]
        height = max(_height(n) for n in members)
        parts.append(Markup('<text class="lane" x="0" y="{}">{}</text>').format(y + BOX_HEIGHT / 2 + 4, lane))
        for i, node in enumerate(members):
            spots[node.name] = (LEFT + i * (BOX_WIDTH + GAP), y, _height(node))
        y += height + LANE_GAP
    parts += [_arrow(spots[a], spots[b]) for a, b in _direct_edges(nodes)]
    parts += [_box(node, *spots[node.name]) for node in nodes]
    columns = max(sum(n.group == lane for n in nodes) for lane in lanes)
    width = LEFT + columns * (BOX_WIDTH + GAP) - GAP + 2
    return Markup('<svg viewBox="0 0 {} {}" aria-hidden="true" focusable="false"><defs><marker id="flow-tip" '
                  'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
                  '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>{}</svg>').format(
                      width, round(y - LANE_GAP + TOP), Markup("").join(parts))


def _height(node: Node) -> float:
    return BOX_HEIGHT + (LINE * len(node.keys) + 6 if node.keys else 0)


def _box(node: Node, x: float, y: float, height: float) -> Markup:
    shape = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="8"/>').format(
        "box reused" if node.reused else "box", x, y, BOX_WIDTH, height)
    texts = [Markup('<text class="name" x="{}" y="{}">{}</text>').format(x + 12, y + 22, node.name),
             Markup('<text class="note" x="{}" y="{}">{}</text>').format(x + 12, y + 39, node.note)]
    for i, (key, note, chosen) in enumerate(node.keys):
        line = y + BOX_HEIGHT + 10 + i * LINE
        texts.append(Markup('<text class="{}" x="{}" y="{}">{}</text><text class="note end" x="{}" y="{}">{}</text>')
                     .format("key chosen" if chosen else "key", x + 12, line, ("✓ " if chosen else "") + key,
                             x + BOX_WIDTH - 12, line, note))
    return shape + Markup("").join(texts)


def _arrow(start: tuple[float, float, float], end: tuple[float, float, float]) -> Markup:
    (x0, y0, h0), (x1, y1, _) = start, end
    middle = BOX_HEIGHT / 2
    if y0 == y1:
        path = f"M{x0 + BOX_WIDTH:g} {y0 + middle:g}H{x1 - 3:g}"
    else:  # down from the last box of a lane, along the space between the lanes, into the next lane's box
        turn = y1 - LANE_GAP / 2
        path = f"M{x0 + BOX_WIDTH / 2:g} {y0 + h0:g}V{turn:g}H{x1 + BOX_WIDTH / 2:g}V{y1 - 3:g}"
    return Markup('<path class="edge" d="{}" marker-end="url(#flow-tip)"/>').format(path)


def _direct_edges(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """The edges that no longer way implies (the transitive reduction): what a reader needs to see."""
    above: dict[str, set[str]] = {}
    upstream: Mapping[str, tuple[str, ...]] = {n.name: n.upstream for n in nodes}
    for node in nodes:
        above[node.name] = set(node.upstream).union(*(above[u] for u in node.upstream))
    return [(a, b) for b, parents in upstream.items() for a in parents
            if not any(a in above[other] for other in parents if other != a)]
