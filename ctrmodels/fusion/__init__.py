"""From several scores of a row to the one that rows are ordered by: normalise, fuse, tune, compare."""

from ctrmodels.fusion.evaluator import Evaluator, Resampled, tuning_window
from ctrmodels.fusion.functions import (
    FUNCTIONS,
    Constrained,
    ExpectedValue,
    ExponentialBoost,
    ExponentialSum,
    FusionFunction,
    LengthProduct,
    ReciprocalRank,
    ShiftedPower,
    WeightedProduct,
    WeightedSum,
)
from ctrmodels.fusion.goal import Goal, Point, Window, best, corners, goal
from ctrmodels.fusion.normalisers import NORMALISERS, Isotonic, Normaliser, Platt, Quantile
from ctrmodels.fusion.pareto import hypervolume, hypervolumes, non_dominated, recommended
from ctrmodels.fusion.pe_ltr import ParetoWeights, bound_grid, pareto_weights, trace_front
from ctrmodels.fusion.spec import FusedScore, FusionSpec
from ctrmodels.fusion.table import Judge, ScoreTable, score_name
from ctrmodels.fusion.tuner import race, tune
from ctrmodels.fusion.tuners import TUNERS, CmaEs, GaussianProcess, Grid, Nsga2, RandomSearch, Tpe, Tuner

__all__ = [
    "FUNCTIONS", "NORMALISERS", "TUNERS", "CmaEs", "Constrained", "Evaluator", "ExpectedValue", "ExponentialBoost",
    "ExponentialSum", "FusedScore", "FusionFunction", "FusionSpec", "GaussianProcess", "Goal", "Grid", "Isotonic",
    "Judge", "LengthProduct", "Normaliser", "Nsga2", "ParetoWeights", "Platt", "Point", "Quantile", "RandomSearch",
    "ReciprocalRank", "Resampled", "ScoreTable", "ShiftedPower", "Tpe", "Tuner", "WeightedProduct", "WeightedSum",
    "Window", "best", "bound_grid", "corners", "goal", "hypervolume", "hypervolumes", "non_dominated",
    "pareto_weights", "race", "recommended", "score_name", "trace_front", "tune", "tuning_window",
]
