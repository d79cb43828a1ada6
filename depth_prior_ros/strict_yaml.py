"""The one reader of YAML: bounded in size, depth and number of values, and without aliases.

Aliases make a file of 2 KB a structure of gigabytes; hundreds of brackets overflow the stack of
the parser. Both are found in the stream of events, before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from depth_prior_ros.untrusted import (
    YAML_BYTES,
    YAML_DEPTH,
    YAML_NODES,
    UntrustedFileError,
    printable,
    read_file,
)

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LARGEST = 2**64  # whole numbers beyond fit no field, and overflow as floats


class YamlError(ValueError):
    """Text that is no YAML, or more than is read; the message is one line."""


def parse(text: str | bytes, limit: int = YAML_BYTES, nodes: int = YAML_NODES) -> Any:
    """Plain data from YAML (or JSON). Raises YamlError, whatever is wrong with it.

    Args:
        text: UTF-8 where it is bytes.
        limit: most bytes.
        nodes: most keys and values.
    """
    if len(text) > limit:
        raise YamlError(f"{len(text):,} bytes of YAML, more than the {limit:,} that are read")
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        _check_events(text, nodes)
        data = yaml.load(text, Loader=_LOADER)
        _check_numbers(data)
        return data
    except YamlError:
        raise
    except UnicodeDecodeError as error:
        raise YamlError(f"not text in UTF-8 ({error.reason} at byte {error.start})") from error
    except Exception as error:
        # Besides YAMLError the constructors of PyYAML let pass what int(), float() and date()
        # raise, KeyError and AttributeError: for tags that do not fit their value.
        raise YamlError(_words(error)) from error


def read(path: Path, limit: int = YAML_BYTES) -> Any:
    """`parse` of a regular file.

    Raises:
        YamlError: does not name the file.
        FileNotFoundError, OSError: the file cannot be read, `UntrustedFileError` among them.
    """
    return parse(read_file(path, limit), limit)


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        """What stands in two places is written twice: aliases are not read."""
        return True


def dump(data: Any, one_line_each: bool = False) -> str:
    """YAML for plain data, keys in their order, letters of any language as they are.

    one_line_each: innermost lists and mappings on one line, however long.
    """
    return str(
        yaml.dump(
            data,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            width=1 << 16 if one_line_each else 100,
            default_flow_style=None if one_line_each else False,
        )
    )


def read_as(path: Path, wrong: Callable[[str], Exception]) -> Any:
    """As `read`, with one error of the caller's kind, which names the file.

    Raises FileNotFoundError where there is none, and what ``wrong`` makes of the words.
    """
    try:
        return read(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise wrong(f"{path}: cannot be read: {problem_of(error)}") from error
    except YamlError as error:
        raise wrong(f"{path}: cannot be read: {error}") from error


def problem_of(error: OSError) -> str:
    """An error of `read` in words that stand after the file's name."""
    if isinstance(error, UntrustedFileError):
        return str(error).partition(": ")[2]
    return error.strerror or str(error)


def _check_events(text: str, nodes: int) -> None:
    depth = count = 0
    for event in yaml.parse(text, Loader=_LOADER):
        count += isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(
                f"{_line(event)}: an alias (*{printable(event.anchor)}); write the value out"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > YAML_DEPTH:
                raise YamlError(f"{_line(event)}: nested more than {YAML_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if count > nodes:
            raise YamlError(f"more than {nodes:,} keys and values")


def _line(event: yaml.Event) -> str:
    return "" if event.start_mark is None else f"line {event.start_mark.line + 1}"


def _check_numbers(data: Any) -> None:
    """Raise YamlError for a whole number of more than 64 bits."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        elif isinstance(value, int) and abs(value) >= _LARGEST:
            raise YamlError(f"a whole number of {value.bit_length()} bits, 64 are the most")


def _words(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}, column {mark.column + 1}: {printable(problem)}"
    kind = "" if isinstance(error, yaml.YAMLError | ValueError) else f"{type(error).__name__}: "
    return f"not valid YAML: {kind}{printable(' '.join(str(error).split()), 200)}"
