"""Sections of the stages that have few settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.section import Section, form


class Ingest(Section):
    """Reading the log.

    Attributes:
        partitions: files that the ingested log is written to, and partitions of every shuffle. Fixed, so
            that results never depend on the number of cores; take about one per million rows.
    """

    partitions: Annotated[int, Field(ge=1)] = 4


class Frequency(Section):
    """Counting. Numeric quantiles are exact up to ``quantile_rows`` rows; a larger log is sampled down to as many."""

    quantile_rows: Annotated[int, Field(ge=1)] = 2_000_000


class Validate(Section):
    """Limits of the data contract.

    Attributes:
        keys: columns that together identify a row; empty = no duplicate check.
        max_null_rate: critical above it, per categorical and numeric field.
        null_rates: the same for the fields named here; of a sequence it limits the share of empty ones.
        positive_rate: critical outside ``[low, high]``, per binary objective in its sample space.
        max_unseen_rate: warning above it: share of a role's values that ``train`` does not have.
        psi: ``[warning, critical]`` limits of the population stability index against the reference day;
            ``null`` as the second = drift never stops a run, right for a log that is described for the first time.
        reference_day: day to compare with; ``null`` = the first day of 1000 rows or more.
    """

    keys: tuple[str, ...] = ()
    max_null_rate: Annotated[float, Field(ge=0, le=1)] = 0.9
    null_rates: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}
    positive_rate: tuple[float, float] = (0.0001, 0.99)
    max_unseen_rate: Annotated[float, Field(ge=0, le=1)] = 0.5
    psi: tuple[float, float | None] = (0.25, None)
    reference_day: str | None = None

    @model_validator(mode="after")
    def _pairs_rise(self) -> Validate:
        for key, (low, high) in (("positive_rate", self.positive_rate), ("psi", self.psi)):
            if high is not None and low > high:
                raise ValueError(f"{key} = [{low:g}, {high:g}]: the first must not exceed the second")
        return self


class Encode(Section):
    """Ids and numbers. Values seen fewer than ``min_count`` times on ``train`` share the out-of-vocabulary id."""

    min_count: Annotated[int, Field(ge=1)] = 2
    buckets: Annotated[int, Field(ge=2, le=1024)] = 32


class Select(Section):
    """One rule: best ``valid`` metric within the budget; ties inside the seeds' spread go to the cheaper.

    ``budget`` is the largest share of the dense control's parameters that a candidate may have.
    """

    metric: Annotated[Literal["auc", "logloss"],
                      Field(json_schema_extra=form("Choice", "Metric that searches are judged by"))] = "auc"
    budget: Annotated[float, Field(gt=0, le=1,
                                   json_schema_extra=form("Choice", "Largest share of the dense parameters"))] = 1.0


class Report(Section):
    """The report's heading."""

    title: str = "ctrmodels"
