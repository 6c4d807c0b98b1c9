"""A packed table gives the values of the pruned table and stores no others."""

from __future__ import annotations

import pytest
import torch

from ctrmodels.data import Batch
from ctrmodels.nn.packed import PackedTable
from ctrmodels.nn.table import Layout, PaddedLookup, Table, steps_lookup
from tests.support.served_models import SCHEMA, draw, histories

ROWS = 500


def pruned(width: int, kept: float, rows: int = SCHEMA.total_vocab) -> Table:
    torch.manual_seed(0)
    table = Table(rows, width, sd=1.0)
    table.prune(torch.rand(rows, width) < kept)
    return table


def batch(n: int = ROWS) -> Batch:
    rows = draw(n)
    return Batch(torch.from_numpy(rows["ids"]), torch.from_numpy(rows["numeric"]),
                 {name: torch.from_numpy(steps) for name, steps in histories(rows).items()},
                 torch.zeros(n, 1), torch.zeros(n, dtype=torch.int32))


@pytest.mark.parametrize("fields", [None, (0, 2), (1, 3), (4,)])
def test_a_table_reads_padded_lookups_like_all_others(fields: tuple[int, ...] | None) -> None:
    layout, table, rows = Layout(SCHEMA, fields), Table(SCHEMA.total_vocab, 5, sd=1.0), batch()
    torch.testing.assert_close(table(layout.padded(rows)), table(layout(rows)))


def test_steps_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    table, steps = pruned(5, 0.5), batch().sequences["seen"]
    there, expected = steps >= 0, table(steps_lookup(steps, 40))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    lookup = steps_lookup(steps, 40)
    torch.testing.assert_close(table(lookup)[there], expected[there])
    assert isinstance(lookup, PaddedLookup)
    torch.testing.assert_close(PackedTable.of(table)(lookup)[there], expected[there])


@pytest.mark.parametrize("width", [1, 7, 8, 17])
@pytest.mark.parametrize("kept", [0.0, 0.2, 1.0])
def test_forward_is_the_tables(width: int, kept: float) -> None:
    table, lookup = pruned(width, kept), Layout(SCHEMA).padded(batch())
    assert torch.equal(PackedTable.of(table)(lookup), table(lookup))


def test_pruned_values_take_a_bit_and_rows_four_bytes() -> None:
    table = pruned(16, 0.2, rows=1000)
    assert table.mask is not None
    packed = PackedTable.of(table)
    sizes = {name: b.numel() * b.element_size() for name, b in packed.named_buffers()}
    assert sizes == {"values": 4 * (1 + int(table.mask.sum())), "starts": 4 * 1000, "bits": 1000 * 16 // 8, "powers": 8}
    assert not list(packed.parameters())


def test_a_table_that_was_never_pruned_has_nothing_to_pack() -> None:
    with pytest.raises(ValueError, match="mask"):
        PackedTable.of(Table(3, 2))
