"""From several scores of a row to the one that rows are ordered by: normalise, fuse, tune, compare."""

from ctrmodels.fusion.evaluator import Evaluator, Resampled, tuning_window
from ctrmodels.fusion.functions import FUNCTIONS, FusionFunction, WeightedProduct, WeightedSum
from ctrmodels.fusion.guardrails import Check, Guardrails, Proposal, Verdict
from ctrmodels.fusion.normalisers import NORMALISERS, Isotonic, Normaliser, Platt, Quantile, rank_in_list
from ctrmodels.fusion.offpolicy import Estimate, ItemPosition, OffPolicy
from ctrmodels.fusion.pareto import hypervolume, non_dominated
from ctrmodels.fusion.segments import SegmentWeights, tune_segments
from ctrmodels.fusion.spec import FusedScore, FusionSpec
from ctrmodels.fusion.table import Judge, ScoreTable, score_name
from ctrmodels.fusion.tuner import Goal, Point, Window, best, corners, goal, tune

__all__ = [
    "FUNCTIONS", "NORMALISERS", "Check", "Estimate", "Evaluator", "FusedScore", "FusionFunction", "FusionSpec", "Goal",
    "Guardrails", "Isotonic", "ItemPosition", "Judge", "Normaliser", "OffPolicy", "Platt", "Point", "Proposal",
    "Quantile", "Resampled", "ScoreTable", "SegmentWeights", "Verdict", "WeightedProduct", "WeightedSum", "Window",
    "best", "corners", "goal", "hypervolume", "non_dominated", "rank_in_list", "score_name", "tune", "tune_segments",
    "tuning_window",
]
