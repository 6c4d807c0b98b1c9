"""What a search for fusion weights found, and the questions the stage asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ctrmodels.data.schema import Objective
from ctrmodels.fusion import Goal, Point, best, non_dominated

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
    """

    objectives: tuple[Objective, ...]
    points: tuple[Point, ...]
    rule: Goal
    volumes: Mapping[str, Sequence[float]]

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

    def equal(self, function: str) -> Point:
        """The equal weights of a function."""
        return next(p for p in self.points if p.source == "equal" and p.function == function)

    @cached_property
    def orders(self) -> dict[str, Point]:
        """The orders that are compared: recommended, equal weights, and each score alone."""
        alone = {f"only.{o.name}": p for o, p in zip(self.objectives, self.points, strict=False)}
        return {"recommended": self.chosen, "equal_weights": self.equal(self.chosen.function), **alone}

    def weights(self, point: Point) -> dict[str, float]:
        """A point's weights by objective."""
        return {o.name: w for o, w in zip(self.objectives, point.weights, strict=True)}
