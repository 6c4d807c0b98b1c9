"""DCRNN, a reconstruction: crossing pays where fields are noise, an objective costs little, links go one way only.

Planted: click = 1.3 A[f0, f1] + B[f2, f3] and purchase = 1.3 A[f0, f1] + C[f4, f5] with random tables A, B and C; half
of the fields are noise. AUC@all of click / purchase on 6,000 rows, seeds 0 to 4, all at the same learning rate:

    DCRNN, 3 steps                     .756/.810  .722/.800  .750/.793  .734/.784  .751/.787
    shared bottom of as many weights   .745/.802  .707/.763  .728/.769  .723/.779  .713/.745
    DCRNN without a step               .703/.738  .699/.768  .686/.732  .709/.759  .709/.736

The first gap is .019/.023 in the mean and .010/.004 at least. At twice the learning rate it turns round on seed 1
(click .727 to .743), so that it is asserted of a mean alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ctrmodels.archspec import ArchSpec
from ctrmodels.data.dataset import Rows
from ctrmodels.data.planted import in_memory
from ctrmodels.data.schema import Field, Objective, Schema
from ctrmodels.metrics import auc
from ctrmodels.multitask import PLE, ModelConfig, MultiObjectiveModel, SharedBottom, build_model, esmm
from ctrmodels.multitask.models.dcrnn import CELLS, DCRNN, DCRNNOptions
from ctrmodels.multitask.parts import Parts
from ctrmodels.multitask.train import train
from ctrmodels.nn.dropout import Dropout
from ctrmodels.nn.encoder import FeatureEncoder
from ctrmodels.nn.heads import WideHead
from ctrmodels.training import TrainConfig, predict, seed_everything

TRAIN, TEST, FIELDS, VALUES, DIM = 18_000, 6_000, 16, 10, 6
W, K, F, D = 20, 3, 5, 4


def noisy_pairs(seed: int) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(VALUES, size=(TRAIN + TEST, FIELDS))
    a, b, c = rng.standard_normal((3, VALUES, VALUES))
    common = 1.3 * a[ids[:, 0], ids[:, 1]]
    draws = rng.random((2, len(ids)))
    click = draws[0] < 1 / (1 + np.exp(0.8 - common - b[ids[:, 2], ids[:, 3]]))
    buy = click & (draws[1] < 1 / (1 + np.exp(0.5 - common - c[ids[:, 4], ids[:, 5]])))
    schema = Schema(tuple(Field(f"f{i}", "categorical", VALUES) for i in range(FIELDS)),
                    (Objective("click"), Objective("buy", after="click")), {"train": TRAIN}, "v", "r")
    labels = np.stack([click, buy], 1)
    return in_memory(schema, ids[:TRAIN], labels[:TRAIN]), in_memory(schema, ids[TRAIN:], labels[TRAIN:])


def without_pairs(schema: Schema, dim: int) -> ArchSpec:
    return replace(ArchSpec.dense(schema, dim), interactions=())


def build(kind: str, schema: Schema) -> MultiObjectiveModel:
    """``dcrnn``, ``dcrnn without a step``, or a ``bottom`` of as many weights, all with ESMM's chain."""
    spec = without_pairs(schema, DIM)
    if kind == "bottom":
        encoder, wide = FeatureEncoder(schema, spec), WideHead(schema, spec, 2)
        parts = Parts(SharedBottom(encoder.width, 2, (192, 96)), esmm(schema.objectives), (32,))
        return MultiObjectiveModel(schema, encoder, wide, parts)
    model = build_model("dcrnn", schema, spec, ModelConfig(tower=(32,), options=DCRNNOptions(chain="esmm")))
    if kind == "dcrnn without a step":
        assert isinstance(model.trunk, DCRNN)
        model.trunk.steps = 0
    return model


def areas(kind: str, seed: int) -> np.ndarray:
    """AUC@all of click and purchase on rows of their own."""
    rows, test = noisy_pairs(seed)
    seed_everything(seed)
    model = build(kind, rows.schema)
    train(model, rows, test, TrainConfig(epochs=8, patience=8, batch_size=256, learning_rate=5e-3, device="cpu",
                                         seed=seed))
    scores = predict(model, test)
    return np.array([auc(test.labels[:, 0], scores["click@all"]), auc(test.labels[:, 1], scores["buy@all"])])


@pytest.mark.slow
def test_crossing_finds_among_noise_what_as_many_weights_of_a_bottom_do_not() -> None:
    """Three seeds; the stub, a recurrence without a step, fails what the recurrence passes."""
    found = {kind: np.mean([areas(kind, seed) for seed in range(3)], axis=0)
             for kind in ("dcrnn", "bottom", "dcrnn without a step")}
    assert (found["dcrnn"] >= found["bottom"] + 0.008).all()
    assert not (found["dcrnn without a step"] >= found["bottom"] + 0.008).any()
    assert (found["dcrnn"] >= found["dcrnn without a step"] + 0.01).all()


def test_the_comparison_is_one_of_equal_size() -> None:
    schema = noisy_pairs(0)[0].schema
    sizes = [build(kind, schema).cost().parameters for kind in ("dcrnn", "bottom")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


SMALL = DCRNNOptions(units=12)


def trunk(options: DCRNNOptions = SMALL, width: int = W, objectives: int = K) -> DCRNN:
    torch.manual_seed(0)
    return DCRNN(width, objectives, options, F, D)


@pytest.fixture
def flat() -> torch.Tensor:
    return torch.randn(16, W, generator=torch.Generator().manual_seed(1))


def test_a_step_crosses_the_features_with_the_state(flat: torch.Tensor) -> None:
    """One step, written out."""
    model = trunk(DCRNNOptions(units=12, share=0.75, steps=1))
    start = model.start(flat)
    common = model.cell(flat * model.cross(start), start)
    own: list[torch.Tensor] = []
    for k, cell in enumerate(model.own):
        own.append(cell(torch.cat([common, *own[-1:]], 1) if k else common, torch.zeros(len(flat), 3)))
    for h, mine in zip(model(flat), own, strict=True):
        torch.testing.assert_close(h, torch.cat([common, mine], 1))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("link", [True, False])
def test_an_objective_hears_of_those_before_it_and_only_if_linked(cell: str, link: bool, flat: torch.Tensor) -> None:
    model = trunk(DCRNNOptions(units=12, cell=cell, link=link))  # type: ignore[arg-type]
    before = model(flat)
    for parameter in model.own[1].parameters():
        parameter.data += 0.5
    after = model(flat)
    changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    assert changed == [False, True, link]


def test_a_loss_reaches_the_shared_state_and_no_state_behind_its_own(flat: torch.Tensor) -> None:
    model = trunk()
    model(flat)[1].square().sum().backward()
    reached = [all(p.grad is not None and p.grad.any() for p in cell.parameters()) for cell in model.own]
    assert reached == [True, True, False]
    shared = list(model.shared_parameters())
    assert all(p.grad is not None and p.grad.any() for p in shared)
    assert not {id(p) for p in shared} & {id(p) for p in model.own.parameters()}


def test_an_objective_costs_a_fraction_of_what_all_share() -> None:
    """At 320 features and the widths that are the default; specific experts grow by as much per objective."""
    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    two, three, four = (trunk(DCRNNOptions(), 320, k) for k in (2, 3, 4))
    assert size(four) / size(two) < 1.3
    assert size(four) - size(three) == size(three) - size(two) < 0.2 * sum(p.numel() for p in two.shared_parameters())
    assert size(PLE(320, 4, 1, 1, [(64,)])) / size(PLE(320, 2, 1, 1, [(64,)])) > 1.5


def mean_over_masks(model: DCRNN, flat: torch.Tensor, dropout_before: float) -> torch.Tensor:
    """The mean representation of 4,000 passes in training, of objective 0."""
    before = Dropout(dropout_before)
    many = flat.repeat(4_000, 1)
    return model.train()(before(many))[0].reshape(4_000, *flat.shape[:1], -1).mean(0)


def test_what_is_served_is_the_mean_of_what_is_trained(flat: torch.Tensor) -> None:
    """The stub, dropout on the features as other trunks have it, moves the states: their squares grow by 1/(1 - p).

    On census-income that took .010 of the AUC and half of the predicted level. Measured here: .005 and .24.
    """
    flat = 3 * flat
    model, stub = DCRNN(W, K, SMALL, F, D, dropout=0.3), trunk()
    model.load_state_dict(stub.state_dict())
    torch.manual_seed(2)
    inside, before = mean_over_masks(model, flat, 0.0), mean_over_masks(stub, flat, 0.3)
    served = model.eval()(flat)[0]
    assert (inside - served).abs().mean() < 0.02 and not (before - served).abs().mean() < 0.02


def test_the_features_come_to_it_without_dropout(rows: Rows) -> None:
    batch = rows.take(slice(0, 8))
    for name, dropped in (("dcrnn", False), ("mmoe", True)):
        model = build_model(name, rows.schema, without_pairs(rows.schema, D), ModelConfig(dropout=0.5))
        trained = model.encoder(batch).flat
        assert torch.equal(trained, model.eval().encoder(batch).flat) != dropped, name


@pytest.mark.parametrize("share", [0.5, 0.75, 0.9])
def test_the_share_divides_the_units(share: float) -> None:
    model = trunk(DCRNNOptions(units=20, share=share))
    assert model.start.out_features == 20 * share and model.own[0].hidden_size == 20 - 20 * share


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("axis", ["depth", "fields"])
def test_operations_are_counted_as_torch_counts_them(cell: str, axis: str, flat: torch.Tensor) -> None:
    model = trunk(DCRNNOptions(units=12, cell=cell, axis=axis))  # type: ignore[arg-type]
    inputs = [flat] * model.steps if axis == "depth" else [torch.randn(16, D)] * F
    with FlopCounterMode(display=False) as counter:
        model._run(flat, inputs)
    linear = sum(2 * layer.weight.numel() for layer in (model.start, model.cross))
    assert counter.get_total_flops() == 16 * (model.flops() + linear)


def test_along_fields_their_order_matters_and_every_field_is_a_step(rows: Rows) -> None:
    options = DCRNNOptions(units=12, axis="fields")
    model = build_model("dcrnn", rows.schema, without_pairs(rows.schema, D), ModelConfig(options=options))
    encoded = model.encoder(rows.take(slice(0, 8)))
    assert isinstance(model.trunk, DCRNN) and model.trunk.steps == encoded.fields.shape[1]
    before = model.trunk.represent(encoded)
    turned = replace(encoded, fields=encoded.fields.flip(1))
    assert not torch.allclose(model.trunk.represent(turned)[0], before[0])
    silent = replace(encoded, fields=torch.zeros_like(encoded.fields))
    assert not torch.allclose(model.trunk.represent(silent)[0], before[0])
