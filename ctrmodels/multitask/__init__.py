"""Multi-objective models: trunks, probability chains, masked losses, and the named configurations of them."""

from ctrmodels.multitask.chains import Chain, Event, Factor, esmm, independent, joint
from ctrmodels.multitask.checkpoint import load_model
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.multitask.models import MODELS, ONE_SCORE, Blueprint, build, build_model
from ctrmodels.multitask.models.aitm import AITMOptions
from ctrmodels.multitask.models.dbmtl import DBMTLOptions
from ctrmodels.multitask.models.dcrnn import DCRNN, DCRNNOptions
from ctrmodels.multitask.models.deepmcp import DeepMCPOptions
from ctrmodels.multitask.models.dupn import DUPN, DUPNOptions
from ctrmodels.multitask.models.esm2 import ESM2Options
from ctrmodels.multitask.models.esmm import Identity
from ctrmodels.multitask.models.mixtures import MixtureOptions, MMoE, OMoE
from ctrmodels.multitask.models.nmtr import NMTROptions
from ctrmodels.multitask.models.ple import PLE, PLEOptions
from ctrmodels.multitask.models.shared_bottom import SharedBottom
from ctrmodels.multitask.models.youtube import YouTubeOptions
from ctrmodels.multitask.one_score import OneScoreModel, RankingOptions, WeightedOptions
from ctrmodels.multitask.parts import Auxiliary, ModelConfig, Parts, Side, Site, SplitTrunk, Transfer, Trunk

__all__ = ["DCRNN", "DUPN", "MODELS", "ONE_SCORE", "PLE", "AITMOptions", "Auxiliary", "Blueprint", "Chain",
           "DBMTLOptions", "DCRNNOptions", "DUPNOptions", "DeepMCPOptions", "ESM2Options", "Event", "Factor",
           "Identity", "MMoE", "MixtureOptions", "ModelConfig", "MultiObjectiveModel", "NMTROptions", "OMoE",
           "OneScoreModel", "PLEOptions", "Parts", "RankingOptions", "SharedBottom", "Side", "Site", "SplitTrunk",
           "Transfer", "Trunk", "WeightedOptions", "YouTubeOptions", "build", "build_model", "esmm", "independent",
           "joint", "load_model"]
