"""Sequences read step by step.

Notation: B rows, L steps, padded on the right, E width of an item, P of a property, H of a state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrmodels.nn.towers import MLP, full_precision


class PropertyGatedLSTM(nn.Module):
    """An LSTM whose gates see how an item was met, and whose candidate sees only which item it was.

    ``i, f, o = sigmoid(W [e_t; p_t; h_(t-1)] + b)``, ``c_t = f * c_(t-1) + i * tanh(W_c [e_t; h_(t-1)] + b_c)`` and
    ``h_t = o * tanh(c_t)`` for the item e_t and its property p_t, such as the action or the time since: a property says
    how much of a step is remembered, never what. "Perceive Your Users in Depth: Learning Universal User Representations
    from Multiple E-commerce Tasks", KDD 2018, says so in words; the equations are ours.

    It computes as a plain LSTM with zeros where the candidate would read the property, so that it is a single kernel in
    training and a single node of an exported graph. A state reads the steps before it alone, so that padding, which is
    on the right, moves no state of a step that is there.

    Args:
        item: E.
        prop: P, may be 0.
        width: H.
    """

    def __init__(self, item: int, prop: int, width: int) -> None:
        super().__init__()
        self.width = width
        # Rows: input gate, forget gate, candidate, output gate; properties have no rows of the candidate.
        self.of_item = nn.Parameter(_uniform(4 * width, item, width))
        self.of_property = nn.Parameter(_uniform(3 * width, prop, width))
        self.of_state = nn.Parameter(_uniform(4 * width, width, width))
        self.bias = nn.Parameter(torch.zeros(4 * width))

    def forward(self, items: Tensor, properties: Tensor) -> Tensor:
        """[B, L, E] and [B, L, P] → float32 [B, L, H], the state after every step."""
        gates, output = self.of_property.split([2 * self.width, self.width])
        of_property = torch.cat([gates, torch.zeros_like(output), output])
        x = torch.cat([items, properties], 2).float()
        zero = x.new_zeros(1, x.shape[0], self.width)
        weights = [torch.cat([self.of_item, of_property], 1), self.of_state, self.bias, torch.zeros_like(self.bias)]
        with full_precision(x):
            states, _, _ = torch.lstm(x, (zero, zero), weights, has_biases=True, num_layers=1, dropout=0.0, train=False,
                                      bidirectional=False, batch_first=True)
        return states

    def flops(self, n_steps: int) -> int:
        """Operations per row of ``n_steps`` steps."""
        return 2 * n_steps * (self.of_item.numel() + self.of_property.numel() + self.of_state.numel())


class StepAttention(nn.Module):
    """Mean of a sequence's states, weighted by what they say in a context.

    ``sum_t a_t h_t`` with ``a = softmax_t MLP([s_t; u])`` over the steps that are there.

    Args:
        step: width of what the MLP reads of a step.
        context: width of what it reads of the row.
        hidden: widths of the MLP.
    """

    def __init__(self, step: int, context: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.unit = MLP(step + context, hidden, width_out=1)

    def weights(self, steps: Tensor, context: Tensor, there: Tensor) -> Tensor:
        """[B, L, S], [B, C] and bool [B, L] of the steps that are there → float32 [B, L]: 0 where there is none."""
        x = torch.cat([steps, context.unsqueeze(1).expand(-1, steps.shape[1], -1)], 2)
        scores = self.unit(x.flatten(0, 1)).view_as(there)
        # Not minus infinity, with which a row without any step would have no softmax.
        return scores.masked_fill(~there, torch.finfo(scores.dtype).min).softmax(1).masked_fill(~there, 0.0)

    def forward(self, states: Tensor, steps: Tensor, context: Tensor, there: Tensor) -> Tensor:
        """States [B, L, H] weighted by :meth:`weights` → float32 [B, H], zero where there is no step."""
        weights = self.weights(steps, context, there)
        with full_precision(weights):
            return torch.bmm(weights.unsqueeze(1), states.float()).squeeze(1)

    def flops(self, n_steps: int, width: int) -> int:
        """Operations per row beyond one use of its ``Linear`` layers, for states of ``width``."""
        linear = sum(2 * m.weight.numel() for m in self.unit.modules() if isinstance(m, nn.Linear))
        return (n_steps - 1) * linear + 2 * n_steps * width


def _uniform(rows: int, columns: int, width: int) -> Tensor:
    return torch.empty(rows, columns).uniform_(-width ** -0.5, width ** -0.5)
