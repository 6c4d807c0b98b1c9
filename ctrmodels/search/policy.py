"""A controller without state: independent choices whose probabilities learn from rewards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ctrmodels.training.optimisers import Optimisers

ABSENT = -1e9  # logit of a choice that a head does not have; finite, so that 0 * log(0) is 0
MEMORY = 0.95  # share of the past in the running size of the advantages


class Policy:
    """H independent softmaxes over at most C choices each, trained by policy gradients.

    Minimises ``-A log pi(a) - beta H(pi)`` over K actions per update, with the advantage A of an action over a
    baseline: advantage actor-critic as in "Asynchronous Methods for Deep Reinforcement Learning", ICML 2016. There is
    no state, so that a critic would be a single number. It is the mean reward of the other K - 1 actions, which were
    rewarded on the same rows: how hard these rows are cancels out, and the gradient has no bias. Advantages are
    divided by their running size, so that ``beta`` and the learning rate mean the same whatever the reward's unit.

    Everything is drawn from a generator of its own: on all ranks the same.

    Args:
        allowed: bool [H, C], the choices that every head has; at least one each.
        learning_rate: of Adam on the logits.
        seed: of the draws.

    Attributes:
        logits: [H, C], equal at the start.
    """

    def __init__(self, allowed: Tensor, learning_rate: float, seed: int) -> None:
        self.allowed = allowed
        self.logits = torch.zeros(allowed.shape, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.logits], lr=learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.size = 0.0  # running mean square of the advantages
        self.updates = 0

    def log_probabilities(self) -> Tensor:
        """[H, C]; hardly finite for choices that a head does not have."""
        return torch.log_softmax(self.logits.masked_fill(~self.allowed, ABSENT), 1)

    def entropy(self) -> Tensor:
        """[H], in nats."""
        log_p = self.log_probabilities()
        return -(log_p.exp() * log_p).sum(1)

    @torch.no_grad()
    def draw(self, n: int = 1, uniform: bool = False) -> Tensor:
        """int64 [n, H] actions; ``uniform`` leaves what was learned aside."""
        weights = self.allowed.float() if uniform else self.log_probabilities().exp()
        return torch.multinomial(weights, n, replacement=True, generator=self.generator).T

    def most_probable(self) -> Tensor:
        """int64 [H]."""
        return self.log_probabilities().argmax(1)

    def state(self) -> dict[str, Tensor]:
        """What was learned, and where the draws are."""
        return {"logits": self.logits, "size": torch.tensor(self.size, dtype=torch.float64),
                "updates": torch.tensor(self.updates), "random": self.generator.get_state(),
                **Optimisers([self.optimiser]).state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Be as :meth:`state` said."""
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.size, self.updates = float(state["size"]), int(state["updates"])
        self.generator.set_state(state["random"])
        Optimisers([self.optimiser]).load({k: v for k, v in state.items() if "." in k})

    def update(self, actions: Tensor, rewards: Tensor, beta: float) -> None:
        """One step from K actions that were rewarded alike.

        Args:
            actions: int64 [K, H], drawn from this policy.
            rewards: [K].
            beta: weight of the entropy of every head.

        Raises:
            ValueError: there are fewer than two actions, so that none has a baseline.
        """
        k = len(actions)
        if k < 2:
            raise ValueError("an action is judged against others: draw at least two")
        advantages = (rewards - rewards.mean()) * k / (k - 1)
        self.updates += 1
        self.size = MEMORY * self.size + (1 - MEMORY) * float(advantages.square().mean())
        unit = (self.size / (1 - MEMORY**self.updates)) ** 0.5
        log_p = self.log_probabilities()
        taken = log_p.gather(1, actions.T).sum(0)  # [K]
        entropy = -(log_p.exp() * log_p).sum()
        loss = -(advantages / max(unit, 1e-12) * taken).mean() - beta * entropy
        self.logits.grad, = torch.autograd.grad(loss, [self.logits])
        self.optimiser.step()
