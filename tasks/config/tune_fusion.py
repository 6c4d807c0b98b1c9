"""How scores are fused, tuned and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ctrmodels.errors import InputError
from tasks.config.section import Section, Share, form


class FusionGuardrails(Section):
    """What the fused order must not harm beside the incumbent's, on the report window; a broken limit withholds it.

    Attributes:
        item: the field that says what a row shows, for coverage and Gini; ``null`` = the first categorical field of
            ``side: item``.
        segments: fields whose values are looked at one by one; all rows of a list have the same value.
        calibration: bounds of predicted over observed positives.
        coverage: least number of items shown, as a share of the incumbent's.
        gini: largest rise of the Gini coefficient of the items' exposures.
        segment: least relative change of the primary metric in a segment; -0.02 = a loss of 2 %.
        lists: segments of fewer lists are not judged.
        rank_correlation: least mean correlation with the incumbent's ranks inside a list.
    """

    item: str | None = None
    segments: tuple[str, ...] = ()
    calibration: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(ge=1)]] = (0.9, 1.1)
    coverage: Annotated[float, Field(ge=0)] = 0.9
    gini: Annotated[float, Field(ge=0)] = 0.05
    segment: Annotated[float, Field(ge=-1, le=0)] = -0.02
    lists: Annotated[int, Field(ge=1)] = 100
    rank_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.7


class FusionOffPolicy(Section):
    """What the order would bring if it were shown, estimated where ``data.propensity`` and positions are known.

    Attributes:
        user: the field whose values are independent of each other; ``null`` = lists are.
        floor: least effective sample size of an estimate.
        clip: largest ratio of the chances to show a row, 10 to 100; ``null`` = no bound.
    """

    user: str | None = None
    floor: Annotated[float, Field(ge=1)] = 1000.0
    clip: Annotated[float, Field(ge=1)] | None = None


class FusionLength(Section):
    """The length term of ``product_with_length``.

    Attributes:
        length: the numeric field that tells how long an item is, such as a video's seconds; above 0.
        form: ``sigmoid`` = bounded, x / (1 + x); ``log`` = log(1 + x); x is the length over a searched midpoint.
    """

    length: str | None = None
    form: Literal["sigmoid", "log"] = "sigmoid"


class FusionValue(Section):
    """What ``expected_value`` adds up: each event's probability times what it is worth.

    Attributes:
        values: binary objective → what one such event is worth, in any unit; those not named are worth nothing.
        price: the numeric field whose value an event's worth is multiplied by, 0 or more; ``null`` = none.
        priced: the objectives that the price multiplies; ``null`` = all of ``values``.
    """

    values: dict[str, Annotated[float, Field(ge=0)]] = {}
    price: str | None = None
    priced: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FusionValue:
        if self.values and not any(self.values.values()):
            raise ValueError("values: at least one event must be worth more than 0")
        if self.priced is not None and self.price is None:
            raise ValueError("priced: there is no price; name the field in price, or take priced out")
        for name in self.priced or ():
            if not self.values.get(name):
                raise ValueError(f"priced: {name!r} is worth nothing by values; give it a value there, or take it out")
        return self


class TuneFusion(Section):
    """Weights of the fused score: tuned on the first ``window`` of valid's groups, reported on the rest.

    Attributes:
        scorers: the model of ``retrain.models`` that scores an objective; those not named are scored by the one that
            ``select_model`` chose.
        incumbent: the fusion.json in service, that the new order is held against; ``null`` = equal weights. A relative
            path is one of the checkout.
        incumbent_digest: sha256 of that file, filled in when a run is planned; an incumbent that changed since is
            refused.
        segments: a field whose values get weights of their own, shrunk to the common ones; ``null`` = none.
        functions: which are tuned, each for ``trials``; the best is taken. ``product_with_length`` and
            ``expected_value`` need their sections.
        tuner: how weights are searched: ``tpe``; ``gp``, where floors are tight; ``cma``, blind to floors; ``nsga2``,
            for the front; ``random`` and ``grid``, to compare with.
        metric: of an order: ``ndcg`` of the first ``k``, ``gauc``, ``mrr``, or ``value`` per exposure.
        primary: the objective whose metric is maximised; ``null`` = the first.
        floor: the others must reach this share of the best that ordering by one score alone reaches.
        calibration: how probabilities are calibrated before they are fused.
        trials: weights tried per function.
        lists: trials are judged on at most so many lists, the best of them again on the whole window.
    """

    functions: Annotated[tuple[Literal["weighted_sum", "weighted_product", "product_with_length", "shifted_power",
                                       "exponential_sum", "exponential_boost", "expected_value", "reciprocal_rank",
                                       "constrained"], ...], Field(min_length=1)] = (
        "weighted_sum", "weighted_product")
    product_with_length: FusionLength = FusionLength()
    expected_value: FusionValue = FusionValue()
    tuner: Literal["tpe", "gp", "cma", "nsga2", "random", "grid"] = "tpe"
    metric: Literal["ndcg", "gauc", "mrr", "value"] = "ndcg"
    k: Annotated[int, Field(ge=1)] = 10
    trials: Annotated[int, Field(ge=1, le=100_000, json_schema_extra=form("Fusion", "Fusion trials"))] = 60
    window: Share = 0.5
    primary: str | None = None
    floor: Annotated[float, Field(ge=0, le=1)] = 0.98
    calibration: Literal["platt", "isotonic"] = "platt"
    lists: Annotated[int, Field(ge=100)] = 100_000
    seed: Annotated[int, Field(ge=0)] = 0
    scorers: dict[str, str] = {}
    incumbent: str | None = None
    incumbent_digest: str | None = None
    segments: str | None = None
    guardrails: FusionGuardrails = FusionGuardrails()
    off_policy: FusionOffPolicy = FusionOffPolicy()

    @model_validator(mode="after")
    def _segments_have_weights(self) -> TuneFusion:
        others = sorted(set(self.functions) - {"weighted_sum", "weighted_product", "exponential_boost"})
        if self.segments is not None and others:
            raise ValueError(f"segments: only weights differ by segment, and {others[0]} has constants beside them")
        return self

    @model_validator(mode="after")
    def _functions_have_what_they_need(self) -> TuneFusion:
        if "product_with_length" in self.functions and self.product_with_length.length is None:
            raise ValueError("functions: product_with_length needs product_with_length.length, the numeric field of "
                             "the items' length")
        if "expected_value" in self.functions and not self.expected_value.values:
            raise ValueError("functions: expected_value needs expected_value.values, what an event of each objective "
                             "is worth")
        return self

    def read_incumbent(self, root: Path) -> bytes:
        """The bytes of the file in service, where a relative path starts at ``root``.

        Whoever plans a run and the stage both read it here, so that what one digests is what the other compares.

        Raises:
            InputError: there is no such file, or it cannot be read.
        """
        try:
            return (root / str(self.incumbent)).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no name of a file at all
            raise self.unreadable_incumbent(error) from error

    def unreadable_incumbent(self, error: Exception) -> InputError:
        """What to tell of an incumbent that ``error`` kept from being read: the key at fault, for none of the run's
        stages can mend the file."""
        return InputError("params.yaml", "tune_fusion.incumbent", self.incumbent,
                          f"not a readable fusion ({type(error).__name__})",
                          "give the fusion.json that is in service, or null")

    @property
    def columns(self) -> dict[Literal["length", "price"], str]:
        """The numeric fields that the functions have beside the scores, by what they are to them."""
        found: dict[Literal["length", "price"], str] = {}
        if "product_with_length" in self.functions and self.product_with_length.length is not None:
            found["length"] = self.product_with_length.length
        if "expected_value" in self.functions and self.expected_value.price is not None:
            found["price"] = self.expected_value.price
        return found

    @property
    def fields(self) -> dict[str, tuple[str, ...]]:
        """The fields that are named, by key."""
        named = {"segments": self.segments, "guardrails.item": self.guardrails.item,
                 "off_policy.user": self.off_policy.user}
        return {key: (name,) for key, name in named.items() if name is not None} | {
            "guardrails.segments": self.guardrails.segments}
