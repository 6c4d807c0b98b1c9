"""The fusion functions that the settings name, with what the settings say of them."""

from __future__ import annotations

from collections.abc import Sequence

from ctrmodels.data.schema import Objective
from ctrmodels.errors import InputError
from ctrmodels.fusion import FUNCTIONS, ExpectedValue, FusionFunction, FusionSpec, LengthProduct
from tasks.config import FusionValue, TuneFusion


def functions(settings: TuneFusion, fitted: FusionSpec, objectives: Sequence[Objective]) -> list[FusionFunction]:
    """What is tuned, in the order of the settings.

    Args:
        settings: see :class:`~tasks.config.TuneFusion`.
        fitted: the normalised scores, and the columns of the log beside them.
        objectives: what the scores predict.

    Raises:
        InputError: an event is given a value, and its score is no probability.
    """
    built: dict[str, FusionFunction] = {
        LengthProduct.id: LengthProduct(form=settings.product_with_length.form)}
    if ExpectedValue.id in settings.functions:
        built[ExpectedValue.id] = _expected_value(settings.expected_value, fitted, objectives)
    return [built[name] if name in built else FUNCTIONS[name]() for name in settings.functions]


def _expected_value(settings: FusionValue, fitted: FusionSpec, objectives: Sequence[Objective]) -> ExpectedValue:
    """With the shares that the events have in what an average row is worth.

    Normalised probabilities and prices average 1, so an event counts by its value times its mean probability, and times
    the mean price if it has one.
    """
    every = settings.price is not None
    priced = tuple(every and (settings.priced is None or o.name in settings.priced) for o in objectives)
    mean_price = next((c.unit for c in fitted.columns if c.part == "price"), 1.0)
    worth = []
    for objective, score, with_price in zip(objectives, fitted.predicted, priced, strict=True):
        value = settings.values.get(objective.name, 0.0)
        if value and score.normaliser.relative:
            raise InputError("params.yaml", f"tune_fusion.expected_value.values.{objective.name}", value,
                             f"{score.name} orders the rows of a list and is no probability",
                             "name a model that predicts it in tune_fusion.scorers, or give it no value")
        worth.append(value * score.unit * (mean_price if with_price else 1.0))
    return ExpectedValue(tuple(w / sum(worth) for w in worth), every if settings.priced is None else priced)
