"""What is allowed of files and names that come from elsewhere: caps, regular files, safe words.

Every cap of the package stands here and in docs/security.md. They are far above what the package
itself writes, and low enough that nothing from outside takes more than 2 GiB of memory. Text whose
last line is the sha256 of what stands above it is sealed: its damage is found and named.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Literal

YAML_BYTES = 1 << 20  # a recipe, calibration, scale file, metadata.yaml; lite's manifest has 9 KB
MANIFEST_BYTES = 1 << 18
YAML_DEPTH = 64  # sections within sections
YAML_NODES = 100_000  # keys and values

WEIGHTS_BYTES = 1 << 27  # a file of a bundle: 128 MiB are 67 million weights
NETWORK_BYTES = 1 << 31  # an imported network; protobuf, which ONNX is, knows no more
HEADER_BYTES = 1 << 24  # of a safetensors file
IMAGE_SIDE, INPUT_PIXELS = 8192, 1 << 22  # input size of a network
ARCHITECTURE_NUMBER = 4096  # channels, hypotheses, heads, ...
PRIOR_ENTRIES = 1 << 18
# Numbers of one tensor, 1 GiB: pixels of the feature map times entries (the prior's affinity), and
# pixels at a quarter of the size times hypotheses times groups (the matching costs).
TENSOR_NUMBERS = 1 << 28

IMAGE_PIXELS = 1 << 26  # an image that is decoded, 67 megapixels
IMAGE_FILE_BYTES = 1 << 28
VIDEO_FRAMES = 1 << 21  # 19 hours at 30 a second
CHUNK_BYTES = 1 << 28  # one chunk of a bag, unpacked
FILE_BYTES = 1 << 34  # a bag file, unpacked to the temporary folder
FILE_EXPANSION = 64  # how many times larger it may become
OPEN_CHUNKS_BYTES = 1 << 29  # chunks of a bag whose times overlap: all are unpacked at once
# How many times its size all messages and chunks of a bag may have: a black picture packs well, but
# not the whole drive, over and over.
BAG_EXPANSION = 1024
BAG_TOPICS = 10_000
TEXT_BYTES = 1 << 24  # a data set's text file: calibration, stamps, poses
TABLE_BYTES = 1 << 31  # a data set's table or array


class UntrustedFileError(OSError):
    """A file that is not read: no regular file, a link out of its folder, too large.

    The message is one line and names the file.
    """


def printable(text: object, limit: int | None = None) -> str:
    r"""Text from elsewhere for a terminal, a log, an HTML page or a file's header, on one line.

    Control characters (also those that turn the direction of writing), line breaks and lone
    surrogates become escapes such as ``\x1b``; other letters of any language stay. ``limit``:
    longest result, cut with "...".
    """
    safe = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )
    return safe if limit is None or len(safe) <= limit else f"{safe[: limit - 3]}..."


def printable_lines(text: object) -> str:
    """`printable` that keeps line breaks, for messages of several lines."""
    return "\n".join(map(printable, str(text).split("\n")))


def read_file(path: Path, limit: int, *, inside: Path | None = None) -> bytes:
    """All of a regular file, read once.

    Args:
        path: the file; a link is followed.
        limit: most bytes that are read.
        inside: a folder that a link must not lead out of.

    Raises:
        FileNotFoundError, OSError: it cannot be read.
        UntrustedFileError: a pipe, device, socket or folder, a link out of `inside`, too large.
    """
    if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
        raise UntrustedFileError(f"{printable(path)}: a link that leads out of its folder")
    try:
        # A pipe without a writer would keep a plain open waiting for ever.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise UntrustedFileError(f"{printable(path)}: not a regular file") from error
        raise
    except ValueError as error:  # a null byte in the name
        raise UntrustedFileError(f"{printable(path)}: not the name of a file") from error
    with os.fdopen(number, "rb") as file:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedFileError(f"{printable(path)}: not a regular file")
        # One byte more: a file that grows meanwhile, or says 0 as those of /proc do.
        data = file.read(limit + 1) if status.st_size <= limit else b""
        size = max(status.st_size, len(data))
    if size > limit:
        raise UntrustedFileError(
            f"{printable(path)}: {size:,} bytes, more than the {limit:,} that are read"
        )
    return data


def read_text(path: Path, limit: int = TEXT_BYTES) -> str:
    """`read_file` as text; what is no UTF-8 is replaced."""
    return read_file(path, limit).decode(errors="replace")


def parse_json(text: str | bytes) -> Any:
    """Plain data from JSON. Raises ValueError, whatever is wrong with it."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def check_regular(path: Path) -> None:
    """Raise UntrustedFileError for what is neither a regular file nor missing."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise UntrustedFileError(f"{printable(path)}: not a regular file")


def sha256(data: bytes) -> str:
    """The hash of bytes, as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


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
