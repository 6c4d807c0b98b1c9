"""What all users of a simulated log share: the planted effects, the catalogue and its drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ctrmodels.data.simulator.config import FieldPlan, Interaction, SimulatorConfig

EFFECTS, LAUNCHES, USERS, REQUESTS, SESSIONS = range(5)
MAIN_EFFECT = 0.3
ITEM_EFFECT = 0.5
PRICE_EFFECT = -0.2


def stream(config: SimulatorConfig, *key: int) -> np.random.Generator:
    """The random stream of one purpose: a function of the seed and ``key`` alone."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=key))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + np.exp(-x))


def zipf(values: int, exponent: float) -> np.ndarray:
    """Probabilities [values] proportional to ``rank ** -exponent``."""
    weight = np.arange(1, values + 1, dtype=float) ** -exponent
    return weight / weight.sum()


@dataclass(frozen=True)
class Effects:
    """Of one field, by value; the row after the last value is that of null, and zero.

    Attributes:
        share: [values] probabilities of the values.
        main: [values + 1] main effect on the click logit.
        cart: [values + 1] main effect on the logit of cart after click.
        dwell: [values + 1] main effect on the log of the dwell time after a click.
        factors: [values + 1, rank] latent factors, of mean 0 under ``share``.
    """

    share: np.ndarray
    main: np.ndarray
    cart: np.ndarray
    dwell: np.ndarray
    factors: np.ndarray

    @classmethod
    def draw(cls, plan: FieldPlan, rng: np.random.Generator) -> Effects:
        """Informative values get normal effects and factors, centred under their share; others get zero."""
        share = zipf(plan.values, plan.zipf)
        head = share[:plan.informative]
        columns = np.zeros((plan.values + 1, 3 + plan.rank))
        drawn = rng.standard_normal((plan.informative, columns.shape[1]))
        if plan.informative:
            columns[:plan.informative] = drawn - (head @ drawn) / head.sum()
        main, cart, dwell = MAIN_EFFECT * columns[:, :3].T
        return cls(share, main, cart, dwell, columns[:, 3:])

    @property
    def covariance(self) -> np.ndarray:
        """[rank, rank] of the factors under ``share``."""
        kept = self.factors[:-1]
        return (kept * self.share[:, None]).T @ kept


@dataclass(frozen=True)
class Catalogue:
    """All items that the log's days know; arrays [items], by item id.

    Attributes:
        values: item field → value.
        price: NaN where unknown.
        price_score: standardised log price, 0 where unknown.
        popularity: weight of being a candidate.
        effect: main effect of the id on the click logit; non-zero for the informative head only.
        promotion: the logging policy's own liking, which users do not share.
        launched: day from which the item is shown.
    """

    values: Mapping[str, np.ndarray]
    price: np.ndarray
    price_score: np.ndarray
    popularity: np.ndarray
    effect: np.ndarray
    promotion: np.ndarray
    launched: np.ndarray

    def __len__(self) -> int:
        return len(self.price)


class World:
    """The planted truth shared by all users; a function of the configuration alone.

    Attributes:
        effects: field → its effects.
        scales: interaction → factor that gives it its strength.
        catalogue: the items.
        quality: [items], the part of the click logit that belongs to the item alone.
        appeal: [days, categories], drift of each category's click logit.
        examination: [list_size], probability that a user looks at a position.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self.effects = {f.name: Effects.draw(f, stream(config, EFFECTS, n))
                        for n, f in enumerate(config.fields)}
        self.taste_rank = max((f.rank for f in config.fields), default=0)
        self.scales = {i: self._scale(i) for i in (*config.pairs, *config.triples)}
        self.catalogue = self._catalogue()
        self.quality = self.catalogue.effect + PRICE_EFFECT * self.catalogue.price_score + sum(
            self.effects[name].main[v] for name, v in self.catalogue.values.items())
        self.examination = np.arange(1, config.list_size + 1, dtype=float) ** -config.position_bias
        categories = config.field("category").values
        steps = np.zeros((config.days, 2, categories))
        for day in range(1, config.days):
            steps[day] = stream(config, LAUNCHES, day, 1).normal(0, config.drift, (2, categories))
        self.appeal, self._trend = np.moveaxis(np.cumsum(steps, axis=0), 1, 0)

    def rank(self, interaction: Interaction) -> int:
        """Latent factors that the interaction uses."""
        return min(self.taste_rank if name == "user_id" else self.effects[name].factors.shape[1]
                   for name in interaction.fields)

    def interact(self, interaction: Interaction, factors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The interaction's part of the click logit, ``scale * sum_r prod_f z_f[r]``.

        Args:
            interaction: one of the configuration's.
            factors: field → factors of its values, shapes that broadcast to [..., rank].
        """
        rank = self.rank(interaction)
        product = np.array(self.scales[interaction])
        for name in interaction.fields:
            product = product * factors[name][..., :rank]
        return product.sum(axis=-1)

    def candidate_distribution(self, day: int) -> np.ndarray:
        """Cumulative probabilities [items launched by ``day``] of being drawn as a candidate."""
        shown = self.catalogue.launched <= day
        trend = np.exp(self._trend[day][self.catalogue.values["category"][shown]])
        total = np.cumsum(self.catalogue.popularity[shown] * trend)
        return total / total[-1]

    def _scale(self, interaction: Interaction) -> float:
        """Centred independent factors: the variance of ``sum_r prod_f z_f[r]`` is ``sum_rs prod_f Cov_f[r, s]``."""
        rank = self.rank(interaction)
        moments = np.ones((rank, rank))
        for name in interaction.fields:
            covariance = np.eye(self.taste_rank) if name == "user_id" else self.effects[name].covariance
            moments *= covariance[:rank, :rank]
        return interaction.strength / float(np.sqrt(moments.sum()))

    def _catalogue(self) -> Catalogue:
        days = [self._launch(day) for day in range(self.config.days)]
        return Catalogue(
            {name: np.concatenate([d.values[name] for d in days]) for name in days[0].values},
            *(np.concatenate([getattr(d, column) for d in days])
              for column in ("price", "price_score", "popularity", "effect", "promotion", "launched")))

    def _launch(self, day: int) -> Catalogue:
        """The items launched on ``day``."""
        config, rng = self.config, stream(self.config, LAUNCHES, day, 0)
        weights = zipf(config.items, config.popularity_zipf)
        n = config.new_items_per_day if day else config.items
        values = {f.name: draw_values(f, self.effects[f.name].share, n, rng)
                  for f in config.fields if f.side == "item"}
        score = rng.standard_normal(n)
        score[rng.random(n) < 0.02] = np.nan
        effect = ITEM_EFFECT * rng.standard_normal(n)
        effect[0 if day else round(config.item_head * n):] = 0.0
        return Catalogue(values, np.round(np.exp(3.0 + score), 2), np.nan_to_num(score),
                         rng.choice(weights, n) if day else weights, effect, rng.standard_normal(n),
                         np.full(n, day))


def draw_values(plan: FieldPlan, share: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n values of a field; ``plan.values``, the one past the last, stands for null."""
    values = np.searchsorted(np.cumsum(share[:-1]), rng.random(n), side="right")
    values[rng.random(n) < plan.missing] = plan.values
    return values
