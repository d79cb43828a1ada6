"""What is said of a bundle's references: one wording for diagnostics, notes and results.

`DepthResult.references` says it of a frame; it is empty for a bundle that has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from depth_prior_ros.bundle import BundleError, load_bundle

if TYPE_CHECKING:
    from depth_prior_ros.bundle import ReferencesSpec

NO_LOOK_UP = "--no-look-up"
UNKNOWN = "not known"

_NOT = "not looked up: "
_NONE = "the bundle has none"

SWITCHED_OFF = f"{_NOT}switched off"


def looked_up(spec: ReferencesSpec) -> str:
    """Which references are."""
    return f"{spec.count} pixels of {spec.source}"


def not_looked_up(why: str) -> str:
    """That the bundle's references are not, and why."""
    return f"{_NOT}{why}"


def are_left_out(text: str) -> bool:
    """Whether a text of this module says that a bundle has references that are not looked up."""
    return text.startswith(_NOT)


def references_in_words(frames: Mapping[str, int]) -> list[str]:
    """What was looked up for frames, counted by what was said of each; nothing said: not known.

    A line for each thing said, with the number of frames where there are several.
    """
    if len(frames) < 2:
        return [_in_words(text) for text in frames or (UNKNOWN,)]
    total = sum(frames.values())
    return [f"{_in_words(text)}, in {n} of {total} frames" for text, n in frames.items()]


def _in_words(text: str) -> str:
    if not text:
        return _NONE
    return text if are_left_out(text) or text == UNKNOWN else f"looked up: {text}"


def useless_no_look_up(bundle: str | Path, given: bool) -> str | None:
    """The line that tells whoever gave `--no-look-up` for a bundle without references; else None.

    A bundle that cannot be opened is left to whatever is going to use it, which says so.
    """
    if not given:
        return None
    try:
        manifest = load_bundle(bundle).manifest
    except BundleError:
        return None
    if manifest.references is not None:
        return None
    return f"references: {_NONE}, so {NO_LOOK_UP} changes nothing"
