"""What all sections of params.yaml are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


def form(section: str, title: str) -> dict[str, Any]:
    """Mark a field as one that the trigger form offers."""
    return {"form": {"section": section, "title": title}}


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values cannot be changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
