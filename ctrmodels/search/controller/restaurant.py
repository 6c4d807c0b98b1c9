"""Which region of a search to look at next, as a guest of a Chinese restaurant chooses a table."""

from __future__ import annotations

import numpy as np

FLOOR = 0.05  # a table that disappointed is still tried now and then; a negative number of guests is none


class Restaurant:
    """Tables in a row, each with a number of guests: one to begin with, more where expectations were surpassed.

    "AutoFeature", CIKM 2020: ``n_k += C (score - tau)`` after what table k gave was judged. Expected, tau, is the mean
    of the last scores, so that a table grows while it is better than the others and shrinks while it is worse.

    Args:
        reward: C.
        concentration: kappa of :meth:`chances`, at least 1; at 1 no guest takes a table of its own.
        memory: number of last scores that say what is expected.
    """

    def __init__(self, reward: float, concentration: float, memory: int) -> None:
        self.reward, self.concentration, self.memory = reward, concentration, memory
        self.guests: list[float] = []
        self.scores: list[float] = []

    def open(self, n_tables: int) -> None:
        """Have at least so many tables; those that there are keep their guests."""
        self.guests += [1.0] * (n_tables - len(self.guests))

    def chances(self, n_tables: int) -> np.ndarray:
        """[L + 1] of the first L tables, and of a table of its own: ``n_k / (sum n - 1 + kappa)``."""
        guests = np.array(self.guests[:n_tables])
        return np.append(guests, self.concentration - 1) / (guests.sum() + self.concentration - 1)

    def judged(self, table: int | None, score: float) -> None:
        """What ``table`` gave scored so much; ``None`` stands for a table of its own."""
        self.scores.append(score)
        if table is not None:
            expected = float(np.mean(self.scores[-self.memory:]))
            self.guests[table] = max(self.guests[table] + self.reward * (score - expected), FLOOR)
