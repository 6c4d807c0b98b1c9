"""A generator of impression logs whose truth is known.

It plays a shop: users open pages, a logging policy picks and orders a list of items from candidates, users
look down the list, click, put into the cart, buy. What decides is planted, and returned beside the rows:

>>> from ctrmodels.data.simulator import Simulator, SimulatorConfig
>>> simulator = Simulator(SimulatorConfig(rows=10_000, seed=7))
>>> batch = next(simulator.batches())
>>> batch.log.num_rows == batch.truth.num_rows
True

The model, with every symbol named, is written down in ``docs/simulator.md``.
"""

from ctrmodels.data.simulator.config import FieldPlan, Interaction, SimulatorConfig
from ctrmodels.data.simulator.log import SimulatedBatch, Simulator
from ctrmodels.data.simulator.policy import position_propensity
from ctrmodels.data.simulator.truth import SimulatorTruth, expected_auc, value_of_order

__all__ = ["FieldPlan", "Interaction", "SimulatedBatch", "Simulator", "SimulatorConfig", "SimulatorTruth",
           "expected_auc", "position_propensity", "value_of_order"]
