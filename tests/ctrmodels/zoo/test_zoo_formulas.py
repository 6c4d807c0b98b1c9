"""Every model's logit and its gradients are those of its paper's formula, written out pair by pair."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from every_kind import SCHEMA, build, draw
from torch import Tensor, nn

from ctrmodels.data import Batch
from ctrmodels.nn import cin
from ctrmodels.nn.attention import FieldAttention
from ctrmodels.zoo import MODELS, CTRModel

ROWS = 8
BATCH = draw(ROWS)
PAIRS = list(combinations(range(5), 2))


def row(batch: Batch, i: int) -> SimpleNamespace:
    """One row in plain lists: the rows of the table that every field looks up, and the numeric values."""
    ids = [[SCHEMA.offsets[f.name] + int(v)] for f, v in zip(SCHEMA.id_fields, batch.ids[i], strict=True)]
    steps = [[SCHEMA.offsets[f.name] + int(v) for v in batch.sequences[f.name][i] if v >= 0]
             for f in SCHEMA.sequence_fields]
    return SimpleNamespace(bags=ids + steps, numeric=batch.numeric[i])


def means(table: Tensor, bags: list[list[int]]) -> list[Tensor]:
    return [sum((table[r] for r in bag), torch.zeros(table.shape[1])) / max(len(bag), 1) for bag in bags]


def embedded(model: CTRModel, r: SimpleNamespace) -> list[Tensor]:
    return means(model.encoder.embedding.table.weight, r.bags)


def first_order(model: CTRModel, r: SimpleNamespace) -> Tensor:
    wide = model.wide
    return (wide.bias + sum(means(wide.weights.weight, r.bags))
            + sum(x * w for x, w in zip(r.numeric, wide.numeric, strict=True)))[0]


def flat(parts: list[Tensor]) -> Tensor:
    """Side by side, and zeros up to a multiple of 8."""
    x = torch.cat(parts)
    return nn.functional.pad(x, (0, -len(x) % 8))


def mlp(network: nn.Sequential, parts: list[Tensor]) -> Tensor:
    x = torch.cat(parts)
    *inner, last = [m for m in network if isinstance(m, nn.Linear)]
    for layer in inner:
        x = (layer.weight @ x + layer.bias).clamp(min=0)
    return (last.weight @ x + last.bias)[0]


def lr(model, r):
    return first_order(model, r)


def fm(model, r):
    e = embedded(model, r)
    return first_order(model, r) + sum(e[i] @ e[j] for i, j in PAIRS)


def fwfm(model, r):
    e = embedded(model, r)
    return first_order(model, r) + sum(w * (e[i] @ e[j]) for w, (i, j) in zip(model.strength, PAIRS, strict=True))


def dnn(model, r):
    return mlp(model.deep, [flat([*embedded(model, r), r.numeric])])


def deepfm(model, r):
    return fm(model, r) + dnn(model, r)


def ipnn(model, r):
    e = embedded(model, r)
    return mlp(model.deep, [flat([*e, r.numeric]), torch.stack([e[i] @ e[j] for i, j in PAIRS])])


def dcnv2(model, r):
    x = crossed = flat([*embedded(model, r), r.numeric])
    for layer in model.cross.layers:
        crossed = x * (layer.weight @ crossed + layer.bias) + crossed
    hidden = x
    for layer in model.deep:
        hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
    return (model.out.weight @ torch.cat([crossed, hidden]) + model.out.bias)[0]


def xdeepfm(model, r):
    e = embedded(model, r)
    x, sums = e, []
    for weight in model.cin.weights:
        x = [sum(w[i * len(e) + j] * x[i] * e[j] for i in range(len(x)) for j in range(len(e))) for w in weight]
        sums += [v.sum() for v in x]
    return first_order(model, r) + model.out.weight[0] @ torch.stack(sums) + dnn(model, r)


def autoint(model, r):
    e = embedded(model, r)
    for layer in model.attention:
        assert isinstance(layer, FieldAttention)
        query, key, value, residual = layer.maps.weight.split(layer.width)
        heads = torch.arange(layer.width).split(layer.width // layer.heads)
        mixed = []
        for m in e:
            parts = []
            for h in heads:
                a = torch.softmax(torch.stack([(query[h] @ m) @ (key[h] @ k) for k in e]), 0)
                parts.append(sum(a_k * (value[h] @ k) for a_k, k in zip(a, e, strict=True)))
            mixed.append((torch.cat(parts) + residual @ m).clamp(min=0))
        e = mixed
    logit = first_order(model, r) + model.out.weight[0] @ torch.cat(e)
    return logit if model.deep is None else logit + dnn(model, r)


def fibinet(model, r):
    e = embedded(model, r)
    squeezed = (model.senet.squeeze.weight @ torch.stack([v.mean() for v in e])).clamp(min=0)
    a = (model.senet.excite.weight @ squeezed).clamp(min=0)
    products = []
    for layer, vectors in ((model.plain, e), (model.weighted, [w * v for w, v in zip(a, e, strict=True)])):
        for m, (i, j) in enumerate(PAIRS):
            owner = {"field_all": 0, "field_each": i, "field_interaction": m}[layer.kind]
            products.append((vectors[i] @ layer.weight[owner]) * vectors[j])
    return first_order(model, r) + mlp(model.deep, [flat([*products, r.numeric])])


def din(model, r):
    e, table = embedded(model, r), model.encoder.embedding.table.weight
    q, steps, unit = e[1], [table[s] for s in r.bags[4]], model.attention[0]
    scores = [mlp(unit.unit, [q, k, q - k, q * k]) for k in steps]
    if unit.softmax and steps:
        scores = torch.softmax(torch.stack(scores), 0)
    e[4] = sum((a * k for a, k in zip(scores, steps, strict=True)), torch.zeros_like(q))
    return mlp(model.deep, [flat([*e, r.numeric])])


FORMULAS = {"lr": lr, "fm": fm, "fwfm": fwfm, "dnn": dnn, "deepfm": deepfm, "ipnn": ipnn, "dcnv2": dcnv2,
            "xdeepfm": xdeepfm, "autoint": autoint, "fibinet": fibinet, "din": din}
VARIANTS = [*((name, {}) for name in FORMULAS if name != "xdeepfm"),  # whose 32 vectors take loops too long
            ("xdeepfm", {"cin": (3,)}), ("xdeepfm", {"cin": (4, 3, 2)}),
            ("autoint", {"hidden": (6,), "layers": 2, "heads": 3, "head_width": 2}),
            ("fibinet", {"bilinear": "field_all"}), ("fibinet", {"bilinear": "field_each", "reduction": 2}),
            ("din", {"softmax": True}), ("din", {"histories": ("recent",), "attention": (5, 3)})]


def gradients(model: CTRModel, logits: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of the logits, so that no two rows' errors cancel."""
    model.zero_grad()
    (logits * torch.linspace(-1, 1, len(logits))).sum().backward()
    return {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


def test_every_model_has_a_formula() -> None:
    assert list(FORMULAS) == list(MODELS)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_logits_and_gradients_are_those_of_the_formula(name: str, settings: dict, monkeypatch) -> None:
    monkeypatch.setitem(cin._VALUES, "cpu", 3 * 4 * 25)  # three rows at a time
    model = build(name, **settings)
    ours = model(BATCH)
    theirs = torch.stack([FORMULAS[name](model, row(BATCH, i)) for i in range(ROWS)])
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    mine, expected = gradients(model, ours), gradients(model, theirs)
    assert set(expected) <= set(mine)
    for key, value in mine.items():
        wanted = expected.get(key, torch.zeros(()))
        atol = 1e-4 * float(wanted.abs().max()) + 1e-5  # terms of that size cancel in a saturated softmax
        assert torch.allclose(value, wanted, rtol=1e-3, atol=atol), key


def test_a_bilinear_interaction_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="field_all"):
        build("fibinet", bilinear="all")
