"""Mixtures of widths: kernels compute what torch computes, and passes over one batch share what they may."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrmodels import native
from ctrmodels.data.dataset import Batch
from ctrmodels.data.schema import Field, Objective, Schema
from ctrmodels.nn.table import Layout, Lookup
from ctrmodels.search.popularity import PopularityMixture

SCHEMA = Schema(
    (Field("user", "categorical", 700, "user"), Field("sex", "categorical", 3, "user"),
     Field("item", "categorical", 1500, "item"), Field("size", "numeric", 150),
     Field("shop", "categorical", 120, "item")),
    (Objective("click"),), {}, vocab_hash="v", roles_hash="r")
ROWS = 4000


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def batch_of(seed: int = 0) -> Batch:
    """Ids of which a few have most look-ups, as in a log; more rows than one part of a kernel's work."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.zipf(1.2, ROWS) % f.vocab for f in SCHEMA.id_fields], 1).astype(np.int32)
    return Batch(torch.from_numpy(ids), torch.zeros(ROWS, 0), {}, torch.zeros(ROWS, 1), torch.zeros(ROWS))


def mixture_of(candidates: tuple[int, ...], dim: int, context: bool = False) -> PopularityMixture:
    """After some popularity, with controllers that tell buckets apart, and values far from zero."""
    torch.manual_seed(0)
    mixture = PopularityMixture(SCHEMA, candidates, dim, context=context)
    with torch.no_grad():
        mixture.table.weight.normal_(3.0, 0.5)
        for parameter in mixture.controllers.parameters():
            parameter.normal_(std=0.3)
    mixture.occurrences.copy_(torch.randint(0, 600, mixture.occurrences.shape))
    return mixture


def passed(mixture: PopularityMixture, lookup: Lookup) -> list[Tensor]:
    """Values, and the gradients of all parameters."""
    mixture.zero_grad()
    values = mixture(batch_of(), lookup)
    (values * torch.arange(values.numel()).view_as(values).sin()).sum().backward()
    gradients = [p.grad for p in mixture.parameters() if p.grad is not None]
    return [values.detach(), *(g.to_dense() for g in gradients)]


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("candidates, dim", [((2, 16), 16), ((2, 3, 6), 7), ((4, 8), 20), ((5,), 16)])
def test_kernels_compute_what_torch_computes(candidates, dim, context, monkeypatch):
    assert native.kernels() is not None, "this machine has no C++ compiler: the kernels cannot be tested"
    lookup = Layout(SCHEMA)(batch_of())
    found = []
    for alone in (False, True):
        with monkeypatch.context() as patch:
            if alone:
                patch.setattr(native, "_load", lambda: None)
            mixture = mixture_of(candidates, dim, context)
            values = passed(mixture, lookup)
            spaces = mixture.takes.nonzero().squeeze(1)  # nobody reads the others' statistics
            found.append([*values, mixture.norm.mean[spaces], mixture.norm.variance[spaces]])
    assert len(found[0]) == len(found[1]) > 4
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 5e-5 * theirs.norm()


def test_spaces_that_take_no_part_have_their_plain_rows():
    mixture, batch = mixture_of((2, 8), 8), batch_of()
    values = mixture(batch, Layout(SCHEMA)(batch))
    rows = batch.ids[:, 1].long() + SCHEMA.offsets["sex"]
    assert torch.equal(values[:, 1], mixture.table.weight[rows, :8])
    assert not torch.allclose(values[:, 0], mixture.table.weight[batch.ids[:, 0].long(), :8], atol=0.5)


def test_the_number_of_threads_decides_no_bit():
    lookup, found = Layout(SCHEMA)(batch_of()), []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        found.append(passed(mixture_of((2, 16), 16), lookup))
    of_kernels = [0, -3, -2, -1]  # values, table and maps; torch's layer norms have sums of their own
    assert all(torch.equal(found[0][i], found[1][i]) for i in of_kernels)


@pytest.mark.parametrize("compiled", [True, False])
def test_passes_over_one_batch_share_its_candidates_and_its_statistics_count_once(compiled, monkeypatch):
    """A pass for the controllers, then one for the weights: the second is the same as if it were alone."""
    if not compiled:
        monkeypatch.setattr(native, "_load", lambda: None)
    lookup, alone, shared = Layout(SCHEMA)(batch_of()), mixture_of((2, 16), 16), mixture_of((2, 16), 16)
    expected = passed(alone, lookup)
    weights = [p for name, p in shared.named_parameters() if not name.startswith("controllers")]
    with shared.sharing():
        for parameter in weights:
            parameter.requires_grad_(False)
        of_controllers = passed(shared, lookup)
        assert all(p.grad is None for p in weights)
        for parameter in weights:
            parameter.requires_grad_(True)
        ours = passed(shared, lookup)
    assert torch.equal(of_controllers[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert torch.equal(shared.norm.mean, alone.norm.mean) and torch.equal(shared.norm.variance, alone.norm.variance)


def test_what_was_shared_ends_with_its_batch():
    """Else the pass after a step of the weights would find the weights of before."""
    lookup, mixture = Layout(SCHEMA)(batch_of()), mixture_of((2, 16), 16)
    with mixture.sharing():
        before = passed(mixture, lookup)[0]
        with pytest.raises(AssertionError, match="several batches"):
            passed(mixture, Layout(SCHEMA)(batch_of(1)))
    with torch.no_grad():
        mixture.table.weight.normal_()
    assert not torch.allclose(passed(mixture, lookup)[0], before, atol=0.1)
