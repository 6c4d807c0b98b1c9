"""The fused score inside an exported model is that of FusionSpec.score, and only for the model it was fitted for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctrmodels.data.schema import Scale, Schema
from ctrmodels.errors import InputError
from ctrmodels.export import Model, export_onnx, fingerprint
from ctrmodels.fusion import (
    FUNCTIONS,
    Bounded,
    Column,
    ExpectedValue,
    FusedScore,
    FusionFunction,
    FusionSpec,
    Isotonic,
    LengthProduct,
    Normaliser,
    Platt,
    Quantile,
    WeightedProduct,
)
from ctrmodels.fusion.graph import FusedGraph, tensor_map
from ctrmodels.serving import Scorer
from tests.support.served_models import SCHEMA, build, draw, eager, histories

NAMES = ("click@all", "buy@all", "dwell@all")
SCALED = dataclasses.replace(SCHEMA, scales={"price": Scale(40.0, 25.0), "age": Scale(33.0, 9.0)})


@pytest.fixture(scope="module")
def model() -> Model:
    return build("esmm", "uniform")


def fitted(model: Model, function: FusionFunction, weights: tuple[float, ...] = (1.0, 2.0, 0.5)) -> FusionSpec:
    """A spec with a normaliser of every kind, fitted on the model's scores of random rows."""
    scores, rng = eager(model, draw(2000)), np.random.default_rng(0)
    kinds: tuple[type[Normaliser], ...] = (Platt, Isotonic, Quantile)

    def fit(name: str, kind: type[Normaliser], weight: float) -> FusedScore:
        column = scores[name].astype(float)
        normaliser = kind.fit(column, (rng.random(2000) < np.clip(column, 0.1, 0.9)).astype(float))
        return FusedScore(name, normaliser, float(normaliser(column).mean()), weight, fingerprint(model))

    return FusionSpec(function, tuple(map(fit, NAMES, kinds, weights)))


@pytest.mark.parametrize("function", list(FUNCTIONS))
def test_every_function_on_tensors_equals_the_spec(model: Model, function: str) -> None:
    spec = fitted(model, FUNCTIONS[function]())
    scores = eager(model, draw(500))
    scores["dwell@all"][:3] = [0, 1e6, -5]  # beyond the knots
    found = FusedGraph(spec)({name: torch.from_numpy(score) for name, score in scores.items()}).numpy()
    assert found.dtype == np.float32
    expected = spec.score(scores, np.zeros(500, int), fingerprint(model))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.ptp(found) > 0.01


@pytest.mark.parametrize("function", ["weighted_product", pytest.param("weighted_sum", marks=pytest.mark.slow),
                                      *(pytest.param(f, marks=pytest.mark.slow) for f in list(FUNCTIONS)[2:])])
def test_an_exported_model_fuses_as_the_spec_does(model: Model, function: str, tmp_path: Path) -> None:
    spec = fitted(model, FUNCTIONS[function]())
    export_onnx(model, SCHEMA, tmp_path / "export", spec)
    scorer = Scorer(tmp_path / "export")
    for n in (1, 7, 300):
        rows = draw(n)
        found = scorer.score(rows["ids"], rows["numeric"], histories(rows))
        fused = found.pop("fused")
        expected = spec.score(found, np.zeros(n, int), fingerprint(model))
        np.testing.assert_allclose(fused, expected, rtol=1e-6, atol=1e-6)
    other = spec.with_weights(spec.function, [2.0, 1.0, 0.5]).score(found, np.zeros(n, int), fingerprint(model))
    assert not np.allclose(fused, other, rtol=1e-6, atol=1e-6)


def with_column(model: Model, function: FusionFunction, part: Column, name: str = "price") -> FusionSpec:
    """Two of the model's scores and a column that lies between 2 and 90 in the window."""
    scores = fitted(model, WeightedProduct()).scores[:2]
    column = FusedScore(name, Bounded(2.0, 90.0), 30.0, 0.7, part=part)
    return FusionSpec(function, (*scores, column))


@pytest.mark.parametrize(("function", "part"), [
    (LengthProduct(midpoint=1.7), "length"), (LengthProduct(form="log"), "length"), (ExpectedValue(), "price"),
    (ExpectedValue(priced=(False, True)), "price")], ids=["sigmoid", "log", "priced", "priced_in_part"])
def test_a_column_of_the_log_is_read_from_the_models_own_input(
        model: Model, function: FusionFunction, part: Column, tmp_path: Path) -> None:
    """Servers give standardised numbers, the spec takes seconds or money; both order alike, beyond its bounds too."""
    spec = with_column(model, function, part)
    export_onnx(model, SCALED, tmp_path / "export", spec)
    scorer, rows = Scorer(tmp_path / "export"), draw(300)
    place = SCALED.numeric_index("price")
    rows["numeric"][:, place] = (np.linspace(-20, 130, 300) - 40) / 25
    raw = SCALED.scales["price"].raw(rows["numeric"][:, place].astype(float))
    found = scorer.score(rows["ids"], rows["numeric"], histories(rows))
    fused = found.pop("fused")
    expected = spec.score({**found, "price": raw}, models=fingerprint(model))
    np.testing.assert_allclose(fused, expected, rtol=1e-6, atol=1e-6)
    without = spec.score({**found, "price": np.full(300, 40.0)}, models=fingerprint(model))
    assert np.abs(fused - without).max() > 0.1
    assert Schema.load(tmp_path / "export" / "schema.json").scales == SCALED.scales


def test_a_column_that_is_unknown_when_rows_are_served_is_not_exported(model: Model, tmp_path: Path) -> None:
    for name, schema, problem in (
            ("seconds", SCALED, r"length = 'seconds': is no numeric input of the model.*; the inputs are price, age"),
            ("item", SCALED, r"length = 'item': is no numeric input"),
            ("price", SCHEMA, r"length = 'price': its scale is not in schema.json")):
        with pytest.raises(InputError, match=problem):
            export_onnx(model, schema, tmp_path / "export", with_column(model, LengthProduct(), "length", name))
    assert not (tmp_path / "export").exists()


def test_a_spec_scores_its_own_model_only(model: Model) -> None:
    spec, scores = fitted(model, WeightedProduct()), eager(model, draw(5))
    own, other = fingerprint(model), fingerprint(build("mmoe", "uniform"))
    assert spec.score(scores, models=own).shape == (5,)
    assert np.array_equal(spec.score(scores, models=dict.fromkeys(NAMES, own)), spec.score(scores, models=own))
    for models in (other, "", {**dict.fromkeys(NAMES, own), "buy@all": other}, {"click@all": own}):
        with pytest.raises(InputError, match=r"fusion: model of .*fitted for .*tune the fusion for this model"):
            spec.score(scores, models=models)
    assert FusionSpec.from_json(spec.to_json()) == spec


def test_a_fingerprint_tells_a_retrained_model_and_nothing_else(model: Model) -> None:
    assert fingerprint(model) == fingerprint(build("esmm", "uniform"))
    retrained = build("esmm", "uniform")
    with torch.no_grad():
        next(retrained.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(retrained) != fingerprint(model)


def test_a_fusion_of_anything_else_is_not_exported(model: Model, tmp_path: Path) -> None:
    spec = fitted(model, WeightedProduct())
    with pytest.raises(InputError, match="model of click@all"):
        export_onnx(build("mmoe", "uniform"), SCHEMA, tmp_path / "export", spec)
    price = dataclasses.replace(spec, scores=(*spec.scores, dataclasses.replace(spec.scores[0], name="price")))
    with pytest.raises(InputError, match=r"score = 'price'.*none of the model's scores.*click@all"):
        export_onnx(model, SCHEMA, tmp_path / "export", price)
    assert not (tmp_path / "export").exists()


def test_a_normaliser_without_a_form_on_tensors_is_named() -> None:
    class Odd(Platt):
        kind = "odd"

    assert isinstance(tensor_map(Odd(1.0, 0.0)), torch.nn.Module)  # what is a Platt is mapped as one

    with pytest.raises(InputError, match="'unknown': has no form on tensors"):
        tensor_map(SimpleNamespace(kind="unknown"))
