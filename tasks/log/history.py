"""Histories: what the same user (or whoever) did strictly before a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F


@dataclass(frozen=True)
class History:
    """One sequence to build.

    Attributes:
        name: column to add.
        by: whose history; rows without a value have none.
        order: a value that grows with time; rows without one have no history and are in none.
        step: the value to collect; null values are left out.
        where: which rows are collected.
        length: at most this many steps, the most recent ones.
    """

    name: str
    by: Column
    order: Column
    step: Column
    where: Column
    length: int


def add(frame: DataFrame, histories: Sequence[History], partitions: int) -> DataFrame:
    """``frame`` with one array<string> column per history, oldest step first, never null.

    Steps of one moment stand in reading order; a row's history holds only rows of strictly smaller order.
    Memory and time grow with rows × length: each collected row keeps the list of the last ``length`` steps up
    to itself, and each row takes the list of the last collected row before its own moment.
    """
    for history in histories:
        frame = _add(frame, history, partitions)
    return frame


def _add(frame: DataFrame, history: History, partitions: int) -> DataFrame:
    frame = frame.withColumns({"_by": history.by.cast("string"), "_order": history.order, "_step": history.step,
                               "_kept": history.where})
    frame = frame.withColumns({
        # Rows of nobody would otherwise all meet in one partition.
        "_alone": F.when(F.col("_by").isNull() | F.col("_order").isNull(), F.col("_row")),
        "_kept": F.col("_kept") & F.col("_step").isNotNull() & F.col("_order").isNotNull(),
    }).repartition(partitions, "_by", "_alone")
    events = Window.partitionBy("_by", "_alone", "_kept").orderBy("_order", "_row")
    latest = F.struct(F.row_number().over(events).alias("place"),
                      F.collect_list("_step").over(events.rowsBetween(1 - history.length, 0)).alias("steps"))
    frame = frame.withColumn("_latest", F.when(F.col("_kept"), latest))
    everyone = Window.partitionBy("_by", "_alone").orderBy("_order")
    frame = frame.withColumn("_moment_rank", F.dense_rank().over(everyone))
    before = Window.partitionBy("_by", "_alone").orderBy("_moment_rank").rangeBetween(
        Window.unboundedPreceding, -1)
    steps = F.coalesce(F.max("_latest").over(before)["steps"], F.array().cast("array<string>"))
    return frame.withColumn(history.name, steps).drop(
        "_by", "_order", "_step", "_kept", "_alone", "_latest", "_moment_rank")
