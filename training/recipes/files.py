"""Recipes as YAML files: ``extends:`` another file, and ``key=value`` on the command line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from depth_prior_ros import strict_yaml
from depth_prior_ros.untrusted import printable
from training.recipes.base import RecipeError, Strict
from training.recipes.recipe import Recipe

# Keys of older versions, by their last part.
_TOLD = 8  # keys in one message
_RENAMED = {
    "held_out": "validation_recordings",
    "kept_pixels_only": "auto_masked",
    "rich": "teacher (and its key teacher is model)",
    "tap": "stride",
}


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and apply ``key.sub=value`` overrides (lists by index: ``stages.0.steps=9``).

    ``extends: FILE`` (relative to the recipe) takes over that recipe's keys; sections are merged
    key by key, lists and values are replaced.

    Raises:
        RecipeError: file missing or not YAML, unknown key, wrong type or value, a circle of
            ``extends``; the message names the file and the offending keys.
    """
    values = read_values(Path(path))
    for override in overrides or []:
        _set(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        # A list that lost its wrong entry is then too short; only the entry is of interest.
        causes = [
            e
            for e in found
            if not any(o["loc"][: len(e["loc"])] == e["loc"] != o["loc"] for o in found)
        ]
        words = "; ".join(map(_plain, causes[:_TOLD]))
        more = len(causes) - _TOLD
        rest = f"; and {more} more" if more > 0 else ""
        raise RecipeError(f"{_kind(Path(path))}: {words}{rest}") from error


def read_values(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a recipe and of those that it extends, as plain values."""
    if path.resolve() in seen:
        raise RecipeError(f"recipe {seen[0]}: extends leads back to {path}")
    values = _read_yaml(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise RecipeError(f"recipe {path}: extends must name one file, got {parent!r}")
    return _merge(read_values(path.parent / parent, (*seen, path.resolve())), values)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        sections = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if sections else value  # type: ignore[arg-type]
    return merged


def _set(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign:
        raise RecipeError(f"override '{override}' is not of the form key=value")
    try:
        value = strict_yaml.parse(text)
    except strict_yaml.YamlError as error:
        raise RecipeError(f"override '{override}': the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    target: Any = values
    for name in parents:
        if isinstance(target, list):
            target = target[_index(target, name, override)]
        else:
            target = target.setdefault(name, {})
        if not isinstance(target, (dict, list)):
            raise RecipeError(f"override '{override}': '{name}' is a value, not a section")
    target[_index(target, last, override) if isinstance(target, list) else last] = value


def _index(target: list[Any], name: str, override: str) -> int:
    if not name.isdecimal() or int(name) >= len(target):
        raise RecipeError(
            f"override '{override}': '{name}' is no place in a list of {len(target)}, count from 0"
        )
    return int(name)


def _plain(error: Any) -> str:
    place = printable(".".join(map(str, error["loc"])) or "recipe")
    if error["type"] != "extra_forbidden":
        return printable(f"{place}: {' '.join(error['msg'].split())}")
    if (key := str(error["loc"][-1])) in _RENAMED:
        return f"unknown key {place}; it is called {_RENAMED[key]} now"
    allowed = _keys_at(error["loc"][:-1])
    close = difflib.get_close_matches(key, allowed, 1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"unknown key {place}{hint} Allowed there: {', '.join(allowed)}"


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at ``place``; in lists of stages the kind stands behind the number."""
    sections: list[type[Strict]] = [Recipe]
    for part in place:
        if isinstance(part, int):
            continue
        kinds = [s for s in sections if part in _literals(s.model_fields.get("kind"))]
        if kinds:
            sections = kinds
            continue
        fields = [s.model_fields[part] for s in sections if part in s.model_fields]
        sections = [s for field in fields for s in _sections(field.annotation)]
    return sorted({key for section in sections for key in section.model_fields})


def _sections(annotation: Any) -> list[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _literals(field: FieldInfo | None) -> tuple[Any, ...]:
    return () if field is None else get_args(field.annotation)


def _kind(path: Path) -> str:
    base = (
        " (files below base/ are parts of recipes, not runs)" if path.parent.name == "base" else ""
    )
    return f"recipe {path} is not valid{base}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = strict_yaml.read(path)
    except OSError as error:
        problem = strict_yaml.problem_of(error)
        raise RecipeError(f"recipe {path} cannot be read: {problem}") from error
    except strict_yaml.YamlError as error:
        raise RecipeError(f"recipe {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path} holds no keys")
    return values
