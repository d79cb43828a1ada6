"""Reading image files without trusting them: a truncated JPEG decodes "successfully" elsewhere.

And folders of them: what their names say, which are missing, which are unusable.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.images.encodings import decoded_to_rgb
from depth_prior_ros.recordings.base import CorruptFrameError, Frame, Skipped, readable
from depth_prior_ros.recordings.stamps import StampOrder, number_frames
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
    with readable(path, CorruptFrameError):
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(_PROBE_BYTES)
            size_in_bytes = path.stat().st_size
            file.seek(max(0, size_in_bytes - _TAIL_BYTES))
            tail = file.read()
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


def frame_of_file(
    index: int,
    stamp_ns: int,
    camera: Camera,
    file: Path,
    size: tuple[int, int],
    depth: Path | None = None,
    **known: Any,
) -> Frame:
    """A frame whose image is a file of that (width, height).

    depth: its 16-bit depth PNG; None: none. known: what else there is to a `Frame`.
    """
    if depth is not None:
        known["load_depth"] = partial(read_depth, depth, size)
    image, stored = partial(read_image, file, size), partial(read_bytes, file)
    return Frame(index, stamp_ns, camera, image, file=file, load_stored=stored, **known)


def read_depth_of_disparity(
    path: Path, factor: float, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Read a 16-bit disparity PNG (pixels x 256, 0 = none) as (H, W) float32 metres, 0 = none.

    factor: focal length in pixels times baseline in metres. Raises CorruptFrameError.
    """
    return depth_of_disparity(read_depth(path, size), factor)  # the same encoding


def depth_of_disparity(pixels: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """`factor` (focal length in pixels x baseline) over disparity in pixels; 0 where that is 0."""
    depth = np.zeros_like(pixels)
    np.divide(np.float32(factor), pixels, out=depth, where=pixels > 0)
    return depth


def positive(depth: NDArray) -> NDArray[np.float32]:
    """Depth with 0 for all that is none: not finite, or not positive."""
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)


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
    with readable(path, CorruptFrameError):
        return read_file(path, IMAGE_FILE_BYTES)


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


# Names that are times since 1970: (from, below, nanoseconds of one), between 1985 and 2286.
_EPOCHS = (
    (5 * 10**17, 10**19, 1),
    (5 * 10**14, 10**16, 1_000),
    (5 * 10**11, 10**13, 1_000_000),
)
_SECONDS = re.compile(r"[0-9]{1,10}[._][0-9]{3,9}")
# Larger numbers than this are no count of frames.
_LARGEST_NUMBER = 10**9
# A hole longer than this is named as a range, so that a stray file 9999999 does not name a million.
_LONGEST_LISTED_GAP = 20


def images_by_number(folder: Path, skipped: list[Skipped]) -> dict[int, Path]:
    """Images of a folder by the number that is their name, in order.

    Image files whose name is no number and second files of a number are named in `skipped`.
    Files that are no images (by suffix) are not frames and are passed over.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
            continue
        if not _is_number(path.stem):
            skipped.append(Skipped(str(path), "its name is not a frame number"))
        elif int(path.stem) in found:
            skipped.append(Skipped(str(path), f"frame {int(path.stem)} is there twice"))
        else:
            found[int(path.stem)] = path
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class NamedImages:
    """Images of a folder in their order.

    files: by frame number, which jumps where a frame is missing. stamps: nanoseconds by frame
    number, where the names are times. notes: how the names were read, in words.
    """

    files: dict[int, Path]
    stamps: dict[int, int] | None
    notes: list[str]


def images_by_name(folder: Path, skipped: list[Skipped]) -> NamedImages:
    """Images of a folder by whatever their names are.

    Numbers are frame numbers, whose usual step is one frame (images 0, 5, 10 follow each other);
    numbers that are too large for that, and seconds with a fraction, are times. Any other name
    gives an order: `frame2` before `frame10`.
    """
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    times = _times_of(files)
    if times is not None:
        unique: dict[int, Path] = {}
        for path in sorted(files):
            if times[path] in unique:
                skipped.append(Skipped(str(path), "another image has the same time in its name"))
            else:
                unique[times[path]] = path
        order = StampOrder(kept=list(range(len(unique))), stamps=sorted(unique))
        numbers = number_frames(order)
        skipped.extend(order.skipped)
        stamps = dict(zip(numbers, order.stamps, strict=True))
        named = {number: unique[stamp] for number, stamp in stamps.items()}
        return NamedImages(named, stamps, ["stamps are taken from the images' names"])
    if all(_is_number(p.stem) and int(p.stem) <= _LARGEST_NUMBER for p in files):
        numbered, step = _in_steps(images_by_number(folder, skipped))
        name_missing(list(numbered), "frame", skipped)
        notes = (
            [f"the images are numbered in steps of {step}: that is one frame"] if step > 1 else []
        )
        return NamedImages(numbered, None, notes)
    return NamedImages(dict(enumerate(sorted(files, key=_natural))), None, [])


def _times_of(files: list[Path]) -> dict[Path, int] | None:
    """Nanoseconds by file, where all names are times; None otherwise."""
    if files and all(_SECONDS.fullmatch(p.stem) for p in files):
        return {p: int(Decimal(p.stem.replace("_", ".")) * 10**9) for p in files}
    if not files or not all(_is_number(p.stem) for p in files):
        return None
    values = {p: int(p.stem) for p in files}
    low, high = min(values.values()), max(values.values())
    for start, end, unit in _EPOCHS:
        if start <= low and high < end:
            return {p: value * unit for p, value in values.items()}
    return None


def _in_steps(numbered: dict[int, Path]) -> tuple[dict[int, Path], int]:
    """Frame numbers counted in their usual step, where all are multiples of it apart."""
    steps = [b - a for a, b in itertools.pairwise(numbered)]
    step = Counter(steps).most_common(1)[0][0] if steps else 1
    if step == 1 or any(other % step for other in steps):
        return numbered, 1
    return {number // step: path for number, path in numbered.items()}, step


def _is_number(stem: str) -> bool:
    # str.isdigit alone accepts digits that int() refuses
    return stem.isascii() and stem.isdigit()


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """frame2 before frame10; the full name decides between equals."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(int(p), "") if p[0] in "0123456789" else (-1, p) for p in parts], path.name


def name_missing(numbers: list[int], what: str, skipped: list[Skipped]) -> None:
    """Name the numbers missing between the first and the last one."""
    for before, after in itertools.pairwise(numbers):
        missing = range(before + 1, after)
        if len(missing) > _LONGEST_LISTED_GAP:
            skipped.append(Skipped(f"{what} {missing[0]} to {missing[-1]}", "missing"))
        else:
            skipped.extend(Skipped(f"{what} {number}", "missing") for number in missing)


def probe_all(
    images: dict[int, Path], skipped: list[Skipped]
) -> tuple[dict[int, Path], tuple[int, int] | None]:
    """Keep the images that look whole and share the most common size.

    Returns the kept images and that (width, height), None without any.
    """
    sizes: dict[int, tuple[int, int]] = {}
    for number, path in images.items():
        try:
            sizes[number] = probe_image(path)
        except CorruptFrameError as error:
            skipped.append(Skipped(f"frame {number}", str(error)))
    if not sizes:
        return {}, None
    # the first of the most common: Counter keeps the order of insertion
    common = Counter(sizes.values()).most_common(1)[0][0]
    for number, size in sizes.items():
        if size != common:
            why = f"{images[number]}: {size[0]}x{size[1]}, the others are {common[0]}x{common[1]}"
            skipped.append(Skipped(f"frame {number}", why))
    return {n: images[n] for n, size in sizes.items() if size == common}, common
