"""Multi-objective models: trunks, probability chains, masked losses, and the named configurations of them."""

from ctrmodels.multitask.chains import Chain, Event, Factor, esmm, independent
from ctrmodels.multitask.checkpoint import load_model
from ctrmodels.multitask.models import MODELS, ModelConfig, MultiObjectiveModel, build_model
from ctrmodels.multitask.trunks import PLE, Identity, MMoE, OMoE, SharedBottom, Trunk

__all__ = ["MODELS", "PLE", "Chain", "Event", "Factor", "Identity", "MMoE", "ModelConfig", "MultiObjectiveModel",
           "OMoE", "SharedBottom", "Trunk", "build_model", "esmm", "independent", "load_model"]
