"""Searches of the feature interactions, one file per method."""

from ctrmodels.search.interaction.aim import AIM
from ctrmodels.search.interaction.all_pairs import AllPairs
from ctrmodels.search.interaction.autofeature import AutoFeature
from ctrmodels.search.interaction.autofis import AutoFIS
from ctrmodels.search.interaction.autogroup import AutoGroup
from ctrmodels.search.interaction.baseline import Baseline
from ctrmodels.search.interaction.listed import Listed
from ctrmodels.search.interaction.rules import MutualInformation, NoPairs, SplitGain

__all__ = ["AIM", "AllPairs", "AutoFIS", "AutoFeature", "AutoGroup", "Baseline", "Listed", "MutualInformation",
           "NoPairs", "SplitGain"]
