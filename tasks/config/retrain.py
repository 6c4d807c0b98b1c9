"""Which models are retrained, and their shapes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.balancers import BALANCERS, Balancers
from tasks.config.section import Name, Section, Share, form

MODELS = ("single", "shared_bottom", "omoe", "mmoe", "cgc", "ple", "esmm", "mmoe_esmm", "esm2", "dbmtl", "aitm",
          "youtube", "dupn", "deepmcp", "nmtr", "dcrnn")
ONE_SCORE = ("weighted", "bpr", "listnet", "list_mle", "lambdarank", "jrc")  # with nothing to balance
RETRAINED = f"^(({'|'.join(MODELS)})(-({'|'.join(BALANCERS)}))?|{'|'.join(ONE_SCORE)})$"
Widths = tuple[Annotated[int, Field(ge=1)], ...]


class Mmoe(Section):
    """MMoE (KDD 2018): ``experts`` MLPs mixed by one softmax gate per objective; also for omoe and mmoe_esmm."""

    experts: Annotated[int, Field(ge=1)] = 4


class Ple(Section):
    """PLE (RecSys 2020): per level ``experts`` of every objective beside ``shared_experts``, of the widths ``levels``.

    ``cgc`` is a single level, whose experts have the widths ``bottom``.
    """

    experts: Annotated[int, Field(ge=1)] = 2
    shared_experts: Annotated[int, Field(ge=1)] = 2
    levels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64, 64)


def model_and_balancer(key: str) -> tuple[str, str | None]:
    """The two parts of a key of ``retrain``: ``mmoe-pcgrad`` → (``mmoe``, ``pcgrad``), ``mmoe`` → (``mmoe``, None)."""
    model, _, balancer = key.partition("-")
    return model, balancer or None


class Esm2(Section):
    """ESM² (SIGIR 2020): purchases after a click, with a deterministic action between them or without it.

    ``action`` names the binary objective that is this action, such as the cart; the purchase is ``after:`` the same
    objective as the action.
    """

    action: str | None = None


class Dbmtl(Section):
    """DBMTL (2019): objectives as a graph whose links are layers between the towers.

    Attributes:
        parents: objective → those it depends on; ``null`` = what ``after:`` says.
        experts: of a mixture below the towers; 1 = a shared bottom.
        detach_parents: whether a child's loss stops at its parents' states.
    """

    parents: dict[str, tuple[str, ...]] | None = None
    experts: Annotated[int, Field(ge=1)] = 1
    detach_parents: bool = False


class Aitm(Section):
    """AITM (KDD 2021): attention along ``after:``; ``penalty`` weighs scores of a later step above an earlier one."""

    penalty: Annotated[float, Field(ge=0)] = 0.6


class Youtube(Section):
    """The YouTube ranking model (RecSys 2019): ``experts`` above ``shared`` layers, and a position tower in training.

    Attributes:
        biased: objectives that the position acts on; ``null`` = the binary ones on all rows.
        positions: number of positions told apart; the last one stands for all behind it too.
        device: a categorical field whose every value has position effects of its own.
        position_dropout: share of the training rows whose position is hidden.
    """

    shared: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64,)
    experts: Annotated[int, Field(ge=1)] = 4
    biased: tuple[str, ...] | None = None
    positions: Annotated[int, Field(ge=1)] = 50
    device: str | None = None
    position_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Dupn(Section):
    """DUPN (KDD 2018): a representation of the user, read from the history, that all objectives share.

    Attributes:
        histories: sequences ``of`` fields of the item that together say which item each step was; empty = the first.
        properties: sequences that say how each of these steps was met, such as the action or the time since. Give
            all of them the same ``build:`` and ``max_length:``.
        units: width of a state of the LSTM.
        profile: width of what the user's and the request's other fields become.
        attention: widths of the MLP that weighs the states.
    """

    histories: tuple[Name, ...] = ()
    properties: tuple[Name, ...] = ()
    units: Annotated[int, Field(ge=1)] = 64
    profile: Annotated[int, Field(ge=1)] = 64
    attention: tuple[Annotated[int, Field(ge=1)], ...] = (32,)


class DeepMcp(Section):
    """DeepMCP (IJCAI 2019): a shared bottom; two subnets train its embeddings with it and do not serve.

    Attributes:
        alpha: weight of matching users and items; 0 = without.
        beta: weight of the correlation of items in a history; 0 = without, and then no history is needed.
        layers: widths of both subnets.
        objective: the binary objective that matching predicts; ``null`` = the first.
        user: fields that matching knows of the user and the query; empty = all with ``side: user``.
        histories: sequences whose steps are the items; empty = the first ``of`` a field of the item.
        window: steps between two items of a pair, at most.
        negatives: per pair.
        power: of the frequency by which negatives are drawn.
    """

    alpha: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 0.1
    layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (64, 32)
    objective: Name | None = None
    user: tuple[Name, ...] = ()
    histories: tuple[Name, ...] = ()
    window: Annotated[int, Field(ge=1)] = 3
    negatives: Annotated[int, Field(ge=1)] = 4
    power: Annotated[float, Field(ge=0, le=1)] = 0.75


class Nmtr(Section):
    """NMTR (ICDE 2019): each behaviour is predicted on top of the one before it.

    Attributes:
        behaviours: binary objectives from the first to the last; empty = all, in the order of data.objectives.
        carry: what is handed on: the ``logit``, or the ``probability``, which moves the next logit little.
        interaction: of user and item: ``gmf`` (product), ``mlp``, or ``neumf`` (both).
        width: of the user's and of the item's vector.
    """

    behaviours: tuple[Name, ...] = ()
    carry: Literal["logit", "probability"] = "logit"
    interaction: Literal["gmf", "mlp", "neumf"] = "neumf"
    width: Annotated[int, Field(ge=1)] = 32


class Dcrnn(Section):
    """DCRNN, reconstructed from an abstract: recurrent feature crosses, a small private state per objective.

    Attributes:
        units: width of what a tower reads: shared and private state.
        share: of ``units`` that is shared.
        steps: crosses along ``depth``.
        cell: of the states.
        axis: ``depth``, every step crossing all features, or ``fields``, one field per step in their order.
        link: whether an objective's state reads the one before it, in the order of data.objectives.
        chain: ``independent``, or ``esmm``, which needs an objective with ``after:``.
    """

    units: Annotated[int, Field(ge=2)] = 64
    share: Share = 0.75
    steps: Annotated[int, Field(ge=1, le=4)] = 3
    cell: Literal["gru", "lstm", "rnn"] = "gru"
    axis: Literal["depth", "fields"] = "depth"
    link: bool = True
    chain: Literal["independent", "esmm"] = "independent"


class Weighted(Section):
    """One network of the first binary objective, whose positives weigh more for what followed.

    Attributes:
        actions: objective → weight that it adds per action, or per ``log(1 + value)`` of an amount.
        negative: weight of rows without the first event.
        cap: largest weight of a row.
    """

    actions: dict[str, Annotated[float, Field(ge=0, le=1000)]] = {}
    negative: Annotated[float, Field(gt=0, le=100)] = 1.0
    cap: Annotated[float, Field(ge=1, le=1000)] = 50.0


class Ranking(Section):
    """One network that orders lists: ``bpr``, ``listnet``, ``list_mle``, ``lambdarank`` and ``jrc``; needs data.group.

    Attributes:
        grades: objective → what it adds to a row's grade; 1 where absent. ``jrc`` knows the first binary one alone.
        pair_weight: of bpr: ``one``, or ``gain``, the difference of ``2^grade``.
        per_list: of bpr: lists count alike, however many pairs they have.
        temperature: of listnet's targets, ``null`` = shares of the grades.
        alpha: of jrc: share of the cross-entropy.
    """

    grades: dict[str, Annotated[float, Field(ge=0, le=20)]] = {}
    pair_weight: Literal["one", "gain"] = "one"
    per_list: bool = True
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5


class Retrain(Section):
    """The multi-objective models trained on the chosen architecture.

    ``bottom`` are the widths of the shared bottom or of each expert, ``tower`` those of each tower.

    Attributes:
        models: ``MODEL``, whose losses are added up, or ``MODEL-BALANCER``, such as ``mmoe-uncertainty``: the same
            model with its losses balanced. docs/models.md has the names of both, and of the models of one score.
        history: what a sequence ``of`` a field gives every model: the ``mean`` of its steps; or with ``din``, beside
            it, the sum of its steps weighted by what each says of the row's own item (target attention, KDD 2018);
            ``din_softmax`` is that with weights whose sum is 1, for histories that grow between training and serving.
        loss_weights: objective → weight of its loss, 1 where absent; read by ``MODEL-fixed`` and ``MODEL-decay``.
        regression: regression objective → how it is learned: ``log``, the squared error of its logarithm;
            ``logistic``, weighted logistic regression; ``ziln``, a zero-inflated log-normal distribution;
            ``per_duration``, its ratio to the mean of rows of like ``duration``. ``log`` where absent.
        duration: the field whose ids or buckets tell the duration.
    """

    models: Annotated[tuple[Annotated[str, Field(pattern=RETRAINED,
                                                 json_schema_extra={"examples": [*MODELS, *ONE_SCORE]})], ...],
                      Field(min_length=1, json_schema_extra=form("Models", "Multi-objective models"))]
    seeds: Annotated[int, Field(ge=1, le=20, json_schema_extra=form("Models", "Seeds per model"))] = 3
    bottom: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (32,)
    history: Literal["mean", "din", "din_softmax"] = "mean"
    loss_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    regression: dict[str, Literal["log", "logistic", "ziln", "per_duration"]] = {}
    duration: str | None = None
    balancers: Balancers = Balancers()
    mmoe: Mmoe = Mmoe()
    ple: Ple = Ple()
    esm2: Esm2 = Esm2()
    dbmtl: Dbmtl = Dbmtl()
    aitm: Aitm = Aitm()
    youtube: Youtube = Youtube()
    dupn: Dupn = Dupn()
    deepmcp: DeepMcp = DeepMcp()
    nmtr: Nmtr = Nmtr()
    dcrnn: Dcrnn = Dcrnn()
    weighted: Weighted = Weighted()
    ranking: Ranking = Ranking()

    @model_validator(mode="after")
    def _weights_have_readers(self) -> Retrain:
        named = {balancer for _, balancer in map(model_and_balancer, self.models)}
        if self.loss_weights and not named & {"fixed", "decay"}:
            raise ValueError("loss_weights: only MODEL-fixed and MODEL-decay read them; add one to models, "
                             "such as mmoe-fixed")
        if "fixed" in named and not self.loss_weights:
            raise ValueError("models: MODEL-fixed needs loss_weights")
        if "decay" in named and not self.balancers.decay.factors:
            raise ValueError("models: MODEL-decay needs balancers.decay.factors")
        return self
