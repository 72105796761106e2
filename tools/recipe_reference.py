"""Every key of a recipe, as docs/recipe.md: `python tools/recipe_reference.py > docs/recipe.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from distill.objectives.config import OPTIONS as OBJECTIVES
from distill.regularisers.config import OPTIONS as REGULARISERS
from recdistill.recipe import Recipe
from recommender.config import IMPORTER_OPTIONS

_INTRODUCTION = """# Every key of a recipe

Made from the code by `python tools/recipe_reference.py > docs/recipe.md`. A recipe is a TOML file; `base = "other.toml"` takes
the keys of another one first, `--set section.key=value` comes last (with make `SET="…"`, which is split at spaces: a value that
has some belongs into a recipe). A key that is not here is an error.
"""
_FREE = {  # sections whose keys name methods, each with options of its own
    "data.options": IMPORTER_OPTIONS,
    "distill.objectives": OBJECTIVES,
    "regularisers": REGULARISERS,
}


def reference() -> str:
    """The page."""
    return "\n".join([_INTRODUCTION, *_section(Recipe, "", {})])


def _section(schema: type[BaseModel], key: str, here: Mapping[str, Any], off: str | None = None) -> Iterator[str]:
    """A section, then those in it; `here` are the defaults that hold in this place in the place of the schema's own, `off`
    says what holds without an optional one."""
    said = " ".join(filter(None, (_said(schema), off and f"Off unless the recipe has it: {off}.")))
    inner = {name: own for name, field in schema.model_fields.items() if (own := _schema(field))}
    yield f"## [{key}]\n\n{said}\n" if key else "## At the top\n"
    yield _table({name: field for name, field in schema.model_fields.items() if name not in inner}, here)
    for name, field in schema.model_fields.items():
        full = f"{key}.{name}" if key else name
        if name in inner:
            default = field.get_default()
            off = field.description if default is None else None
            yield from _section(inner[name], full, dict(default) if isinstance(default, BaseModel) else {}, off)
        for method, options in _FREE.get(full, {}).items():
            if options.model_fields:
                title = f'[{full}] of importer "{method}"' if full == "data.options" else f"[{full}.{method}]"
                yield f"## {title}\n"
                yield _table(options.model_fields, {})


def _schema(field: FieldInfo) -> type[BaseModel] | None:
    """The section a key opens, if it does."""
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _said(schema: type[BaseModel]) -> str:
    return " ".join((schema.__doc__ or "").split())


def _table(fields: Mapping[str, FieldInfo], here: Mapping[str, Any]) -> str:
    rows = [
        f"| `{name}` | {_default(here.get(name, field.get_default()))} | {_allowed(field)} | {field.description or ''} |"
        for name, field in fields.items()
    ]
    return "\n".join(["| key | default | allowed | |", "| --- | --- | --- | --- |", *rows, ""])


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "needed"
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _allowed(field: FieldInfo) -> str:
    """The values of a choice, the bounds of a number, else the type."""
    annotation: Any = field.annotation
    probe = create_model("Probe", key=(annotation, field))
    schema = probe.model_json_schema()["properties"]["key"]
    schema = next((kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"), schema)
    choice = schema.get("enum") or schema.get("items", {}).get("enum")
    if choice:
        return ", ".join(f"`{json.dumps(value)}`" for value in choice)
    bounds = [
        f"{sign} {schema[name]:g}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in schema
    ]
    return ", ".join(bounds) or {"array": "list", "object": "table", "boolean": "true, false"}.get(schema.get("type", ""), "")


if __name__ == "__main__":
    print(reference(), end="")
