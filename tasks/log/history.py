"""Histories: what the same user (or whoever) did strictly before a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from tasks.sources.files import quoted


@dataclass(frozen=True)
class History:
    """One sequence to build; all but ``name`` and ``length`` are columns of the frame.

    Attributes:
        name: column to add.
        by: whose history (text); rows without a value have none.
        order: a value that grows with time; rows without one have no history and are in none.
        step: the value to collect (text); null values are left out.
        where: which rows are collected (true or false).
        length: at most this many steps, the most recent ones.
    """

    name: str
    by: str
    order: str
    step: str
    where: str
    length: int


def add(frame: DataFrame, histories: Sequence[History], partitions: int) -> DataFrame:
    """``frame`` with one array<string> column per history, oldest step first, never null.

    Steps of one moment stand in reading order; a row's history holds only rows of strictly smaller order.
    Time and memory grow with rows × length, whatever the number of rows of one user; histories of the same
    ``by`` and ``order`` share a shuffle.
    """
    def owner(history: History) -> tuple[str, str]:
        return history.by, history.order

    for (by, order), group in groupby(sorted(histories, key=owner), key=owner):
        frame = _add(frame, by, order, list(group), partitions)
    return frame


def _add(frame: DataFrame, by: str, order: str, histories: Sequence[History], partitions: int) -> DataFrame:
    # Rows of nobody are each alone; otherwise they would all meet in one partition.
    nobody = F.col(quoted(by)).isNull() | F.col(quoted(order)).isNull()
    owner = [quoted(by), "_alone"]
    frame = frame.withColumn("_alone", F.when(nobody, F.col("_row"))).repartition(partitions, *owner)
    frame = frame.withColumn("_moment_rank", F.dense_rank().over(Window.partitionBy(*owner).orderBy(quoted(order))))

    # A collected row keeps the list of the last steps up to itself …
    for history in histories:
        kept = F.col(quoted(history.where)) & F.col(history.step).isNotNull() & ~nobody
        frame = frame.withColumn("_kept", kept)
        events = Window.partitionBy(*owner, "_kept").orderBy(quoted(order), "_row")
        latest = F.struct(
            F.row_number().over(events).alias("place"),
            F.collect_list(history.step).over(events.rowsBetween(1 - history.length, 0)).alias("steps"))
        frame = frame.withColumn(f"_latest.{history.name}", F.when(F.col("_kept"), latest))
    # … and every row takes the list of the last collected row before its own moment.
    before = Window.partitionBy(*owner).orderBy("_moment_rank").rangeBetween(Window.unboundedPreceding, -1)
    empty = F.array().cast("array<string>")
    frame = frame.withColumns({
        history.name: F.coalesce(F.max(quoted(f"_latest.{history.name}")).over(before)["steps"], empty)
        for history in histories})
    return frame.drop("_alone", "_moment_rank", "_kept", *(f"_latest.{history.name}" for history in histories))
