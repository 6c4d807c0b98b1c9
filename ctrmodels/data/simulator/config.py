"""What the simulator plants, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from ctrmodels.data.simulator.policy import MOST_ITEMS
from ctrmodels.errors import InputError

HOURS = 24
RESERVED = ("request_id", "timestamp", "position", "user_id", "item_id", "price", "history", "click", "cart",
            "purchase", "dwell", "day", "position_propensity")


@dataclass(frozen=True)
class FieldPlan:
    """One planted categorical field. Value v is the (v+1)-th most frequent when values are handed out.

    Attributes:
        name: column name.
        side: to whom a value belongs: a ``user`` or an ``item`` keeps its own for good, a ``context`` is
            drawn for every request (the field ``hour`` is the hour of the request's time).
        values: how many there are.
        zipf: exponent of the Zipf law they are drawn from; 0 = uniform.
        rank: latent factors per value; an interaction uses as many as its field of lowest rank has. With 0
            the field is noise.
        head: how many of the most frequent values are informative; the others have neither main effect nor
            factors. ``None`` = all.
        missing: share of users, items or requests whose value is null; null is uninformative.
    """

    name: str
    side: Literal["user", "item", "context"]
    values: int
    zipf: float = 0.0
    rank: int = 1
    head: int | None = None
    missing: float = 0.0

    @property
    def informative(self) -> int:
        """Number of informative values."""
        return 0 if self.rank == 0 else self.values if self.head is None else self.head


@dataclass(frozen=True)
class Interaction:
    """Two or three fields whose values together move the click logit.

    Attributes:
        fields: their names; ``user_id`` may be one of them, a user's taste being its factors.
        strength: standard deviation of this part of the logit when the fields' values are drawn
            independently from their Zipf shares. Every part has mean 0 given all of its fields but one, so a
            triple shows in none of its pairs.
    """

    fields: tuple[str, ...]
    strength: float


FIELDS = (
    FieldPlan("gender", "user", 2, rank=2),
    FieldPlan("age_band", "user", 7, zipf=0.5, rank=3, missing=0.05),
    FieldPlan("city", "user", 300, zipf=1.1, rank=4, head=30),
    FieldPlan("category", "item", 40, zipf=0.7, rank=8),
    FieldPlan("brand", "item", 1000, zipf=1.0, rank=4, head=100),
    FieldPlan("device", "context", 4, zipf=0.5, rank=3),
    FieldPlan("hour", "context", HOURS, rank=3),
    FieldPlan("campaign", "context", 200, zipf=1.0, rank=0),
)
PAIRS = (
    Interaction(("user_id", "category"), 0.8),
    Interaction(("age_band", "category"), 0.6),
    Interaction(("city", "brand"), 0.6),
    Interaction(("hour", "category"), 0.5),
    Interaction(("device", "brand"), 0.4),
)
TRIPLES = (Interaction(("age_band", "device", "category"), 0.5), Interaction(("gender", "hour", "brand"), 0.4))


@dataclass(frozen=True)
class SimulatorConfig:
    """All that decides a simulated log; equal configurations give equal logs.

    Attributes:
        rows: impressions, exactly. More rows are more users; the users that were there keep their rows.
        seed: of every draw.
        days: days the log covers. A user's rows of a day do not depend on how many days follow.
        start: the first day.
        items: catalogue on the first day; item i has the (i+1)-th greatest popularity.
        new_items: share of ``items`` that is launched on every later day, under ids not seen before.
        late_users: share of users who join after the first day, a quarter of those waiting on each day.
        list_size: items shown per request, at positions 1, 2, …
        candidates: items from which the logging policy picks a list.
        history: clicks kept in the column ``history``.
        requests_per_day: a user's requests per day, the mean over users (Pareto, capped at 20).
        popularity_zipf: exponent of the items' popularity, the chance of being a candidate.
        item_head: share of the first day's items, from the most popular down, whose id is informative.
        funnel: intercepts of the logits of click (by a user who examines the position), cart after click,
            and purchase after cart.
        position_bias: exponent e of the examination curve ``position ** -e``.
        temperature: of the logging policy; the higher, the more random its lists.
        history_strength: gain of the click logit for an item of the category that all recent clicks have.
        drift: standard deviation of a category's daily step in appeal and in popularity.
        log_propensity: whether the log has the column ``position_propensity``, the chance of the row at its position
            given the rows of its list; null in a list that the end of the log cuts off.
        fields, pairs, triples: planted fields and interactions.

    Raises:
        InputError: a value cannot be used; the message names it.
    """

    rows: int = 100_000
    seed: int = 0
    days: int = 5
    start: date = date(2025, 1, 6)
    items: int = 5_000
    new_items: float = 0.02
    late_users: float = 0.3
    list_size: int = 10
    candidates: int = 24
    history: int = 20
    requests_per_day: float = 1.5
    popularity_zipf: float = 0.8
    item_head: float = 0.1
    funnel: tuple[float, float, float] = (-1.3, -1.0, -0.6)
    position_bias: float = 0.7
    temperature: float = 1.0
    history_strength: float = 2.0
    drift: float = 0.2
    log_propensity: bool = False
    fields: tuple[FieldPlan, ...] = FIELDS
    pairs: tuple[Interaction, ...] = PAIRS
    triples: tuple[Interaction, ...] = TRIPLES

    def __post_init__(self) -> None:
        for key, least in (("rows", 1), ("seed", 0), ("days", 1), ("list_size", 1), ("history", 1)):
            self._require(key, getattr(self, key) >= least, f"must be at least {least}")
        self._require("list_size", not self.log_propensity or self.list_size <= MOST_ITEMS,
                      f"log_propensity sums over the orders of a list: at most {MOST_ITEMS} items")
        self._require("candidates", self.candidates >= self.list_size, "must be at least list_size")
        self._require("items", self.items >= 4 * self.candidates, "must be at least 4 times candidates")
        for key in ("requests_per_day", "temperature"):
            self._require(key, getattr(self, key) > 0, "must be positive")
        self._require("popularity_zipf", self.popularity_zipf <= 1.5, "must be at most 1.5")
        for key in ("popularity_zipf", "position_bias", "drift", "new_items", "history_strength"):
            self._require(key, getattr(self, key) >= 0, "must not be negative")
        for key in ("item_head", "late_users"):
            self._require(key, 0 <= getattr(self, key) <= 1, "must lie between 0 and 1")
        self._check_fields()
        self._check_interactions()

    @property
    def new_items_per_day(self) -> int:
        """Items launched on every day but the first."""
        return round(self.new_items * self.items)

    def field(self, name: str) -> FieldPlan:
        """The planted field ``name``.

        Raises:
            KeyError: there is none.
        """
        return {f.name: f for f in self.fields}[name]

    def _check_fields(self) -> None:
        names = [f.name for f in self.fields]
        self._require("fields", len(set(names)) == len(names), "a name occurs twice", names)
        for f in self.fields:
            self._require("fields", f.name not in RESERVED, "is a column of every log", f.name)
            self._require("fields", f.values >= 2 and f.zipf >= 0 and f.rank >= 0 and 0 <= f.missing < 1,
                          "needs values >= 2, zipf >= 0, rank >= 0 and missing in [0, 1)", f.name)
            self._require("fields", f.head is None or 0 <= f.head <= f.values, "needs head <= values", f.name)
            self._require("fields", f.name != "hour" or (f.side == "context" and f.values == HOURS),
                          "hour is a context field of 24 values", f.name)
        category = [f for f in self.fields if (f.name, f.side, f.missing) == ("category", "item", 0.0)]
        self._require("fields", bool(category), "an item field `category` without missing values is needed: "
                      "histories and drift act through it", names)

    def _check_interactions(self) -> None:
        names = {f.name for f in self.fields} | {"user_id"}
        for key, order, found in (("pairs", 2, self.pairs), ("triples", 3, self.triples)):
            for i in found:
                self._require(key, len(set(i.fields)) == len(i.fields) == order, f"needs {order} fields", i.fields)
                unknown = sorted(set(i.fields) - names)
                self._require(key, not unknown, "no such field", unknown)
                self._require(key, all(n == "user_id" or self.field(n).informative for n in i.fields),
                              "a field of rank 0 or head 0 cannot interact", i.fields)

    def _require(self, key: str, holds: bool, problem: str, value: object = None) -> None:
        if not holds:
            raise InputError("SimulatorConfig", key, getattr(self, key) if value is None else value, problem,
                             "mend this value")
