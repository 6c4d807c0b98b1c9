"""CPU seconds of a search for fusion weights: 200 evaluations of three scores on 100,000 lists of 25 rows.

    python -m benchmarks.fusion

One evaluation fuses the rows under new weights and judges their order by three objectives. The searches are those of
the stage: proposals, evaluations, and what the storage costs, but for the local search, which ends by itself before its
trials are spent; building the metrics' layout is timed apart.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import numpy as np
from scipy.special import expit

from ctrmodels.data.schema import Objective
from ctrmodels.fusion import FUNCTIONS, TUNERS, Evaluator, Goal, Window, tune
from ctrmodels.fusion.evaluator import Metric

OBJECTIVES = (Objective("click"), Objective("cart"), Objective("buy"))


def window(lists: int, length: int, metric: Metric, seed: int = 0) -> Window:
    """Lists whose three scores are probabilities of 15, 5 and 2 % on average, normalised to a mean of 1."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(size=(lists * length, 3)) + np.array([-2.1, -3.4, -4.4]))
    labels = (rng.random(p.shape) < p).astype(np.float64)
    groups = np.repeat(np.arange(lists), length)
    return Window(p / p.mean(axis=0), Evaluator(labels, groups, OBJECTIVES, metric, 10), groups)


def main() -> None:
    """Measure, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=25)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--metric", choices=("ndcg", "gauc", "mrr", "value"), default="ndcg")
    parser.add_argument("--tuner", choices=tuple(TUNERS), default="tpe")
    parser.add_argument("--function", choices=tuple(FUNCTIONS), default="weighted_product")
    arguments = parser.parse_args()
    began = time.process_time()
    rows = window(arguments.lists, arguments.length, arguments.metric)
    built = time.process_time()
    calls = 0

    def evaluate(fused: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        found: np.ndarray = rows.evaluate(fused)
        return found

    tune(FUNCTIONS[arguments.function](), Window(rows.scores, evaluate, rows.groups), Goal(0, (None, None, None)),
         arguments.trials, tuner=replace(TUNERS[arguments.tuner](), polish=0.0))
    print(json.dumps({**vars(arguments), "evaluations": calls, "cpu_seconds": {
        "layout": round(built - began, 1), "search": round(time.process_time() - built, 1)}}))


if __name__ == "__main__":
    main()
