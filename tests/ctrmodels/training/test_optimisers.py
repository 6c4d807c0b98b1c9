"""Row-wise optimisers compute what their dense forms compute on the touched rows, and touch nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctrmodels.nn.table import Lookup, Table
from ctrmodels.training.optimisers import (
    TABLE_OPTIMISERS,
    DenseAdam,
    LazyAdam,
    Optimisers,
    RowwiseAdagrad,
    clip_norm,
    touched,
)

ROWS, WIDTH = 12, 4


def look(*rows: int) -> Lookup:
    return Lookup(torch.tensor(rows, dtype=torch.int32), None, (1, len(rows)))


def backward(table: Table, rows: tuple[int, ...], seed: int) -> None:
    pull = torch.randn(1, len(rows), WIDTH, generator=torch.Generator().manual_seed(seed))
    table.weight.grad = None
    (table(look(*rows)) * pull).sum().backward()


def test_lazy_adam_is_torchs_sparse_adam() -> None:
    table = Table(ROWS, WIDTH, sd=1.0)
    other = Table(ROWS, WIDTH)
    other.load_state_dict(table.state_dict())
    ours, theirs = LazyAdam([table.weight], lr=0.1), torch.optim.SparseAdam([other.weight], lr=0.1)
    for step, rows in enumerate([(1, 2, 2), (2, 5), (1, 11), (0,)]):
        for t, optimiser in ((table, ours), (other, theirs)):
            backward(t, rows, step)
            optimiser.step()
    assert torch.allclose(table.weight, other.weight, atol=1e-6)


def test_lazy_adam_is_adam_when_every_row_is_touched() -> None:
    table, other = Table(ROWS, WIDTH, sd=1.0), Table(ROWS, WIDTH)
    other.load_state_dict(table.state_dict())
    ours, theirs = LazyAdam([table.weight], lr=0.1), DenseAdam([other.weight], lr=0.1, fused=True)
    for step in range(5):
        for t, optimiser in ((table, ours), (other, theirs)):
            backward(t, tuple(range(ROWS)), step)
            optimiser.step()
    assert torch.allclose(table.weight, other.weight, atol=1e-6)


def test_rowwise_adagrad_follows_its_formula() -> None:
    table = Table(ROWS, WIDTH, sd=1.0)
    optimiser = RowwiseAdagrad([table.weight], lr=0.1, eps=1e-3)
    weight, sums = table.weight.detach().clone(), torch.zeros(ROWS)
    for step, rows in enumerate([(1, 2, 2), (2, 5), (1,)]):
        backward(table, rows, step)
        gradient = table.weight.grad.to_dense()
        sums += gradient.square().mean(1)
        weight -= 0.1 * gradient / (sums.sqrt() + 1e-3).unsqueeze(1)
        optimiser.step()
    assert torch.allclose(table.weight, weight, atol=1e-6)


@pytest.mark.parametrize("kind", [LazyAdam, RowwiseAdagrad])
def test_absent_rows_keep_their_values_and_their_state(kind: type[torch.optim.Optimizer]) -> None:
    table = Table(ROWS, WIDTH, sd=1.0)
    optimiser = kind([table.weight], lr=0.1)
    backward(table, tuple(range(ROWS)), 0)
    optimiser.step()
    state = {k: v.clone() for k, v in optimiser.state[table.weight].items()}
    before = table.weight.detach().clone()
    backward(table, (3, 4), 1)
    optimiser.step()
    absent = [r for r in range(ROWS) if r not in (3, 4)]
    assert torch.equal(table.weight[absent], before[absent]) and not torch.any(table.weight[[3, 4]] == before[[3, 4]])
    for name, value in optimiser.state[table.weight].items():
        if value.ndim:
            assert torch.equal(value[absent], state[name][absent])


def test_gradients_that_were_added_up_are_merged() -> None:
    table = Table(ROWS, WIDTH, sd=1.0)
    (table(look(1, 2)).sum() + table(look(2, 5)).sum()).backward()
    rows, values = touched(table.weight.grad)
    assert rows.tolist() == [1, 2, 5] and values[:, 0].tolist() == [1.0, 2.0, 1.0]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"table": Table(ROWS, WIDTH, sd=1.0), "layer": torch.nn.Linear(WIDTH, 1)})


def loss(n: torch.nn.Module, *rows: int) -> Tensor:
    return n["layer"](n["table"](look(*rows))).square().sum()


@pytest.mark.parametrize("name", TABLE_OPTIMISERS)
def test_state_carries_a_training_over(name) -> None:
    first, second = network(), network()
    a, b = (Optimisers.of(n, 0.1, name) for n in (first, second))
    for step in range(6):
        if step == 3:
            second.load_state_dict(first.state_dict())
            b.load(a.state())
        for n, optimisers in ((first, a), (second, b)):
            if n is first or step >= 3:
                optimisers.zero_grad()
                loss(n, step, 2, 2).backward()
                optimisers.step()
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_excluded_parameters_are_left_to_others() -> None:
    n = network()
    mine = Optimisers.of(n, 0.1, exclude=[n["layer"].bias])
    assert {id(p) for p in mine.parameters()} == {id(n["layer"].weight), id(n["table"].weight)}


def test_rates_scale_from_their_configured_values() -> None:
    optimisers = Optimisers.of(network(), 0.1, "rowwise_adagrad", table_learning_rate=0.4)
    optimisers.scale(0.5)
    optimisers.scale(0.25)
    assert [part.param_groups[0]["lr"] for part in optimisers.parts] == [0.025, 0.1]


def test_weight_decay_leaves_tables_alone() -> None:
    n = network()
    optimisers = Optimisers.of(n, 0.1, weight_decay=0.5)
    before = n["table"].weight.detach().clone()
    (loss(n, 1) * 0).backward()
    optimisers.step()
    assert torch.equal(n["table"].weight, before) and optimisers.parts[0].param_groups[0]["weight_decay"] == 0.5


def test_clipping_counts_rows_and_layers_together() -> None:
    n, whole = network(), network()
    for x in (n, whole):
        loss(x, 1, 2, 2).backward()
    parameters = list(whole.parameters())
    parameters[0].grad = parameters[0].grad.to_dense()
    torch.nn.utils.clip_grad_norm_(parameters, 0.1)
    clip_norm(list(n.parameters()), 0.1)
    for mine, theirs in zip(n.parameters(), parameters, strict=True):
        assert torch.allclose(mine.grad.to_dense() if mine.grad.is_sparse else mine.grad, theirs.grad, atol=1e-6)
