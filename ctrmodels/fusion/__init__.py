"""From several scores of a row to the one that rows are ordered by: normalise, fuse, tune, compare."""

from ctrmodels.fusion.evaluator import Evaluator, Resampled, tuning_window
from ctrmodels.fusion.functions import FUNCTIONS, FusionFunction, WeightedProduct, WeightedSum
from ctrmodels.fusion.normalisers import NORMALISERS, Isotonic, Normaliser, Platt, Quantile
from ctrmodels.fusion.pareto import hypervolume, non_dominated
from ctrmodels.fusion.spec import FusedScore, FusionSpec
from ctrmodels.fusion.table import Judge, ScoreTable, score_name
from ctrmodels.fusion.tuner import Goal, Point, Window, best, corners, goal, tune

__all__ = [
    "FUNCTIONS", "NORMALISERS", "Evaluator", "FusedScore", "FusionFunction", "FusionSpec", "Goal", "Isotonic",
    "Judge", "Normaliser", "Platt", "Point", "Quantile", "Resampled", "ScoreTable", "WeightedProduct", "WeightedSum",
    "Window", "best", "corners", "goal", "hypervolume", "non_dominated", "score_name", "tune", "tuning_window",
]
