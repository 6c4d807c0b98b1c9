"""What a new order would be worth, estimated on a log that another policy wrote.

A row is an exposure: what was shown, what it brought, how probable it was that the logging policy showed it
(``propensity`` e), and how probable it is that the new policy would show the same in that place (``target`` π).
It stands for one choice among several, with e and π the chances of that choice, or for one position of a list,
with e and π the chances of that row at that position (:class:`ItemPosition`). All values are per exposure.

=============== =============================================== ==================================================
estimator       value, with w = π / e                           needs
=============== =============================================== ==================================================
replay          Σ π r / Σ π                                     a log whose choices were uniformly random
IPS             Σ w r / N                                       propensities
SNIPS           Σ w r / Σ w                                     propensities
doubly robust   Σ [q̂(new) + w (r - q̂(shown))] / N               propensities and a reward model of its own
=============== =============================================== ==================================================

Replay: Li, Chu, Langford and Wang, "Unbiased offline evaluation of contextual-bandit-based news article
recommendation algorithms" (WSDM 2011). SNIPS: Swaminathan and Joachims, "The self-normalized estimator for
counterfactual learning" (NeurIPS 2015), eq. 7; its bias falls as 1/N, and a constant added to all rewards moves
it by that constant, which IPS only does on average. Doubly robust: Dudík, Langford and Li, "Doubly robust policy
evaluation and learning" (ICML 2011), eq. 2. Clipping: Ionides, "Truncated importance sampling" (JCGS 2008).

What they assume: the propensities are right, nothing is shown that the logging policy would never show, and what
a row brings depends on its place and not on its neighbours. The first two can be tested, since the ratios of a
right log average 1; a log that fails the test is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrmodels.errors import InputError
from ctrmodels.metrics import Bootstrap, Interval, ListRanks, interval

FLOOR = 1000.0
"""Least effective sample size: the standard error of a rate is then below .016, and its bootstrap is trusted."""
RATIO_ERRORS = 4.0
"""The mean ratio may be this many standard errors away from 1: by chance once in 16,000 logs."""


@dataclass(frozen=True)
class Estimate:
    """The estimated value of a new policy.

    Attributes:
        method: ``replay``, ``ips``, ``snips`` or ``doubly_robust``.
        value: reward per exposure under the new policy, in the reward's unit.
        gain: the same minus what the log itself brought per exposure, paired by group.
        level: confidence level of both intervals, which resample whole groups.
        effective: effective sample size (Σw)² / Σw² of the clipped ratios (Kish 1965): as many rows of the new
            policy's own log would know as much.
        mean_ratio: mean of the ratios before clipping, 1 ± noise; for replay the share of the rows that count.
        clipped: share of the ratios' sum that clipping took away. The intervals do not know of the bias: for
            rewards between 0 and r it lowers IPS by at most about ``clipped`` times r.
    """

    method: str
    value: Interval
    gain: Interval
    level: float
    effective: float
    mean_ratio: float
    clipped: float


class OffPolicy:
    """Estimates the values of any number of new policies on one log; all of them see the same resamples.

    Args:
        reward: [N] what each exposure brought; not NaN.
        propensity: [N] in (0, 1], chance that the logging policy showed it there; ``None`` if unknown.
        groups: [N] what is independent of each other, such as users; ``None`` = rows are.
        floor: least effective sample size of an estimate.
        level: confidence level of the intervals.
        replicates, seed: of the bootstrap.

    Raises:
        InputError: shapes differ, a value is not usable, or there are fewer than two groups.
    """

    def __init__(self, reward: np.ndarray, propensity: np.ndarray | None = None, groups: np.ndarray | None = None,
                 floor: float = FLOOR, level: float = 0.95, replicates: int = 1000, seed: int = 0) -> None:
        self._rows = len(reward)
        self._reward = self._column("reward", reward, -np.inf, np.inf)
        self._propensity = None if propensity is None else self._column("propensity", propensity, 0, 1)
        if self._propensity is not None and not self._propensity.all():
            raise InputError("log", "propensity", 0.0, "what was shown had a chance to be shown",
                             "log the probability that the policy drew from, not a rounded one")
        if groups is not None and np.shape(groups) != (self._rows,):
            raise InputError("log", "groups", np.shape(groups), f"{self._rows} expected", "give one group per row")
        self._unit = np.arange(self._rows) if groups is None else np.unique(groups, return_inverse=True)[1]
        units = int(self._unit.max(initial=-1)) + 1
        if units < 2:
            raise InputError("log", "groups", units, "an interval needs several independent groups",
                             "group the rows by user or by request")
        self._size = self._sum(np.ones(self._rows))
        self._bootstrap = Bootstrap(units, replicates, seed)
        self.floor, self.level = floor, level
        self.logged = float(self._reward.mean())
        self._logged_sample = self._bootstrap.means(self._sum(self._reward) / self._size, self._size)

    def replay(self, target: np.ndarray) -> Estimate:
        """Mean reward of the rows where the new policy does what a uniformly random log happened to do.

        Args:
            target: [N] chance of the new policy to show what was shown; 0 or 1 if it is deterministic.

        Raises:
            InputError: propensities are known and differ, so that the log is not uniformly random; or too few
                rows agree.
        """
        propensity = self._propensity
        if propensity is not None and propensity.max() > propensity.min() * (1 + 1e-6):
            raise InputError("log", "propensity", (float(propensity.min()), float(propensity.max())),
                             "replay needs a uniformly random log", "use snips")
        return self._normalised("replay", self._column("target", target, 0, 1), 0.0)

    def ips(self, target: np.ndarray, clip: float | None = None) -> Estimate:
        """Inverse propensity scoring: unbiased; its spread grows with the ratios.

        Args:
            target: [N] chance of the new policy to show what was shown.
            clip: largest ratio, 10 to 100; ``None`` = no bound. Trades bias for spread.

        Raises:
            InputError: no propensities, ratios that do not average 1, or too small an effective sample.
        """
        ratio, lost = self._ratios("ips", target, clip)
        return self._mean("ips", ratio, ratio * self._reward, lost)

    def snips(self, target: np.ndarray, clip: float | None = None) -> Estimate:
        """Self-normalised IPS: a little biased, usually with less spread. Arguments and errors as :meth:`ips`."""
        return self._normalised("snips", *self._ratios("snips", target, clip))

    def doubly_robust(self, target: np.ndarray, predicted: np.ndarray, expected: np.ndarray,
                      clip: float | None = None) -> Estimate:
        """A reward model's value of the new policy, corrected by the ratios on what the model got wrong.

        Unbiased if the propensities or the model are right; the better the model, the smaller the spread. The
        model must not have been fitted on these rows (cross-fit it), nor be the one whose order is judged.

        Args:
            target, clip: as for :meth:`ips`.
            predicted: [N] the model's reward of what was shown.
            expected: [N] the model's reward of what the new policy shows in that place, Σ_a π(a) q̂(a).

        Raises:
            InputError: as :meth:`ips`, or a prediction is not finite.
        """
        ratio, lost = self._ratios("doubly_robust", target, clip)
        predicted = self._column("predicted", predicted, -np.inf, np.inf)
        expected = self._column("expected", expected, -np.inf, np.inf)
        return self._mean("doubly_robust", ratio, expected + ratio * (self._reward - predicted), lost)

    def _ratios(self, method: str, target: np.ndarray, clip: float | None) -> tuple[np.ndarray, float]:
        """Clipped ratios [N] and the share of their sum that was clipped."""
        if self._propensity is None:
            raise InputError("log", "propensity", None, f"{method} weights rows by it",
                             "log the chance of every exposure, or use replay on uniformly random traffic")
        ratio = self._column("target", target, 0, 1) / self._propensity
        per_group = self._sum(ratio)
        mean = float(ratio.mean())
        error = float(self._bootstrap.means(per_group / self._size, self._size).std(ddof=1))
        if abs(mean - 1) > RATIO_ERRORS * error + 1e-9:
            raise InputError("log", "propensity", f"mean ratio {mean:.3f} ± {error:.3f}",
                             "ratios average 1 if the propensities are right and the log had a chance to show all that "
                             "the new policy shows", "check both; a log without randomness cannot be judged this way")
        if clip is None:
            return ratio, 0.0
        if not clip >= 1:
            raise InputError("offpolicy", "clip", clip, "ratios average 1", "choose 10 to 100, or None")
        clipped = np.minimum(ratio, clip)
        return clipped, 1 - float(clipped.sum() / ratio.sum())

    def _mean(self, method: str, ratio: np.ndarray, terms: np.ndarray, lost: float) -> Estimate:
        """The estimate that is the mean of ``terms`` [N]."""
        sample = self._bootstrap.means(self._sum(terms) / self._size, self._size)
        return self._estimate(method, float(terms.mean()), sample, ratio, lost)

    def _normalised(self, method: str, ratio: np.ndarray, lost: float) -> Estimate:
        """The estimate that is the mean of the rewards weighted by ``ratio`` [N]."""
        weight, total = self._sum(ratio), self._sum(ratio * self._reward)
        mean = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
        all_weight = weight.sum()
        value = float(total.sum() / all_weight) if all_weight else float("nan")
        return self._estimate(method, value, self._bootstrap.means(mean, weight), ratio, lost)

    def _estimate(self, method: str, value: float, sample: np.ndarray, ratio: np.ndarray, lost: float) -> Estimate:
        square = float(ratio @ ratio)
        effective = float(ratio.sum()) ** 2 / square if square else 0.0
        if effective < self.floor:
            raise InputError("log", "effective sample size", round(effective, 1), f"below the floor of {self.floor:g}",
                             "take a longer log, a more random one, or a new order closer to the logged one")
        return Estimate(method, interval(value, sample, self.level),
                        interval(value - self.logged, sample - self._logged_sample, self.level), self.level, effective,
                        float(ratio.mean()) / (1 - lost), lost)

    def _sum(self, rows: np.ndarray) -> np.ndarray:
        """[U] sum over each group's rows."""
        return np.bincount(self._unit, rows)

    def _column(self, name: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
        """``values`` as finite float64 [N] between the bounds."""
        column = np.asarray(values, np.float64)
        if column.shape != (self._rows,):
            raise InputError("log", name, column.shape, f"{self._rows} numbers expected", "give one per row")
        wrong = ~np.isfinite(column) | (column < low) | (column > high)
        if wrong.any():
            raise InputError("log", name, float(column[wrong][0]),
                             f"{wrong.sum()} rows are no number from {low} to {high}",
                             "leave out rows that are unknown, mend the others")
        return column


class ItemPosition:
    """The chance that ordering by a score puts each row where the log showed it.

    The item-position view of a list (Li et al., "Offline evaluation of ranking policies with click models", KDD
    2018, §4): what a row brings depends on itself and its position. The propensity that goes with it is the chance
    of the row at that position under the logging policy, given the rows of the list. To judge the first k
    positions only, leave the other rows out after this.

    Args:
        groups: [N], the list of each row.
        position: int [N], from 1, where the log showed it; every list has all of 1 … its number of rows.

    Raises:
        InputError: a list lacks a position or has one twice.
    """

    def __init__(self, groups: np.ndarray, position: np.ndarray) -> None:
        self._ranks = ListRanks(groups)
        self._position = np.asarray(position)
        above, tied = self._ranks(-self._position.astype(np.float64))
        wrong = (above + 1 != self._position) | (tied > 1)
        if wrong.any():
            raise InputError("log", "position", self._position[wrong][0].item(),
                             f"{wrong.sum()} rows are not at the place that their list's order gives them",
                             "number each list's rows 1, 2, …, and leave out lists that are not whole")

    def target(self, scores: np.ndarray) -> np.ndarray:
        """[N] 1 where the row keeps its position, else 0; tied rows share their positions evenly.

        Raises:
            ValueError: a score is not finite.
        """
        above, tied = self._ranks(scores)
        return ((above < self._position) & (self._position <= above + tied)) / tied

    def at_position(self, scores: np.ndarray, values: np.ndarray) -> np.ndarray:
        """[N] at each row's position, the value of the row that the order by ``scores`` puts there.

        Takes a reward model's predictions ``values`` [N] to the places of the new order; the positions that tied rows
        share get their mean.
        """
        unit, scores = self._ranks.unit, np.asarray(scores, np.float64)
        new, old = np.lexsort((-scores, unit)), np.lexsort((self._position, unit))
        starts = np.r_[True, (np.diff(unit[new]) != 0) | (np.diff(scores[new]) != 0)][:len(new)]
        tie = np.cumsum(starts) - 1
        moved = np.empty(len(new))
        moved[old] = (np.bincount(tie, np.asarray(values, np.float64)[new]) / np.bincount(tie))[tie]
        return moved
