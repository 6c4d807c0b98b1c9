"""The log: its files, fields, objectives and splits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.config.section import Name, Section, Share, form

SOURCES = ("movielens-100k", "files", "simulated")


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
