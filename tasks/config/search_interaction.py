"""What is searched for in the interactions of fields, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.hosts import BASELINES, GATED_HOSTS
from tasks.config.search_embedding import AimEds
from tasks.config.section import Section, Share, form

INTERACTION_METHODS = ("all_pairs", "no_pairs", "listed", "mutual_information", "split_gain", "autofis", "aim",
                       "autogroup", "autofeature", *BASELINES)


class Gates(Section):
    """Selection by a gate per interaction, pruned by GRDA with its final threshold at ``target_threshold``.

    Attributes:
        target_threshold: about twice ``gate_init``; more keeps less.
        gamma, mu: of GRDA.
        gate_init: where gates start.
        epochs: passes over the rows, per stage.
        gates_on: rows that gates learn from: ``batch``, the weights' own, as published; or ``arch``, against pairs of
            fields with so many ids that they fit what they are trained on (a pass more per step).
    """

    target_threshold: Annotated[float, Field(gt=0)] = 1.16
    gamma: Annotated[float, Field(gt=0)] = 1.0
    mu: Annotated[float, Field(gt=0)] = 0.8
    gate_init: Annotated[float, Field(gt=0)] = 0.6
    epochs: Annotated[int, Field(ge=1)] = 5
    gates_on: Literal["batch", "arch"] = "batch"


class MutualInformation(Section):
    """No search: the pairs whose crossed ids say most of the label beyond what their fields say alone.

    Attributes:
        shares: of all pairs, one candidate each.
        rows: read at most, drawn at random.
    """

    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.5, 0.25, 0.1)
    rows: Annotated[int, Field(ge=2)] = 1_000_000


class Listed(Section):
    """No search: interactions that you name, each as a list of two fields or more."""

    interactions: tuple[Annotated[tuple[str, ...], Field(min_length=2)], ...] = ()


class SplitGain(Section):
    """No search: the pairs whose fields boosted trees split on together, after trees of single fields.

    Attributes:
        shares: of all pairs, one candidate each.
        rows: read at most, drawn at random.
        trees: of single fields, and as many more of any.
        depth: of a tree.
    """

    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.5, 0.25, 0.1)
    rows: Annotated[int, Field(ge=2)] = 1_000_000
    trees: Annotated[int, Field(ge=1)] = 100
    depth: Annotated[int, Field(ge=2)] = 4
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.1


class AutoFis(Gates):
    """AutoFIS (KDD 2020): all pairs, and all triples if asked for, behind a gate each.

    Attributes:
        orders: of how many fields the candidates are; those of three and more have an embedding of their own.
    """

    orders: Annotated[tuple[Annotated[int, Field(ge=2, le=4)], ...], Field(min_length=1)] = (2,)


class Aim(Gates):
    """AIM (TKDE 2021): interactions grown order by order, a function for each, and their embeddings' dimensions.

    Attributes:
        functions: to choose from; each has an embedding of its own per order.
        order: fields of an interaction at most; 2 = nothing is grown.
        top: interactions per function that grow into the next order.
        share: one embedding for all functions and orders.
        dimensions: how the embeddings' dimensions are selected; ``null`` = all stay.
    """

    functions: Annotated[tuple[Literal["inner", "outer", "vector_kernel", "scalar_kernel"], ...],
                         Field(min_length=1)] = ("inner", "outer", "vector_kernel", "scalar_kernel")
    order: Annotated[int, Field(ge=2, le=4)] = 3
    top: Annotated[int, Field(ge=1)] = 24
    share: bool = False
    dimensions: AimEds | None = AimEds()


class AutoGroup(Section):
    """AutoGroup (SIGIR 2020): groups of fields, each raised to its order's power, by straight-through memberships.

    Attributes:
        groups: number of groups of every order from 1 on.
        dims: width of the embedding that each order from 2 on has of its own.
        learning_rate: of Adam on the memberships; far above 1 they flip with the sign of the last gradients.
        temperature: of their softmax; far below 1 few of them learn from a batch.
        lambda_c: how much of the fields' own powers is taken away from the power of their sum.
        compensation: of which fields: the members, as in the paper's formula; or all, as in the published code.
    """

    groups: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (4, 16, 16)
    dims: tuple[Annotated[int, Field(ge=1)], ...] = (8, 8)
    learning_rate: Annotated[float, Field(gt=0)] = 0.03
    temperature: Annotated[float, Field(gt=0)] = 1.0
    lambda_c: Annotated[float, Field(ge=0, le=1)] = 1.0
    compensation: Literal["formula", "code"] = "formula"
    epochs: Annotated[int, Field(ge=1)] = 6

    @model_validator(mode="after")
    def _orders(self) -> AutoGroup:
        if not any(self.groups) or len(self.dims) != len(self.groups) - 1:
            raise ValueError("groups needs a number above 0, and dims one width per order from 2 on")
        return self


class AutoFeatureBreeding(Section):
    """How AutoFeature's genomes come about.

    Attributes:
        initial: random genomes judged before the first tree of naive Bayes classifiers.
        rebuild: genomes between two trees.
        depth: of the tree.
        percentile: of a node's scores, in percent; what is above is good.
        reward: how much a score above the expected one adds to its region's chances, per whole AUC.
        concentration: of the regions' Chinese restaurant process; above 1 random genomes are judged now and then.
        mutation: probability that a gene changes.
        litter: children that the tree looks at for each one that is judged.
    """

    initial: Annotated[int, Field(ge=2)] = 20
    rebuild: Annotated[int, Field(ge=1)] = 20
    depth: Annotated[int, Field(ge=1, le=8)] = 3
    percentile: Annotated[float, Field(gt=0, lt=100)] = 60.0
    reward: Annotated[float, Field(gt=0)] = 50.0
    concentration: Annotated[float, Field(ge=1)] = 1.0
    mutation: Annotated[float, Field(gt=0, le=1)] = 0.2
    litter: Annotated[int, Field(ge=1)] = 128


class AutoFeature(Section):
    """AutoFeature (CIKM 2020): a micro-network per pair and, of the most telling ones, per triple of fields.

    Attributes:
        triples: number of triples that take part, those whose pairs say most of the label by themselves.
        slots: operations of a micro-network at most.
        evaluations: genomes to judge, each by a training from scratch.
        epochs: passes over the rows per evaluation, or a part of one.
        tie_break: AUC that no micro-network is worth beside an operation in every slot of all of them.
        pare: standard errors of AUC that leaving out micro-networks of the best genome may cost; ``null`` = none is.
    """

    triples: Annotated[int, Field(ge=0)] = 0
    slots: Annotated[int, Field(ge=1, le=6)] = 4
    evaluations: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[float, Field(gt=0)] = 1.0
    tie_break: Annotated[float, Field(ge=0)] = 0.002
    pare: Annotated[float, Field(ge=0)] | None = 1.0
    breeding: AutoFeatureBreeding = AutoFeatureBreeding()


class SearchInteraction(Section):
    """Which interaction searches run, how often, and towards which objective (``null`` = the first).

    Besides the control ``all_pairs``, rules of thumb (``no_pairs``, ``listed``, ``mutual_information``, ``split_gain``)
    and searches, ``methods`` takes the names of plain models (``lr``, ``fm``, ``dcnv2``, …): they are trained on the
    same embedding and stand on the leaderboard as baselines, never chosen.

    Attributes:
        host: the network with gated interactions that is searched and retrained: ``autodeepfm`` adds them to an MLP's
            logit (without ``training.hidden`` a factorisation machine), ``autoipnn`` feeds them to the MLP.
    """

    methods: Annotated[tuple[Literal[INTERACTION_METHODS], ...],  # type: ignore[valid-type]
                       Field(min_length=1, json_schema_extra=form("Search", "Interaction searches"))]
    seeds: Annotated[int, Field(ge=1, le=20, json_schema_extra=form("Search", "Seeds per interaction search"))] = 3
    objective: str | None = None
    listed: Listed = Listed()
    mutual_information: MutualInformation = MutualInformation()
    split_gain: SplitGain = SplitGain()
    host: Literal[GATED_HOSTS] = "autodeepfm"  # type: ignore[valid-type]
    autofis: AutoFis = AutoFis()
    aim: Aim = Aim()
    autogroup: AutoGroup = AutoGroup()
    autofeature: AutoFeature = AutoFeature()
