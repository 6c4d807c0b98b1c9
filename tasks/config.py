"""params.yaml as typed, closed models: an unknown key or a value out of range is refused in one line.

Fields marked with :func:`form` also appear on Airflow's trigger form; ``python -m tasks.config`` writes the
form's JSON schema to ``dags/form.json``, which the DAG reads (it may not import pydantic models at parse time).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ctrmodels.errors import InputError

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]

SOURCES = ("movielens-100k", "files", "simulated")
EMBEDDING_METHODS = ("uniform", "narrow", "rare_ids", "frequency_rule", "autodim", "pep", "aim_eds", "nis",
                     "autoemb", "res_embedding")
BASELINES = ("lr", "fm", "fwfm", "dnn", "deepfm", "ipnn", "dcnv2", "xdeepfm", "autoint", "fibinet", "din")
INTERACTION_METHODS = ("all_pairs", "no_pairs", "listed", "mutual_information", "split_gain", "autofis", "aim",
                       "autogroup", "autofeature", *BASELINES)
GATED_HOSTS = ("autodeepfm", "autoipnn")
HOSTS = (*GATED_HOSTS, *(name for name in BASELINES if name not in ("lr", "din")))
MODELS = ("single", "shared_bottom", "omoe", "mmoe", "cgc", "ple", "esmm", "mmoe_esmm", "esm2", "dbmtl", "aitm",
          "youtube", "dupn", "deepmcp", "nmtr", "dcrnn")
ONE_SCORE = ("weighted", "bpr", "listnet", "list_mle", "lambdarank", "jrc")  # with nothing to balance
BALANCERS = ("fixed", "decay", "uncertainty", "dwa", "gradnorm", "pcgrad", "mgda", "pareto", "random")
RETRAINED = f"^(({'|'.join(MODELS)})(-({'|'.join(BALANCERS)}))?|{'|'.join(ONE_SCORE)})$"


def form(section: str, title: str) -> dict[str, Any]:
    """Mark a field as one that the trigger form offers."""
    return {"form": {"section": section, "title": title}}


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values cannot be changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


# --- data ---------------------------------------------------------------------------------------------


def _columns_are_named(files: Any) -> Any:
    if files.format == "csv" and files.header is not True and not files.columns:
        raise ValueError(f"header: {files.header} needs columns, the names of the columns")
    return files


class Join(Section):
    """A side table joined to the log: user or item attributes. Rows of the log without a match get nulls.

    Attributes:
        path: a file, folder or glob.
        key: the column that the log and the side table share; at most one row of the table per value.
        format: ``parquet`` or ``csv``, and the keys after it, as for the log.
    """

    path: str
    key: str
    format: Literal["parquet", "csv"] = "csv"
    delimiter: str = ","
    quote: str = '"'
    header: bool | Literal["auto"] = True
    columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"

    @model_validator(mode="after")
    def _named(self) -> Join:
        return _columns_are_named(self)


class Files(Section):
    """Where a log's files lie and how they are written.

    Attributes:
        path: a file, folder, glob, or folder of ``day=YYYY-MM-DD`` partitions; or a mapping of role
            (``train``, ``valid``, ``test``, ``arch``) to such paths when the files say which row plays
            which role (``split: {by: file}``). A relative path starts at the folder that the environment
            variable CTRMODELS_DATA names.
        format: ``parquet`` or ``csv`` (TSV is ``csv`` with ``delimiter: "\\t"``); ``.gz`` and ``.xz`` are read.
        delimiter: what separates the values of a CSV line; several characters are allowed.
        quote: what encloses a CSV value that holds the delimiter; ``""`` = nothing does.
        header: whether the first line names the columns; ``auto`` = a first line equal to ``columns``.
        columns: names of the columns where no header gives them.
        encoding: of CSV files: utf-8, latin-1, ascii, utf-16.
        null_value: text that stands for a missing value, beside the empty one (CSV).
        join: side tables, such as users and items.
        digest: sha256 of the listing of the files, filled in when a run is planned; a log that changed
            since is refused.
    """

    path: str | dict[Literal["train", "valid", "test", "arch"], str | tuple[str, ...]]
    format: Literal["parquet", "csv"] = "parquet"
    delimiter: str = ","
    quote: str = '"'
    header: bool | Literal["auto"] = True
    columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"
    null_value: str | None = None
    join: tuple[Join, ...] = ()
    digest: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Files:
        return _columns_are_named(self)


class Simulated(Section):
    """The simulated log's size and shape; docs/simulator.md describes it and its planted truth.

    Attributes:
        rows: impressions, exactly.
        seed: of every draw.
        days: days the log covers.
        items: catalogue on the first day; later days add new ids.
        list_size: items shown per request.
        position_bias: exponent e of the examination curve ``position ** -e``; 0 = every position is looked at.
    """

    rows: Annotated[int, Field(ge=1000)] = 100_000
    seed: Annotated[int, Field(ge=0)] = 0
    days: Annotated[int, Field(ge=1)] = 5
    items: Annotated[int, Field(ge=96)] = 5_000
    list_size: Annotated[int, Field(ge=1, le=24)] = 10
    position_bias: Annotated[float, Field(ge=0)] = 0.7


class Build(Section):
    """How ingest builds a history: earlier rows of the same ``by``, in ``order``, for which ``where`` holds.

    All three are columns or Spark SQL expressions.

    Attributes:
        by: whose history.
        order: a time or a number that grows with time; rows of the same moment are not in a row's history.
        where: the rows that are collected; ``null`` = all.
    """

    by: str
    order: str
    where: str | None = None


class FieldSpec(Section):
    """One input column; ``of``, ``delimiter``, ``max_length`` and ``build`` belong to sequences.

    Attributes:
        name: of the field from here on: letters, digits and underscores.
        kind: ``categorical`` (any single value), ``numeric``, or ``sequence`` (a list of values).
        side: whom the field describes; item fields are what a ranking compares.
        value: Spark SQL expression over the log's columns; ``null`` = the column called ``name``.
        of: the categorical field whose ids the sequence's steps are; ``null`` = an id space of their own.
        delimiter: what separates the steps of a sequence that is stored as text.
        max_length: steps kept: the most recent of a built history, the first of a stored list.
        build: collect the sequence from earlier rows of the log.
    """

    name: Name
    kind: Literal["categorical", "numeric", "sequence"]
    side: Literal["user", "item", "context"] = "context"
    value: str | None = None
    of: str | None = None
    delimiter: str | None = None
    max_length: Annotated[int, Field(ge=0, le=1000)] = 0
    build: Build | None = None

    @property
    def reads(self) -> str | None:
        """What it takes of a row: a column or an expression; ``None`` if it is built of earlier rows."""
        return None if self.build is not None else self.value or self.name

    @model_validator(mode="after")
    def _sequence_options(self) -> FieldSpec:
        if self.kind == "sequence":
            if self.max_length < 1:
                raise ValueError(f"sequence field {self.name!r} needs max_length >= 1")
            if self.build is not None and self.of is None:
                raise ValueError(f"sequence field {self.name!r}: build needs of, the field it collects")
            if self.build is not None and (self.value is not None or self.delimiter is not None):
                raise ValueError(f"sequence field {self.name!r}: build goes without value and delimiter")
        elif self.of or self.delimiter or self.build or self.max_length:
            raise ValueError(f"field {self.name!r}: of, delimiter, max_length and build belong to sequences")
        return self


class ObjectiveSpec(Section):
    """One label to predict.

    Attributes:
        name: of the objective from here on.
        kind: ``binary`` (0, 1, true, false) or ``regression``.
        label: a column or a Spark SQL expression; null = unknown.
        after: the parent objective, listed before: this one can only happen where the parent did, as a
            purchase after a click. Its label is that of the joint event, on all rows.
    """

    name: Name
    kind: Literal["binary", "regression"] = "binary"
    label: str
    after: str | None = None


class Split(Section):
    """Which row plays which role.

    ``time``: by global time, latest rows to ``test``. ``group_time``: the same inside every group.
    ``random``: by a hash of the row. ``column``: the values of ``column`` are the roles' names.
    ``file``: by the role that ``data.files.path`` gives each file.

    Attributes:
        by: how.
        column: a column or Spark SQL expression that is ``train``, ``valid``, ``test`` or ``arch``.
        arch: share of ``train`` on which architectures are searched: its latest part, or a hash share where
            there are no times or rows are split at random. A column or files that give ``arch`` themselves
            are left alone.
        valid: share of all rows on which choices are made.
        test: share of all rows that is read once, at the end.
    """

    by: Literal["time", "group_time", "random", "column", "file"] = "time"
    column: str | None = None
    arch: Share = 0.1
    valid: Share = 0.1
    test: Share = 0.1

    @model_validator(mode="after")
    def _shares(self) -> Split:
        if self.by in ("time", "group_time", "random") and self.valid + self.test >= 1:
            raise ValueError("split.valid + split.test must leave rows for train")
        if (self.by == "column") != (self.column is not None):
            raise ValueError("split.column belongs to split.by: column, and is needed there")
        return self


class Data(Section):
    """The log: where it is, its fields, its objectives, and its split into roles.

    Attributes:
        source: ``files`` for a log of your own; ``movielens-100k`` is downloaded, ``simulated`` generated.
        files: where the log of ``source: files`` lies.
        simulated: what ``source: simulated`` generates.
        fields: the input columns, one entry each.
        objectives: the labels, parents before children.
        timestamp: Unix seconds, a date or a time: a column or a Spark SQL expression.
        group: the list that a row competes in, for GAUC and NDCG: a request id or else the user; a column
            or a Spark SQL expression.
        position: the row's place in the list it was shown in, from 1; a column or a Spark SQL expression.
        propensity: the chance with which the logging policy put this row of the list at its position, above 0 and
            at most 1; null = unknown. A column or a Spark SQL expression. No model sees it; off-policy estimates do.
        split: which row is trained on, searched on, chosen on, tested on.
    """

    source: Annotated[Literal[SOURCES], Field(json_schema_extra=form("Data", "Data source"))]  # type: ignore[valid-type]
    files: Files | None = None
    simulated: Simulated = Simulated()
    fields: Annotated[tuple[FieldSpec, ...], Field(min_length=1)]
    objectives: Annotated[tuple[ObjectiveSpec, ...], Field(min_length=1)]
    timestamp: str | None = None
    group: str | None = None
    position: str | None = None
    propensity: str | None = None
    split: Split = Split()

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        names = [f.name for f in self.fields] + [o.name for o in self.objectives]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]!r} is used twice among fields and objectives")
        kinds = {f.name: f.kind for f in self.fields}
        for f in self.fields:
            if f.of is not None and kinds.get(f.of) != "categorical":
                raise ValueError(f"sequence field {f.name!r}: of = {f.of!r} is not a categorical field")
        if all(k == "sequence" for k in kinds.values()):
            raise ValueError("fields: at least one categorical or numeric field is needed")
        seen: dict[str, ObjectiveSpec] = {}
        for o in self.objectives:
            if o.after is not None:
                parent = seen.get(o.after)
                if parent is None:
                    raise ValueError(f"objective {o.name!r}: after = {o.after!r} is no earlier objective; "
                                     "list the parent first")
                if parent.kind != "binary":
                    raise ValueError(f"objective {o.name!r}: after = {o.after!r} is not binary")
            for f in self.fields:
                if f.reads == o.label:
                    raise ValueError(f"field {f.name!r} reads {o.label!r}, the label of objective {o.name!r}: a model "
                                     "would read the answer there; take the field out")
            seen[o.name] = o
        if self.source == "files" and self.files is None:
            raise ValueError("source: files needs the key data.files")
        if self.split.by in ("time", "group_time") and self.timestamp is None:
            raise ValueError(f"split.by: {self.split.by} needs data.timestamp")
        if self.split.by == "group_time" and self.group is None:
            raise ValueError("split.by: group_time needs data.group")
        by_role = self.files is not None and isinstance(self.files.path, dict)
        if self.source == "files" and (self.split.by == "file") != by_role:
            raise ValueError("split.by: file goes with a data.files.path that maps roles to files")
        if self.propensity is not None and (self.position is None or self.group is None):
            raise ValueError("data.propensity is the chance of a position in a list: it needs "
                             "data.position and data.group")
        if any(f.build for f in self.fields) and self.timestamp is None:
            raise ValueError("a field with build: needs data.timestamp")
        return self


# --- stages -------------------------------------------------------------------------------------------


class Training(Section):
    """One loop for search, retraining and controls. Fractions of steps, never absolute counts.

    Attributes:
        embedding_dim: width D of every field's embedding before any search.
        hidden: widths of the MLP.
        epochs: at most this many passes; early stopping on ``valid`` usually ends it before.
        patience: epochs without a better ``valid`` metric before it stops.
        learning_rate: of Adam on the layers.
        table_optimiser: of the embedding tables: ``lazy_adam`` and ``rowwise_adagrad`` update the rows that a batch
            touches, ``adam`` moves whole tables (slow on large ones; the reference).
        table_learning_rate: of the tables; ``null`` = ``learning_rate``. ``rowwise_adagrad`` wants ten times more.
        weight_decay: decoupled, on the layers; ``l2`` is what tables have.
        clip_norm: largest norm of a step's gradient; ``null`` = no limit.
        schedule: of the learning rates after the warm-up: ``constant``, or ``cosine`` down to zero at ``epochs``.
        warm_up: share of the planned steps in which the learning rates rise linearly.
        precision: of matrix products: ``fp32``, ``bf16``, or ``auto`` = ``bf16`` where the processor computes with it.
        compile: whether MLPs are compiled; takes a minute first, so for long trainings only.
        buffer_mb: MiB of rows held in memory; a larger log is streamed from disk in shuffled blocks.
        checkpoint_steps: optimiser steps between two checkpoints of a search or training, which resumes from them.
        l2: weight of the squared norm of the embedding rows that a batch touches, per row of the batch.
        gate_init: where the gates of normalised pairs start; small, so that many pairs do not drown the rest.
        device: ``auto`` takes a GPU where there is one.
    """

    embedding_dim: Annotated[int, Field(ge=1, le=512)] = 16
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64, 32)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    epochs: Annotated[int, Field(ge=1, le=1000, json_schema_extra=form("Training", "Epochs at most"))] = 15
    patience: Annotated[int, Field(ge=1)] = 2
    batch_size: Annotated[int, Field(ge=2)] = 1024
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    table_optimiser: Literal["lazy_adam", "rowwise_adagrad", "adam"] = "lazy_adam"
    table_learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    compile: bool = False
    buffer_mb: Annotated[int, Field(ge=1)] = 2048
    checkpoint_steps: Annotated[int, Field(ge=1)] = 1000
    l2: Annotated[float, Field(ge=0)] = 0.0
    gate_init: Annotated[float, Field(gt=0)] = 0.02
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Ingest(Section):
    """Reading the log.

    Attributes:
        partitions: files that the ingested log is written to, and partitions of every shuffle. Fixed, so
            that results never depend on the number of cores; take about one per million rows.
    """

    partitions: Annotated[int, Field(ge=1)] = 4


class Frequency(Section):
    """Counting. Numeric quantiles are exact up to ``quantile_rows`` rows; a larger log is sampled down to as many."""

    quantile_rows: Annotated[int, Field(ge=0)] = 2_000_000


class Validate(Section):
    """Limits of the data contract.

    Attributes:
        keys: columns that together identify a row; empty = no duplicate check.
        max_null_rate: critical above it, per categorical and numeric field.
        null_rates: the same for the fields named here; of a sequence it limits the share of empty ones.
        positive_rate: critical outside ``[low, high]``, per binary objective in its sample space.
        max_unseen_rate: warning above it: share of a role's values that ``train`` does not have.
        psi: ``[warning, critical]`` limits of the population stability index against the reference day;
            ``null`` as the second = drift never stops a run, right for a log that is described for the first time.
        reference_day: day to compare with; ``null`` = the first day of 1000 rows or more.
    """

    keys: tuple[str, ...] = ()
    max_null_rate: Annotated[float, Field(ge=0, le=1)] = 0.9
    null_rates: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    positive_rate: tuple[float, float] = (0.0001, 0.99)
    max_unseen_rate: Annotated[float, Field(ge=0, le=1)] = 0.5
    psi: tuple[float, float | None] = (0.25, None)
    reference_day: str | None = None


class Encode(Section):
    """Ids and numbers. Values seen fewer than ``min_count`` times on ``train`` share the out-of-vocabulary id."""

    min_count: Annotated[int, Field(ge=1)] = 2
    buckets: Annotated[int, Field(ge=2, le=1024)] = 32


Widths = tuple[Annotated[int, Field(ge=1)], ...]


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


class Select(Section):
    """One rule: best ``valid`` metric within the budget; ties inside the seeds' spread go to the cheaper.

    ``budget`` is the largest share of the dense control's parameters that a candidate may have.
    """

    metric: Annotated[Literal["auc", "logloss"],
                      Field(json_schema_extra=form("Choice", "Metric that searches are judged by"))] = "auc"
    budget: Annotated[float, Field(gt=0, le=1,
                                   json_schema_extra=form("Choice", "Largest share of the dense parameters"))] = 1.0


class Gates(Section):
    """Selection by a gate per interaction, pruned by GRDA with its final threshold at ``target_threshold``.

    Attributes:
        target_threshold: about twice ``gate_init``; more keeps less.
        gamma, mu: of GRDA.
        gate_init: where gates start.
        epochs: passes over the rows, per stage.
    """

    target_threshold: Annotated[float, Field(gt=0)] = 1.16
    gamma: Annotated[float, Field(gt=0)] = 1.0
    mu: Annotated[float, Field(gt=0)] = 0.8
    gate_init: Annotated[float, Field(gt=0)] = 0.6
    epochs: Annotated[int, Field(ge=1)] = 5


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


class SelectModel(Section):
    """Which model is chosen: the best ``primary`` on ``valid`` that keeps the floors; ties go to the cheaper.

    Attributes:
        primary: the binary objective whose ``metric`` decides; ``null`` = the mean over all of them.
        floors: binary objective → by how much its ``metric`` may be worse than the best model's, such as 0.002 of AUC.
    """

    metric: Annotated[Literal["auc", "gauc", "logloss"],
                      Field(json_schema_extra=form("Choice", "Metric that models are judged by"))] = "auc"
    primary: str | None = None
    floors: dict[str, Annotated[float, Field(ge=0)]] = {}


class FusionGuardrails(Section):
    """What the fused order must not harm beside the incumbent's, on the report window; a broken limit withholds it.

    Attributes:
        item: the field that says what a row shows, for coverage and Gini; ``null`` = the first categorical field of
            ``side: item``.
        segments: fields whose values are looked at one by one; all rows of a list have the same value.
        calibration: bounds of predicted over observed positives.
        coverage: least number of items shown, as a share of the incumbent's.
        gini: largest rise of the Gini coefficient of the items' exposures.
        segment: least relative change of the primary metric in a segment; -0.02 = a loss of 2 %.
        lists: segments of fewer lists are not judged.
        rank_correlation: least mean correlation with the incumbent's ranks inside a list.
    """

    item: str | None = None
    segments: tuple[str, ...] = ()
    calibration: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(ge=1)]] = (0.9, 1.1)
    coverage: Annotated[float, Field(ge=0)] = 0.9
    gini: Annotated[float, Field(ge=0)] = 0.05
    segment: Annotated[float, Field(ge=-1, le=0)] = -0.02
    lists: Annotated[int, Field(ge=1)] = 100
    rank_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.7


class FusionOffPolicy(Section):
    """What the order would bring if it were shown, estimated where ``data.propensity`` and positions are known.

    Attributes:
        user: the field whose values are independent of each other; ``null`` = lists are.
        floor: least effective sample size of an estimate.
        clip: largest ratio of the chances to show a row, 10 to 100; ``null`` = no bound.
    """

    user: str | None = None
    floor: Annotated[float, Field(ge=1)] = 1000.0
    clip: Annotated[float, Field(ge=1)] | None = None


class FusionLength(Section):
    """The length term of ``product_with_length``.

    Attributes:
        length: the numeric field that tells how long an item is, such as a video's seconds; above 0.
        form: ``sigmoid`` = bounded, x / (1 + x); ``log`` = log(1 + x); x is the length over a searched midpoint.
    """

    length: str | None = None
    form: Literal["sigmoid", "log"] = "sigmoid"


class FusionValue(Section):
    """What ``expected_value`` adds up: each event's probability times what it is worth.

    Attributes:
        values: binary objective → what one such event is worth, in any unit; those not named are worth nothing.
        price: the numeric field whose value an event's worth is multiplied by, 0 or more; ``null`` = none.
        priced: the objectives that the price multiplies; ``null`` = all of ``values``.
    """

    values: dict[str, Annotated[float, Field(ge=0)]] = {}
    price: str | None = None
    priced: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FusionValue:
        if self.values and not any(self.values.values()):
            raise ValueError("values: at least one event must be worth more than 0")
        if self.priced is not None and self.price is None:
            raise ValueError("priced: there is no price; name the field in price, or take priced out")
        for name in self.priced or ():
            if not self.values.get(name):
                raise ValueError(f"priced: {name!r} is worth nothing by values; give it a value there, or take it out")
        return self


class TuneFusion(Section):
    """Weights of the fused score: tuned on the first ``window`` of valid's groups, reported on the rest.

    Attributes:
        scorers: the model of ``retrain.models`` that scores an objective; those not named are scored by the one that
            ``select_model`` chose.
        incumbent: the fusion.json in service, that the new order is held against; ``null`` = equal weights.
        segments: a field whose values get weights of their own, shrunk to the common ones; ``null`` = none.
        functions: which are tuned, each for ``trials``; the best is taken. ``product_with_length`` and
            ``expected_value`` need their sections.
        tuner: how weights are searched: ``tpe``; ``gp``, where floors are tight; ``cma``, blind to floors; ``nsga2``,
            for the front; ``random`` and ``grid``, to compare with.
        metric: of an order: ``ndcg`` of the first ``k``, ``gauc``, ``mrr``, or ``value`` per exposure.
        primary: the objective whose metric is maximised; ``null`` = the first.
        floor: the others must reach this share of the best that ordering by one score alone reaches.
        calibration: how probabilities are calibrated before they are fused.
        trials: weights tried per function.
        lists: trials are judged on at most so many lists, the best of them again on the whole window.
    """

    functions: Annotated[tuple[Literal["weighted_sum", "weighted_product", "product_with_length", "shifted_power",
                                       "exponential_sum", "exponential_boost", "expected_value", "reciprocal_rank",
                                       "constrained"], ...], Field(min_length=1)] = (
        "weighted_sum", "weighted_product")
    product_with_length: FusionLength = FusionLength()
    expected_value: FusionValue = FusionValue()
    tuner: Literal["tpe", "gp", "cma", "nsga2", "random", "grid"] = "tpe"
    metric: Literal["ndcg", "gauc", "mrr", "value"] = "ndcg"
    k: Annotated[int, Field(ge=1)] = 10
    trials: Annotated[int, Field(ge=1, le=100_000, json_schema_extra=form("Fusion", "Fusion trials"))] = 60
    window: Share = 0.5
    primary: str | None = None
    floor: Annotated[float, Field(ge=0, le=1)] = 0.98
    calibration: Literal["platt", "isotonic"] = "platt"
    lists: Annotated[int, Field(ge=100)] = 100_000
    seed: Annotated[int, Field(ge=0)] = 0
    scorers: dict[str, str] = {}
    incumbent: str | None = None
    segments: str | None = None
    guardrails: FusionGuardrails = FusionGuardrails()
    off_policy: FusionOffPolicy = FusionOffPolicy()

    @model_validator(mode="after")
    def _segments_have_weights(self) -> TuneFusion:
        others = sorted(set(self.functions) - {"weighted_sum", "weighted_product", "exponential_boost"})
        if self.segments is not None and others:
            raise ValueError(f"segments: only weights differ by segment, and {others[0]} has constants beside them")
        return self

    @model_validator(mode="after")
    def _functions_have_what_they_need(self) -> TuneFusion:
        if "product_with_length" in self.functions and self.product_with_length.length is None:
            raise ValueError("functions: product_with_length needs product_with_length.length, the numeric field of "
                             "the items' length")
        if "expected_value" in self.functions and not self.expected_value.values:
            raise ValueError("functions: expected_value needs expected_value.values, what an event of each objective "
                             "is worth")
        return self

    @property
    def columns(self) -> dict[Literal["length", "price"], str]:
        """The numeric fields that the functions have beside the scores, by what they are to them."""
        found: dict[Literal["length", "price"], str] = {}
        if "product_with_length" in self.functions and self.product_with_length.length is not None:
            found["length"] = self.product_with_length.length
        if "expected_value" in self.functions and self.expected_value.price is not None:
            found["price"] = self.expected_value.price
        return found

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The fields that are named, by key."""
        named = {"segments": self.segments, "guardrails.item": self.guardrails.item,
                 "off_policy.user": self.off_policy.user}
        return {key: (name,) for key, name in named.items() if name is not None} | {
            "guardrails.segments": self.guardrails.segments}


class Report(Section):
    """The report's heading."""

    title: str = "ctrmodels"


class Params(Section):
    """All of params.yaml."""

    data: Data
    training: Training = Training()
    ingest: Ingest = Ingest()
    frequency: Frequency = Frequency()
    validate_: Validate = Field(default=Validate(), alias="validate")
    encode: Encode = Encode()
    search_embedding: SearchEmbedding
    select_embedding: Select = Select()
    search_interaction: SearchInteraction
    select_interaction: Select = Select()
    retrain: Retrain
    select_model: SelectModel = SelectModel()
    tune_fusion: TuneFusion = TuneFusion()
    report: Report = Report()

    @model_validator(mode="after")
    def _cross_checks(self) -> Params:
        names = [o.name for o in self.data.objectives if o.kind == "binary"]
        for section in ("search_embedding", "search_interaction"):
            chosen = getattr(self, section).objective
            if chosen is not None and chosen not in names:
                raise ValueError(f"{section}.objective = {chosen!r} is not a binary objective of data.objectives")
        for key, chosen in (("primary", self.select_model.primary), *(("floors", name)
                                                                      for name in self.select_model.floors)):
            if chosen is not None and chosen not in names:
                raise ValueError(f"select_model.{key} = {chosen!r} is not a binary objective of data.objectives")
        if self.select_model.primary in self.select_model.floors:
            raise ValueError(f"select_model.floors has {self.select_model.primary!r}, the primary, which is maximised "
                             "and needs no floor")
        if self.tune_fusion.primary not in (None, *(o.name for o in self.data.objectives)):
            raise ValueError(f"tune_fusion.primary = {self.tune_fusion.primary!r} is no objective of data.objectives")
        self._check_fusion()
        if not names:
            raise ValueError("data.objectives: at least one binary objective is needed")
        for key, chosen_names in (("search_embedding.methods", self.search_embedding.methods),
                                  ("search_interaction.methods", self.search_interaction.methods),
                                  ("retrain.models", self.retrain.models)):
            for name in chosen_names:
                if chosen_names.count(name) > 1:
                    raise ValueError(f"{key} names {name!r} twice: remove one")
        models = {model for model, _ in map(model_and_balancer, self.retrain.models)}
        if "youtube" in models and self.data.position is None:
            raise ValueError("retrain.models names 'youtube', whose tower learns what the position does: set "
                             "data.position, or take youtube out")
        if "youtube" in models and self.data.position in [f.reads for f in self.data.fields]:
            raise ValueError(f"retrain.models names 'youtube', and data.fields names the position, "
                             f"{self.data.position!r}: as a field it is served, and the tower has nothing to explain; "
                             "take the field out")
        if "esm2" in models and self.retrain.esm2.action not in names:
            raise ValueError(f"retrain.models names 'esm2', and retrain.esm2.action = {self.retrain.esm2.action!r} is "
                             f"not the binary objective between click and purchase: use one of {', '.join(names)}")
        if "uniform" not in self.search_embedding.methods:
            raise ValueError("search_embedding.methods must contain 'uniform', the control of every search")
        if "all_pairs" not in self.search_interaction.methods:
            raise ValueError("search_interaction.methods must contain 'all_pairs', the control of every search")
        searches = self.search_embedding
        widths = {"autodim.candidates": searches.autodim.candidates, "narrow.widths": searches.narrow.widths,
                  "frequency_rule.candidates": searches.frequency_rule.candidates,
                  "autoemb.candidates": searches.autoemb.candidates}
        for key, values in widths.items():
            if key.split(".")[0] in searches.methods and max(values) > self.training.embedding_dim:
                raise ValueError(f"search_embedding.{key} must not exceed training.embedding_dim")
        return self

    def _check_fusion(self) -> None:
        fusion = self.tune_fusion
        single = [f.name for f in self.data.fields if f.kind != "sequence"]
        for key, fields in fusion.fields.items():
            for name in fields:
                if name not in single:
                    raise ValueError(f"tune_fusion.{key} = {name!r} is no categorical or numeric field of data.fields")
        numeric = [f.name for f in self.data.fields if f.kind == "numeric"]
        for key, column in (("product_with_length.length", fusion.product_with_length.length),
                            ("expected_value.price", fusion.expected_value.price)):
            if column in [o.name for o in self.data.objectives]:
                raise ValueError(f"tune_fusion.{key} = {column!r} is an objective, which nobody knows when rows are "
                                 "served: name a numeric field of data.fields")
            if column is not None and column not in numeric:
                raise ValueError(f"tune_fusion.{key} = {column!r} is no numeric field of data.fields: name it there, "
                                 "since a served model is given its fields and nothing else")
        for name in fusion.expected_value.values:
            if name not in [o.name for o in self.data.objectives if o.kind == "binary"]:
                raise ValueError(f"tune_fusion.expected_value.values names {name!r}, no binary objective of "
                                 "data.objectives: only an event has a probability")
        for objective, model in fusion.scorers.items():
            if objective not in [o.name for o in self.data.objectives]:
                raise ValueError(f"tune_fusion.scorers names {objective!r}, no objective of data.objectives")
            if model not in self.retrain.models:
                raise ValueError(f"tune_fusion.scorers.{objective} = {model!r} is not among retrain.models")


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is unreadable, or a key or value is not accepted; names the key and the remedy.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(path, "yaml", first, "not readable as YAML", "mend the file") from error
    return parse(raw, path)


def parse(raw: Any, where: Path | str) -> Params:
    """Check an already read params.yaml.

    Raises:
        InputError: a key or value is not accepted.
    """
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"]) or "params"
        if first["type"] == "extra_forbidden":
            raise InputError(where, key, first["input"], "unknown key",
                             "remove it or mend its spelling (docs/params.md lists every key)") from None
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(where, key, first["input"], problem, "see docs/params.md for this key") from None


def form_schema() -> dict[str, dict[str, Any]]:
    """The trigger form: dotted key → JSON schema of the fields marked with :func:`form`."""
    schema = Params.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    found: dict[str, dict[str, Any]] = {}

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        return definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, child in resolve(node).get("properties", {}).items():
            key = f"{prefix}{name}"
            if "form" in child:
                kept = {k: v for k, v in child.items() if k != "form"}
                found[key] = {**kept, **child["form"]}
            elif "$ref" in child:
                walk(child, f"{key}.")

    walk(schema, "")
    return found


def apply_form(raw: dict[str, Any], values: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """``raw`` (a read params.yaml) with the trigger form's dotted ``values`` put in, checked as a whole.

    Raises:
        InputError: a key is not on the form, or the result is not accepted.
    """
    known = form_schema()
    changed = json.loads(json.dumps(raw))
    for key, value in values.items():
        if key not in known:
            raise InputError("trigger form", key, value, "not a key of the form",
                             f"use one of {', '.join(sorted(known))}")
        node = changed
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    parse(changed, where)
    return changed


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "dags" / "form.json"
    target.write_text(json.dumps(form_schema(), indent=2) + "\n")
