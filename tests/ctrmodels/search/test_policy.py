"""The policy finds the best affordable blocks of a bandit whose optimum is known; a uniform one does not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from ctrmodels.search.policy import Policy

FIELDS, ROW_BLOCKS, SLICES = 3, 5, 4
UPDATES, PENALTY = 1500, 1.0


class Bandit(NamedTuple):
    """Quality float [H, C] and cost int [H, C] of every choice, which add up over the heads; and the budget."""

    gain: np.ndarray
    cost: np.ndarray
    budget: float

    def reward(self, actions: torch.Tensor) -> torch.Tensor:
        head = np.arange(len(self.gain))
        gain, cost = (torch.from_numpy(t[head, actions.numpy()].sum(1)) for t in (self.gain, self.cost))
        return gain - PENALTY * (cost / self.budget - 1).clamp(min=0)

    def spent(self, action: torch.Tensor) -> float:
        return self.cost[np.arange(len(self.cost)), action.numpy()].sum() / self.budget

    def optimum(self) -> float:
        """The best reward, by dynamic programming over what is spent."""
        best = np.full(self.cost.max(1).sum() + 1, -np.inf)
        best[0] = 0.0
        for gains, costs in zip(self.gain, self.cost, strict=True):
            longer = np.full_like(best, -np.inf)
            for gain, cost in zip(gains, costs, strict=True):
                longer[cost:] = np.maximum(longer[cost:], best[:len(best) - cost] + gain)
            best = longer
        excess = np.maximum(0, np.arange(len(best)) / self.budget - 1)
        return float((best - PENALTY * excess).max())


def oracle(seed: int) -> Bandit:
    """Blocks whose gains fall with row block and slice; a head per field and slice says how many row blocks it keeps.

    A kept slice costs its rows times its width 4 and a map to width 16. The budget is 40 % of everything.
    """
    gain = np.random.default_rng(seed).random((FIELDS, ROW_BLOCKS, SLICES))
    gain = -np.sort(np.sort(-gain, 1), 2) * np.array([1, 0.5, 0.25, 0.12, 0.06])[:, None]
    gain = np.concatenate([np.zeros((FIELDS, 1, SLICES)), gain.cumsum(1)], 1) / gain.sum()
    rows = np.array([0, 10, 30, 60, 90, 100])
    cost = np.tile(rows * 4 + (rows > 0) * 4 * 16, (FIELDS * SLICES, 1))
    return Bandit(gain.transpose(0, 2, 1).reshape(cost.shape), cost, 0.4 * float(cost[:, -1].sum()))


@pytest.mark.parametrize("seed", range(5))
def test_the_policy_finds_the_best_affordable_blocks(seed):
    """Measured over the five seeds: 99.3 to 100 % of the optimum, with 95.5 to 99.1 % of the budget; uniform 46 %."""
    bandit = oracle(seed)
    policy = Policy(torch.ones(bandit.gain.shape, dtype=torch.bool), learning_rate=0.03, seed=seed)
    optimum = bandit.optimum()
    assert bandit.reward(policy.draw(2000, uniform=True)).mean() < 0.8 * optimum
    for update in range(UPDATES):
        actions = policy.draw(4)
        policy.update(actions, bandit.reward(actions), 0.1 * (1 - update / UPDATES))
    action = policy.most_probable()
    assert bandit.reward(action[None]) >= 0.95 * optimum
    assert bandit.spent(action) <= 1.0


def test_choices_that_a_head_does_not_have_are_never_drawn():
    allowed = torch.tensor([[True, True, False], [True, False, False]])
    policy = Policy(allowed, 0.1, 0)
    for uniform in (True, False):
        drawn = policy.draw(500, uniform)
        assert set(drawn[:, 0].tolist()) == {0, 1} and set(drawn[:, 1].tolist()) == {0}
    assert policy.entropy().tolist() == pytest.approx([np.log(2), 0.0])
    policy.update(drawn[:4], torch.arange(4.0), 0.1)
    assert torch.isfinite(policy.logits).all()


def test_what_all_rewards_have_in_common_teaches_nothing():
    """Rows that are hard for every action must not make the actions look bad."""
    actions = torch.tensor([[0], [1], [1], [2]])
    learned = []
    for common in (0.0, 100.0):
        policy = Policy(torch.ones(1, 3, dtype=torch.bool), 0.1, 0)
        policy.update(actions, torch.tensor([1.0, 0.0, 0.0, 0.5]) + common, 0.0)
        learned.append(policy.log_probabilities().detach())
    assert torch.allclose(*learned, atol=1e-5)
    assert learned[0].argmax() == 0


def test_rewards_are_read_in_any_unit():
    learned = []
    for unit in (1e-4, 1.0):
        policy = Policy(torch.ones(4, 3, dtype=torch.bool), 0.1, 0)
        for _ in range(20):
            actions = policy.draw(4)
            policy.update(actions, unit * actions.sum(1).double(), 0.01)
        learned.append(policy.log_probabilities())
    assert torch.allclose(*learned, atol=1e-4)


def test_a_single_action_has_no_baseline():
    policy = Policy(torch.ones(2, 3, dtype=torch.bool), 0.1, 0)
    with pytest.raises(ValueError, match="at least two"):
        policy.update(policy.draw(1), torch.ones(1), 0.0)
