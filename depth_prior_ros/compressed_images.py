"""JPEG and PNG in ``sensor_msgs/CompressedImage``: sizes from headers, pixels from OpenCV.

What an image is, its first bytes say: the ``format`` field is free text, and drivers differ.
Messages are duck-typed: those of rclpy and those read from a bag are the same here.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_prior_ros.message_error import MessageError

MAX_PIXELS = 1 << 26
"""Headers that promise more (67 million pixels) are refused before memory is taken for them."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG_END = b"IEND\xaeB`\x82"  # with its checksum: this chunk is always empty

# Frame headers of ITU-T T.81, table B.1: C0 to CF without DHT, JPG and DAC.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LONELY_MARKERS = frozenset(range(0xD0, 0xD9)) | {0x01}


def compressed_size(message: Any) -> tuple[int, int]:
    """(width, height) in pixels from the header of a complete JPEG or PNG.

    Raises:
        MessageError: ``unknown_encoding`` for another format, ``compressed_broken`` for a header
            that makes no sense or data without an end.
    """
    data = memoryview(message.data).cast("B")
    start = bytes(data[:8])
    if start == _PNG:
        width, height = _png_size(data)
        _check_end(data, _PNG_END, "PNG", len(_PNG))
    elif start.startswith(_JPEG):
        width, height, header = _jpeg_size(data)
        _check_end(data, _JPEG_END, "JPEG", header)
    elif not len(data):
        raise _broken("the message has no data")
    else:
        raise MessageError(
            "unknown_encoding",
            f"compressed image of format {message.format!r} is neither JPEG nor PNG",
        )
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise _broken(f"the header says {width}x{height} pixels")
    return width, height


def decode_compressed(message: Any) -> npt.NDArray[Any]:
    """HxW or HxWxC uint8 or uint16 in OpenCV's channel order (blue first), as it was stored.

    Raises:
        MessageError: as :func:`compressed_size`, and ``compressed_broken`` for data that OpenCV
            cannot decode.
    """
    width, height = compressed_size(message)
    data = np.frombuffer(message.data, dtype=np.uint8)
    try:
        # Unchanged also means: not turned as EXIF asks, of which camera_info knows nothing.
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _broken(f"OpenCV cannot decode it: {error}") from error
    if image is None:
        raise _broken(f"OpenCV cannot decode these {data.size} bytes")
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.shape[:2] != (height, width) or channels not in (1, 3, 4):
        raise _broken(f"decoded to {image.shape}, the header says {width}x{height}")
    if image.dtype not in (np.uint8, np.uint16):
        raise _broken(f"decoded to {image.dtype}")
    return image


def bayer_of_format(text: str) -> str | None:
    """``bayer_rggb`` and its like where the format says that the pixels are a raw pattern."""
    name, _, how = text.partition(";")
    stem = name.strip().rstrip("0123456789")
    raw = "bgr" not in how and "rgb" not in how
    return stem if raw and stem in _BAYER_STEMS else None


_BAYER_STEMS = frozenset(f"bayer_{p}" for p in ("rggb", "bggr", "gbrg", "grbg"))


def _png_size(data: memoryview) -> tuple[int, int]:
    if len(data) < 24 or bytes(data[12:16]) != b"IHDR":
        raise _broken("the PNG does not begin with a header")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _jpeg_size(data: memoryview) -> tuple[int, int, int]:
    """(width, height, where the frame header ends)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _LONELY_MARKERS:
            at += 2
            continue
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        end = at + 2 + length
        if length < 2 or end > len(data):
            break
        if marker in _FRAME_MARKERS:
            if length < 8:
                break
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height, end
        at = end
    raise _broken("the JPEG has no frame header")


def _check_end(data: memoryview, mark: bytes, kind: str, header: int) -> None:
    """Refuse data without its end: decoders fill what is missing with grey, silently.

    The end is looked for, not expected at the very end: buffers of fixed size are sent with what
    follows. In a JPEG it cannot occur among the pixels; thumbnails stand before the frame header.
    """
    tail = max(header, len(data) - 64)
    if mark in bytes(data[tail:]) or mark in bytes(data[header:]):
        return
    raise _broken(f"the {kind} of {len(data)} bytes ends before its picture does")


def _broken(text: str) -> MessageError:
    return MessageError("compressed_broken", text)
