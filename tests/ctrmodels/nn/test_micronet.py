"""Micro-networks computed in groups are what each computes by itself."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ctrmodels.archspec import ArchSpec, Interaction, Uniform, all_pairs
from ctrmodels.multitask import ModelConfig, build_model
from ctrmodels.nn import micronet
from ctrmodels.nn.embedding import INIT_SD
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.nn.micronet import CONCAT, HADAMARD, PRODUCT, SUM, MicroNets
from tests.ctrmodels.zoo.every_kind import DIM, SCHEMA, draw

FIELDS, ROWS = 6, 5


def networks(seed: int = 0, n_slots: int = 4) -> list[Interaction]:
    """All pairs and triples of the fields, with random genes of every length."""
    rng = np.random.default_rng(seed)
    return [Interaction(fields, "micronet", genes=tuple(rng.integers(1, 5, rng.integers(1, n_slots + 1)).tolist()))
            for p in (2, 3) for fields in combinations(range(FIELDS), p)]


def embeddings(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, FIELDS, DIM, generator=torch.Generator().manual_seed(1))


def parameters_of(module: MicroNets) -> list[list[tuple[Tensor, Tensor] | None]]:
    """Of every micro-network, in the order of ``module.interactions``: weight and bias of each of its slots."""
    found: list[list[tuple[Tensor, Tensor] | None]] = [[] for _ in module.interactions]
    by_fields = {i.fields: m for m, i in enumerate(module.interactions)}
    for order in module.orders:
        for slot in order.slots:
            own = [None if o.weight is None else (o.weight[n], o.bias[n]) for o in slot.operations for n in range(o.n)]
            for fields, parameters in zip(slot.fields.T.tolist(), own, strict=True):
                found[by_fields[tuple(fields)]].append(parameters)
    return found


def by_itself(interaction: Interaction, parameters: list[tuple[Tensor, Tensor] | None], fields: Tensor) -> Tensor:
    """[B, F, D] → [B, D], slot by slot as the definition says."""
    raw, output = [fields[:, f] for f in interaction.fields], None
    for gene, own in zip(interaction.genes, parameters, strict=True):
        inputs = raw if output is None else [output, *raw]
        if gene == CONCAT:
            output = torch.cat(inputs, 1)
        else:
            output = sum(inputs[1:], inputs[0]) if gene == SUM else math.prod(inputs[1:], start=inputs[0])
        if gene in (CONCAT, PRODUCT):
            assert own is not None
            output = torch.relu(output @ own[0] + own[1])
    assert output is not None
    return output


def test_groups_compute_what_every_network_computes_by_itself() -> None:
    module, fields = MicroNets(networks(), FIELDS, DIM), embeddings().requires_grad_()
    together = torch.cat(module(fields), 1)
    normalised = (fields - fields.mean(0)) / (fields.var(0, unbiased=False) + 1e-5).sqrt()
    alone = torch.cat([by_itself(i, own, normalised)
                       for i, own in zip(module.interactions, parameters_of(module), strict=True)], 1)
    assert together.shape == (ROWS, module.width)
    assert torch.allclose(together, alone, atol=1e-5)
    leaves = [fields, *module.parameters()]
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(2))
    for mine, theirs in zip(torch.autograd.grad((together * weights).sum(), leaves),
                            torch.autograd.grad((alone * weights).sum(), leaves), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gene", [SUM, HADAMARD, CONCAT, PRODUCT])
def test_small_embeddings_are_heard(gene: int) -> None:
    """As they start, with a standard deviation of INIT_SD: products of such numbers would be silent for the MLP."""
    torch.manual_seed(0)
    module = MicroNets([Interaction((0, 1, 2), "micronet", genes=(gene,))], FIELDS, DIM)
    assert torch.cat(module(INIT_SD * torch.randn(4096, FIELDS, DIM)), 1).std() > 0.2


def test_any_number_of_rows_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(micronet, "VALUES", 0)
    for rows in (1000, 3):
        monkeypatch.setattr(micronet, "ROWS", rows)
        module = MicroNets(networks(), FIELDS, DIM)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(0.1)
        found.append(torch.cat(module(embeddings()), 1))
    assert torch.allclose(*found)


def test_training_keeps_the_inputs_alone_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept between the passes does not grow with slots and micro-networks beyond their vectors."""
    monkeypatch.setattr(micronet, "VALUES", 0)
    kept: list[int] = []

    def size(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    module, fields = MicroNets(networks(), FIELDS, DIM), embeddings(512).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(size, lambda t: t):
        module(fields)
    parts = 512 / micronet.ROWS
    assert sum(kept) <= 3 * fields.numel() + parts * sum(p.numel() for p in module.parameters())


def test_operations_are_those_that_torch_counts_and_the_sums_and_products() -> None:
    module = MicroNets(networks(), FIELDS, DIM).eval()
    with FlopCounterMode(display=False) as counter:
        module(embeddings())
    elementwise = sum((i.order - (slot == 0)) * DIM for i in module.interactions
                      for slot, gene in enumerate(i.genes) if gene != CONCAT)
    normalised = 2 * FIELDS * DIM
    assert module.flops() == counter.get_total_flops() / ROWS + elementwise + normalised


@pytest.mark.parametrize(("fields", "genes", "table", "says"), [
    ((0, 1), (), "", "genes"), ((0, 1), (1, 0), "", "genes"), ((0, 1), (5,), "", "genes"), ((1, 1), (1,), "", "fields"),
    ((1,), (1,), "", "fields"), ((0, 1), (1,), "own", "table 'own'")])
def test_what_is_no_micro_network_is_refused(fields, genes, table, says) -> None:
    with pytest.raises(ValueError, match=says):
        MicroNets([Interaction(fields, "micronet", table=table, genes=genes)], FIELDS, DIM)


def test_a_combination_has_one_micro_network() -> None:
    with pytest.raises(ValueError, match="same fields"):
        MicroNets([Interaction((0, 1), "micronet", genes=genes) for genes in ((1,), (2,))], FIELDS, DIM)


def test_an_mlp_reads_their_vectors_and_only_products_have_gates() -> None:
    nets = (Interaction((0, 1), "micronet", genes=(3, 4)), Interaction((1, 2, 4), "micronet", genes=(2,)))
    mixed = ArchSpec.of(SCHEMA, "test", DIM, alloc=Uniform(DIM), interactions=(*all_pairs(SCHEMA), *nets))
    model = build_model("mmoe", SCHEMA, mixed, ModelConfig((8,), (6,)))
    plain = FeatureEncoder(SCHEMA, ArchSpec.dense(SCHEMA, DIM))
    assert model.encoder.width == plain.width + 2 * DIM
    assert model.wide.gates.shape == (len(all_pairs(SCHEMA)), len(SCHEMA.objectives))
    encoded = model.encoder(draw(7))
    assert encoded.flat.shape == (7, model.encoder.width) and encoded.products.shape == (7, len(all_pairs(SCHEMA)))
    vectors = torch.cat(model.encoder.micronets(encoded.fields), 1)
    assert torch.allclose(encoded.flat[:, plain.width:], vectors)
    model.loss(draw(7)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.micronets.parameters())
    without = build_model("mmoe", SCHEMA, ArchSpec.dense(SCHEMA, DIM), ModelConfig((8,), (6,))).cost()
    first_layers = 2 * (2 * DIM) * 4 * 8  # four experts of width 8 read two vectors more
    gates = 2 * (2 * DIM) * 4 * len(SCHEMA.objectives)
    assert model.cost().flops == without.flops + model.encoder.micronets.flops() + first_layers + gates
