"""What is searched for in the embeddings, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.config.hosts import HOSTS
from tasks.config.retrain import Widths
from tasks.config.section import Section, Share, form

EMBEDDING_METHODS = ("uniform", "narrow", "rare_ids", "frequency_rule", "autodim", "pep", "aim_eds", "nis",
                     "autoemb", "res_embedding")


class Narrow(Section):
    """No search: a narrower width for every field, one candidate per entry of ``widths``."""

    widths: Annotated[Widths, Field(min_length=1)] = (8, 4, 2)


class RareIds(Section):
    """No search: ids that occur less than a threshold on ``train`` share one row per field, or have none.

    Attributes:
        thresholds: one candidate each.
    """

    thresholds: Annotated[Widths, Field(min_length=1)] = (3, 10, 30)
    shared: bool = True


class FrequencyRule(Section):
    """No search: an id's width grows with a power of its count, scaled to a share of the dense table.

    Attributes:
        shares: one candidate each.
    """

    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.5, 0.25)
    candidates: tuple[Annotated[int, Field(ge=0)], ...] = (0, 2, 4, 8, 16)
    power: Annotated[float, Field(gt=0)] = 0.25


class AutoDim(Section):
    """AutoDim (WWW 2021): one width per field from ``candidates``, by a Gumbel-softmax mixture, bi-level.

    Attributes:
        layout: one table whose first columns are the candidates, or a table each.
        projection: how a candidate comes to the common width.
        order: whether an architecture step takes the weights as they are, or one step ahead.
        size_penalty: weight of the expected size in the architecture's loss; 0 = as published.
        warm_up: share of the steps in which all candidates weigh the same.
        every: weight steps per architecture step.
    """

    candidates: Widths = (2, 4, 8, 16)
    layout: Literal["shared", "separate"] = "shared"
    projection: Literal["zeros", "linear"] = "zeros"
    order: Literal["first", "second"] = "first"
    size_penalty: Annotated[float, Field(ge=0)] = 0.0
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.2
    every: Annotated[int, Field(ge=1)] = 10
    epochs: Annotated[int, Field(ge=1)] = 6


class Pep(Section):
    """PEP (ICLR 2021): soft thresholds prune single embedding values.

    Attributes:
        granularity: what has a threshold of its own.
        targets: kept shares, one candidate each.
        rise: how far the thresholds would rise in ``epochs`` at Adam's full step.
        checks: how often per epoch the share is looked at.
    """

    granularity: Literal["global", "dimension", "field", "field_dimension", "value", "value_dimension"] = (
        "value_dimension")
    targets: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.5, 0.3, 0.15)
    threshold_init: float = -7.0
    rise: Annotated[float, Field(gt=0)] = 10.0
    weight_decay: Annotated[float, Field(gt=0)] = 1e-5
    checks: Annotated[int, Field(ge=1)] = 8
    epochs: Annotated[int, Field(ge=1)] = 3


class AimEds(Section):
    """AIM-EDS (TKDE 2021): gates on embedding dimensions, driven to zero by GRDA.

    Attributes:
        granularity: whether a field has the gates, or every id its own (with a larger ``gamma``).
        target_threshold: GRDA's threshold at the end, which decides how much goes.
    """

    granularity: Literal["field_dimension", "value_dimension"] = "field_dimension"
    target_threshold: Annotated[float, Field(gt=0)] = 1.6
    gamma: Annotated[float, Field(gt=0)] = 1.0
    mu: Annotated[float, Field(gt=0.5, lt=1)] = 0.8
    gate_init: Annotated[float, Field(gt=0)] = 0.6
    epochs: Annotated[int, Field(ge=1)] = 6


Cuts = tuple[Annotated[float, Field(gt=0, lt=1)], ...]


class Nis(Section):
    """NIS (KDD 2020): which blocks of rows and columns of every table exist, by a policy.

    Attributes:
        mode: ``single``, a width per field and how many ids have it; ``multi``, a width per block of ids.
        budget: values to store, as a share of the dense table's.
        row_cuts: cumulative shares at which blocks of ids end.
        shares_of: of the ids, or of their occurrences on ``train``.
        column_cuts: cumulative shares of the embedding's width at which slices end.
        quality: of the reward; ``recall`` is that of positives against ``negatives`` sampled ones, among the best
            ``top``.
        penalty: of the reward, per whole budget in excess.
        entropy: weight of the policy's entropy, falling to 0.
        warm_up: share of the steps in which actions are drawn uniformly.
        every: weight steps per step of the policy.
        samples: actions per step of the policy.
        reward_rows: rows of ``arch`` per reward.
    """

    mode: Literal["single", "multi"] = "multi"
    budget: Annotated[float, Field(gt=0, le=1)] = 0.5
    row_cuts: Cuts = (0.1, 0.3, 0.6, 0.9)
    shares_of: Literal["ids", "occurrences"] = "ids"
    column_cuts: Cuts = (0.25, 0.5, 0.75)
    quality: Literal["auc", "recall"] = "auc"
    top: Annotated[int, Field(ge=1)] = 1
    negatives: Annotated[int, Field(ge=1)] = 20
    penalty: Annotated[float, Field(ge=0)] = 0.1
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    entropy: Annotated[float, Field(ge=0)] = 0.01
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.2
    every: Annotated[int, Field(ge=1)] = 8
    samples: Annotated[int, Field(ge=2)] = 4
    reward_rows: Annotated[int, Field(ge=2)] = 4096
    epochs: Annotated[int, Field(ge=1)] = 6


class AutoEmb(Section):
    """AutoEmb (ICDM 2021): width by popularity, from a mixture of widths that learns along the stream of rows.

    Attributes:
        context: whether controllers read an id's last weights and last loss as well.
        decide_on: whether controllers learn from the incoming batch, before the weights do, or from the one before.
        every: weight steps per controller step.
        hidden: width of the controllers' layer.
        min_vocab: ids that an id space needs to take part.
    """

    candidates: Widths = (2, 16)
    context: bool = False
    decide_on: Literal["incoming", "previous"] = "incoming"
    every: Annotated[int, Field(ge=1)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    hidden: Annotated[int, Field(ge=1)] = 64
    min_vocab: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[int, Field(ge=1)] = 1


class ResEmbedding(Section):
    """Res-embedding (DLP-KDD 2019): items as a graph's shared vectors plus residuals; needs behaviour histories.

    Attributes:
        item: the field whose ids the graph joins; ``null`` = the one that sequences are ``of``.
        window: steps between two items of a history that count as near.
        neighbours: kept per item.
        fusions: one candidate each.
        penalty: weight of the residuals' squared norm.
    """

    item: str | None = None
    window: Annotated[int, Field(ge=1)] = 2
    neighbours: Annotated[int, Field(ge=1)] = 10
    fusions: Annotated[tuple[Literal["avg", "gcn", "attention"], ...], Field(min_length=1)] = (
        "avg", "gcn", "attention")
    penalty: Annotated[float, Field(ge=0)] = 1e-2


class SearchEmbedding(Section):
    """Which embedding searches run, how often, on which network, and towards which objective (``null`` = the first).

    Attributes:
        host: the network whose embedding is searched and retrained: ``autodeepfm`` (DeepFM with normalised, gated
            interactions), ``autoipnn`` (an MLP that reads them), or a plain model.
    """

    methods: Annotated[tuple[Literal[EMBEDDING_METHODS], ...],  # type: ignore[valid-type]
                       Field(min_length=1, json_schema_extra=form("Search", "Embedding searches"))]
    seeds: Annotated[int, Field(ge=1, le=20, json_schema_extra=form("Search", "Seeds per embedding search"))] = 3
    objective: str | None = None
    host: Literal[HOSTS] = "autodeepfm"  # type: ignore[valid-type]
    narrow: Narrow = Narrow()
    rare_ids: RareIds = RareIds()
    frequency_rule: FrequencyRule = FrequencyRule()
    autodim: AutoDim = AutoDim()
    pep: Pep = Pep()
    aim_eds: AimEds = AimEds()
    nis: Nis = Nis()
    autoemb: AutoEmb = AutoEmb()
    res_embedding: ResEmbedding = ResEmbedding()
