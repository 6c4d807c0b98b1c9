"""The days of a fixed number of users: the unit in which a log is simulated.

Only clicks and histories depend on what a user did before; everything else of a day is drawn at once for all
requests of the cohort. Shapes: U users, R requests of a day, K items shown per request, L history steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctrmodels.data.simulator.config import HOURS
from ctrmodels.data.simulator.policy import Lists, draw_candidates, plackett_luce
from ctrmodels.data.simulator.world import REQUESTS, SESSIONS, USERS, World, draw_values, sigmoid, stream

SIZE = 2048
SECONDS = 86_400
REQUESTS_PER_USER = 1_000_000  # a request's id is its user's id times this, plus its number among the user's
PARETO, BUSIEST = 1.5, 20.0
TASTE_KEPT = 0.9  # correlation of a user's taste from one day to the next
CLICKBAIT = 0.8  # share of an id's effect on clicks that is taken back at the step to the cart
CART_INTEREST, DWELL_INTEREST = 0.4, 0.3  # how much of the click logit goes on into the cart and the dwell
SPENDING, PURCHASE_PRICE = 0.5, -0.6
DWELL_LOG_MEAN, DWELL_LOG_SD = 3.0, 0.8


@dataclass(frozen=True)
class Requests:
    """R requests of one day, by time.

    Attributes:
        user: [R], index in the cohort.
        ordinal: [R], the user's how-manieth of this day.
        second: [R], seconds from midnight UTC, no two alike for one user.
        values: field of a user or context → [R].
    """

    user: np.ndarray
    ordinal: np.ndarray
    second: np.ndarray
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Responses:
    """What users do with R shown lists; arrays [R, K].

    Attributes:
        relevance: probability of a click at an examined position.
        examination: probability that the position is examined.
        cart: probability of the cart, given a click.
        purchase: probability of the purchase, given the cart.
        dwell: expected seconds, given a click.
        clicked, carted, bought: what happened; each implies the one before.
        seconds: dwell time, NaN without a click.
    """

    relevance: np.ndarray
    examination: np.ndarray
    cart: np.ndarray
    purchase: np.ndarray
    dwell: np.ndarray
    clicked: np.ndarray
    carted: np.ndarray
    bought: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Day:
    """A day of a cohort.

    Attributes:
        day: index of the day.
        requests, lists, responses: what was asked, shown and done.
        history: int [R, L], the user's latest clicked items before the request, newest last, padded on the
            left with -1.
        user_id, request_id: [R], unique over all cohorts and days.
        kept: bool [R, K], the impressions that belong to the log.
    """

    day: int
    requests: Requests
    lists: Lists
    responses: Responses
    history: np.ndarray
    user_id: np.ndarray
    request_id: np.ndarray
    kept: np.ndarray


class Cohort:
    """Users ``number * SIZE`` up to the next cohort's first.

    Its draws depend on the configuration's seed, its ``number`` and the day, never on another cohort.

    Attributes:
        counts: int [days, U], requests of every user and day.
    """

    def __init__(self, world: World, number: int) -> None:
        self.world, self.config, self.number = world, world.config, number
        rng = stream(self.config, USERS, number)
        self._values = {f.name: draw_values(f, world.effects[f.name].share, SIZE, rng)
                        for f in self.config.fields if f.side == "user"}
        self._spending = SPENDING * rng.standard_normal(SIZE)
        self._first_taste = rng.standard_normal((SIZE, world.taste_rank))
        late = rng.random(SIZE) < self.config.late_users
        joined = np.where(late, rng.geometric(0.25, SIZE), 0)
        activity = (1 + rng.pareto(PARETO, SIZE)) * (PARETO - 1) / PARETO * self.config.requests_per_day
        self.counts = np.stack([
            stream(self.config, REQUESTS, number, day).poisson(np.minimum(activity, BUSIEST)) * (joined <= day)
            for day in range(self.config.days)])

    @property
    def rows(self) -> int:
        """Impressions of all users on all days."""
        return int(self.counts.sum()) * self.config.list_size

    def days(self, rows: int) -> Iterator[Day]:
        """Every day. At most ``rows`` impressions are kept, counting user by user."""
        available = self.counts.T * self.config.list_size
        before = np.cumsum(available).reshape(available.shape) - available
        keep = np.clip(rows - before, 0, available).T
        earlier = np.cumsum(self.counts, axis=0) - self.counts
        history = np.full((SIZE, self.config.history), -1)
        taste = self._first_taste
        for day in range(self.config.days):
            rng = stream(self.config, SESSIONS, self.number, day)
            if day:
                step = rng.standard_normal(taste.shape)
                taste = TASTE_KEPT * taste + np.sqrt(1 - TASTE_KEPT**2) * step
            requests = self._requests(day, rng)
            user, ordinal = requests.user, requests.ordinal
            lists = self._lists(day, len(user), rng)
            interest = self._interest(day, requests, lists.item, taste[user])
            seen, logit, clicked = self._browse(requests, lists.item, interest, history, rng)
            responses = self._respond(requests, lists.item, logit, clicked, rng)
            user_id = self.number * SIZE + user
            place = ordinal[:, None] * self.config.list_size + np.arange(self.config.list_size)
            yield Day(day, requests, lists, responses, seen, user_id,
                      request_id=user_id * REQUESTS_PER_USER + earlier[day, user] + ordinal,
                      kept=place < keep[day, user][:, None])

    def _requests(self, day: int, rng: np.random.Generator) -> Requests:
        """Times are uniform; a user's n-th of the day is moved n seconds on, which keeps them apart."""
        count = self.counts[day]
        user = np.repeat(np.arange(SIZE), count)
        ordinal = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
        second = rng.integers(0, SECONDS - count.max(initial=0), len(user))
        second = second[np.lexsort((second, user))] + ordinal
        by_time = np.lexsort((user, second))
        user, ordinal, second = user[by_time], ordinal[by_time], second[by_time]
        values = {name: v[user] for name, v in self._values.items()}
        for plan in self.config.fields:
            if plan.name == "hour":
                values["hour"] = second * HOURS // SECONDS
            elif plan.side == "context":
                values[plan.name] = draw_values(plan, self.world.effects[plan.name].share, len(user), rng)
        return Requests(user, ordinal, second, values)

    def _lists(self, day: int, requests: int, rng: np.random.Generator) -> Lists:
        """The logging policy ranks by quality, known to it, and by promotion, which users do not care for."""
        world, config = self.world, self.config
        candidates = draw_candidates(world.candidate_distribution(day), requests, config.candidates, rng)
        score = (world.quality + world.catalogue.promotion)[candidates] / config.temperature
        return plackett_luce(candidates, score, config.list_size, rng)

    def _interest(self, day: int, requests: Requests, item: np.ndarray, taste: np.ndarray) -> np.ndarray:
        """Click logit [R, K] without the part of the history."""
        world, catalogue = self.world, self.world.catalogue
        factors = {"user_id": taste[:, None]}
        logit = world.quality[item] + world.appeal[day][catalogue.values["category"][item]]
        logit += self.config.funnel[0]
        for name, values in requests.values.items():
            logit += world.effects[name].main[values][:, None]
            factors[name] = world.effects[name].factors[values][:, None]
        for name, values in catalogue.values.items():
            factors[name] = world.effects[name].factors[values[item]]
        for interaction in world.scales:
            logit += world.interact(interaction, factors)
        return logit

    def _browse(self, requests: Requests, item: np.ndarray, interest: np.ndarray, history: np.ndarray,
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Let every user answer his requests of the day in turn, and bring ``history`` [U, L] up to date.

        Returns:
            The history before each request [R, L], the click logits and the clicks [R, K].
        """
        category = self.world.catalogue.values["category"]
        uniform = rng.random(item.shape)
        seen = np.empty((len(item), history.shape[1]), history.dtype)
        logit, clicked = interest.copy(), np.zeros(item.shape, bool)
        for turn in range(requests.ordinal.max(initial=-1) + 1):
            now = np.flatnonzero(requests.ordinal == turn)
            user = requests.user[now]
            seen[now] = history[user]
            logit[now] += self.config.history_strength * _share_of_category(category, history[user], item[now])
            clicked[now] = uniform[now] < sigmoid(logit[now]) * self.world.examination
            history[user] = _append(history[user], np.where(clicked[now], item[now], -1))
        return seen, logit, clicked

    def _respond(self, requests: Requests, item: np.ndarray, logit: np.ndarray, clicked: np.ndarray,
                 rng: np.random.Generator) -> Responses:
        """The funnel after the click logits [R, K]."""
        world, catalogue = self.world, self.world.catalogue
        click_base, cart_base, purchase_base = self.config.funnel
        interest = logit - click_base
        cart_logit = cart_base + CART_INTEREST * interest - CLICKBAIT * catalogue.effect[item]
        log_dwell = DWELL_LOG_MEAN + DWELL_INTEREST * interest
        by_row = {name: values[:, None] for name, values in requests.values.items()}
        by_row |= {name: values[item] for name, values in catalogue.values.items()}
        for name, values in by_row.items():
            cart_logit = cart_logit + world.effects[name].cart[values]
            log_dwell = log_dwell + world.effects[name].dwell[values]
        cart = sigmoid(cart_logit)
        purchase = sigmoid(purchase_base + self._spending[requests.user][:, None]
                           + PURCHASE_PRICE * catalogue.price_score[item])
        carted = clicked & (rng.random(item.shape) < cart)
        bought = carted & (rng.random(item.shape) < purchase)
        seconds = np.exp(log_dwell + DWELL_LOG_SD * rng.standard_normal(item.shape))
        return Responses(sigmoid(logit), np.broadcast_to(world.examination, item.shape), cart, purchase,
                         np.exp(log_dwell + DWELL_LOG_SD**2 / 2), clicked, carted, bought,
                         np.where(clicked, seconds, np.nan))


def _share_of_category(category: np.ndarray, history: np.ndarray, item: np.ndarray) -> np.ndarray:
    """[R, K]: share of each history's items [R, L] that have the category of the shown item; 0 if empty."""
    real = history >= 0
    same = (category[history][:, None, :] == category[item][:, :, None]) & real[:, None, :]
    return same.sum(axis=2) / np.maximum(real.sum(axis=1), 1)[:, None]


def _append(history: np.ndarray, clicked: np.ndarray) -> np.ndarray:
    """Histories [R, L] with newly clicked items [R, K] behind them, -1 standing for nothing."""
    both = np.hstack([history, clicked])
    order = np.argsort(both >= 0, axis=1, kind="stable")
    return np.take_along_axis(both, order, axis=1)[:, -history.shape[1]:]
