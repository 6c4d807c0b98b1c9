"""Every operation of an interaction is what its formula says, whatever else is computed beside it."""

from __future__ import annotations

from functools import reduce
from itertools import combinations

import pytest
import torch

from ctrmodels.archspec import Interaction
from ctrmodels.nn.operations import OuterProducts, ScalarKernels, VectorKernels
from ctrmodels.nn.products import Products

B, F, D = 5, 6, 4
FIELDS = {"": torch.randn(B, F, D, generator=torch.Generator().manual_seed(0)),
          "other": torch.randn(B, F, D + 1, generator=torch.Generator().manual_seed(1))}
DIMS = {"": D, "other": D + 1}


def by_hand(products: Products, interactions: list[Interaction]) -> torch.Tensor:
    """[B, M], one interaction at a time."""
    place: dict[int, int] = {}
    found = []
    for i in interactions:
        kind = list(dict.fromkeys((j.table, j.op, j.order) for j in interactions)).index((i.table, i.op, i.order))
        part, m = products.parts[kind], place.get(kind, 0)
        place[kind] = m + 1
        vectors = [FIELDS[i.table][:, f] for f in i.fields]
        if i.op == "outer":
            found.append(reduce(torch.mul, [v @ part.vectors[:, s] for s, v in enumerate(vectors)]))
            continue
        product = reduce(torch.mul, vectors)
        kernel = {"inner": 1.0}.get(i.op)
        kernel = part.kernels[m] if kernel is None else kernel
        found.append((product * kernel).sum(1))
    return torch.stack(found, 1)


@pytest.mark.parametrize("op", ["inner", "scalar_kernel", "vector_kernel", "outer"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_an_operation_is_its_formula(op, order):
    torch.manual_seed(2)
    chosen = [Interaction(c, op) for c in combinations(range(F), order)][::2]
    products = Products(chosen, F, DIMS)
    for parameter in products.parameters():
        torch.nn.init.normal_(parameter)
    assert torch.allclose(products(FIELDS), by_hand(products, chosen), atol=1e-5)


def test_kinds_mix_in_the_order_they_are_given():
    torch.manual_seed(3)
    chosen = [Interaction((1, 2), "outer"), Interaction((0, 3)), Interaction((0, 1, 4), table="other"),
              Interaction((2, 5), "vector_kernel", table="other"), Interaction((0, 1)), Interaction((3, 4), "outer"),
              Interaction((0, 2, 4), table="other"), Interaction((0, 2), "scalar_kernel")]
    products = Products(chosen, F, DIMS)
    for parameter in products.parameters():
        torch.nn.init.normal_(parameter)
    assert len(products) == len(chosen)
    assert torch.allclose(products(FIELDS), by_hand(products, chosen), atol=1e-5)


def test_kernels_begin_as_the_inner_product():
    chosen = [(0, 1), (2, 4)]
    inner = Products([Interaction(c) for c in chosen], F, DIMS)(FIELDS)
    assert torch.allclose(ScalarKernels(chosen, F)(FIELDS[""]), inner)
    assert torch.allclose(VectorKernels(chosen, D)(FIELDS[""]), inner, atol=1e-6)


def test_all_outer_products_share_their_vectors():
    assert OuterProducts([(0, 1), (2, 4), (1, 5)], D, F).vectors.shape == (D, 2)


@pytest.mark.parametrize("fields", [(1,), (2, 2)])
def test_an_interaction_has_two_different_fields_or_more(fields):
    with pytest.raises(ValueError, match="two or more different"):
        Products([Interaction(fields)], F, DIMS)


def test_a_micronet_is_no_number():
    with pytest.raises(ValueError, match="micronet"):
        Products([Interaction((0, 1), "micronet")], F, DIMS)


def test_operations_are_counted():
    pairs = Products([Interaction(c) for c in combinations(range(F), 2)], F, DIMS)
    assert pairs.flops() == 15 * 2 * D
    triples = Products([Interaction((0, 1, 2)), Interaction((0, 1, 3))], F, DIMS)
    assert triples.flops() == D + 2 * 2 * D  # one product of two, which both go on from
    first, last = (Products([Interaction(c, "outer")], F, DIMS) for c in ((0, 1), (F - 2, F - 1)))
    assert first.flops() == last.flops() == 2 * F * 2 * D + 2  # all fields are projected, whichever are multiplied
