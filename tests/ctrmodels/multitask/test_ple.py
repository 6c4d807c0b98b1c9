"""PLE and CGC: which experts an objective sees, whom its loss reaches, and what the shared branch carries upwards.

Each test would catch a defect of a published implementation: shared experts counted like specific ones, a shared gate
that sees shared experts only, gates of higher levels that read the features again.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ctrmodels.multitask import PLE, OMoE
from ctrmodels.multitask.models.ple import _Level

K, SPECIFIC, SHARED, W, H = 2, 3, 1, 10, 6


@pytest.fixture
def flat() -> torch.Tensor:
    return torch.randn(16, W, generator=torch.Generator().manual_seed(1))


def ple(levels: int) -> PLE:
    torch.manual_seed(0)
    return PLE(W, K, SPECIFIC, SHARED, [(8, H) if n == 0 else (H,) for n in range(levels)])


def silenced(trunk: PLE, level: int, objective: int, flat: torch.Tensor) -> list[torch.Tensor]:
    """The representations without one objective's own experts on one level."""
    for bias in trunk.levels[level].specific[objective].biases:
        bias.data.zero_()
    for weight in trunk.levels[level].specific[objective].weights:
        weight.data.zero_()
    return trunk(flat)


def test_gates_see_their_own_and_the_shared_experts_and_the_shared_gate_all(flat: torch.Tensor) -> None:
    first, last = ple(2).levels
    assert [len(g) for g in first.gate] == [SPECIFIC + SHARED] * K + [K * SPECIFIC + SHARED]
    assert [len(g) for g in last.gate] == [SPECIFIC + SHARED] * K  # nothing reads a shared state any more
    for level in (first, last):
        assert [e.count for e in level.specific] == [SPECIFIC] * K and level.shared.count == SHARED


def test_all_experts_differ_from_the_start() -> None:
    """Those of one objective, of two, and the shared ones: what starts equal under equal gates stays equal."""
    for level in ple(2).levels:
        first = torch.cat([experts.weights[0] for experts in (*level.specific, level.shared)])
        for a in range(len(first)):
            assert all((first[a] - first[b]).abs().max() > 0.01 for b in range(a))


def test_the_mixture_is_that_of_the_paper(flat: torch.Tensor) -> None:
    """Equations 1 to 3 as loops."""
    trunk = ple(1)
    (level,) = trunk.levels
    shared = level.shared(flat)
    for k, representation in enumerate(trunk(flat)):
        own = level.specific[k](flat)
        weights = (flat @ level.gate[k].T).softmax(1)
        expected = sum(weights[:, e, None] * own[:, e] for e in range(SPECIFIC))
        expected = expected + sum(weights[:, SPECIFIC + e, None] * shared[:, e] for e in range(SHARED))
        torch.testing.assert_close(representation, expected)


def test_on_one_level_the_other_objectives_experts_do_not_matter(flat: torch.Tensor) -> None:
    trunk = ple(1)
    before = [h.clone() for h in trunk(flat)]
    after = silenced(trunk, 0, 1, flat)
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1])


def reaches_through_the_shared_branch(flat: torch.Tensor) -> None:
    """An objective hears of the other's experts of the level below."""
    trunk = ple(2)
    before = [h.clone() for h in trunk(flat)]
    after = silenced(trunk, 0, 1, flat)
    assert not torch.allclose(after[0], before[0])


def test_on_two_levels_they_reach_an_objective_through_the_shared_branch(flat: torch.Tensor) -> None:
    reaches_through_the_shared_branch(flat)


def test_a_shared_gate_that_sees_shared_experts_only_fails_that(flat: torch.Tensor,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """As in published code."""
    whole = _Level.forward

    def deaf(self: _Level, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = whole(self, states)
        if len(found) > K:
            weights = self.weights(states)[-1][:, K * SPECIFIC:]
            found[-1] = torch.einsum("be,beh->bh", weights, self.shared(states[-1]))
        return found

    monkeypatch.setattr(_Level, "forward", deaf)
    with pytest.raises(AssertionError):
        reaches_through_the_shared_branch(flat)


def test_gates_of_the_second_level_read_the_first_ones_states(flat: torch.Tensor) -> None:
    """Some copies have them read the features again, which are wider."""
    trunk = ple(2)
    states = trunk.levels[0]([flat] * (K + 1))
    assert trunk.levels[1].gate[0].shape[1] == H
    for a, b in zip(trunk.levels[1](states), trunk(flat), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_does_not_reach_the_other_objectives_experts_and_gate(flat: torch.Tensor) -> None:
    trunk = ple(1)
    trunk(flat)[0].square().sum().backward()
    (level,) = trunk.levels
    assert all(p.grad is not None and p.grad.any() for p in level.specific[0].parameters())
    assert all(p.grad is None or not p.grad.any() for p in level.specific[1].parameters())
    assert level.gate[0].grad.any() and level.gate[1].grad is None
    shared = {id(p) for p in trunk.shared_parameters()}
    assert shared == {id(p) for p in level.shared.parameters()}


@pytest.mark.parametrize("levels", [1, 2])
def test_reported_gates_are_distributions_over_all_experts(flat: torch.Tensor, levels: int) -> None:
    gates = ple(levels).gates(flat)
    assert gates.shape == (16, K, K * SPECIFIC + SHARED)
    torch.testing.assert_close(gates.sum(2), torch.ones(16, K))
    assert not gates[:, 0, SPECIFIC:2 * SPECIFIC].any() and not gates[:, 1, :SPECIFIC].any()


@pytest.mark.parametrize("levels", [1, 2])
def test_operations_are_counted_as_torch_counts_them(flat: torch.Tensor, levels: int, torch_alone: None) -> None:
    trunk = ple(levels)
    with FlopCounterMode(display=False) as counter:
        trunk(flat)
    assert counter.get_total_flops() == 16 * trunk.flops()


def test_a_one_gate_mixture_gives_all_objectives_one_representation(flat: torch.Tensor) -> None:
    trunk = OMoE(W, 3, 4, (8, H))
    first, *others = trunk(flat)
    assert all(torch.equal(first, h) for h in others)
    gates = trunk.gates(flat)
    assert gates.shape == (16, 3, 4) and torch.equal(gates[:, 0], gates[:, 2])
    assert {id(p) for p in trunk.shared_parameters()} == {id(p) for p in trunk.parameters()}
