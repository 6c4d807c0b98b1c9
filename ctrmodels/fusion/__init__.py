"""From several scores of a row to the one that rows are ordered by: normalise, fuse, tune, compare."""

from ctrmodels.fusion.evaluator import Evaluator, Resampled, tuning_window
from ctrmodels.fusion.functions import (
    FUNCTIONS,
    Column,
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
from ctrmodels.fusion.goal import Goal, Point, Window, best, corners, equal, goal
from ctrmodels.fusion.guardrails import Check, Guardrails, Proposal, Verdict, rank_correlation
from ctrmodels.fusion.normalisers import (
    NORMALISERS,
    Bounded,
    Isotonic,
    Normaliser,
    Platt,
    Quantile,
    RankInList,
    rank_in_list,
)
from ctrmodels.fusion.offpolicy import Estimate, ItemPosition, OffPolicy
from ctrmodels.fusion.pareto import hypervolume, hypervolumes, non_dominated, recommended
from ctrmodels.fusion.pe_ltr import ParetoWeights, bound_grid, pareto_weights, trace_front
from ctrmodels.fusion.segments import SegmentWeights, tune_segments
from ctrmodels.fusion.spec import FusedScore, FusionSpec
from ctrmodels.fusion.table import Judge, ScoreTable, score_name
from ctrmodels.fusion.tuner import race, tune
from ctrmodels.fusion.tuners import TUNERS, CmaEs, GaussianProcess, Grid, Nsga2, RandomSearch, Tpe, Tuner

__all__ = [
    "FUNCTIONS", "NORMALISERS", "TUNERS", "Bounded", "Check", "CmaEs", "Column", "Constrained", "Estimate",
    "Evaluator", "ExpectedValue", "ExponentialBoost", "ExponentialSum", "FusedScore", "FusionFunction", "FusionSpec",
    "GaussianProcess", "Goal", "Grid", "Guardrails", "Isotonic", "ItemPosition", "Judge", "LengthProduct",
    "Normaliser", "Nsga2", "OffPolicy", "ParetoWeights", "Platt", "Point", "Proposal", "Quantile", "RandomSearch",
    "RankInList", "ReciprocalRank", "Resampled", "ScoreTable", "SegmentWeights", "ShiftedPower", "Tpe", "Tuner",
    "Verdict", "WeightedProduct", "WeightedSum", "Window", "best", "bound_grid", "corners", "equal", "goal",
    "hypervolume", "hypervolumes", "non_dominated", "pareto_weights", "race", "rank_correlation", "rank_in_list",
    "recommended", "score_name", "trace_front", "tune", "tune_segments", "tuning_window",
]
