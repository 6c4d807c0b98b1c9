"""Small logs of numeric fields whose planted truth is about how objectives depend on each other, or on positions.

They go with :mod:`ctrmodels.data.planted`. Features are N(0, 1) and enter models as they are; the one categorical field
has one value. Truth: ``probability``, name → role → true probabilities [N], and what each function adds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted import Planted
from ctrmodels.data.schema import ROLES, Field, Objective, Schema

CLICK = Objective("click")


def planted_action(seed: int, rows: int = 80_000, kept: float = 1.0, branches: bool = True) -> Planted:
    """Purchases after clicks, by the cart or without it.

    ``logit P(click) = -2 + x0 + .5 x1``, ``logit P(cart | click) = -1.3 + x2 - .4 x0``, ``logit P(buy | cart) = -1 + x3
    + .3 x1``, ``logit P(buy | click, no cart) = -4 + x4``. Both cart and buy are ``after: click``; a quarter is test.

    Args:
        kept: share of the purchases that is in the log.
        branches: whether the cart matters; without, every purchase is like one without the cart, at logit -2 + x4.

    Truth: ``probability`` of ``click``, ``cart@click``, ``buy@cart``, ``buy without cart``, ``buy`` (on all rows).
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 6))
    click, cart = _sigmoid(-2 + x[:, 0] + 0.5 * x[:, 1]), _sigmoid(-1.3 + x[:, 2] - 0.4 * x[:, 0])
    direct = kept * _sigmoid((-4 if branches else -2) + x[:, 4])
    by_cart = kept * _sigmoid(-1 + x[:, 3] + 0.3 * x[:, 1]) if branches else direct
    clicked = rng.random(rows) < click
    carted = clicked & (rng.random(rows) < cart)
    bought = clicked & (rng.random(rows) < np.where(carted, by_cart, direct))
    truth = {"click": click, "cart@click": cart, "buy@cart": by_cart, "buy without cart": direct,
             "buy": click * (cart * by_cart + (1 - cart) * direct)}
    return _planted(x, np.stack([clicked, carted, bought], 1),
                    (CLICK, Objective("cart", after="click"), Objective("buy", after="click")), truth)


def planted_consequence(seed: int, rows: int = 30_000, linked: bool = True, known: float = 0.06) -> Planted:
    """A rarely known label that depends on how likely the click is.

    ``logit P(click) = 1.2 x0 - .8 x1 x2``; ``logit P(share) = -4 + 6 P(click) + .8 x3``. The label ``share`` is known
    on a part of ``train`` and ``arch``, and on all other rows.

    Args:
        linked: without, ``logit P(share) = -1 + .8 x3``.
        known: that part.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 6))
    click = _sigmoid(1.2 * x[:, 0] - 0.8 * x[:, 1] * x[:, 2])
    share = _sigmoid(-4 + 6 * click + 0.8 * x[:, 3] if linked else -1 + 0.8 * x[:, 3])
    labels = (rng.random((rows, 2)) < np.stack([click, share], 1)).astype(np.float32)
    learned = np.arange(rows) < round(sum(SHARES[:2]) * rows)
    labels[learned & (rng.random(rows) >= known), 1] = np.nan
    return _planted(x, labels, (CLICK, Objective("share")), {"click": click, "share": share})


def planted_steps(seed: int, rows: int = 12_000, follows: float = 0.97) -> Planted:
    """A second step that nearly always follows the first: ``logit P(click) = x0 + .5 x1 x2 - 1.5``."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 6))
    click = _sigmoid(x[:, 0] + 0.5 * x[:, 1] * x[:, 2] - 1.5)
    clicked = rng.random(rows) < click
    bought = clicked & (rng.random(rows) < follows)
    return _planted(x, np.stack([clicked, bought], 1), (CLICK, Objective("buy", after="click")),
                    {"click": click, "buy": follows * click}, shares=(0.6, 1 / 15, 0.1, 7 / 30))


def planted_positions(seed: int, lists: int = 6_000, size: int = 10, fall: float = 0.35,
                      relevance_only: bool = False) -> Planted:
    """Lists in the order of an old ranker, and users who click less further down.

    ``relevance = 1.5 tanh(w x / 2) - 1`` of x in R^8 with w_0 = 0; the old ranker sorts by ``.5 relevance + 1.5 x0 + .5
    N(0, 1)``; ``logit P(click) = relevance - fall * (position - 1)``. What does not matter to users, x0, is what the
    position goes along with. ``group`` is the list; a sixth of the lists is test.

    Args:
        relevance_only: the old ranker sorts by relevance alone, which no model can tell from the position's effect.

    Truth: ``probability``, ``relevance`` (role → [N]), ``curve`` [size], the logit that a position adds.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((lists, size, 8))
    w = rng.standard_normal(8)
    w[0] = 0
    relevance = 1.5 * np.tanh(x @ w / 2) - 1
    noisy = 0.5 * relevance + 1.5 * x[..., 0] + 0.5 * rng.standard_normal((lists, size))
    score = relevance if relevance_only else noisy
    order = np.argsort(-score, axis=1)
    x, relevance = np.take_along_axis(x, order[..., None], 1).reshape(-1, 8), np.take_along_axis(relevance, order, 1)
    curve = -fall * np.arange(size)
    click = _sigmoid(relevance + curve).ravel()
    shares = tuple(np.round(np.array([4 / 6, 1 / 24, 3 / 24, 1 / 6]) * lists) / lists)
    planted = _planted(x, (rng.random(len(x)) < click)[:, None], (CLICK,), {"click": click}, shares,
                       position=np.tile(np.arange(1, size + 1), lists), group=np.repeat(np.arange(lists), size))
    planted.truth.update(curve=curve, relevance=_by_role(relevance.ravel(), shares))
    return planted


SHARES = (0.65, 0.025, 0.075, 0.25)  # of train, arch, valid, test


def _planted(x: np.ndarray, labels: np.ndarray, objectives: tuple[Objective, ...],
             probability: Mapping[str, np.ndarray], shares: Sequence[float] = SHARES,
             position: np.ndarray | None = None, group: np.ndarray | None = None) -> Planted:
    """Rows of features [N, M] and labels [N, K] by role."""
    n, m = x.shape
    fields = (Field("log", "categorical", 2), *(Field(f"x{i}", "numeric", 0) for i in range(m)))
    parts = _parts(n, shares)
    sizes = {role: part.stop - part.start for role, part in parts.items()}
    schema = Schema(fields, objectives, sizes, hashlib.sha256(b"one value").hexdigest(),
                    hashlib.sha256(repr(sizes).encode()).hexdigest())
    zeros = np.zeros(n, np.int64)
    columns = [np.zeros((n, 1), np.int32), x.astype(np.float32), labels.astype(np.float32),
               (zeros if position is None else position).astype(np.int32), zeros if group is None else group, zeros]
    roles = {}
    for role, part in parts.items():
        ids, numeric, label, places, lists, time = (column[part] for column in columns)
        roles[role] = Rows.of(schema, ids, numeric, {}, label, places, lists, time)
    truth: dict[str, Any] = {"probability": {name: _by_role(p, shares) for name, p in probability.items()}}
    return Planted(roles, truth, np.array([sizes["train"], 0], np.int64))


def _parts(n: int, shares: Sequence[float]) -> dict[str, slice]:
    cuts = [0, *np.round(np.cumsum(shares) * n).astype(int).tolist()]
    return {role: slice(a, b) for role, a, b in zip(ROLES, cuts[:-1], cuts[1:], strict=True)}


def _by_role(column: np.ndarray, shares: Sequence[float]) -> dict[str, np.ndarray]:
    return {role: column[part] for role, part in _parts(len(column), shares).items()}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
