"""Ways to search for the weights of a fusion. New ones are added to ``TUNERS``."""

from ctrmodels.fusion.tuners.base import Tuner
from ctrmodels.fusion.tuners.cma import CmaEs
from ctrmodels.fusion.tuners.gp import GaussianProcess
from ctrmodels.fusion.tuners.grid import Grid
from ctrmodels.fusion.tuners.nsga import Nsga2
from ctrmodels.fusion.tuners.random_search import RandomSearch
from ctrmodels.fusion.tuners.tpe import Tpe

TUNERS: dict[str, type[Tuner]] = {t.id: t for t in (Tpe, GaussianProcess, CmaEs, Nsga2, RandomSearch, Grid)}

__all__ = ["TUNERS", "CmaEs", "GaussianProcess", "Grid", "Nsga2", "RandomSearch", "Tpe", "Tuner"]
