"""Look-ups and their gradients by rows are those of a dense table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctrmodels.data import Batch, Field, Objective, Schema
from ctrmodels.nn.table import Layout, Lookup, Table, tables

SCHEMA = Schema(
    fields=(Field("user", "categorical", 5), Field("item", "categorical", 7), Field("tags", "sequence", 3, of=None,
            max_length=3), Field("recent", "sequence", 7, of="item", max_length=4)),
    objectives=(Objective("click"),), rows={"train": 2}, vocab_hash="v", roles_hash="r")


def batch(rows: int = 50) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator, dtype=torch.int32)

    recent = draw(7, rows, 4)
    recent[torch.arange(4) >= draw(5, rows, 1)] = -1  # empty ones among them
    return Batch(torch.cat([draw(5, rows, 1), draw(7, rows, 1)], 1), torch.zeros(rows, 0),
                 {"tags": draw(3, rows, 3), "recent": recent}, torch.zeros(rows, 1), torch.zeros(rows).int())


def dense(weight: Tensor, lookup: Lookup) -> Tensor:
    begins = torch.arange(len(lookup.index)).int() if lookup.begins is None else lookup.begins
    return torch.nn.functional.embedding_bag(lookup.index, weight, begins, mode="mean").view(*lookup.shape, -1)


@pytest.mark.parametrize("fields", [None, (0, 1), (1, 3)])
def test_values_and_gradients_are_those_of_a_dense_table(fields: tuple[int, ...] | None) -> None:
    lookup = Layout(SCHEMA, fields)(batch())
    table = Table(SCHEMA.total_vocab, 4, sd=1.0)
    reference = table.weight.detach().clone().requires_grad_()
    pull = torch.randn(*lookup.shape, 4)
    ours, theirs = table(lookup), dense(reference, lookup)
    (ours * pull).sum().backward()
    (theirs * pull).sum().backward()
    assert torch.allclose(ours, theirs)
    assert torch.allclose(table.weight.grad.to_dense(), reference.grad, atol=1e-5)


@pytest.mark.parametrize("fields", [None, (0, 1), (1, 3)])
def test_sums_over_fields_are_those_of_the_means(fields: tuple[int, ...] | None) -> None:
    lookup = Layout(SCHEMA, fields)(batch())
    table, other = Table(SCHEMA.total_vocab, 2, sd=1.0), Table(SCHEMA.total_vocab, 2)
    other.load_state_dict(table.state_dict())
    pull = torch.randn(lookup.shape[0], 2)
    ours, theirs = table.sums(lookup), other(lookup).sum(1)
    (ours * pull).sum().backward()
    (theirs * pull).sum().backward()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(table.weight.grad.to_dense(), other.weight.grad.to_dense(), atol=1e-5)


def test_the_gradient_holds_each_touched_row_once_and_no_other() -> None:
    lookup = Layout(SCHEMA, (0,))(batch(3))
    table = Table(1000, 4)
    table(lookup).sum().backward()
    assert table.weight.grad._indices()[0].tolist() == sorted(set(lookup.index.tolist()))


def test_look_ups_are_sorted_once_for_all_tables(monkeypatch: pytest.MonkeyPatch, torch_alone: None) -> None:
    sorts = []
    monkeypatch.setattr(torch, "sort", lambda *a, sort=torch.sort, **k: (sorts.append(1), sort(*a, **k))[1])
    lookup = Layout(SCHEMA)(batch())
    sum(Table(SCHEMA.total_vocab, width)(lookup).sum() for width in (1, 4, 8)).backward()
    assert len(sorts) == 1


def test_pruned_values_are_zero_and_get_no_gradient() -> None:
    lookup = Layout(SCHEMA)(batch())
    table = Table(SCHEMA.total_vocab, 4, sd=1.0)
    mask = torch.rand(SCHEMA.total_vocab, 4) < 0.5
    table.prune(mask)
    table(lookup).sum().backward()
    assert torch.all(table.weight[~mask] == 0) and torch.all(table.weight[mask] != 0)
    assert torch.all(table.weight.grad.to_dense()[~mask] == 0)
    assert set(table.state_dict()) == {"weight", "mask"}


@pytest.mark.parametrize("compiled", [True, False])
def test_look_ups_in_the_batchs_own_rows_are_the_same_look_ups(compiled: bool, request) -> None:
    if not compiled:
        request.getfixturevalue("torch_alone")
    lookup = Layout(SCHEMA)(batch())
    rows, place = lookup.segments.rows, lookup.compact.index
    assert torch.equal(rows[place.long()], lookup.index.long()) and len(set(rows.tolist())) == len(rows)
    assert torch.equal(lookup.compact.segments.rows, torch.arange(len(rows)))


def test_tables_of_a_network_are_found() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), Table(3, 2))
    assert [t.weight.shape for t in tables(network)] == [(3, 2)]


def test_a_batch_that_comes_twice_is_looked_up_once_where_that_is_asked_for() -> None:
    layout, first, other = Layout(SCHEMA), batch(), batch()
    assert layout(first) is not layout(first)
    layout.keeps = True
    kept = layout(first)
    assert layout(first.to("cpu")) is kept  # the same columns in another batch
    assert layout(other) is not kept and layout(first) is not kept
