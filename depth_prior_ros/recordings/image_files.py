"""Reading image files without trusting them: a truncated JPEG decodes "successfully" elsewhere."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.images.encodings import decoded_to_rgb
from depth_prior_ros.recordings.base import CorruptFrameError
from depth_prior_ros.strict_yaml import problem_of
from depth_prior_ros.untrusted import IMAGE_FILE_BYTES, IMAGE_PIXELS, check_regular, read_file

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif"),
    *(".jp2", ".pbm", ".pgm", ".ppm", ".pnm", ".ras", ".sr"),
)
"""Of the image files that OpenCV reads; what is in a file, its bytes say."""

DEPTH_SCALE = 256.0  # KITTI's 16-bit depth: metres x 256, 0 = none

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_BMP_START = b"BM"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_PROBE_BYTES = 4096
# A camera may pad its JPEGs; the end marker still has to be near the end.
_TAIL_BYTES = 64


def probe_image(path: Path) -> tuple[int, int]:
    """Size (width, height) from a file's first and last bytes; raises CorruptFrameError.

    Finds empty, foreign and cut-off files without decoding. Damage in the middle is found on
    reading only.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(_PROBE_BYTES)
            size_in_bytes = path.stat().st_size
            file.seek(max(0, size_in_bytes - _TAIL_BYTES))
            tail = file.read()
    except OSError as error:
        raise CorruptFrameError(f"{path}: cannot be read ({problem_of(error)})") from error
    _check_ends(head, tail, size_in_bytes, str(path))
    if not head.startswith((_JPEG_START, _PNG_START)):
        height, width = read_image(path).shape[:2]  # only decoding tells
        return width, height
    size = _header_size(head) or _header_size(_read(path))
    _check_pixels(size, str(path))
    assert size is not None
    return size


def read_image(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB; see `decode_image`.

    Raises CorruptFrameError, also where the image has not the given (width, height).
    """
    image = decode_image(_read(path), str(path))
    _check_size(image, size, str(path))
    return image


def read_depth(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Read a 16-bit depth PNG as (H, W) float32 metres, 0 = none; raises CorruptFrameError."""
    depth = decode_depth(_read(path), str(path))
    _check_size(depth, size, str(path))
    return depth


def read_depth_of_disparity(
    path: Path, factor: float, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Read a 16-bit disparity PNG (pixels x 256, 0 = none) as (H, W) float32 metres, 0 = none.

    factor: focal length in pixels times baseline in metres. Raises CorruptFrameError.
    """
    pixels = read_depth(path, size)  # the same encoding
    depth = np.zeros_like(pixels)
    np.divide(np.float32(factor), pixels, out=depth, where=pixels > 0)
    return depth


def decode_image(data: bytes, what: str) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) uint8 RGB; raises CorruptFrameError naming `what`.

    As images of a camera's topic: grey becomes three equal channels, 16 bits become 8, and an
    orientation tag (EXIF) is not followed, as intrinsics describe the sensor.
    """
    _check_bytes(data, what)
    decoded = _decode(data, what)
    channels = 1 if decoded.ndim == 2 else decoded.shape[2]
    if decoded.dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4):
        raise CorruptFrameError(
            f"{what}: {channels} channels of {decoded.dtype}; images have 1, 3 or 4 of 8 or 16 bits"
        )
    return decoded_to_rgb(decoded)


def _decode(data: bytes, what: str) -> NDArray:
    """OpenCV's array, once the size that a header says is known to be bearable."""
    if data.startswith((_JPEG_START, _PNG_START)):
        _check_pixels(_header_size(data), what)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in error.err:
            raise CorruptFrameError(
                f"{what}: its header says more than {IMAGE_PIXELS:,} pixels"
            ) from error
        raise CorruptFrameError(f"{what}: cannot be decoded ({error.err})") from error
    if decoded is None:
        raise CorruptFrameError(f"{what}: cannot be decoded, no image that OpenCV reads")
    return decoded


def decode_depth(data: bytes, what: str, unit: float = 1 / DEPTH_SCALE) -> NDArray[np.float32]:
    """Decode a 16-bit PNG to (H, W) float32 metres; raises CorruptFrameError.

    unit: metres of one step; KITTI's are 1/256.
    """
    _check_bytes(data, what)
    raw = _decode(data, what)
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise CorruptFrameError(f"{what}: not a 16-bit, one-channel depth image")
    return raw.astype(np.float32) * np.float32(unit)


def encode_depth(
    depth: NDArray[np.float32], compression: int = 6, steps: float = DEPTH_SCALE
) -> bytes:
    """Encode metres as a 16-bit PNG; 0, negative, not finite, or too much for 16 bits = none.

    steps: of a metre; KITTI has 256, which end at 255.99 m, millimetres are 1000.
    """
    finite = np.isfinite(depth) & (depth > 0)
    scaled = np.rint(np.where(finite, depth, 0.0) * steps)
    raw = np.where(scaled <= np.iinfo(np.uint16).max, scaled, 0).astype(np.uint16)
    return bytes(cv2.imencode(".png", raw, [cv2.IMWRITE_PNG_COMPRESSION, compression])[1])


def read_bytes(path: Path) -> bytes:
    """All of a JPEG or PNG, once it is known to be whole; raises CorruptFrameError."""
    data = _read(path)
    _check_bytes(data, str(path))
    return data


def _read(path: Path) -> bytes:
    try:
        return read_file(path, IMAGE_FILE_BYTES)
    except OSError as error:
        raise CorruptFrameError(f"{path}: cannot be read ({problem_of(error)})") from error


def _check_pixels(size: tuple[int, int] | None, what: str) -> None:
    if size is None:
        raise CorruptFrameError(f"{what}: no image size in its header")
    if not 0 < size[0] * size[1] <= IMAGE_PIXELS:
        raise CorruptFrameError(
            f"{what}: its header says {size[0]}x{size[1]}, {IMAGE_PIXELS:,} pixels are the most"
        )


def _check_bytes(data: bytes, what: str) -> None:
    _check_ends(data[:_PROBE_BYTES], data[-_TAIL_BYTES:], len(data), what)
    if data.startswith(_PNG_START):
        _check_png_chunks(data, what)


def _check_ends(head: bytes, tail: bytes, size: int, what: str) -> None:
    if not head:
        raise CorruptFrameError(f"{what}: empty")
    if head.startswith(_JPEG_START):
        complete = _JPEG_END in tail
    elif head.startswith(_PNG_START):
        complete = _PNG_END in tail
    elif head.startswith(_BMP_START) and len(head) >= 6:
        complete = struct.unpack_from("<I", head, 2)[0] <= size
    else:
        complete = True  # left to OpenCV
    if not complete:
        raise CorruptFrameError(f"{what}: truncated")


def _check_png_chunks(data: bytes, what: str) -> None:
    """Check every chunk's CRC: OpenCV decodes a damaged PNG as far as it goes and says nothing."""
    position = len(_PNG_START)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if crc != zlib.crc32(data[position + 4 : end - 4]):
            break
        if data[position + 4 : position + 8] == b"IEND":
            return
        position = end
    raise CorruptFrameError(f"{what}: damaged PNG")


def _header_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from a PNG's IHDR or a JPEG's start-of-frame segment; None if not found."""
    if data.startswith(_PNG_START):
        return struct.unpack_from(">II", data, 16) if len(data) >= 24 else None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return None


def _check_size(image: NDArray, size: tuple[int, int] | None, what: str) -> None:
    if size is not None and image.shape[:2] != (size[1], size[0]):
        found = f"{image.shape[1]}x{image.shape[0]}"
        raise CorruptFrameError(f"{what}: {found} instead of {size[0]}x{size[1]}")
