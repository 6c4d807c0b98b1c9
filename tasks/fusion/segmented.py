"""Weights of their own for the values of a field, as far as their lists can vouch for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ctrmodels.errors import InputError
from ctrmodels.fusion import (
    TUNERS,
    Evaluator,
    FusionFunction,
    Judge,
    SegmentWeights,
    Window,
    best,
    corners,
    goal,
    tune,
    tune_segments,
)
from ctrmodels.metrics import Interval
from tasks.config import TuneFusion
from tasks.fusion.inputs import Logged
from tasks.fusion.outcome import Tuned


@dataclass(frozen=True)
class Segmented:
    """What weights per segment are worth.

    Attributes:
        field: whose values are the segments.
        function: that fuses in all of them.
        weights: by segment.
        lists: of the tuning window, by segment.
        gains: metric on the report window minus that of the common weights, by ``METRIC.OBJECTIVE``.
    """

    field: str
    function: FusionFunction
    weights: SegmentWeights
    lists: Mapping[str, int]
    gains: Mapping[str, Interval]


def segmented(field: str, tuned: Tuned, tuning: tuple[Logged, Judge], report: tuple[Logged, Judge],
              settings: TuneFusion) -> Segmented:
    """Tune the chosen function by segment on one window, judge it on the other.

    Raises:
        InputError: a list has rows of two segments, or an objective cannot be judged in a part of a segment.
    """
    function, (logged, judge) = tuned.chosen.fusion(), tuning
    segment, table = logged.fields[field], logged.table

    def weights(rows: np.ndarray) -> tuple[float, ...]:
        some = table.take(rows)
        evaluator = Evaluator(some.labels, some.groups, some.objectives, settings.metric, settings.k)
        window = Window(judge.normalised(function)[rows], evaluator, some.groups)
        rule = goal(corners(function, window), tuned.rule.primary, settings.floor)
        return best(tune(function, window, rule, settings.trials, settings.seed, tuner=TUNERS[settings.tuner]()),
                    rule).weights

    try:
        found = tune_segments(weights, segment, table.groups, seed=settings.seed)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError("params.yaml", "tune_fusion.segments", field, f"in a part of a segment: {error}",
                         "choose a coarser field, or leave it out") from error
    lists = {str(s): len(np.unique(table.groups[segment == s])) for s in np.unique(segment)}
    other, other_judge = report
    fused, common = (w.score(function, other_judge.normalised(function), other.fields[field])
                     for w in (found, SegmentWeights(found.overall, {}, {})))
    return Segmented(field, function, found, lists, other_judge.changes(fused, common))
