"""Airflow's trigger form, made of the fields that are marked for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctrmodels.errors import InputError
from tasks.config.params import Params, parse


def form_schema() -> dict[str, dict[str, Any]]:
    """The trigger form: dotted key → JSON schema of the fields marked with :func:`form`."""
    schema = Params.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    found: dict[str, dict[str, Any]] = {}

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        return definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, child in resolve(node).get("properties", {}).items():
            key = f"{prefix}{name}"
            if "form" in child:
                kept = {k: v for k, v in child.items() if k != "form"}
                found[key] = {**kept, **child["form"]}
            elif "$ref" in child:
                walk(child, f"{key}.")

    walk(schema, "")
    return found


def apply_form(raw: dict[str, Any], values: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """``raw`` (a read params.yaml) with the trigger form's dotted ``values`` put in, checked as a whole.

    Raises:
        InputError: a key is not on the form, or the result is not accepted.
    """
    known = form_schema()
    changed = json.loads(json.dumps(raw))
    for key, value in values.items():
        if key not in known:
            raise InputError("trigger form", key, value, "not a key of the form",
                             f"use one of {', '.join(sorted(known))}")
        node = changed
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    parse(changed, where)
    return changed
