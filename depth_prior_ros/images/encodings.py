"""Pixels of every camera encoding as RGB: ``sensor_msgs`` ``Image`` and ``CompressedImage``.

``rgb8`` is a view of the message's own memory; everything else is one OpenCV conversion. Every
refusal is a :class:`MessageError`. Messages are duck-typed: those of rclpy and those read from a
bag are the same here.

The one error of messages that cannot be used: a cause to count by and words for a person.

JPEG and PNG in ``sensor_msgs/CompressedImage``: sizes from headers, pixels from OpenCV.

What an image is, its first bytes say: the ``format`` field is free text, and drivers differ.
Messages are duck-typed: those of rclpy and those read from a bag are the same here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_prior_ros.untrusted import IMAGE_PIXELS


class MessageError(ValueError):
    """A message that cannot be used.

    Attributes:
        cause: stable identifier: of images ``zero_size``, ``odd_size``, ``wrong_step``,
            ``truncated``, ``unknown_encoding`` or ``compressed_broken``; of calibration
            ``bad_intrinsics`` or ``camera_info_size``.
        text: what is wrong with this message, for a person.
    """

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(f"{cause}: {text}")
        self.cause = cause
        self.text = text


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
    if width < 1 or height < 1 or width * height > IMAGE_PIXELS:
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


ImageArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoding:
    """How one encoding lies in memory, and how it becomes HxWx3 RGB.

    channels: values a pixel; depth: bytes a value; to_rgb: from HxWxC (of the machine's byte
    order) to HxWx3 uint8; even_width: pixels come in pairs; semi_planar: half a plane of chroma
    follows the plane of luma, so both sides are even.
    """

    channels: int
    depth: int
    to_rgb: Callable[[npt.NDArray[Any]], ImageArray]
    even_width: bool = False
    semi_planar: bool = False

    def row(self, width: int) -> int:
        """Bytes of a row of ``width`` pixels without padding."""
        return width * self.channels * self.depth


def is_compressed(message: Any) -> bool:
    """Whether it is a ``CompressedImage``, which has a format and no size."""
    return hasattr(message, "format")


def image_to_rgb(message: Any) -> ImageArray:
    """The pixels of a camera image as HxWx3 uint8 RGB.

    ``rgb8`` is a read-only view of the message's own memory (rows may be padded), all others are
    copies. 16 bits become 8 by division by 257, rounded: 65535 is white. Bayer patterns are
    interpolated bilinearly, YUV is BT.601 with studio range, ``8UC3`` and ``8UC4`` have OpenCV's
    channel order (blue first).

    Raises:
        MessageError: for an ``Image`` ``zero_size``, ``unknown_encoding``, ``odd_size``,
            ``wrong_step`` or ``truncated``, checked in this order; for a ``CompressedImage``
            ``unknown_encoding`` or ``compressed_broken``.
    """
    if is_compressed(message):
        return _compressed_to_rgb(message)
    encoding, rows, step = _layout(message)
    width, height = int(message.width), int(message.height)
    flat = np.frombuffer(message.data, dtype=np.uint8)
    pixels: npt.NDArray[Any] = flat.reshape(rows, step)[:, : encoding.row(width)]
    if encoding.depth == 2:
        pixels = _native_words(pixels, bool(message.is_bigendian))
    if not encoding.semi_planar:
        pixels = pixels.reshape(height, width, encoding.channels)
    pixels.flags.writeable = False
    return encoding.to_rgb(pixels)


def check_image(message: Any) -> None:
    """Refuse an image that cannot be read, without touching its pixels.

    Cheap enough for a subscription callback, where it keeps a malformed image from replacing a
    good one that waits. Of a compressed image the header is read and the end looked for.

    Raises:
        MessageError: as :func:`image_to_rgb`; what only decoding finds out is found there.
    """
    if is_compressed(message):
        compressed_size(message)
    else:
        _layout(message)


def image_size(message: Any) -> tuple[int, int]:
    """(width, height) in pixels; of a compressed image from its header, without decoding.

    Raises:
        MessageError: for a compressed image as :func:`check_image`.
    """
    if is_compressed(message):
        return compressed_size(message)
    return int(message.width), int(message.height)


def supported_encodings() -> tuple[str, ...]:
    """The encodings of ``sensor_msgs/Image`` that are read without cv_bridge."""
    return tuple(_ENCODINGS)


# -- layout ------------------------------------------------------------------------------------


def _layout(message: Any) -> tuple[Encoding, int, int]:
    """(encoding, rows, bytes a row) of the data.

    Raises:
        MessageError: as :func:`image_to_rgb`.
    """
    width, height, step = int(message.width), int(message.height), int(message.step)
    check_size(width, height)
    name, size = message.encoding, len(message.data)
    encoding = _ENCODINGS.get(name)
    if encoding is None:
        known = ", ".join(supported_encodings())
        raise MessageError("unknown_encoding", f"encoding {name!r} is not one of {known}")
    if (encoding.even_width and width % 2) or (encoding.semi_planar and (width | height) % 2):
        raise MessageError(
            "odd_size", f"{name} shares colour between neighbours: {width}x{height} is not even"
        )
    row = encoding.row(width)
    if not encoding.semi_planar:
        check_layout(name, width, height, step, row, size)
        return encoding, height, step
    rows = height * 3 // 2
    # Some drivers give the luma's row as the step, others what `step * height = size` asks for.
    luma = step * 2 // 3
    if size == step * height and luma >= row and luma * rows == size:
        step = luma
    check_layout(name, width, rows, step, row, size)
    return encoding, rows, step


def check_size(width: int, height: int) -> None:
    """Refuse an image without pixels.

    Raises:
        MessageError: ``zero_size``.
    """
    if width < 1 or height < 1:
        raise MessageError("zero_size", f"the image is {width}x{height} pixels")


def check_layout(encoding: str, width: int, rows: int, step: int, row: int, size: int) -> None:
    """Refuse a step or a length that does not fit the image; ``row`` are its bytes a row.

    Raises:
        MessageError: ``wrong_step`` or ``truncated``.
    """
    if step < row:
        raise MessageError(
            "wrong_step",
            f"step {step} is shorter than a row of {width} {encoding} pixels ({row} bytes)",
        )
    if size < step * rows:
        raise MessageError(
            "truncated",
            f"{size} bytes of data where {rows} rows of {step} bytes need {step * rows}",
        )
    if size > step * rows:
        raise MessageError(
            "wrong_step", f"{size} bytes of data do not divide into {rows} rows of step {step}"
        )


def _native_words(rows: ImageArray, big_endian: bool) -> npt.NDArray[np.uint16]:
    """Rows of bytes as rows of 16-bit numbers in the machine's byte order."""
    words = np.ascontiguousarray(rows).view(">u2" if big_endian else "<u2")
    return words.astype(np.uint16)


# -- conversions -------------------------------------------------------------------------------


def _as_is(pixels: npt.NDArray[Any]) -> ImageArray:
    return pixels


def _coloured(code: int) -> Callable[[npt.NDArray[Any]], ImageArray]:
    def convert(pixels: npt.NDArray[Any]) -> ImageArray:
        return cv2.cvtColor(pixels, code)

    return convert


def _eight_bits(then: Callable[[npt.NDArray[Any]], ImageArray]) -> Callable[..., ImageArray]:
    def convert(pixels: npt.NDArray[Any]) -> ImageArray:
        narrow = cv2.convertScaleAbs(pixels, alpha=1 / 257)
        return then(narrow.reshape(pixels.shape))  # OpenCV drops an axis of length one

    return convert


def _demosaiced(code: int) -> Callable[[npt.NDArray[Any]], ImageArray]:
    def convert(pixels: npt.NDArray[Any]) -> ImageArray:
        # Mirrored by two, the pattern goes on across the border; OpenCV alone repeats the row
        # next to it instead.
        border = cv2.copyMakeBorder(pixels, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)
        return np.ascontiguousarray(cv2.cvtColor(border, code)[2:-2, 2:-2])

    return convert


_GREY = _coloured(cv2.COLOR_GRAY2RGB)
_BGR = _coloured(cv2.COLOR_BGR2RGB)
_RGBA = _coloured(cv2.COLOR_RGBA2RGB)
_BGRA = _coloured(cv2.COLOR_BGRA2RGB)
_UYVY = _coloured(cv2.COLOR_YUV2RGB_UYVY)
_YUYV = _coloured(cv2.COLOR_YUV2RGB_YUY2)

# OpenCV names a pattern by the second row's second and third pixel.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}

_ENCODINGS = {
    "rgb8": Encoding(3, 1, _as_is),
    "bgr8": Encoding(3, 1, _BGR),
    "rgba8": Encoding(4, 1, _RGBA),
    "bgra8": Encoding(4, 1, _BGRA),
    "mono8": Encoding(1, 1, _GREY),
    "8UC1": Encoding(1, 1, _GREY),
    "8UC3": Encoding(3, 1, _BGR),
    "8UC4": Encoding(4, 1, _BGRA),
    "rgb16": Encoding(3, 2, _eight_bits(_as_is)),
    "bgr16": Encoding(3, 2, _eight_bits(_BGR)),
    "rgba16": Encoding(4, 2, _eight_bits(_RGBA)),
    "bgra16": Encoding(4, 2, _eight_bits(_BGRA)),
    "mono16": Encoding(1, 2, _eight_bits(_GREY)),
    "16UC1": Encoding(1, 2, _eight_bits(_GREY)),
    **{f"bayer_{p}8": Encoding(1, 1, _demosaiced(c)) for p, c in _BAYER.items()},
    **{f"bayer_{p}16": Encoding(1, 2, _eight_bits(_demosaiced(c))) for p, c in _BAYER.items()},
    # The names of 2023 and after; the older ones stay in use.
    "uyvy": Encoding(2, 1, _UYVY, even_width=True),
    "yuv422": Encoding(2, 1, _UYVY, even_width=True),
    "yuyv": Encoding(2, 1, _YUYV, even_width=True),
    "yuv422_yuy2": Encoding(2, 1, _YUYV, even_width=True),
    "nv12": Encoding(1, 1, _coloured(cv2.COLOR_YUV2RGB_NV12), semi_planar=True),
    "nv21": Encoding(1, 1, _coloured(cv2.COLOR_YUV2RGB_NV21), semi_planar=True),
}

# -- compressed images -------------------------------------------------------------------------


def _compressed_to_rgb(message: Any) -> ImageArray:
    """A JPEG or PNG as RGB; 16 bits, grey, alpha and raw Bayer patterns as in plain images."""
    decoded = decode_compressed(message)
    name = None
    if decoded.ndim == 2:
        # image_transport compresses Bayer images as they are and says so in the format alone.
        name = bayer_of_format(message.format)
    elif decoded.shape[2] == 3 and "compressed rgb" in message.format:
        name = "rgb"  # stored with red and blue swapped, says image_transport's reader
    return decoded_to_rgb(decoded, name)


def decoded_to_rgb(decoded: npt.NDArray[Any], name: str | None = None) -> ImageArray:
    """(H, W, 3) uint8 RGB of what OpenCV decoded with `IMREAD_UNCHANGED`.

    decoded: (H, W) or (H, W, 1, 3 or 4), uint8 or uint16. name: of the encoding without its bits;
    default: OpenCV's for that many channels.
    """
    channels = 1 if decoded.ndim == 2 else decoded.shape[2]
    name = name or {1: "mono", 3: "bgr", 4: "bgra"}[channels]
    encoding = _ENCODINGS[f"{name}{8 * decoded.itemsize}"]
    return encoding.to_rgb(decoded.reshape(*decoded.shape[:2], channels))
