"""What a search for fusion weights found, and the questions the stage asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ctrmodels.data.schema import Objective
from ctrmodels.fusion import FUNCTIONS, Column, Goal, Point, best, non_dominated

MOST_DIMENSIONS = 4  # an exact hypervolume takes points^(objectives - 1) steps


@dataclass(frozen=True)
class Tuned:
    """What the search found.

    Attributes:
        objectives: the objectives, in the order of scores, weights and metrics.
        points: every point that was judged on the whole tuning window.
        rule: how one is chosen.
        volumes: hypervolume after each trial of the chosen function's search, on the rows that trials saw, by tuner;
            ``random`` is random search with as many trials. Empty for one objective and for more than
            ``MOST_DIMENSIONS``.
        equals: equal weights by function; among the points only of those whose search moves the weights.
        columns: names of the columns that functions have beside the scores, by what they are to them.
    """

    objectives: tuple[Objective, ...]
    points: tuple[Point, ...]
    rule: Goal
    volumes: Mapping[str, Sequence[float]]
    equals: Mapping[str, Point]
    columns: Mapping[Column, str]

    @cached_property
    def primary(self) -> str:
        """The objective that is maximised."""
        return self.objectives[self.rule.primary].name

    @cached_property
    def chosen(self) -> Point:
        """The point that the rule chooses."""
        return best(self.points, self.rule)

    @cached_property
    def chosen_index(self) -> int:
        """Its place among the points."""
        return next(i for i, p in enumerate(self.points) if p is self.chosen)

    @cached_property
    def front(self) -> list[bool]:
        """Which points no other one dominates."""
        return non_dominated(np.array([p.metrics for p in self.points])).tolist()

    @cached_property
    def best_by_function(self) -> list[Point]:
        """What the rule would choose of each function's tuned points."""
        functions = dict.fromkeys(p.function for p in self.points)
        return [best([p for p in self.points if p.function == f and p.source != "corner"], self.rule)
                for f in functions]

    @cached_property
    def orders(self) -> dict[str, Point]:
        """The orders that are compared: recommended, equal weights, and each score alone."""
        alone = {f"only.{o.name}": p for o, p in zip(self.objectives, self.points, strict=False)}
        return {"recommended": self.chosen, "equal_weights": self.equals[self.chosen.function], **alone}

    def weights(self, point: Point) -> dict[str, float]:
        """A point's weights by objective, and by the name of its function's column."""
        column = point.fusion().column
        names = [o.name for o in self.objectives] + ([] if column is None else [self.columns[column]])
        return dict(zip(names, point.weights, strict=True))

    def numbers(self, point: Point) -> str:
        """A point's weights, and those of its constants that are neither the usual ones nor these weights, in words."""
        usual = FUNCTIONS[point.function]().to_json()
        told = [f"{name} {weight:.3g}" for name, weight in self.weights(point).items()]
        for name, value in point.constants.items():
            several = value if isinstance(value, tuple) else (value,)
            if value != usual[name] and value != point.weights[:len(several)]:
                told.append(f"{name} {' / '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in several)}")
        return ", ".join(told)
