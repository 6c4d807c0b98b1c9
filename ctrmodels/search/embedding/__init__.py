"""Searches of the embedding's widths and sparsity, one file per method."""

from ctrmodels.search.embedding.aim_eds import AIMEDS
from ctrmodels.search.embedding.autodim import AutoDim
from ctrmodels.search.embedding.autoemb import AutoEmb, StreamingAutoEmb
from ctrmodels.search.embedding.nis import NIS
from ctrmodels.search.embedding.pep import PEP
from ctrmodels.search.embedding.res_embedding import ResEmbedding
from ctrmodels.search.embedding.rules import FrequencyRule, NarrowWidth, RareIds
from ctrmodels.search.embedding.uniform import UniformWidth

__all__ = [
    "AIMEDS",
    "NIS",
    "PEP",
    "AutoDim",
    "AutoEmb",
    "FrequencyRule",
    "NarrowWidth",
    "RareIds",
    "ResEmbedding",
    "StreamingAutoEmb",
    "UniformWidth",
]
