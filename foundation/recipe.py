"""Recipes: TOML files, a few lines over a base, checked against a typed schema; an unknown key is an error.

`base = "other.toml"` (relative to the file) is read first and overridden key by key. `--set section.key=value` comes last;
the value is read as TOML, and as a plain string where it is not TOML.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names key, value, what is allowed and where it was written."""


class Contradiction(ValueError):
    """Keys of one recipe that cannot go together; raised by a schema's own validators."""

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


class Section(BaseModel):
    """One section of a recipe: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, values: Any) -> Any:
        """A part whose defaults are its section's own keeps them where a recipe sets another of its keys."""
        if not isinstance(values, dict):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Section)}
        return values | {
            name: default.model_dump(exclude_unset=True) | values[name]
            for name, default in defaults.items()
            if isinstance(values.get(name), dict)
        }


SectionT = TypeVar("SectionT", bound=Section)


def load_recipe(schema: type[SectionT], path: Path, overrides: Iterable[str] = ()) -> SectionT:
    """Read the recipe at `path` (with its bases) and the `key=value` overrides into `schema`."""
    values, origin = _read(path, ())
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set {override!r}: write it as section.key=value")
        _assign(values, key.strip().split("."), _parse_value(text.strip()), origin, f"--set {override}")
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(schema, entry, origin, path) for entry in error.errors())) from None


def check_options(schema: type[BaseModel], options: Mapping[str, Any], prefix: str) -> None:
    """Raise `Contradiction` unless `options`, found under the key `prefix`, fit the schema of what they are options of."""
    try:
        schema.model_validate(options)
    except ValidationError as error:
        entry = error.errors()[0]
        raise Contradiction(_mistake(schema, entry, prefix), _key(entry, prefix), prefix) from None


def slug(text: str) -> str:
    """A folder name made of what any file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged values, and for every dotted key where it was written (`file:line`)."""
    if path.resolve() in seen:
        raise RecipeError(f"{path}: its bases form a circle")
    try:
        text = path.read_text(encoding="utf-8")
        own = tomllib.loads(text)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; the ones shipped are in recipes/") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    values, origin = {}, {}
    base = own.pop("base", None)
    if base is not None:
        if not isinstance(base, str) or not base or "\0" in base:
            raise RecipeError(f"{path}: base = {base!r}: write the path of another recipe")
        values, origin = _read(path.parent / base, (*seen, path.resolve()))
    lines = _key_lines(text)
    for key, value in _leaves(own):
        dotted = ".".join(key)
        _assign(values, list(key), value, origin, f"{path}:{next((lines[k] for k in _prefixes(dotted) if k in lines), 1)}")
    return values, origin


def _leaves(table: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _assign(values: dict[str, Any], key: list[str], value: Any, origin: dict[str, str], where: str) -> None:
    table = values
    for name in key[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise RecipeError(f"{where}: {'.'.join(key)} goes into {name!r}, which is not a section")
    table[key[-1]] = value
    origin[".".join(key)] = where


def _key_lines(text: str) -> dict[str, int]:
    """Line of every `key = value` and `[section]` in a TOML text written one key a line."""
    lines, section = {}, ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped.strip("[] ").split("]")[0]
            lines.setdefault(section, number)
        elif "=" in stripped and not stripped.startswith("#"):
            key = stripped.split("=", 1)[0].strip().strip('"')
            lines[f"{section}.{key}" if section else key] = number
    return lines


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _explain(schema: type[BaseModel], error: Any, origin: dict[str, str], path: Path) -> str:
    key = _key(error)
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, Contradiction):
        where = ", ".join(dict.fromkeys(filter(None, (_where(key, origin) for key in cause.keys)))) or str(path)
        return f"{where}: {cause}"
    where = _where(key, origin) or str(path)
    return f"{where}: {_mistake(schema, error)}"


def _key(error: Any, prefix: str = "") -> str:
    """The dotted key an error is about; what pydantic adds to say that a mapping's key is meant is left out."""
    return ".".join([*([prefix] if prefix else []), *(str(part) for part in error["loc"] if part != "[key]")])


def _mistake(schema: type[BaseModel], error: Any, prefix: str = "") -> str:
    key = _key(error, prefix)
    if error["type"] == "extra_forbidden":
        known = list(_known_keys(schema, f"{prefix}." if prefix else ""))
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown recipe key {key!r}{hint}"
    if error["type"] == "missing":
        return f"the recipe lacks the key {key!r}"
    return f"{key} = {error['input']!r}: {error['msg']}"


def _where(key: str, origin: dict[str, str]) -> str:
    """Where a key was written, or something in it, or the section it belongs to; empty if none was."""
    inside = next((where for name, where in origin.items() if name.startswith(f"{key}.")), "")
    return origin.get(key) or inside or next((origin[k] for k in _prefixes(key) if k in origin), "")


def _prefixes(key: str) -> Iterable[str]:
    parts = key.split(".")
    return (".".join(parts[:n]) for n in range(len(parts), 0, -1))


def _known_keys(schema: type[BaseModel], prefix: str = "") -> Iterable[str]:
    for name, field in schema.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")
