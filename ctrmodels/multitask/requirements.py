"""What some models need of a log beyond fields and labels: histories of items, and to know whom a field describes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Field, Schema
from ctrmodels.errors import InputError
from ctrmodels.multitask.parts import HISTORIES, History
from ctrmodels.nn.interest import BY_MEAN, Attended, histories_of_fields


def side_names(model: str, schema: Schema, *sides: str) -> list[str]:
    """Names of the fields that describe one of ``sides``.

    Raises:
        InputError: there is none.
    """
    found = [f.name for f in schema.fields if f.side in sides]
    if not found:
        wanted = " or ".join(f"`side: {side}`" for side in sides)
        raise InputError("params.yaml", "data.fields", [f.name for f in schema.fields],
                         f"{model} needs a field with {wanted}, and none has it",
                         f"say of each field whom it describes, or take {model} out of retrain.models")
    return found


def item_histories(model: str, schema: Schema, names: Sequence[str], key: str) -> list[Field]:
    """The sequences of earlier items that a model reads step by step.

    Args:
        model: whose they are.
        schema: the log.
        names: of sequences that together are one history, a step each; empty = the first that the log has.
        key: where params.yaml names them.

    Raises:
        InputError: the log has no sequence ``of`` an item's field, or ``names`` names something else, or sequences of
            different length.
    """
    items = {f.name for f in schema.fields if f.side == "item"}
    possible = {f.name: f for f in schema.sequence_fields if f.side != "item" and f.of in items}
    if not possible:
        raise InputError("params.yaml", "data.fields", [f.name for f in schema.sequence_fields],
                         f"{model} needs a sequence `of` a field with `side: item`, such as the items clicked before",
                         f"add a field of `kind: sequence`, `of:` and `build:`, or leave {model} out of retrain.models")
    for name in names:
        if name not in possible:
            raise InputError("params.yaml", key, name, "not a history: a sequence `of` a field with `side: item`",
                             f"use {', '.join(possible)}")
    return same_length([possible[name] for name in names or list(possible)[:1]], key)


def attended(schema: Schema, history: History) -> Attended:
    """The sequences that are looked at from the row's own item, each from the field that it is ``of``, and how.

    Raises:
        InputError: there is none, though ``history`` asks for it, or ``history`` is unknown.
    """
    if history not in HISTORIES:
        raise InputError("params.yaml", "retrain.history", history, "unknown way to read a history",
                         f"use {', '.join(HISTORIES)}")
    if history == "mean":
        return BY_MEAN
    found = tuple(histories_of_fields(schema).values())
    if not found:
        names = ", ".join(f.name for f in schema.sequence_fields)
        raise InputError("params.yaml", "retrain.history", history, "needs a sequence `of` a field of the row, from "
                         f"which to look at it; the sequences of the log are {names or 'none'}",
                         "give the history its item field as `of:` in data.fields, or set retrain.history to mean")
    return Attended(found, softmax=history == "din_softmax")


def same_length(histories: list[Field], key: str) -> list[Field]:
    """``histories``, which have to have a step for each step of the first.

    Raises:
        InputError: one of them is longer or shorter.
    """
    first = histories[0]
    for f in histories:
        if f.max_length != first.max_length:
            raise InputError("params.yaml", key, f.name, f"has {f.max_length} steps where {first.name} has "
                             f"{first.max_length}", "give both the same `max_length:` and the same `build:`")
    return histories


def check_aligned(batch: Batch, histories: Sequence[str], key: str) -> None:
    """Refuse histories of which one has a step where another has none.

    Raises:
        InputError: names the two.
    """
    first = batch.sequences[histories[0]] >= 0
    for name in histories[1:]:
        if not torch.equal(batch.sequences[name] >= 0, first):
            raise InputError("params.yaml", key, name, f"has other steps than {histories[0]}: they are not of the same "
                             "events", "give both the same `build:`, and a value to every event of theirs")
