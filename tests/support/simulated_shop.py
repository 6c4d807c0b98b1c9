"""The generated shop log as rows, encoded in memory, with its planted probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ctrmodels.data.dataset import Rows
from ctrmodels.data.schema import Field, Objective, Schema
from ctrmodels.data.simulator import Simulator, SimulatorConfig

SIDES = {"user_id": "user", "item_id": "item", "gender": "user", "age_band": "user", "city": "user", "category": "item",
         "brand": "item", "device": "context", "hour": "context"}
OBJECTIVES = (Objective("click"), Objective("cart", after="click"), Objective("purchase", after="cart"),
              Objective("dwell", "regression", after="click"))


@dataclass(frozen=True)
class Shop:
    """Whole lists, by request: those of ``train`` and of ``test``.

    Attributes:
        train, test: rows without histories; ``group`` is the request.
        truth: of ``test``, column name → [N].
        curve: [K] chance that a position is looked at.
    """

    train: Rows
    test: Rows
    truth: dict[str, np.ndarray]
    curve: np.ndarray


def simulated_shop(config: SimulatorConfig, objectives: tuple[Objective, ...] = OBJECTIVES,
                   share: float = 0.25) -> Shop:
    """Ids by falling frequency; a share of the requests, at random, is test. Truncated lists are left out."""
    batches = list(Simulator(config).batches())
    log, truth = (pa.Table.from_batches([getattr(b, part) for b in batches]) for part in ("log", "truth"))
    request, position = log["request_id"].to_numpy(), log["position"].to_numpy()
    order = np.lexsort((position, request))
    names, count = np.unique(request, return_counts=True)
    order = order[np.isin(request[order], names[count == config.list_size])]
    columns, fields = [], []
    for name, side in SIDES.items():
        values = pc.fill_null(log[name], -1).to_numpy()[order]
        _, ids, counts = np.unique(values, return_inverse=True, return_counts=True)
        columns.append(np.argsort(np.argsort(-counts, kind="stable"))[ids])
        fields.append(Field(name, "categorical", len(counts) + 1, side))  # type: ignore[arg-type]
    labels = np.stack([log[o.name].to_numpy(zero_copy_only=False)[order] for o in objectives], 1).astype(np.float32)
    schema = Schema((*fields, Field("price", "numeric", 0, "item")), objectives, {"train": len(order)}, "v", "r")
    price = np.nan_to_num(np.log(log["price"].to_numpy(zero_copy_only=False)[order]) - 3).astype(np.float32)
    every = Rows.of(schema, np.stack(columns, 1).astype(np.int32), price[:, None], {}, labels,
                    position[order].astype(np.int32), request[order], np.zeros(len(order), np.int64))
    chosen = np.random.default_rng(config.seed).random(len(order) // config.list_size) < share
    test = np.repeat(chosen, config.list_size)
    planted = {name: truth[name].to_numpy()[order][test] for name in truth.column_names}
    curve = np.arange(1, config.list_size + 1, dtype=float) ** -config.position_bias
    return Shop(_part(every, ~test), _part(every, test), planted, curve)


def _part(rows: Rows, mask: np.ndarray) -> Rows:
    c = rows.parts[0]
    return Rows(rows.schema, [replace(c, ids=c.ids[mask], numeric=c.numeric[mask], labels=c.labels[mask],
                                      position=c.position[mask], group=c.group[mask], time=c.time[mask])])
