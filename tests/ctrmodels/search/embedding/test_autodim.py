"""AutoDim gives width to the fields that need it (calibrated); random widths do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from ctrmodels.archspec import ArchSpec, FieldDimMask, PerField
from ctrmodels.data.planted import Planted, planted_widths
from ctrmodels.nn.table import Layout
from ctrmodels.search import AutoDim, Host, SearchRows, UniformWidth, random_control, retrain
from ctrmodels.search.bilevel import set_gradients
from ctrmodels.search.relaxation import MixtureEmbedding, PrefixMixture, WidthChoice
from ctrmodels.training import TrainConfig
from ctrmodels.training.trainer import Trainer

SHARED = AutoDim(candidates=(2, 8, 16), learning_rate=0.01, warm_up=0.3, every=1, epochs=20)
SEARCH = replace(SHARED, layout="separate", projection="linear")
LAYOUTS = {"shared": SHARED, "separate": SEARCH}
HOST = Host("click", dim=16, hidden=(32,), gate_init=0.1,
            train=TrainConfig(epochs=15, patience=2, batch_size=500, learning_rate=5e-3))


def rows_of(log: Planted) -> SearchRows:
    return SearchRows(log.roles["train"], log.roles["arch"])


def assert_width_where_needed(widths: Sequence[Sequence[int]]) -> None:
    """One-sided permutation test: fields 0 and 1 are wider than the others, pooled over the seeds."""
    table = np.array(widths, float)
    observed = table[:, :2].mean() - table[:, 2:].mean()
    rng = np.random.default_rng(0)
    shuffled = np.array([rng.permuted(table, axis=1) for _ in range(2000)])
    null = shuffled[:, :, :2].mean((1, 2)) - shuffled[:, :, 2:].mean((1, 2))
    assert (1 + (null >= observed).sum()) / 2001 < 0.05


def assert_retrain_well(specs: Sequence[ArchSpec], logs: Sequence[Planted]) -> None:
    """As good as the widest everywhere and better than random widths each time; 40 % fewer values on average."""
    auc, size = [], []
    for seed, (spec, log) in enumerate(zip(specs, logs, strict=True)):
        rows = rows_of(log)
        dense = UniformWidth().search(rows, HOST, seed).specs["uniform"]
        trained = [retrain(s, rows, log.roles["valid"], HOST, seed)
                   for s in (dense, spec, random_control(spec, log.schema, seed))]
        auc.append([t.valid["auc"] for t in trained])
        size.append([t.cost.parameters_embedding for t in trained])
    for dense_auc, found_auc, random_auc in auc:
        assert found_auc >= dense_auc - 0.002
        assert found_auc > random_auc
    assert np.mean(size, 0)[1] <= 0.6 * np.mean(size, 0)[0]


def widths(spec: ArchSpec) -> list[int]:
    """Width of every id space."""
    alloc = spec.alloc
    return alloc.mask.sum(1).tolist() if isinstance(alloc, FieldDimMask) else list(alloc.dims)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fields_that_interact_get_the_width(layout):
    log = planted_widths(0)
    spec = LAYOUTS[layout].search(rows_of(log), HOST, 0).specs["autodim"]
    assert min(widths(spec)[:2]) > np.mean(widths(spec)[2:])
    assert_retrain_well([spec], [log])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fields_that_interact_get_the_width_over_five_seeds(layout):
    logs = [planted_widths(seed) for seed in range(5)]
    specs = [LAYOUTS[layout].search(rows_of(log), HOST, seed).specs["autodim"] for seed, log in enumerate(logs)]
    assert_width_where_needed([widths(spec) for spec in specs])
    assert_retrain_well(specs, logs)


def test_judged_on_the_rows_that_weights_learn_from_the_widest_wins_everywhere():
    """Ablation: one-level. There is no penalty on size, so that only rows of their own favour small widths."""
    log = planted_widths(0)
    spec = SHARED.search(SearchRows(log.roles["train"], log.roles["train"]), HOST, 0).specs["autodim"]
    with pytest.raises(AssertionError):
        assert_width_where_needed([widths(spec)] * 5)
    assert widths(spec) == [16] * 8


def test_a_penalty_on_size_makes_widths_smaller():
    log = planted_widths(0, rows=4000)
    short = replace(SHARED, epochs=6, learning_rate=0.05)
    free, priced = (replace(short, size_penalty=weight).search(rows_of(log), HOST, 0).specs["autodim"]
                    for weight in (0.0, 100.0))
    assert sum(widths(priced)) < sum(widths(free)) and widths(priced) == [2] * 8


def test_random_widths_fail_the_same_tests():
    rng = np.random.default_rng(1)
    with pytest.raises(AssertionError):
        assert_width_where_needed(rng.choice([2, 8, 16], (5, 8)))
    log = planted_widths(0)
    stub = ArchSpec.of(log.schema, "stub", 16, alloc=PerField((2, 8, 16, 2, 8, 2, 8, 2)),
                       config={"candidates": (2, 8, 16)})
    with pytest.raises(AssertionError):
        assert_retrain_well([stub], [log])


def test_temperature_is_one_through_the_warm_up_then_falls_to_its_floor():
    values = [SEARCH.temperature(f) for f in (0.0, 0.3, 0.65, 1.0)]
    assert values == pytest.approx([1.0, 1.0, 0.505, 0.01])


def test_probabilities_sum_to_one_and_carry_noise_only_while_training():
    choice = WidthChoice(8, (2, 8))
    choice.uniform = False
    with torch.no_grad():
        choice.theta[0, 1] = 2.0
    noisy = choice.train()(), choice()
    assert not torch.equal(*noisy)
    quiet = choice.eval()(), choice()
    assert torch.equal(*quiet)
    for p in (*noisy, *quiet):
        assert torch.allclose(p.sum(1), torch.ones(8))
    assert quiet[0][0, 1].item() == pytest.approx(torch.softmax(torch.tensor([0.0, 2.0]), 0)[1].item())


@pytest.mark.parametrize("training", [True, False])
def test_prefixes_of_one_table_are_its_candidates_filled_with_zeros(training):
    """The quick form against the plain one: values, and gradients of table and logits."""
    log = planted_widths(0, rows=2000)
    batch = log.roles["train"].take(slice(0, 700))
    found = []
    for make in (PrefixMixture, lambda *a: MixtureEmbedding(*a, shared=True, projected=False)):
        torch.manual_seed(0)
        embedding = make(log.schema, (2, 8, 16)).train(training)
        table = embedding.table if isinstance(embedding, PrefixMixture) else embedding.tables[0]
        embedding.choice.uniform = False
        with torch.no_grad():
            embedding.choice.theta.copy_(torch.randn(8, 3))
        lookup = Layout(log.schema)(batch)
        torch.manual_seed(1)
        out = embedding(batch, lookup)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        found.append((out.detach(), table.weight.grad.to_dense(), embedding.choice.theta.grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_the_second_order_gradient_is_that_of_the_loss_one_step_ahead():
    """Against the difference of ``L_arch(W - rate grad L_train(W, theta), theta)`` in theta, on a smooth host."""
    log = planted_widths(0, rows=3000)
    torch.manual_seed(0)
    embedding = PrefixMixture(log.schema, (2, 8, 16))
    network = replace(HOST, hidden=()).build(log.schema, ArchSpec.dense(log.schema, 16), embedding)
    trainer = Trainer(network, HOST.train)
    train, arch = (log.roles["train"].take(slice(a, a + 500)) for a in (0, 500))
    theta, embedding.choice.uniform = embedding.choice.theta, False
    weights = [p for p in network.parameters() if p is not theta]
    rate, before = 0.1, [p.detach().clone() for p in network.parameters()]

    def ahead() -> float:
        torch.manual_seed(3)
        gradients = torch.autograd.grad(trainer.loss(train), weights, allow_unused=True)
        saved = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, g in zip(weights, gradients, strict=True):
                if g is not None:
                    w -= rate * (g.to_dense() if g.is_sparse else g)
            torch.manual_seed(3)
            loss = trainer.loss(arch).item()
            for w, old in zip(weights, saved, strict=True):
                w.copy_(old)
        return loss

    torch.manual_seed(3)
    set_gradients([theta], trainer, arch, train, rate)
    exact = theta.grad.clone()
    torch.manual_seed(3)
    set_gradients([theta], trainer, arch)
    first = theta.grad.clone()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    direction = exact / exact.norm()
    sides = []
    for by in (0.05, -0.05):
        with torch.no_grad():
            theta += by * direction
        sides.append(ahead())
        with torch.no_grad():
            theta -= by * direction
    slope = (sides[0] - sides[1]) / 0.1
    assert slope == pytest.approx(float(exact.norm()), rel=0.01)
    assert abs(slope - float((first * direction).sum())) > 0.1 * slope  # the look-ahead is not nothing


def test_a_search_with_the_look_ahead_runs():
    log = planted_widths(0, rows=2000)
    found = replace(SHARED, order="second", epochs=2).search(rows_of(log), HOST, 0)
    assert set(widths(found.specs["autodim"])) <= {2, 8, 16}


def test_a_candidate_wider_than_the_host_is_refused():
    log = planted_widths(0, rows=1000)
    with pytest.raises(ValueError, match="exceeds"):
        AutoDim(candidates=(2, 32)).search(rows_of(log), HOST, 0)


def test_every_order_of_candidates_means_the_same_widths():
    """``chosen`` reads the candidate, not its place."""
    for order in permutations((2, 8, 16)):
        choice = WidthChoice(8, order)
        with torch.no_grad():
            choice.theta[:, order.index(8)] = 1.0
        assert choice.chosen() == (8,) * 8
