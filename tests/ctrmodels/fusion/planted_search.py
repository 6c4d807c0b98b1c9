"""A search on the planted lists, told by one argument, for processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

from planted_lists import Lists

from ctrmodels.fusion import Goal, Point, Tpe, WeightedProduct, Window, tune

LISTS = Lists.generate(60)
GOAL = Goal(0, (None, 0.5))
TRIALS = 24


def search(storage: Path) -> list[Point]:
    window = Window(LISTS.scores, LISTS.value_and_clicks_at_top)
    return tune(WeightedProduct(), window, GOAL, TRIALS, seed=3, tuner=Tpe(startup=6), storage=storage)


if __name__ == "__main__":
    for point in search(Path(sys.argv[1])):
        print(point.weights, point.metrics, point.source)
