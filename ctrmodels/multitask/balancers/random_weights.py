"""Random weights: the control of all balancers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ctrmodels.multitask.balancers.base import LossBalancer


class RandomWeights(LossBalancer):
    """``w = K softmax(z)`` with ``z ~ N(0, 1)``, drawn at every step.

    "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning", TMLR 2022 (RLW): a method
    that is not better than this has not earned its cost. There the weights sum to 1; here to K, so that they are 1
    on average as in the plain sum and penalties keep their share.

    A draw depends on seed and step alone: there is no state, and all ranks draw alike.
    """

    def weigh(self, step: int) -> Tensor:
        """See :class:`LossBalancer`."""
        drawn = np.random.default_rng((self.seed, step)).standard_normal(len(self.names))
        weights = torch.from_numpy(drawn).softmax(0) * len(drawn)
        return weights.to(self.seen)
