"""The fused score inside an exported model is that of FusionSpec.score, and only for the model it was fitted for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctrmodels.errors import InputError
from ctrmodels.export import Model, export_onnx, fingerprint
from ctrmodels.fusion import (
    FUNCTIONS,
    FusedScore,
    FusionFunction,
    FusionSpec,
    Isotonic,
    Normaliser,
    Platt,
    Quantile,
    WeightedProduct,
)
from ctrmodels.fusion.graph import FusedGraph, tensor_map
from ctrmodels.serving import Scorer
from tests.support.served_models import SCHEMA, build, draw, eager, histories

NAMES = ("click@all", "buy@all", "dwell@all")


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
