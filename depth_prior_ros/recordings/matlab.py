"""Numeric arrays out of MATLAB's .mat files of version 5 to 7: all that data sets need of them.

MATLAB's "Level 5" format: a header of 128 bytes, then elements of (type, size, data), padded to
eight bytes; an array is an element that holds others (flags, dimensions, name, real part), possibly
inside a compressed one. Version 7.3 is HDF5 and is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.recordings.base import CorruptFrameError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
# element type -> numpy type without byte order
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8"}
_FIRST_NUMERIC, _LAST_NUMERIC = 6, 15  # classes of arrays: double, single, integers
_COMPLEX = 0x0800


def read_array(path: Path, name: str) -> NDArray[np.float64]:
    """The real numeric array `name` of a .mat file, with MATLAB's shape.

    Raises CorruptFrameError: not such a file, damaged, or without that array.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptFrameError(f"{path}: cannot be read ({error.strerror})") from error
    if data[:19] == b"MATLAB 7.3 MAT-file":
        raise CorruptFrameError(f"{path}: version 7.3; save it as version 7 (save -v7)")
    if len(data) < _HEADER or data[126:128] not in (b"IM", b"MI"):
        raise CorruptFrameError(f"{path}: not a MATLAB file of version 5 to 7")
    order = "<" if data[126:128] == b"IM" else ">"
    seen = []
    try:
        for kind, content in _elements(data[_HEADER:], order):
            if kind == _COMPRESSED:
                kind, content = next(_elements(zlib.decompress(content), order))
            if kind != _MATRIX:
                continue
            found, array = _matrix(content, order, name)
            if array is not None:
                return array
            seen.append(found)
    except (struct.error, zlib.error, ValueError, KeyError, StopIteration) as error:
        raise CorruptFrameError(f"{path}: damaged ({error or type(error).__name__})") from error
    raise CorruptFrameError(f"{path}: no {name} in it, only {', '.join(seen) or 'nothing'}")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the elements in a row."""
    at = 0
    while at + 8 <= len(data):
        (word,) = struct.unpack_from(f"{order}I", data, at)
        if word >> 16:  # small element: size and type share a word, the content follows at once
            kind, size, start, end = word & 0xFFFF, word >> 16, at + 4, at + 8
        else:
            kind, (size,) = word, struct.unpack_from(f"{order}I", data, at + 4)
            start = at + 8
            # compressed elements alone are not padded
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise ValueError("truncated")
        yield kind, data[start : start + size]
        at = end


def _matrix(content: bytes, order: str, wanted: str) -> tuple[str, NDArray[np.float64] | None]:
    """An array's name, and its values where it is the wanted one."""
    parts = _elements(content, order)
    flags = struct.unpack(f"{order}I", next(parts)[1][:4])[0]
    shape = np.frombuffer(next(parts)[1], f"{order}i4")
    name = next(parts)[1].decode("latin-1")
    if name != wanted:
        return name, None
    if not _FIRST_NUMERIC <= flags & 0xFF <= _LAST_NUMERIC or flags & _COMPLEX:
        raise ValueError(f"{name} is not a real numeric array")
    kind, values = next(parts)
    numbers = np.frombuffer(values, f"{order}{_NUMBERS[kind]}").astype(np.float64)
    return name, numbers.reshape(tuple(shape), order="F")
