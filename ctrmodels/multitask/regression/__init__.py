"""Regression objectives: what their heads say, how it is learned, and the expected value it stands for."""

from __future__ import annotations

from ctrmodels.data.schema import Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.regression.base import Target
from ctrmodels.multitask.regression.duration import PerDuration
from ctrmodels.multitask.regression.log import LogTarget
from ctrmodels.multitask.regression.logistic import WeightedLogistic
from ctrmodels.multitask.regression.ziln import ZeroInflatedLogNormal

TARGETS = ("log", "logistic", "ziln", "per_duration")


def build_target(name: str, schema: Schema, duration: str | None = None) -> Target:
    """The target ``name`` of a regression objective.

    Args:
        name: one of ``TARGETS``.
        schema: the log.
        duration: name of the field that ``per_duration`` takes its buckets from.

    Raises:
        InputError: unknown target, or ``per_duration`` without a field of buckets.
    """
    if name == "log":
        return LogTarget()
    if name == "logistic":
        return WeightedLogistic()
    if name == "ziln":
        return ZeroInflatedLogNormal()
    if name != "per_duration":
        raise InputError("params.yaml", "retrain.regression", name, "unknown target", f"use {', '.join(TARGETS)}")
    sizes = {f.name: f.vocab for f in schema.id_fields}
    if duration not in sizes:
        raise InputError("params.yaml", "retrain.duration", duration, "per_duration needs a field with an id per row",
                         f"name one of {', '.join(sizes)}; numeric fields need encode.buckets")
    return PerDuration(schema.id_index(duration), sizes[duration])


__all__ = ["TARGETS", "LogTarget", "PerDuration", "Target", "WeightedLogistic", "ZeroInflatedLogNormal", "build_target"]
