"""docs/params.md, written from the models of params.yaml: ``python -m tasks.docs``."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from tasks.config import Params

PAGE = Path(__file__).resolve().parents[1] / "docs" / "params.md"
HEAD = """# Every key of params.yaml

Written by `python -m tasks.docs` from the models in `tasks/config`, which refuse any other key.
[Your own log](your-own-log.md) explains `data` by example. A key without a default must be given.
"""


def page() -> str:
    """The page's text: a section per model, with the keys' types, limits, defaults and meanings."""
    schema = Params.model_json_schema(by_alias=True)
    blocks: list[str] = [HEAD]

    def section(key: str, name: str) -> None:
        model = schema["$defs"][name]
        intro, meanings = _docstring(model.get("description", ""))
        lines = [f"## `{key}`", "", intro, "", "| key | takes | default | meaning |", "|---|---|---|---|"]
        nested = []
        for child, node in model["properties"].items():
            inner = _model(node)
            if inner is not None:
                nested.append((f"{key}.{child}" + ("[]" if node.get("type") == "array" else ""), inner))
            default = "" if child in model.get("required", ()) else "see below" if inner else _code(node.get("default"))
            lines.append(f"| `{child}` | {_escape(_takes(node))} | {default} | {_escape(meanings.get(child, ''))} |")
        blocks.append("\n".join(lines) + "\n")
        for path, inner in nested:
            section(path, inner)

    for key, node in schema["properties"].items():
        section(key, str(_model(node)))
    return "\n".join(blocks)


def _model(node: dict[str, Any]) -> str | None:
    """Name of the model that a key holds, alone, in a list, or as an alternative to null."""
    for candidate in (node, node.get("items", {}), *node.get("anyOf", ())):
        if "$ref" in candidate:
            return str(candidate["$ref"]).rsplit("/", 1)[1]
    return None


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The text before ``Attributes:`` as Markdown, and the meaning of each attribute."""
    intro, _, rest = inspect.cleandoc(text).partition("\nAttributes:\n")
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", f"\n{rest}"):
        names, _, meaning = entry.strip().partition(": ")
        for name in names.split(", "):
            meanings[name] = " ".join(_markdown(meaning).split())
    return _markdown(intro).strip(), meanings


def _markdown(text: str) -> str:
    return re.sub(r":\w+:`(\w+)`", r"`\1`", text).replace("``", "`")


def _takes(node: dict[str, Any]) -> str:
    """Type and limits of a key in words."""
    if "$ref" in node:
        return "section"
    if "anyOf" in node:
        return " or ".join(_takes(option) for option in node["anyOf"])
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    kind = str(node.get("type", "any"))
    if kind == "array":
        return f"list of {_takes(node['items'])}" if "items" in node else "pair of numbers"
    if kind == "object":
        return f"mapping to {_takes(node.get('additionalProperties', {}))}"
    limits = [f"{sign} {node[name]:g}" for name, sign in (
        ("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")) if name in node]
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    return " ".join([words.get(kind, kind), *limits])


def _code(value: Any) -> str:
    return f"`{_escape(json.dumps(value, ensure_ascii=False))}`"


def _escape(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page())
