"""The compiled kernels compute what torch's operations compute, in both directions, whatever the threads."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctrmodels import native
from ctrmodels.archspec import ArchSpec
from ctrmodels.data import Batch
from ctrmodels.data.planted import planted_pairs
from ctrmodels.multitask import MMoE
from ctrmodels.nn.flat import flat_width, lay_out, look_up
from ctrmodels.nn.table import Lookup, Table
from ctrmodels.nn.towers import MLP, LinearReLU, Logits
from ctrmodels.training import TrainConfig, fit, seed_everything
from ctrmodels.training.optimisers import LazyAdam, RowwiseAdagrad
from ctrmodels.zoo import DeepFM

VALUES, WIDTH, BATCH, FIELDS = 3000, 16, 700, 5


@pytest.fixture
def operations():  # type: ignore[no-untyped-def]
    found = native.kernels()
    assert found is not None, "this machine has no C++ compiler: the kernels cannot be tested"
    return found


@contextmanager
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(native, "_load", lambda: None)
        yield


def both(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """What ``compute`` gives with the kernels and without."""
    compiled = compute()
    with torch_alone(monkeypatch):
        return compiled, compute()


def close(pairs: tuple[list[Tensor], list[Tensor]], tolerance: float = 1e-5) -> None:
    for ours, theirs in zip(*pairs, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
        assert torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance * largest)


def zipf(rows: int, high: int, seed: int = 0) -> Tensor:
    """Row numbers of which a few have most, as in a log."""
    drawn = np.random.default_rng(seed).zipf(1.3, rows) % high
    return torch.from_numpy(drawn.astype(np.int32))


@pytest.mark.parametrize("high", [1, 7, 1 << 10, (1 << 10) + 1, 1 << 20, (1 << 31) - 1])
@pytest.mark.parametrize("rows", [1, 2, 70_000])
def test_look_ups_are_grouped_by_row_in_their_order(operations, monkeypatch, rows: int, high: int) -> None:
    index = torch.randint(0, high, (rows,), generator=torch.Generator().manual_seed(1)).int()
    index[-1] = high - 1

    def grouped() -> list[Tensor]:
        found = Lookup(index, None, (rows, 1)).segments
        return [found.rows, found.order, found.begins]

    for ours, theirs in zip(*both(monkeypatch, grouped), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 9_000])
def test_look_ups_of_fields_are_grouped_alike_whether_their_rows_are_apart_or_not(operations, monkeypatch, rows: int,
                                                                                 apart: bool) -> None:
    """Rows of 1, 2, 512, 513 and 200,000 kinds: one to three passes of the sort, and a field with a single row."""
    sizes = [1, 2, 512, 513, 200_000]
    drawn = torch.stack([zipf(rows, size, seed) for seed, size in enumerate(sizes)], 1)
    drawn[-1] = torch.tensor(sizes, dtype=torch.int32) - 1
    starts = np.cumsum(sizes) - sizes if apart else np.zeros(5)
    index = (drawn + torch.from_numpy(starts).int()).flatten()

    def grouped() -> list[Tensor]:
        found = Lookup(index, None, (rows, 5)).segments
        return [found.rows, found.order, found.begins]

    for ours, theirs in zip(*both(monkeypatch, grouped), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_a_batch_without_look_ups_has_no_rows(operations) -> None:
    assert [len(t) for t in operations.group(torch.zeros(0, dtype=torch.int32), 3)] == [0, 0, 0]


@pytest.mark.parametrize("width", [1, 3, WIDTH])
def test_tables_give_values_and_gradients_of_torch(operations, monkeypatch, width: int) -> None:
    lookup_of = zipf(BATCH * FIELDS, VALUES)

    def looked_up() -> list[Tensor]:
        torch.manual_seed(0)
        table = Table(VALUES, width, sd=1.0)
        lookup = Lookup(lookup_of, None, (BATCH, FIELDS))
        fields, sums = table(lookup), table.sums(lookup)
        (fields * torch.randn_like(fields)).sum().backward(retain_graph=True)
        (sums * torch.randn_like(sums)).sum().backward()
        assert table.weight.grad is not None
        return [fields.detach(), sums.detach(), table.weight.grad.to_dense()]

    close(both(monkeypatch, looked_up))


def test_rows_of_several_tables_are_gathered_at_once(operations) -> None:
    rows = torch.randint(0, 50, (40,), generator=torch.Generator().manual_seed(0))
    tables = [torch.randn(50, width) for width in (16, 8, 5)]
    for ours, table in zip(operations.gather_rows(tables, rows), tables, strict=True):
        assert torch.equal(ours, table[rows])


def test_a_row_that_is_not_there_is_refused(operations) -> None:
    table, index = torch.zeros(5, 2), torch.tensor([0, 5], dtype=torch.int32)
    for call in (lambda: operations.gather(table, index), lambda: operations.field_sums(table, index, 1),
                 lambda: operations.gather_rows([torch.zeros(9, 2), table], index.long()),
                 lambda: operations.gather_flat(table, index, torch.zeros(1, 0), 4, False, False, True),
                 lambda: operations.rowwise_adagrad(table, torch.zeros(5), index.long(), torch.ones(2, 2), 0.1, 1e-8)):
        with pytest.raises(IndexError, match="row 5 of a table of 5"):
            call()
    with pytest.raises(RuntimeError, match="negative"):
        operations.group(torch.tensor([3, -1], dtype=torch.int32), 1)
    with pytest.raises(RuntimeError, match="negative"):
        operations.group(torch.tensor([0, -1, 5, 6], dtype=torch.int32), 2)
    with pytest.raises(RuntimeError, match="3 look-ups are not rows of 2"):
        operations.group(torch.tensor([0, 1, 2], dtype=torch.int32), 2)


def test_a_tensor_of_another_type_is_refused(operations) -> None:
    with pytest.raises(RuntimeError, match=r"table has to be .*Float"):
        operations.gather(torch.zeros(5, 2).double(), torch.zeros(2, dtype=torch.int32))


@pytest.mark.parametrize("make", [LazyAdam, RowwiseAdagrad])
@pytest.mark.parametrize("width", [1, WIDTH])
def test_optimisers_take_the_steps_of_torch(operations, monkeypatch, make, width: int) -> None:
    def trained() -> list[Tensor]:
        torch.manual_seed(0)
        table = Table(VALUES, width, sd=1.0)
        optimiser = make([table.weight], lr=0.03)
        for step in range(5):
            optimiser.zero_grad()
            found = table(Lookup(zipf(BATCH * FIELDS, VALUES, step), None, (BATCH, FIELDS)))
            (found * torch.randn_like(found)).sum().backward()
            optimiser.step()
        return [table.weight.detach(), *(v for v in optimiser.state[table.weight].values())]

    close(both(monkeypatch, trained))


def test_rows_that_do_not_rise_are_seen(operations) -> None:
    assert operations.rising(torch.tensor([1, 4, 9])) and operations.rising(torch.zeros(0, dtype=torch.int64))
    assert not operations.rising(torch.tensor([1, 4, 4])) and not operations.rising(torch.tensor([2, 1]))


@pytest.mark.parametrize("numbers", [0, 3, 8])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_flat_features_are_those_of_torch(operations, monkeypatch, numbers: int, pairs: bool, precision) -> None:
    def laid_out() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        fields = torch.randn(BATCH, FIELDS, 7, generator=generator, requires_grad=True)
        numeric = torch.randn(BATCH, numbers, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            _, flat, sums = lay_out(fields, numeric, pairs)[:3]
        assert flat.shape == (BATCH, flat_width(FIELDS, 7, numbers)) and flat.dtype == precision
        pull = torch.randn(flat.shape, generator=generator).to(precision)
        ((flat * pull).sum() + (sums * torch.randn(sums.shape, generator=generator)).sum()).backward()
        return [flat.detach(), sums.detach(), fields.grad]

    close(both(monkeypatch, laid_out))


def test_the_columns_added_to_flat_are_zero() -> None:
    flat = lay_out(torch.ones(3, 2, 5), torch.ones(3, 1)).flat
    assert flat.shape == (3, 16) and flat[:, :11].eq(1).all() and flat[:, 11:].eq(0).all()


def test_pairs_alone_have_a_gradient(operations, monkeypatch) -> None:
    def pairs_alone() -> list[Tensor]:
        fields = torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
        lay_out(fields, torch.zeros(9, 0), pairs=True).pair_sum.sum().backward()
        return [fields.grad]

    close(both(monkeypatch, pairs_alone))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [7, WIDTH])
@pytest.mark.parametrize("used", [("flat",), ("pair_sum",), ("fields",), ("fields", "flat", "pair_sum")], ids="-".join)
@pytest.mark.parametrize("pruned", [False, True])
def test_rows_looked_up_in_all_forms_are_those_of_torch(
        operations, monkeypatch, precision, width: int, used: tuple[str, ...], pruned: bool) -> None:
    def looked_up() -> list[Tensor]:
        torch.manual_seed(0)
        table = Table(VALUES, width, sd=1.0)
        if pruned:
            table.prune(torch.rand(VALUES, width) < 0.5)
        lookup, numeric = Lookup(zipf(BATCH * FIELDS, VALUES), None, (BATCH, FIELDS)), torch.randn(BATCH, 3)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            forms = look_up(table, lookup, numeric, pairs=True)
        pulled = [(getattr(forms, name) * torch.randn(getattr(forms, name).shape).to(getattr(forms, name).dtype)).sum()
                  for name in used]
        torch.stack([p.float() for p in pulled]).sum().backward()
        assert table.weight.grad is not None
        return [*(form.detach() for form in forms[:3]), table.weight.grad.to_dense()]

    close(both(monkeypatch, looked_up), 1e-5 if precision == torch.float32 else 1e-4)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, BATCH, 5000])
@pytest.mark.parametrize("width_out", [None, 1, 2])
@pytest.mark.parametrize("by_layer", [False, True], ids=["whole", "by_layer"])
def test_layers_are_those_of_torch(operations, monkeypatch, precision, rows: int, width_out, by_layer: bool) -> None:
    """Whether they are one node of the graph or one each, and whatever they end with."""
    def passed() -> list[Tensor]:
        torch.manual_seed(0)
        net = MLP(37, (50, 33), width_out=width_out)
        assert [type(m) for m in net] == [LinearReLU, LinearReLU, Logits][:len(net)]
        x = torch.randn(rows, 37, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = nn.Sequential(*net)(x) if by_layer else net(x)
        (out.float().square() + out.float()).sum().backward()
        return [out.detach(), x.grad, *(p.grad for p in net.parameters())]

    close(both(monkeypatch, passed), 1e-4 if precision == torch.float32 else 0.03)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_columns_that_are_constant_change_no_other_gradient(operations, precision) -> None:
    torch.manual_seed(0)
    net, gradients = MLP(37, (50, 33), width_out=1), []
    x = torch.randn(300, 37, requires_grad=True)
    for constant in (0, 32):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = net(x, constant)
        own, *others = torch.autograd.grad(out.square().sum(), [x, *net.parameters()])
        gradients.append([own[:, 32:], *others])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_layers_leave_what_they_were_given_as_it_is(operations) -> None:
    """Gradients are overwritten inside only: the input, and a gradient that another branch sees too, are not."""
    torch.manual_seed(0)
    net, x = MLP(8, (6, 5)), torch.randn(40, 8, requires_grad=True)
    before, out = x.detach().clone(), net(x)
    pulled = torch.ones_like(out)
    out.backward(pulled)
    assert torch.equal(x, before) and (pulled == 1).all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("gates", "experts", "width"), [(2, 8, 64), (3, 5, 11), (1, 1, 1), (1, 2, 16)])
def test_experts_are_those_of_torch(operations, monkeypatch, precision, gates: int, experts: int, width: int) -> None:
    """As vectors: a ReLU rounded to the other side of 0 moves single values. One expert's gate has no gradient."""
    def passed() -> list[Tensor]:
        torch.manual_seed(0)
        trunk = MMoE(37, gates, experts, (width,))
        x = torch.randn(300, 37, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = torch.cat(trunk(x), 1)
        (out.float().square() + torch.arange(out.shape[1]) * out.float()).sum().backward()
        return [out.detach(), x.grad, *(p.grad for p in trunk.parameters() if experts > 1 or p is not trunk.gate)]

    for ours, theirs in zip(*both(monkeypatch, passed), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert (ours.float() - theirs.float()).norm() <= (1e-5 if precision == torch.float32 else 0.02) * theirs.norm()


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_a_gate_that_is_sure_neither_overflows_nor_passes_on_anything_but_its_expert(operations, logit: float) -> None:
    z = torch.zeros(5, 2 * 3 + 2)
    z[:, :6] = torch.tensor([1.0, -1.0, 2.0, 3.0, 4.0, -5.0])
    z[:, 6] = logit
    bias = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 4.5]])
    mixed, gates = operations.mix(z, bias, 1)
    first = logit > 0
    assert torch.equal(gates[:, 0], torch.tensor([float(first), float(not first)]).expand(5, 2))
    assert torch.equal(mixed[0], torch.tensor([1.0, 0.0, 2.0] if first else [4.0, 4.0, 0.0]).expand(5, 3))
    of_z, of_bias = operations.mix_backward(torch.ones(1, 5, 3), z, bias, gates)
    expected = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0] if first else [0.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    assert torch.equal(of_z, torch.cat([expected, torch.zeros(2)]).expand(5, 8))
    assert torch.equal(of_bias, 5 * expected.view(2, 3))


def test_dropout_comes_between_experts_and_gates(operations) -> None:
    """What the pass over all of a mixture leaves out: with dropout the parts are computed one by one."""
    torch.manual_seed(0)
    trunk, x = MMoE(37, 2, 4, (16,), dropout=0.5), torch.randn(64, 37)
    trained = torch.stack(trunk(x))
    trunk.eval()
    served = torch.stack(trunk(x))
    assert not torch.allclose(trained, served, rtol=0.01)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(trunk(x)), served)


def test_rows_of_all_columns_are_those_of_torch(operations, monkeypatch) -> None:
    columns = Batch(torch.arange(90, dtype=torch.int32).view(30, 3), torch.randn(30, 2),
                    {"history": torch.arange(150, dtype=torch.int32).view(30, 5)}, torch.randn(30, 1),
                    torch.arange(30, dtype=torch.int32))
    index = torch.randint(30, (500,))

    def taken() -> list[Tensor]:
        found = columns.select(index)
        return [found.ids, found.numeric, found.sequences["history"], found.labels, found.position]

    ours, theirs = both(monkeypatch, taken)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    with pytest.raises(IndexError, match="row 30 of a table of 30"):
        columns.select(torch.tensor([1, 30]))


def test_a_layer_without_gradient_is_the_same_layer(operations) -> None:
    layer, x = LinearReLU(20, 10), torch.randn(30, 20)
    with torch.no_grad():
        without = layer(x)
    assert torch.allclose(layer(x), without, atol=1e-6) and (without == 0).any()


def by_hand(x: Tensor, weights: Tensor | None, slots: Tensor) -> Tensor:
    """[B, M]: the sum over d of the weighted products of the fields in every column of ``slots``."""
    product = x[:, slots].prod(1)
    return (product if weights is None else product * weights).sum(2)


@pytest.mark.parametrize("weighted", ["", "one", "each"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("width", [1, 5, 16, 20])
def test_products_are_written_beside_each_other_and_differentiate(operations, width: int, order: int, weighted) -> None:
    """Vectors that fill a register, parts of one or several; rows and combinations that fill none."""
    generator = torch.Generator().manual_seed(0)
    fields, rows = 7, 37
    slots = torch.combinations(torch.arange(fields), order).flip(0)[::2].T.contiguous()
    m = slots.shape[1]
    x = torch.randn(rows, fields, width, generator=generator, dtype=torch.float64)
    shape = (m, width if weighted == "each" else 1)
    w = torch.randn(shape, generator=generator, dtype=torch.float64) if weighted else None
    g = torch.randn(rows, m + 5, generator=generator)
    out = torch.full((rows, m + 5), 7.0)
    x32, w32 = x.float(), None if w is None else w.float()
    operations.products(x32, None, w32, slots, out, 3)
    assert (out[:, :3] == 7).all() and (out[:, m + 3:] == 7).all()
    leaves = [t.requires_grad_() for t in (x, w) if t is not None]
    expected = by_hand(x, w, slots)
    gradients = torch.autograd.grad(expected, leaves, g[:, 3:m + 3].double())
    found = operations.products_backward(g, 3, x32, None, None, w32, slots)
    for mine, theirs in zip([out[:, 3:m + 3], *found], [expected, *gradients], strict=False):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("onto", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 5, 16, 20])
@pytest.mark.parametrize("rows", [1, 37, 80])
def test_projections_are_a_matrix_product(operations, rows: int, width: int, onto: int) -> None:
    """In both directions; of vectors that fill a register, parts of one or several, and rows that fill none."""
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(n, width, generator=generator) for n in (rows, onto))
    g = torch.randn(rows, onto, generator=generator)
    found = operations.project(x, v), *operations.project_backward(g, x, v)
    leaves = [t.double().requires_grad_() for t in (x, v)]
    expected = leaves[0] @ leaves[1].T
    for mine, theirs in zip(found, (expected, *torch.autograd.grad(expected, leaves, g.double())), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def normalised(x: Tensor, eps: Tensor) -> Tensor:
    """[B, M], each column less its mean and over the root of its variance and ``eps``."""
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + eps).sqrt()


@pytest.mark.parametrize("closed", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("weighted", ["", "one", "each"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("width", [1, 5, 16, 20])
@pytest.mark.parametrize("rows", [2, 37, 80])
def test_gated_products_are_normalised_and_added_up(
        operations, rows: int, width: int, order: int, weighted: str, every: int, closed: float) -> None:
    """In both directions: of fewer rows than are computed at once, of whole tiles and of more; of some combinations
    out of order and of all, of columns that hardly vary, of gates that are zero, which learn all the same, and of
    fields that lie in rows of something wider."""
    generator = torch.Generator().manual_seed(0)
    fields = 7
    slots = torch.combinations(torch.arange(fields), order).flip(0)[::every].T.contiguous()
    m = slots.shape[1]
    wide = torch.randn(rows, fields * width + 3, generator=generator)
    wide[:, :width] = 0.01 * wide[:, :width] + 1
    x32 = wide[:, :fields * width].unflatten(1, (fields, width))
    w32 = torch.randn(m, width if weighted == "each" else 1, generator=generator) if weighted else None
    gates, eps, g = torch.randn(m, generator=generator), torch.full((m,), 0.1), torch.randn(rows, generator=generator)
    gates *= torch.rand(m, generator=generator) >= closed
    total, means, variances, kept = operations.gated_products(x32, None, w32, slots, gates, eps)
    found = operations.gated_products_backward(g, x32, None, None, w32, slots, gates, eps, means, variances, kept)
    leaves = [t.double().requires_grad_() for t in (x32, gates, *([] if w32 is None else [w32]))]
    products = by_hand(leaves[0], leaves[2] if weighted else None, slots)
    expected = normalised(products, eps) @ leaves[1]
    of_fields, of_gates, *of_weights = torch.autograd.grad(expected, leaves, g.double())
    pairs = [(total, expected), (means, products.mean(0)), (variances, products.var(0, unbiased=False)),
             (found[0], of_fields), (found[2], of_gates), *zip(found[1:2], of_weights, strict=False)]
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))
    assert found[2].all()


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize("weighted", ["", "one", "each"])
@pytest.mark.parametrize("width", [1, 5, 16, 20])
@pytest.mark.parametrize("rows", [2, 37, 80])
def test_products_of_vectors_by_place_are_those_of_the_looked_up_ones(
        operations, rows: int, width: int, weighted: str, own: int) -> None:
    """Both kernels, in both directions: vectors of which a look-up has one or several, and which many, few or single
    look-ups have. A vector's gradient is the sum of its look-ups'."""
    generator = torch.Generator().manual_seed(0)
    fields, sizes = 5, torch.tensor([1, 2, 10, 1000, 3])
    ids = (torch.rand(rows, fields, generator=generator) * sizes).int() + torch.tensor([0, 1, 3, 13, 1013]).int()
    found = Lookup(ids.flatten(), None, (rows, fields))
    places, begins = found.places.view(rows, fields), found.segments.begins
    vectors = torch.randn(len(begins), own, width, generator=generator)
    looked_up = vectors[places.long()].flatten(1, 2).contiguous()
    slots = torch.combinations(torch.arange(fields * own)).T.contiguous()
    m = slots.shape[1]
    w = torch.randn(m, width if weighted == "each" else 1, generator=generator) if weighted else None
    gates, eps, g = torch.randn(m, generator=generator), torch.full((m,), 0.1), torch.randn(rows, generator=generator)
    gates[::3] = 0
    of_products = torch.randn(rows, m, generator=generator)
    pairs: list[tuple[Tensor, Tensor]] = []
    ours, theirs = torch.empty(rows, m), torch.empty(rows, m)
    operations.products(vectors, places, w, slots, ours, 0)
    operations.products(looked_up, None, w, slots, theirs, 0)
    pairs += [(ours, theirs), *zip(operations.products_backward(of_products, 0, vectors, places, begins, w, slots),
                                   operations.products_backward(of_products, 0, looked_up, None, None, w, slots),
                                   strict=True)]
    mine = operations.gated_products(vectors, places, w, slots, gates, eps)
    other = operations.gated_products(looked_up, None, w, slots, gates, eps)
    pairs += [*zip(mine, other, strict=True),
              *zip(operations.gated_products_backward(g, vectors, places, begins, w, slots, gates, eps, *mine[1:]),
                   operations.gated_products_backward(g, looked_up, None, None, w, slots, gates, eps, *other[1:]),
                   strict=True)]
    for ours, theirs in pairs:
        if theirs.shape == looked_up.shape:
            theirs = torch.zeros_like(vectors).index_add_(0, found.places.long(), theirs.view(-1, own, width))
        largest = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * largest)


def test_a_place_behind_the_last_vector_is_refused(operations) -> None:
    slots, out = torch.tensor([[0], [1]]), torch.empty(1, 1)
    for place in (-1, 3):
        with pytest.raises(IndexError, match="a place behind the last of 3"):
            operations.products(torch.randn(3, 1, 4), torch.tensor([[0, place]]).int(), None, slots, out, 0)


def test_variances_of_columns_far_from_zero_keep_their_digits(operations) -> None:
    """A mean of a thousand standard deviations: squares of the values themselves would leave none."""
    spread = 1 + 1e-3 * torch.randn(4096, 1, 1, generator=torch.Generator().manual_seed(0))
    x, slots, one = torch.cat([spread, torch.ones(4096, 1, 1)], 1), torch.tensor([[0], [1]]), torch.ones(1)
    _, mean, variance, _ = operations.gated_products(x, None, None, slots, one, one)
    assert float(mean) == pytest.approx(float(spread.double().mean()), rel=1e-6)
    assert float(variance) == pytest.approx(float(spread.double().var(unbiased=False)), rel=1e-4)
    naive = float(spread.square().mean() - spread.mean().square())
    assert naive != pytest.approx(float(variance), rel=1e-2)


def test_rows_that_never_moved_catch_up_as_each_does_alone(operations) -> None:
    """Also where rows that begin elsewhere, or that moved before, lie between them."""
    n, width, step = 50, 16, 400
    start = torch.full((n, width), -7.0)
    start[::7] = torch.linspace(-6.0, -5.0, width)
    last = torch.zeros(n, dtype=torch.int32)
    last[::5] = 30
    first = torch.where(last.unsqueeze(1) > 0, 1e-3, 0.0).expand(n, width).contiguous()
    settings = 0.02, 0.9, 0.999, 1e-8, 1e-5, step

    def moved(rows: Tensor) -> list[Tensor]:
        state = [start.clone(), first.clone(), first.square(), last.clone()]
        operations.coupled_adam(*state, rows, None, *settings)
        return [t[rows] for t in state]

    alone = [torch.cat(parts) for parts in zip(*(moved(torch.tensor([r])) for r in range(n)), strict=True)]
    for together, each in zip(moved(torch.arange(n)), alone, strict=True):
        assert torch.equal(together, each)


@pytest.mark.parametrize("width", [16, 5])
def test_thresholds_that_are_late_soften_as_if_they_had_caught_up_before(operations, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    n, step = 60, 90
    table = 0.02 * torch.randn(n, width, generator=generator)
    last = torch.randint(0, step + 1, (n,), generator=generator, dtype=torch.int32)
    first = torch.where(last.unsqueeze(1) > 0, 1e-5 * torch.randn(n, width, generator=generator), 0.0)
    state = [torch.randn(n, width, generator=generator) - 5, first, first.square(), last]
    rows, settings = torch.arange(0, n, 2), (0.02, 0.9, 0.999, 1e-8, 1e-5, step)
    apart, at_once = ([t.clone() for t in state] for _ in range(2))
    operations.coupled_adam(*apart, rows, None, *settings)
    expected = operations.soften(table, apart[0], rows)
    found = operations.soften_late(table, *at_once, rows, *settings)
    for a, b in zip([*expected, *apart], [*found, *at_once], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(at_once[0], state[0]) and torch.equal(at_once[0][1::2], state[0][1::2])


def test_sums_are_the_same_bits_on_any_number_of_threads(operations) -> None:
    """Also with more threads than this machine has: how work is split never decides how numbers are added up."""
    data = planted_pairs(0, rows=6000)
    batch = data.roles["train"].take(slice(0, 4096))

    def gradients(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            table, lookup = torch.arange(4096 * 16.0).view(-1, 16).sin(), batch.ids.flatten() % 4096
            gradient = table.cos().repeat(len(lookup) // 4096 + 1, 1)[:len(lookup)].contiguous()
            rows, order, begins = operations.group(lookup, 1)
            hidden = gradient[:4096].bfloat16()
            f = batch.ids.shape[1]
            by_field = (batch.ids + torch.arange(f, dtype=torch.int32) * (batch.ids.max() + 1)).flatten()
            numeric = table[:, :3].contiguous()
            vectors, slots = gradient[:4096 * f].view(4096, f, 16), torch.combinations(torch.arange(f)).T.contiguous()
            products = torch.empty(4096, slots.shape[1])
            operations.products(vectors, None, None, slots, products, 0)
            weights = table[:slots.shape[1]].contiguous()
            z, offsets = hidden[:, :15].contiguous(), table[:3, :4].contiguous()
            mixed, shares = operations.mix(z, offsets, 1)
            fields, flat, sums, total = operations.gather_flat(table, lookup, numeric, f * 16 + 3, True, True, True)
            gates, gated = torch.ones(slots.shape[1]), []
            found = Lookup(by_field, None, (4096, f))
            by_row = torch.randn(len(found.segments.rows), 1, 16, generator=torch.Generator().manual_seed(0))
            for w in (None, weights):
                for x, places, starts in ((vectors, None, None),
                                          (by_row, found.places.view(4096, f), found.segments.begins)):
                    out, *moments = operations.gated_products(x, places, w, slots, gates, gates)
                    gated += [out, *moments, *operations.gated_products_backward(
                        out, x, places, starts, w, slots, gates, gates, *moments)]
            return [*gated, *operations.project_backward(table[:, :2].contiguous(), table, table[:2].contiguous()),
                    products, *operations.products_backward(products, 0, vectors, None, None, weights, slots),
                    rows, order, begins, *operations.group(by_field, f),
                    operations.gather(table, lookup), fields, flat, sums, total,
                    operations.gather_flat_backward(flat, fields, sums, fields, total, order, begins),
                    operations.field_sums_backward(gradient[:4096].contiguous(), order, begins, f),
                    operations.relu_backward(hidden, hidden.flip(0).contiguous(), torch.empty_like(hidden)),
                    *operations.dot_relu_backward(table[:, 0].contiguous(), hidden, table[1].clone()),
                    *operations.dot_backward(table[:, 0].contiguous(), gradient[:4096].contiguous(), table[1].clone()),
                    *operations.mix_backward(mixed, z, offsets, shares)]
        finally:
            torch.set_num_threads(before)

    for one, four in zip(gradients(1), gradients(4), strict=True):
        assert torch.equal(one, four)


def test_a_training_without_kernels_ends_at_the_same_metric(operations, monkeypatch, caplog) -> None:
    data = planted_pairs(0, rows=6000)

    def trained() -> float:
        seed_everything(0)
        model = DeepFM(data.schema, ArchSpec.dense(data.schema, 8), "click", (16,))
        result = fit(model, data.roles["train"], data.roles["valid"], TrainConfig(epochs=2, batch_size=256),
                     lambda scores, _: float(next(iter(scores.values())).mean()))
        return result.history[-1]["loss"]

    ours = trained()
    with torch_alone(monkeypatch):
        assert trained() == pytest.approx(ours, abs=1e-4)


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch, tmp_path: Path, caplog) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert native._load.__wrapped__() is None
    assert "training without compiled kernels" in caplog.text and "install g++" in caplog.text


def test_a_failing_compiler_is_quoted(monkeypatch, tmp_path: Path, caplog) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'no space left' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert native._load.__wrapped__() is None
    assert "no space left" in caplog.text
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_the_library_is_compiled_once_and_again_for_another_compiler(operations, monkeypatch, tmp_path: Path) -> None:
    first = native.build()
    monkeypatch.setattr(subprocess, "run", _only_versions(subprocess.run))
    assert native.build() == first
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DOTHER"))
    with pytest.raises(AssertionError, match="compiles"):
        native.build()


def _only_versions(run):  # type: ignore[no-untyped-def]
    def checked(command, **options):  # type: ignore[no-untyped-def]
        assert command[1:] == ["--version"], "compiles"
        return run(command, **options)
    return checked


def test_other_devices_and_exports_use_torch() -> None:
    assert native.kernels(torch.zeros(1, device="meta")) is None
    seen = []

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(native.kernels(x))
            return x + 1

    torch.export.export(Model(), (torch.zeros(3),))
    assert seen and all(found is None for found in seen)
