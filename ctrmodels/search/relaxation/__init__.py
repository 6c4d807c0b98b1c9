"""Differentiable stand-ins for discrete choices of an embedding, one file per kind of choice."""

from ctrmodels.search.relaxation.gate import GatedEmbedding
from ctrmodels.search.relaxation.mixture import MixtureEmbedding, PrefixMixture, WidthChoice
from ctrmodels.search.relaxation.threshold import Granularity, SoftThresholdEmbedding, soft_threshold

__all__ = ["GatedEmbedding", "Granularity", "MixtureEmbedding", "PrefixMixture", "SoftThresholdEmbedding",
           "WidthChoice", "soft_threshold"]
