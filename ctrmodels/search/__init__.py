"""Architecture search: each method alone (``from ctrmodels.search import AutoFIS``) or as a stage of the chain."""

from ctrmodels.archspec import ArchSpec, Interaction, merge
from ctrmodels.search.base import Found, Host, SearchMethod, SearchRows
from ctrmodels.search.controls import random_control
from ctrmodels.search.embedding import (
    AIMEDS,
    NIS,
    PEP,
    AutoDim,
    AutoEmb,
    FrequencyRule,
    NarrowWidth,
    RareIds,
    ResEmbedding,
    StreamingAutoEmb,
    UniformWidth,
)
from ctrmodels.search.interaction import (
    AIM,
    AllPairs,
    AutoFeature,
    AutoFIS,
    AutoGroup,
    Baseline,
    Listed,
    MutualInformation,
    NoPairs,
    SplitGain,
)
from ctrmodels.search.trial import retrain

__all__ = [
    "AIM",
    "AIMEDS",
    "NIS",
    "PEP",
    "AllPairs",
    "ArchSpec",
    "AutoDim",
    "AutoEmb",
    "AutoFIS",
    "AutoFeature",
    "AutoGroup",
    "Baseline",
    "Found",
    "FrequencyRule",
    "Host",
    "Interaction",
    "Listed",
    "MutualInformation",
    "NarrowWidth",
    "NoPairs",
    "RareIds",
    "ResEmbedding",
    "SearchMethod",
    "SearchRows",
    "SplitGain",
    "StreamingAutoEmb",
    "UniformWidth",
    "merge",
    "random_control",
    "retrain",
]
