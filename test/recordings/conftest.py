"""What the tests of recordings share."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module", autouse=True)
def drawn_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Textures of the same seed are drawn once a module: rendered tests draw them twenty times.

    Processes draw their own, and are compared with what is written here.
    """
    if "synthetic" not in request.module.__name__:
        yield
        return
    from depth_prior_ros.recordings.synthetic import textures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textures, "_drawn", _kept(textures._drawn))
        yield


def _kept(drawn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    once = functools.lru_cache(maxsize=6)(drawn)

    def copied(seed: Any) -> Any:
        layers, rng = once(seed if isinstance(seed, int) else tuple(seed))
        return list(layers), copy.deepcopy(rng)

    return copied
