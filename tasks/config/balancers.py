"""How the losses of several objectives are balanced."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.config.section import Section

BALANCERS = ("fixed", "decay", "uncertainty", "dwa", "gradnorm", "pcgrad", "mgda", "pareto", "random")


class Decay(Section):
    """``MODEL-decay``: ``loss_weights`` times ``factors``, objective by objective, with every epoch (PLE, RecSys 2020).

    Attributes:
        factors: objective → factor per epoch; 1 where absent. Between 0.9 and 1.1 is usual.
    """

    factors: dict[str, Annotated[float, Field(gt=0, le=2)]] = {}


class Uncertainty(Section):
    """``MODEL-uncertainty``: weights from the noise of every loss (Kendall et al., CVPR 2018).

    Attributes:
        learning_rate: of the log-variances; about ten times ``training.learning_rate``.
        max_weight: largest weight of a loss; the loss of a rare event is small, and its weight would shake the rest.
    """

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-2
    max_weight: Annotated[float, Field(ge=1)] = 25.0


class Dwa(Section):
    """``MODEL-dwa``: more weight for losses that fall more slowly (Liu et al., CVPR 2019).

    Attributes:
        temperature: the larger, the more alike the weights.
    """

    temperature: Annotated[float, Field(gt=0)] = 2.0


class GradNorm(Section):
    """``MODEL-gradnorm``: gradients of one length on the last shared layer (Chen et al., ICML 2018).

    Attributes:
        alpha: how strongly a loss that lags behind is favoured; about 1.5 for objectives that learn at different
            speeds, about 0.1 for similar ones.
        learning_rate: of the weights.
        initial_steps: steps in which the weights rest and the losses' starting points are measured.
    """

    alpha: Annotated[float, Field(ge=0, le=10)] = 1.5
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.025
    initial_steps: Annotated[int, Field(ge=1)] = 20


class Mgda(Section):
    """``MODEL-mgda``: the shortest combination of the gradients (Sener and Koltun, NeurIPS 2018).

    Attributes:
        normalisation: what each gradient is divided by: ``none``, its length (``l2``), its ``loss``, or ``both``.
    """

    normalisation: Literal["none", "l2", "loss", "both"] = "none"


class ParetoWeights(Section):
    """``MODEL-pareto``: the same for relative losses, with a least share for every objective (PE-LTR, RecSys 2019).

    Attributes:
        bounds: objective → least share, 0 where absent; they sum to less than 1.
        memory: share of the old weights that a step keeps.
        initial_steps: steps in which the weights rest and the losses' scales are measured.
    """

    bounds: dict[str, Annotated[float, Field(ge=0, lt=1)]] = {}
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
    initial_steps: Annotated[int, Field(ge=1)] = 20


class Balancers(Section):
    """Settings of the balancers that ``retrain.models`` may name; ``pcgrad`` and ``random`` have none."""

    decay: Decay = Decay()
    uncertainty: Uncertainty = Uncertainty()
    dwa: Dwa = Dwa()
    gradnorm: GradNorm = GradNorm()
    mgda: Mgda = Mgda()
    pareto: ParetoWeights = ParetoWeights()
