"""From the stored columns of a log to the columns that every later stage reads."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from ctrmodels.data import ROLES
from tasks.config import Build, Data, FieldSpec
from tasks.log import history, roles
from tasks.log.columns import Columns, refuse
from tasks.log.history import History
from tasks.sources.files import Log

SYSTEM = ("_row", "_role", "_day", "_time", "_group", "_position", "_propensity")


def prepare(log: Log, data: Data, partitions: int) -> DataFrame:
    """Fields, objectives and system columns of ``log``, in the order of params.yaml; one row per row of the log.

    Raises:
        InputError: a column is missing or of the wrong type, an expression is none, or a value is outside its
            domain.
    """
    columns = Columns(log)
    chosen: dict[str, Column] = {"_row": F.col("_row")}
    for field in data.fields:
        if field.build is None:
            chosen[field.name] = _stored(columns, field)
    for objective in data.objectives:
        convert = columns.binary if objective.kind == "binary" else columns.number
        chosen[objective.name] = convert(objective.name, objective.label)
    chosen |= _system(columns, data, log)
    built = [(field, field.build) for field in data.fields if field.build is not None]
    for field, build in built:
        chosen |= _history_inputs(columns, field, build)

    refuse(log.frame, columns.checks, log.where)
    frame = log.frame.select(*(column.alias(name) for name, column in chosen.items()))
    frame = roles.assign(frame, data.split, log.rows, timed=data.timestamp is not None)
    frame = history.add(frame, [_history(field, build) for field, build in built], partitions)
    names = [*(f.name for f in data.fields), *(o.name for o in data.objectives), *SYSTEM]
    return frame.select(*names)


def _stored(columns: Columns, field: FieldSpec) -> Column:
    text = field.value or field.name
    if field.kind == "numeric":
        return columns.number(field.name, text)
    if field.kind == "categorical":
        return columns.text(field.name, text)
    return columns.steps(field.name, text, field.delimiter, field.max_length)


def _system(columns: Columns, data: Data, log: Log) -> dict[str, Column]:
    """The system columns but ``_row``, and ``_moment``, the time to the microsecond."""
    moment = F.lit(0.0) if data.timestamp is None else columns.moment("data.timestamp", data.timestamp)
    time = F.floor(moment).cast("bigint")
    if log.partitioned:
        day = columns.date("day", "day")
    elif data.timestamp is not None:
        day = F.date_format(F.timestamp_seconds(time), "yyyy-MM-dd")
    else:
        day = F.lit("all")
    system = {
        "_moment": moment,
        "_time": time,
        "_day": day,
        "_group": F.lit(None).cast("string") if data.group is None else columns.text("data.group", data.group),
        "_position": F.lit(0) if data.position is None else columns.whole("data.position", data.position),
        "_propensity": (F.lit(0.0) if data.propensity is None
                        else columns.chance("data.propensity", data.propensity)),
    }
    if data.split.by == "column" and data.split.column is not None:
        system["_role"] = columns.one_of("data.split.column", data.split.column, ROLES)
    elif data.split.by == "file":
        system["_role"] = F.col("_role")
    return system


def _history_inputs(columns: Columns, field: FieldSpec, build: Build) -> dict[str, Column]:
    """The columns that :func:`_history` names."""
    key = f"{field.name}.build"
    where = F.lit(True) if build.where is None else columns.condition(f"{key}.where", build.where)
    return {
        f"_by.{build.by}": columns.text(f"{key}.by", build.by),
        f"_order.{build.order}": columns.ordering(f"{key}.order", build.order),
        f"_where.{field.name}": where,
    }


def _history(field: FieldSpec, build: Build) -> History:
    return History(field.name, by=f"_by.{build.by}", order=f"_order.{build.order}", step=str(field.of),
                   where=f"_where.{field.name}", length=field.max_length)
