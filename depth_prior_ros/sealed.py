"""Text whose last line is the sha256 of what stands above it, so that damage is found and named."""

from __future__ import annotations

import hashlib
from typing import Literal

Damage = Literal["truncated", "altered"]

_SEAL = "sha256: "


def seal(body: str) -> str:
    """The text with its last line; `body` is empty or ends with a line break."""
    return f"{body}{_SEAL}{_digest(body)}\n"


def unseal(text: str) -> tuple[str, Damage | None]:
    """What stands above the seal (everything, where there is none), and what is wrong with it."""
    body, found, tail = text.rpartition(_SEAL)
    if not found or (body and not body.endswith("\n")):
        return text, "truncated"
    return body, None if tail == f"{_digest(body)}\n" else "altered"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
