"""Columns of a log by name or Spark SQL expression, brought to the types that the later stages rely on.

Every conversion comes with a check: a column that shows the stored value where the conversion has no answer
and is null elsewhere. The checks of all columns are evaluated in one pass (:func:`refuse`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ctrmodels.errors import InputError
from tasks.runtime.spark import explain, reading
from tasks.sources.files import Log, quoted

LATEST = 100_000_000_000  # seconds; beyond it (year 5138) a number is surely in milli- or nanoseconds


@dataclass(frozen=True)
class Check:
    """One promise about a column.

    Attributes:
        key: the column or params key it is about.
        broken: the offending value as text, null where the promise holds.
        problem, remedy: what to tell the user.
    """

    key: str
    broken: Column
    problem: str
    remedy: str


class Columns:
    """Looks up columns and expressions in ``log`` and collects their checks."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.checks: list[Check] = []

    def find(self, key: str, text: str) -> tuple[Column, T.DataType]:
        """The column called ``text``, or else the value of the expression ``text``, and its type.

        Raises:
            InputError: no such column, or not an expression over the log's columns.
        """
        frame = self.log.frame
        if text in frame.columns:
            return F.col(quoted(text)), frame.schema[text].dataType
        offered = ", ".join(c for c in frame.columns if not c.startswith("_"))
        if re.fullmatch(r"\w+", text):
            raise InputError(self.log.where, key, text, "the log has no such column",
                             f"mend the name in params.yaml; the columns are {offered}")
        try:
            column = F.expr(text)
            # Beside a column Spark refuses an aggregate, inside a struct a generator: both change the rows.
            probe = frame.select(F.col("_row"), F.struct(column.alias("value")).alias("probe"))
            return column, probe.select("probe.value").schema[0].dataType
        except PySparkException as error:
            raise InputError(self.log.where, key, text, explain(error),
                             f"mend the expression in params.yaml; the columns are {offered}") from error

    def text(self, key: str, text: str) -> Column:
        """A value as text."""
        column, kind = self.find(key, text)
        if isinstance(kind, T.ArrayType | T.MapType | T.StructType | T.BinaryType):
            raise self._wrong_type(key, text, kind, "a single value", "declare a list as kind: sequence")
        return column.cast("string")

    def number(self, key: str, text: str) -> Column:
        """A value as double; NaN is a missing value."""
        column, kind = self.find(key, text)
        if not isinstance(kind, T.NumericType | T.BooleanType | T.StringType | T.NullType):
            raise self._wrong_type(key, text, kind, "a number", "declare it as categorical, or give an expression")
        number = column.try_cast("double") if isinstance(kind, T.StringType) else column.cast("double")
        infinite = F.abs(number) == float("inf")
        self._check(key, column, number.isNull() | infinite, "not a finite number",
                    "declare the field as categorical, or mend the log")
        return F.when(~F.isnan(number) & ~infinite, number)

    def binary(self, key: str, text: str) -> Column:
        """A label as 0 or 1, null where unknown."""
        value = self._raw_number(key, text)
        self._check(key, value, ~value.isin(0.0, 1.0), "a label outside 0 and 1",
                    "give an expression that is 0, 1, true, false or null")
        return F.when(value.isin(0.0, 1.0), value.cast("tinyint"))

    def moment(self, key: str, text: str) -> Column:
        """A point in time as seconds since 1970 (double, to the microsecond)."""
        column, kind = self.find(key, text)
        seconds = _seconds(column, kind)
        if seconds is None:
            raise self._wrong_type(key, text, kind, "a time", "give Unix seconds, a date or a time")
        valid = seconds.between(-LATEST, LATEST)
        self._check(key, F.coalesce(column.cast("string"), F.lit("null")), ~F.coalesce(valid, F.lit(False)),
                    "not a time in Unix seconds, nor a date or time",
                    f"mend the log, or divide milliseconds (`{text} / 1000`) or nanoseconds")
        return F.when(valid, seconds)

    def ordering(self, key: str, text: str) -> Column:
        """A value whose order is that of time; text is read as a number or a time."""
        column, kind = self.find(key, text)
        if isinstance(kind, T.StringType):
            seconds = _seconds(column, kind)
            assert seconds is not None
            self._check(key, column, seconds.isNull(), "neither a number nor a time", "mend the log")
            return seconds
        if not isinstance(kind, T.NumericType | T.DateType | T.TimestampType | T.TimestampNTZType):
            raise self._wrong_type(key, text, kind, "a value with an order in time", "name a time or a number")
        return column

    def whole(self, key: str, text: str) -> Column:
        """A position as int, 0 where unknown."""
        value = self._raw_number(key, text)
        good = (value >= 0) & (value < 2**31) & (value == F.floor(value))
        self._check(key, value, ~good, "not a whole number from 0 up", "mend the log")
        return F.coalesce(F.when(good, value.cast("int")), F.lit(0))

    def chance(self, key: str, text: str) -> Column:
        """A probability as double, 0 where unknown."""
        value = self._raw_number(key, text)
        good = (value > 0) & (value <= 1)
        self._check(key, value, ~good, "not a chance above 0 and up to 1", "mend the log; null stands for unknown")
        return F.coalesce(F.when(good, value), F.lit(0.0))

    def steps(self, key: str, text: str, delimiter: str | None, most: int) -> Column:
        """A stored list as array of text: no nulls, no empty steps, the first ``most`` of them."""
        column, kind = self.find(key, text)
        if isinstance(kind, T.StringType):
            if delimiter is None:
                raise self._wrong_type(key, text, kind, "a list", "say what separates its steps: delimiter")
            # Java's quoting: the delimiter is taken as it stands, not as a pattern.
            parts = F.split(column, r"\Q" + delimiter.replace(r"\E", r"\E\\E\Q") + r"\E")
            parts = F.filter(F.transform(parts, lambda step: F.trim(step)), lambda step: step != "")
        elif isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.AtomicType):
            parts = F.filter(F.transform(column, lambda step: step.cast("string")), lambda step: step.isNotNull())
        else:
            raise self._wrong_type(key, text, kind, "a list", "give an array, or text with a delimiter")
        return F.coalesce(F.slice(parts, 1, most), F.array().cast("array<string>"))

    def condition(self, key: str, text: str) -> Column:
        """An expression that is true or not (unknown counts as not)."""
        column, kind = self.find(key, text)
        if not isinstance(kind, T.BooleanType):
            raise self._wrong_type(key, text, kind, "a condition", "give an expression such as `rating >= 4`")
        return F.coalesce(column, F.lit(False))

    def one_of(self, key: str, text: str, values: Sequence[str]) -> Column:
        """A value among ``values``."""
        column = self.text(key, text)
        known = F.coalesce(column.isin(*values), F.lit(False))
        self._check(key, F.coalesce(column, F.lit("null")), ~known, f"not one of {', '.join(values)}",
                    "mend the log, or give an expression that maps its values")
        return column

    def date(self, key: str, text: str) -> Column:
        """A value of the form YYYY-MM-DD."""
        column = self.text(key, text)
        good = F.coalesce(column.rlike(r"^\d{4}-\d{2}-\d{2}$"), F.lit(False)) & column.try_cast("date").isNotNull()
        self._check(key, F.coalesce(column, F.lit("null")), ~good, "not a day YYYY-MM-DD", "rename the folder")
        return column

    def _raw_number(self, key: str, text: str) -> Column:
        column, kind = self.find(key, text)
        if not isinstance(kind, T.NumericType | T.BooleanType | T.StringType | T.NullType):
            raise self._wrong_type(key, text, kind, "a number or a condition", "give an expression")
        if not isinstance(kind, T.StringType):
            return F.nanvl(column.cast("double"), F.lit(None).cast("double"))
        number = column.try_cast("double")
        self._check(key, column, number.isNull(), "not a number", "give an expression, or mend the log")
        return F.nanvl(number, F.lit(None).cast("double"))

    def _check(self, key: str, stored: Column, wrong: Column, problem: str, remedy: str) -> None:
        shown = stored.cast("string")
        self.checks.append(Check(key, F.when(shown.isNotNull() & wrong, shown), problem, remedy))

    def _wrong_type(self, key: str, text: str, kind: T.DataType, wanted: str, remedy: str) -> InputError:
        return InputError(self.log.where, key, text, f"of type {kind.simpleString()}, not {wanted}", remedy)


def refuse(frame: DataFrame, checks: Sequence[Check], where: str) -> None:
    """Evaluate ``checks`` over the whole log in one pass.

    Raises:
        InputError: one is broken; names the column and one offending value.
    """
    if not checks:
        return
    with reading(where):
        found = frame.agg(*(F.min(check.broken).alias(str(i)) for i, check in enumerate(checks))).collect()[0]
    for check, value in zip(checks, found, strict=True):
        if value is not None:
            raise InputError(where, check.key, value, check.problem, check.remedy)


def _seconds(column: Column, kind: T.DataType) -> Column | None:
    """Seconds since 1970 as double; ``None`` for a type that is no time."""
    if isinstance(kind, T.NumericType):
        return column.cast("double")
    if isinstance(kind, T.DateType | T.TimestampType | T.TimestampNTZType):
        return F.unix_micros(column.cast("timestamp")) / 1e6
    if isinstance(kind, T.StringType):
        return F.coalesce(column.try_cast("double"), F.unix_micros(column.try_cast("timestamp")) / 1e6)
    return None
