from __future__ import annotations

import pytest
import torch

from ctrmodels.multitask import Identity, MMoE, SharedBottom
from ctrmodels.multitask.models.mixtures import Experts
from ctrmodels.nn.towers import MLP


@pytest.fixture
def flat() -> torch.Tensor:
    return torch.randn(16, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mmoe() -> MMoE:
    torch.manual_seed(0)
    return MMoE(10, n_objectives=3, experts=4, hidden=(8, 6))


def test_a_shared_bottom_gives_every_objective_the_output_of_one_mlp(flat: torch.Tensor) -> None:
    trunk = SharedBottom(10, 3, (8, 6))
    representations = trunk(flat)
    assert len(representations) == 3 and all(torch.equal(h, trunk.bottom(flat)) for h in representations)
    assert trunk.width == 6 and list(trunk.shared_parameters()) == list(trunk.bottom.parameters())


def test_identity_shares_nothing_and_changes_nothing(flat: torch.Tensor) -> None:
    trunk = Identity(10, 2)
    assert all(torch.equal(h, flat) for h in trunk(flat))
    assert trunk.width == 10 and not list(trunk.shared_parameters()) and trunk.gates(flat) is None


def test_gates_are_distributions_over_the_experts(mmoe: MMoE, flat: torch.Tensor) -> None:
    """Softmax over another axis would pass every shape check."""
    gates = mmoe.gates(flat)
    assert gates.shape == (16, 3, 4)
    torch.testing.assert_close(gates.sum(dim=2), torch.ones(16, 3))
    assert not torch.allclose(gates.sum(dim=1), torch.ones(16, 4))


def test_the_grouped_tensors_compute_the_mixture_of_the_paper(mmoe: MMoE, flat: torch.Tensor) -> None:
    """Equations 6 to 8, written as loops over objectives and experts."""
    experts = mmoe.experts(flat)
    for k, representation in enumerate(mmoe(flat)):
        weights = (flat @ mmoe.gate[k].T).softmax(dim=1)
        expected = sum(weights[:, e, None] * experts[:, e] for e in range(4))
        torch.testing.assert_close(representation, expected)


def test_every_expert_is_an_mlp_of_its_own(flat: torch.Tensor) -> None:
    experts = Experts(3, 10, (8, 6))
    for e in range(3):
        mlp = MLP(10, (8, 6))
        for linear, weight, bias in zip((mlp[0], mlp[1]), experts.weights, experts.biases, strict=True):
            linear.weight.data, linear.bias.data = weight.data[e].T, bias.data[e]
        torch.testing.assert_close(experts(flat)[:, e], mlp(flat))


def test_experts_differ_from_the_start(mmoe: MMoE) -> None:
    """Experts that start equal under equal gates receive equal gradients and stay one expert for ever."""
    for weight in mmoe.experts.weights:
        for a in range(4):
            for b in range(a):
                assert (weight[a] - weight[b]).abs().max() > 0.01


def test_one_expert_is_a_shared_bottom(flat: torch.Tensor) -> None:
    mmoe, shared = MMoE(10, 2, experts=1, hidden=(8,)), SharedBottom(10, 2, (8,))
    shared.bottom[0].weight.data = mmoe.experts.weights[0].data[0].T
    shared.bottom[0].bias.data = mmoe.experts.biases[0].data[0]
    for a, b in zip(mmoe(flat), shared(flat), strict=True):
        torch.testing.assert_close(a, b)


def test_the_order_of_experts_is_immaterial(mmoe: MMoE, flat: torch.Tensor) -> None:
    before = [h.clone() for h in mmoe(flat)]
    order = torch.tensor([2, 0, 3, 1])
    mmoe.gate.data = mmoe.gate.data[:, order]
    for parameter in (*mmoe.experts.weights, *mmoe.experts.biases):
        parameter.data = parameter.data[order]
    for a, b in zip(before, mmoe(flat), strict=True):
        torch.testing.assert_close(a, b)


def test_equal_gates_make_objectives_share_one_representation(mmoe: MMoE, flat: torch.Tensor) -> None:
    mmoe.gate.data[1] = mmoe.gate.data[0]
    first, second, third = mmoe(flat)
    assert torch.equal(first, second) and not torch.allclose(first, third)


def test_an_objectives_loss_reaches_its_own_gate_and_all_experts_only(mmoe: MMoE, flat: torch.Tensor) -> None:
    mmoe(flat)[0].square().sum().backward()
    assert mmoe.gate.grad is not None
    assert mmoe.gate.grad[0].any() and not mmoe.gate.grad[1:].any()
    first = mmoe.experts.weights[0].grad
    assert first is not None and all(first[e].any() for e in range(4))
    shared = {id(p) for p in mmoe.shared_parameters()}
    assert id(mmoe.gate) not in shared and {id(p) for p in mmoe.experts.parameters()} == shared


def test_operations_are_counted_as_torch_counts_them(mmoe: MMoE, flat: torch.Tensor, torch_alone: None) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        mmoe(flat)
    assert counter.get_total_flops() == 16 * mmoe.flops()


def test_the_experts_first_layers_as_one_have_the_gradients_of_layers_of_their_own(flat: torch.Tensor) -> None:
    torch.manual_seed(0)
    experts = Experts(3, 10, (8, 6))
    inputs = [flat.clone().requires_grad_() for _ in range(2)]
    parameters = list(experts.parameters())
    up = torch.randn(16, 3, 6)
    found = torch.autograd.grad(experts(inputs[0]), [inputs[0], *parameters], up)
    alone = []
    for e in range(3):
        h = inputs[1]
        for weight, bias in zip(experts.weights, experts.biases, strict=True):
            h = (h @ weight[e] + bias[e]).relu()
        alone.append(h)
    expected = torch.autograd.grad(torch.stack(alone, 1), [inputs[1], *parameters], up)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
