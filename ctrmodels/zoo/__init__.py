"""The plain models that a ranking engineer starts from, and the hosts of the searches."""

from collections.abc import Mapping

from ctrmodels.zoo.autodeepfm import AutoDeepFM
from ctrmodels.zoo.autoint import AutoInt
from ctrmodels.zoo.autoipnn import AutoIPNN
from ctrmodels.zoo.base import CTRModel, GatedModel, Sizes
from ctrmodels.zoo.dcnv2 import DCNv2
from ctrmodels.zoo.deepfm import DeepFM
from ctrmodels.zoo.din import DIN
from ctrmodels.zoo.dnn import DNN
from ctrmodels.zoo.fibinet import FiBiNET
from ctrmodels.zoo.fm import FM
from ctrmodels.zoo.fwfm import FwFM
from ctrmodels.zoo.ipnn import IPNN
from ctrmodels.zoo.lr import LR
from ctrmodels.zoo.xdeepfm import XDeepFM

MODELS: Mapping[str, type[CTRModel]] = {
    "lr": LR, "fm": FM, "fwfm": FwFM, "dnn": DNN, "deepfm": DeepFM, "ipnn": IPNN, "dcnv2": DCNv2,
    "xdeepfm": XDeepFM, "autoint": AutoInt, "fibinet": FiBiNET, "din": DIN}
"""Every plain model by its name."""

GATED: Mapping[str, type[GatedModel]] = {"autodeepfm": AutoDeepFM, "autoipnn": AutoIPNN}
"""The networks that have the interactions of an ArchSpec, each with a gate."""

HOSTS: Mapping[str, type[CTRModel]] = {
    **GATED, **{k: m for k, m in MODELS.items() if k not in ("lr", "din")}}
"""Every network that a search may work on: LR has no embeddings, DIN reads steps that relaxations pool."""

__all__ = ["DIN", "DNN", "FM", "GATED", "HOSTS", "IPNN", "LR", "MODELS", "AutoDeepFM", "AutoIPNN", "AutoInt",
           "CTRModel", "DCNv2", "DeepFM", "FiBiNET", "FwFM", "GatedModel", "Sizes", "XDeepFM"]
