"""docs/params.md is the page that the models give, and names every key."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tasks import docs
from tasks.config import Params


def test_page_is_up_to_date() -> None:
    assert docs.PAGE.read_text() == docs.page(), "run `python -m tasks.docs`"


def test_every_key_of_every_model_has_a_row() -> None:
    written = set(re.findall(r"^\| `(\w+)` \|", docs.page(), re.MULTILINE))
    models: dict[str, Any] = Params.model_json_schema(by_alias=True)["$defs"]
    keys = {key for model in models.values() for key in model["properties"]}
    assert keys <= written


def test_examples_of_the_guide_are_accepted() -> None:
    """Every YAML block of docs/your-own-log.md and of the README fits the models, alone or as part of a whole."""
    guide, readme = ([yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)]
                     for page in (docs.PAGE.parent / "your-own-log.md", docs.PAGE.parent.parent / "README.md"))
    assert len(guide) >= 5 and len(readme) == 1
    whole = next(block for block in guide if "retrain" in block)
    Params.model_validate(whole)
    for block in [*guide, *readme]:
        if set(block) <= {"data"}:
            Params.model_validate({**whole, "data": {**whole["data"], **block["data"]}})
