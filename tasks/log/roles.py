"""Which row plays which role: by time, by time inside each group, by hash, by a column or by file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_, or_

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from ctrmodels.data import ROLES
from tasks.config import Split

RADIX = 1 << 16


def assign(frame: DataFrame, split: Split, rows: int, timed: bool) -> DataFrame:
    """``frame`` (with ``_row``, ``_moment``, ``_group``, and ``_role`` where given) with its column ``_role``.

    Later rows go to later roles, in the order train, arch, valid, test; rows of the same moment count in
    reading order. ``valid`` and ``test`` are shares of all rows (of the group's rows), ``arch`` is a share of
    what is left to train.

    Args:
        rows: number of rows of the log.
        timed: whether ``_moment`` is known; without it, ``arch`` is carved out of train by hash.
    """
    if split.by == "group_time":
        return _by_group_time(frame, split)
    if split.by == "time":
        test, valid = _half_up(rows * split.test), _half_up(rows * split.valid)
        train = rows - test - valid
        cuts = [train - _half_up(train * split.arch), train, rows - test]
        return frame.withColumn("_role", _by_cuts(frame, cuts))
    if split.by == "random":
        share = _hash_share("role")
        role = F.when(share < split.test, "test").when(share < split.test + split.valid, "valid").otherwise("train")
        frame, given = frame.withColumn("_role", role), False
    else:
        given = frame.where(F.col("_role") == "arch").limit(1).count() > 0
    if given:
        return frame
    return _carve_arch(frame, split.arch, by_time=timed and split.by != "random")


def _by_group_time(frame: DataFrame, split: Split) -> DataFrame:
    group = Window.partitionBy("_group")
    size, place = F.count("*").over(group), F.row_number().over(group.orderBy("_moment", "_row"))
    test, valid = F.floor(size * split.test + 0.5), F.floor(size * split.valid + 0.5)
    train = F.greatest(size - test - valid, F.lit(0))
    arch = F.floor(train * split.arch + 0.5)
    return frame.withColumn("_role", F.when(place <= train - arch, "train").when(place <= train, "arch")
                            .when(place <= size - test, "valid").otherwise("test"))


def _carve_arch(frame: DataFrame, share: float, by_time: bool) -> DataFrame:
    """Give the latest part of train, or a hash share of it, the role arch."""
    train = F.col("_role") == "train"
    if not by_time:
        return frame.withColumn("_role", F.when(train & (_hash_share("arch") < share), "arch")
                                .otherwise(F.col("_role")))
    rows = frame.where(train).count()
    late = _by_cuts(frame.where(train), [rows - _half_up(rows * share)] * 3) == "test"
    return frame.withColumn("_role", F.when(train & late, "arch").otherwise(F.col("_role")))


def _hash_share(purpose: str) -> Column:
    """A number in [0, 1) that depends on the row's place in the log alone."""
    return F.pmod(F.xxhash64(F.col("_row"), F.lit(purpose)), F.lit(1 << 30)) / float(1 << 30)


def _half_up(value: float) -> int:
    return int(value + 0.5)


def _by_cuts(frame: DataFrame, cuts: Sequence[int]) -> Column:
    """Role by the row's rank in (time, row): below the first cut the first role, and so on."""
    role = F.lit(ROLES[0])
    for name, border in zip(ROLES[1:], _borders(frame, cuts), strict=True):
        if border is not None:
            time, row = border
            late = (F.col("_time") > time) | ((F.col("_time") == time) & (F.col("_row") >= row))
            role = F.when(late, name).otherwise(role)
    return role


def _borders(frame: DataFrame, ranks: Sequence[int]) -> list[tuple[int, int] | None]:
    """(time, row) of the rows with these ranks, counted from 0; ``None`` for a rank past the end.

    A radix search: time and row are two digits each, and one pass per digit counts the rows of each value of
    the next digit among those that share a searched row's digits so far. Exact, and the driver never holds
    more than about RADIX counts per rank.
    """
    digits = [F.floor(F.col("_time") / RADIX), F.pmod("_time", F.lit(RADIX)),
              F.floor(F.col("_row") / RADIX), F.pmod("_row", F.lit(RADIX))]
    names = [f"digit{i}" for i in range(len(digits))]
    split = frame.select(*(digit.cast("bigint").alias(name) for digit, name in zip(digits, names, strict=True)))
    prefixes: list[tuple[int, ...]] = [()] * len(ranks)
    rest = list(ranks)
    for depth in range(1, len(names) + 1):
        searched = split
        if depth > 1:
            conditions = [reduce(and_, (F.col(n) == v for n, v in zip(names, prefix, strict=False)), F.lit(True))
                          for prefix in prefixes if len(prefix) == depth - 1]
            searched = split.where(reduce(or_, conditions, F.lit(False)))
        counts = sorted(tuple(row) for row in searched.groupBy(*names[:depth]).count().collect())
        for i, prefix in enumerate(prefixes):
            for *key, count in counts:
                if tuple(key[:-1]) == prefix:
                    if rest[i] < count:
                        prefixes[i] = tuple(key)
                        break
                    rest[i] -= count
    return [(p[0] * RADIX + p[1], p[2] * RADIX + p[3]) if len(p) == len(names) else None for p in prefixes]
