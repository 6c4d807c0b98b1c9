"""Every row once, in an order that seed and epoch alone decide, from memory or from disk."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ctrmodels.data import Dataset, Rows
from ctrmodels.data.loader import Endless, Loader, row_bytes
from ctrmodels.data.planted import planted_pairs

LOG = planted_pairs(0, rows=10_000)
N = len(LOG.roles["train"])


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Two roles on disk whose ``position`` column numbers the rows."""
    folder = tmp_path_factory.mktemp("log") / "encode"
    LOG.save(folder)
    start = 0
    for role in ("train", "arch"):
        n = len(LOG.roles[role])
        np.save(folder / role / "position.npy", np.arange(start, start + n, dtype=np.int32))
        start += n
    return Dataset(folder, ("train", "arch")).role("train", "arch")


def streamed(rows: Rows, block_rows: int = 64, **options: int) -> Loader:
    loader = Loader(rows, 100, 7, buffer_mb=0, block_rows=block_rows, **options)
    loader.per_window = 10
    return loader


def numbers(loader: Loader, epoch: int = 0, skip: int = 0) -> list[int]:
    return [p for batch in loader.epoch(epoch, skip) for p in batch.position.tolist()]


@pytest.mark.parametrize("make", [lambda rows: Loader(rows, 100, 7), streamed])
def test_an_epoch_has_every_row_once_and_the_next_another_order(mapped: Rows, make) -> None:
    loader = make(mapped)
    first = numbers(loader)
    assert sorted(first) == list(range(len(mapped)))
    assert numbers(make(mapped)) == first != numbers(loader, 1)
    assert loader.steps(0) == len(list(loader.epoch(0)))


@pytest.mark.parametrize("make", [lambda rows: Loader(rows, 100, 7), streamed])
@pytest.mark.parametrize("skip", [0, 1, 6, 7, 29, 70])
def test_any_position_can_be_gone_to(mapped: Rows, make, skip: int) -> None:
    batches = [b.position.tolist() for b in make(mapped).epoch(3)]
    assert [b.position.tolist() for b in make(mapped).epoch(3, skip)] == batches[skip:]


def test_windows_that_are_skipped_are_not_read(mapped: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = streamed(mapped)
    read: list[int] = []
    load = loader._load
    monkeypatch.setattr(loader, "_load", lambda window, turn: (read.extend(window), load(window, turn))[1])
    list(loader.epoch(0, 14))
    assert len(read) < len(loader.blocks) - 10


def test_rows_belong_together(mapped: Rows) -> None:
    for batch in streamed(mapped).epoch(0):
        assert torch.equal(batch.ids, torch.from_numpy(mapped.ids[batch.position.numpy()]))
        assert torch.equal(batch.labels, torch.from_numpy(mapped.labels[batch.position.numpy()]))


def test_a_streamed_batch_mixes_blocks_from_the_whole_log(mapped: Rows) -> None:
    blocks = [len(set((b.position // 64).tolist())) for b in streamed(mapped).epoch(0)]
    assert np.mean(blocks) > 9  # of the ten that a window holds
    windows = np.array(numbers(streamed(mapped))[:640])
    assert windows.min() < len(mapped) / 4 and windows.max() > len(mapped) * 3 / 4


def test_the_buffer_decides_what_is_kept_in_memory(mapped: Rows) -> None:
    assert not Loader(mapped, 100, 0, buffer_mb=1).streams
    big = Loader(mapped, 100, 0, buffer_mb=0)
    assert big.streams and big.per_window == 1
    assert row_bytes(mapped) == 4 * (mapped.ids.shape[1] + 2)


def test_rows_that_are_held_are_read_by_the_thread_that_trains(mapped: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's loops in a second thread would start a second team of threads, and slow down those of the training."""
    readers: list[int] = []
    held = type(mapped.parts[0]).held
    monkeypatch.setattr(type(mapped.parts[0]), "held", lambda part: readers.append(threading.get_ident()) or held(part))
    next(Loader(mapped, 100, 0).epoch(0))
    assert set(readers) == {threading.get_ident()}


def test_ranks_share_every_batch(mapped: Rows) -> None:
    whole = [b.position.tolist() for b in Loader(mapped, 100, 7).epoch(0)]
    parts = [[b.position.tolist() for b in Loader(mapped, 100, 7, rank=r, ranks=2).epoch(0)] for r in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(w) for w in whole]


def test_a_last_batch_of_one_row_is_left_out() -> None:
    rows = Rows.concatenate([LOG.roles["train"]])
    size = next(n for n in range(2, N) if N % n == 1)
    loader = Loader(rows, size, 0)
    assert [len(b) for b in loader.epoch(0)] == [size] * (N // size)
    assert loader.steps(0) == N // size


def test_too_few_rows_for_a_batch_are_refused_instead_of_waited_for(mapped: Rows) -> None:
    one = Rows.of(LOG.schema, *(vars(LOG.roles["train"].parts[0])[k][:1] if k != "sequences" else {} for k in (
        "ids", "numeric", "sequences", "labels", "position", "group", "time")))
    with pytest.raises(ValueError, match="1 rows do not make a batch"):
        next(Endless(Loader(one, 100, 0)))
    with pytest.raises(ValueError, match="too small for 60 ranks"):
        Loader(mapped, 100, 0, ranks=60)
