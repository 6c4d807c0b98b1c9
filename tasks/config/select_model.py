"""The rule that selects the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.config.section import Section, form


class SelectModel(Section):
    """Which model is chosen: the best ``primary`` on ``valid`` that keeps the floors; ties go to the cheaper.

    Attributes:
        primary: the binary objective whose ``metric`` decides; ``null`` = the mean over all of them.
        floors: binary objective → by how much its ``metric`` may be worse than the best model's, such as 0.002 of AUC.
    """

    metric: Annotated[Literal["auc", "gauc", "logloss"],
                      Field(json_schema_extra=form("Choice", "Metric that models are judged by"))] = "auc"
    primary: str | None = None
    floors: dict[str, Annotated[float, Field(ge=0)]] = {}
