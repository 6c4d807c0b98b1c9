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
INTERACTION_METHODS = ("all_pairs", "no_pairs", "mutual_information", "split_gain", "autofis", "aim", "autogroup",
                       "autofeature", *BASELINES)
GATED_HOSTS = ("autodeepfm", "autoipnn")
HOSTS = (*GATED_HOSTS, *(name for name in BASELINES if name not in ("lr", "din")))
MODELS = ("shared_bottom", "omoe", "mmoe", "cgc", "ple", "esmm", "mmoe_esmm")


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
    """

    triples: Annotated[int, Field(ge=0)] = 0
    slots: Annotated[int, Field(ge=1, le=6)] = 4
    evaluations: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[float, Field(gt=0)] = 1.0
    tie_break: Annotated[float, Field(ge=0)] = 0.002
    breeding: AutoFeatureBreeding = AutoFeatureBreeding()


class SearchInteraction(Section):
    """Which interaction searches run, how often, and towards which objective (``null`` = the first).

    Besides the control ``all_pairs``, rules of thumb (``no_pairs``, ``mutual_information``, ``split_gain``) and
    searches, ``methods`` takes the names of plain models (``lr``, ``fm``, ``dcnv2``, …): they are trained on the same
    embedding and stand on the leaderboard as baselines, never chosen.

    Attributes:
        host: the network with gated interactions that is searched and retrained: ``autodeepfm`` adds them to an MLP's
            logit (without ``training.hidden`` a factorisation machine), ``autoipnn`` feeds them to the MLP.
    """

    methods: Annotated[tuple[Literal[INTERACTION_METHODS], ...],  # type: ignore[valid-type]
                       Field(min_length=1, json_schema_extra=form("Search", "Interaction searches"))]
    seeds: Annotated[int, Field(ge=1, le=20, json_schema_extra=form("Search", "Seeds per interaction search"))] = 3
    objective: str | None = None
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


class Retrain(Section):
    """The multi-objective models trained on the chosen architecture.

    ``bottom`` are the widths of the shared bottom or of each expert, ``tower`` those of each tower.
    """

    models: Annotated[tuple[Literal[MODELS], ...],  # type: ignore[valid-type]
                      Field(min_length=1, json_schema_extra=form("Models", "Multi-objective models"))]
    seeds: Annotated[int, Field(ge=1, le=20, json_schema_extra=form("Models", "Seeds per model"))] = 3
    bottom: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (32,)
    loss_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    mmoe: Mmoe = Mmoe()
    ple: Ple = Ple()


class SelectModel(Section):
    """Best mean of ``metric`` over the objectives on ``valid``; ties inside the spread go to the cheaper model."""

    metric: Annotated[Literal["auc", "gauc", "logloss"],
                      Field(json_schema_extra=form("Choice", "Metric that models are judged by"))] = "auc"


class TuneFusion(Section):
    """Weights of the fused score: tuned on the first ``window`` of valid's groups, reported on the rest.

    Attributes:
        functions: which are tuned, each for ``trials``; the best is taken.
        tuner: how weights are searched: ``tpe``; ``gp``, where floors are tight; ``cma``, blind to floors; ``nsga2``,
            for the front; ``random`` and ``grid``, to compare with.
        metric: of an order: ``ndcg`` of the first ``k``, ``gauc``, ``mrr``, or ``value`` per exposure.
        primary: the objective whose metric is maximised; ``null`` = the first.
        floor: the others must reach this share of the best that ordering by one score alone reaches.
        calibration: how probabilities are calibrated before they are fused.
        trials: weights tried per function.
        lists: trials are judged on at most so many lists, the best of them again on the whole window.
    """

    functions: Annotated[tuple[Literal["weighted_sum", "weighted_product", "shifted_power", "exponential_sum",
                                       "exponential_boost", "reciprocal_rank"], ...], Field(min_length=1)] = (
        "weighted_sum", "weighted_product")
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
        if self.tune_fusion.primary not in (None, *(o.name for o in self.data.objectives)):
            raise ValueError(f"tune_fusion.primary = {self.tune_fusion.primary!r} is no objective of data.objectives")
        if not names:
            raise ValueError("data.objectives: at least one binary objective is needed")
        for key, chosen_names in (("search_embedding.methods", self.search_embedding.methods),
                                  ("search_interaction.methods", self.search_interaction.methods),
                                  ("retrain.models", self.retrain.models)):
            for name in chosen_names:
                if chosen_names.count(name) > 1:
                    raise ValueError(f"{key} names {name!r} twice: remove one")
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
