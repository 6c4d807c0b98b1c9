"""The one rule by which a multi-objective model is chosen among several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ctrmodels.metrics import HIGHER_IS_BETTER


@dataclass(frozen=True)
class Contender:
    """One model, trained once per seed.

    Attributes:
        name: its key.
        values: binary objective → the deciding metric on all rows of ``valid``, one value per seed.
        parameters: stored values.
        flops: operations per row.
        balanced: whether a balancer was at work, which costs time in every training to come.
    """

    name: str
    values: Mapping[str, Sequence[float]]
    parameters: float
    flops: float
    balanced: bool = False

    def mean(self, objective: str) -> float:
        """Of one objective over the seeds."""
        return float(np.mean(self.values[objective]))


@dataclass(frozen=True)
class Rule:
    """Best ``primary`` among the models that keep every floor; ties go to the cheaper.

    A floor is how much worse than the best model in an objective a model may be in it, as a difference of the metric:
    "purchase may cost .002 of AUC". Differences and not shares, since an AUC starts at one half and a log-loss has no
    end. A model is tied with the best if its mean lies within the best one's standard deviation over the seeds; cheaper
    means fewer parameters, then fewer operations, then losses that are added up as they are.

    Attributes:
        metric: ``auc``, ``gauc`` or ``logloss``.
        primary: the objective that is maximised; ``None`` = the mean over all binary ones.
        floors: objective → largest loss against the best model in it.
    """

    metric: str = "auc"
    primary: str | None = None
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """What is maximised, in words."""
        of = "" if self.primary is None else f" of {self.primary}"
        return f"valid {self.metric}{of}"

    def __str__(self) -> str:
        over = "seeds" if self.primary else "the binary objectives and seeds"
        floors = ", ".join(f"{name} at most {drop:g} behind the best in it" for name, drop in self.floors.items())
        return (f"best mean {self.subject}@all over {over}{f' among models with {floors}' if floors else ''}; ties "
                "within the best one's standard deviation over the seeds go to fewer parameters, then to the plain sum "
                "of losses")

    def judged(self, contender: Contender) -> np.ndarray:
        """What is maximised, per seed."""
        values = contender.values if self.primary is None else {self.primary: contender.values[self.primary]}
        return np.mean(np.array(list(values.values()), np.float64), axis=0)

    def behind(self, value: float, best: float) -> float:
        """By how much ``value`` is worse than ``best``."""
        return best - value if HIGHER_IS_BETTER[self.metric] else value - best

    def broken(self, contenders: Sequence[Contender]) -> dict[str, dict[str, float]]:
        """Model → the objectives whose floor it does not keep, with its distance to the best there."""
        found: dict[str, dict[str, float]] = {c.name: {} for c in contenders}
        for objective, allowed in self.floors.items():
            means = {c.name: c.mean(objective) for c in contenders}
            best = max(means.values()) if HIGHER_IS_BETTER[self.metric] else min(means.values())
            for name, mean in means.items():
                if not self.behind(mean, best) <= allowed:
                    found[name][objective] = self.behind(mean, best)
        return found


@dataclass(frozen=True)
class Choice:
    """What a rule chose.

    Attributes:
        name: the chosen model.
        best: the model that maximises the rule's subject within the floors; another one if it was tied with it.
        broken: model → the objectives whose floor it does not keep, with its distance to the best there.
        reason: a sentence.
    """

    name: str
    best: str
    broken: Mapping[str, Mapping[str, float]]
    reason: str


def choose(contenders: Sequence[Contender], rule: Rule) -> Choice:
    """Apply ``rule``.

    Raises:
        ValueError: no model keeps all floors; says which one misses them by the least.
    """
    broken = rule.broken(contenders)
    allowed = [c for c in contenders if not broken[c.name]]
    if not allowed:
        near = min(contenders, key=lambda c: max(v - rule.floors[k] for k, v in broken[c.name].items()))
        missing = ", ".join(f"{k} by {v:.4f}" for k, v in broken[near.name].items())
        raise ValueError(f"no model keeps all floors; {near.name} comes closest and is behind the best in {missing}")

    def mean(c: Contender) -> float:
        return float(rule.judged(c).mean())

    best = min(allowed, key=lambda c: (rule.behind(mean(c), 0.0), c.parameters))
    values = rule.judged(best)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    tied = [c for c in allowed if rule.behind(mean(c), mean(best)) <= spread]
    chosen = min(tied, key=lambda c: (c.parameters, c.flops, c.balanced, rule.behind(mean(c), 0.0)))
    if chosen is best:
        reason = f"{best.name} has the best {rule.subject}, {mean(best):.4f} ± {spread:.4f}"
    else:
        advantage = "has fewer parameters" if chosen.parameters < best.parameters else (
            "adds its losses up as they are" if best.balanced and not chosen.balanced else "is no dearer")
        reason = (f"{chosen.name} ({rule.subject} {mean(chosen):.4f}) is within one standard deviation ({spread:.4f}) "
                  f"of the best, {best.name} ({mean(best):.4f}), and {advantage}")
    out = [name for name, objectives in broken.items() if objectives]
    if out:
        reason += f"; {', '.join(out)} {'does' if len(out) == 1 else 'do'} not keep the floors"
    elif rule.floors:
        reason += "; every model keeps the floors"
    return Choice(chosen.name, best.name, broken, reason)
