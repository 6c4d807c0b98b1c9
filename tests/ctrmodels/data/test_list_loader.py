"""Lists stay whole, every row comes once, and what cannot be held whole is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctrmodels.data import Batch, Field, Objective, Rows, Schema
from ctrmodels.data.lists import ListLoader
from ctrmodels.data.planted import in_memory
from ctrmodels.errors import InputError

SCHEMA = Schema((Field("item", "categorical", 2000),), (Objective("click"),), {"train": 1}, "v", "r")
SIZES = np.random.default_rng(0).integers(1, 21, 150)
N = int(SIZES.sum())
GROUP = np.random.default_rng(1).permutation(np.repeat(np.arange(150) * 12345678901 - 5, SIZES))  # scattered


def rows() -> Rows:
    """Rows numbered by their id, of lists that reach over two roles."""
    parts = [in_memory(SCHEMA, np.arange(N)[some, None], np.zeros(N)[some], GROUP[some])
             for some in (slice(0, N // 2), slice(N // 2, N))]
    return Rows.concatenate(parts)


def numbers(batch: Batch) -> np.ndarray:
    return batch.ids[:, 0].numpy()


def test_every_row_comes_once_and_every_list_in_one_batch() -> None:
    loader = ListLoader(rows(), 64, 0)
    batches = list(loader.epoch(0))
    assert sorted(np.concatenate([numbers(b) for b in batches])) == list(range(N))
    assert len(batches) == loader.steps(0) and all(2 <= len(b) <= 64 for b in batches)
    lists = [set(GROUP[numbers(b)]) for b in batches]
    assert sum(map(len, lists)) == 150
    for batch in batches:
        assert batch.group is not None and batch.group.dtype == torch.int32
        same = batch.group[:, None] == batch.group
        assert np.array_equal(same.numpy(), GROUP[numbers(batch)][:, None] == GROUP[numbers(batch)])


def test_batches_are_nearly_full() -> None:
    sizes = [len(b) for b in ListLoader(rows(), 64, 0).epoch(0)]
    assert all(a + 20 > 64 for a in sizes[:-1])


def test_seed_and_epoch_decide_the_order_and_any_position_can_be_gone_to() -> None:
    loader = ListLoader(rows(), 64, 3)
    first = [numbers(b).tolist() for b in loader.epoch(1)]
    assert [numbers(b).tolist() for b in ListLoader(rows(), 64, 3).epoch(1, 4)] == first[4:]
    assert [numbers(b).tolist() for b in loader.epoch(2)] != first
    assert [numbers(b).tolist() for b in ListLoader(rows(), 64, 4).epoch(1)] != first


def test_ranks_get_lists_of_their_own_for_their_part_of_a_batch() -> None:
    loaders = [ListLoader(rows(), 64, 0, rank=rank, ranks=2) for rank in range(2)]
    batches = [list(loader.epoch(0)) for loader in loaders]
    assert len(batches[0]) == len(batches[1]) == loaders[0].steps(0)
    seen = np.concatenate([numbers(b) for part in batches for b in part])
    assert len(set(seen)) == len(seen) >= N - 32  # an odd last batch is left out
    assert all(len(b) <= 32 for part in batches for b in part)


def test_a_list_longer_than_the_batch_is_refused_with_the_size_that_fits() -> None:
    longest = SIZES.max()
    ListLoader(rows(), longest, 0)
    with pytest.raises(InputError, match=rf"training\.batch_size.*longest list has {longest} rows.*set {longest} or"):
        ListLoader(rows(), longest - 1, 0)
    with pytest.raises(InputError, match=rf"of 2 ranks; set {2 * longest} or more"):
        ListLoader(rows(), longest, 0, ranks=2)


def test_a_log_without_lists_and_one_beyond_memory_are_refused() -> None:
    with pytest.raises(InputError, match=r"data\.group"):
        ListLoader(in_memory(SCHEMA, np.arange(9)[:, None], np.zeros(9)), 64, 0)
    with pytest.raises(InputError, match=r"training\.buffer_mb"):
        ListLoader(rows(), 64, 0, buffer_mb=0)


def test_the_lists_of_a_batch_go_where_its_rows_go() -> None:
    batch = next(ListLoader(rows(), 64, 0).epoch(0))
    some = batch.select(torch.tensor([5, 0, 3])).to("cpu")
    assert batch.group is not None and some.group is not None
    assert some.group.tolist() == batch.group[[5, 0, 3]].tolist()
