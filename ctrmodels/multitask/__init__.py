"""Multi-objective models: trunks, probability chains, masked losses, and the named configurations of them."""

from ctrmodels.multitask.chains import Chain, Event, Factor, esmm, independent, joint
from ctrmodels.multitask.checkpoint import load_model
from ctrmodels.multitask.model import MultiObjectiveModel
from ctrmodels.multitask.models import MODELS, Blueprint, build_model
from ctrmodels.multitask.models.aitm import AITMOptions
from ctrmodels.multitask.models.dbmtl import DBMTLOptions
from ctrmodels.multitask.models.esm2 import ESM2Options
from ctrmodels.multitask.models.esmm import Identity
from ctrmodels.multitask.models.mixtures import MixtureOptions, MMoE, OMoE
from ctrmodels.multitask.models.ple import PLE, PLEOptions
from ctrmodels.multitask.models.shared_bottom import SharedBottom
from ctrmodels.multitask.models.youtube import YouTubeOptions
from ctrmodels.multitask.parts import Auxiliary, ModelConfig, Parts, Side, Site, Transfer, Trunk

__all__ = ["MODELS", "PLE", "AITMOptions", "Auxiliary", "Blueprint", "Chain", "DBMTLOptions", "ESM2Options", "Event",
           "Factor", "Identity", "MMoE", "MixtureOptions", "ModelConfig", "MultiObjectiveModel", "OMoE", "PLEOptions",
           "Parts", "SharedBottom", "Side", "Site", "Transfer", "Trunk", "YouTubeOptions", "build_model", "esmm",
           "independent", "joint", "load_model"]
