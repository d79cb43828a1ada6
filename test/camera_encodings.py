"""Camera messages in every encoding with the RGB they stand for, computed a second way, for tests.

The expected pixels come from integer arithmetic on the values that were put in, written from the
definitions: division by 257, bilinear Bayer interpolation, BT.601 with studio range. OpenCV is not
asked.
"""

from __future__ import annotations

import array
import struct
import zlib

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

Array = NDArray[np.int64]

ORDERS = {
    **{f"{order}{bits}": order for order in ("rgb", "bgr", "rgba", "bgra") for bits in (8, 16)},
    **dict.fromkeys(("mono8", "mono16", "8UC1", "16UC1"), "y"),
    "8UC3": "bgr",
    "8UC4": "bgra",
}
BAYER = {f"bayer_{p}{bits}": p for p in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)}
PACKED = {"yuv422": "uyvy", "uyvy": "uyvy", "yuv422_yuy2": "yuyv", "yuyv": "yuyv"}
SEMI_PLANAR = {"nv12": "uv", "nv21": "vu"}
ENCODINGS = (*ORDERS, *BAYER, *PACKED, *SEMI_PLANAR)
WIDE = tuple(name for name in ENCODINGS if name.endswith("16") or name.startswith("16"))

HEADER = Header(stamp=Time(sec=7, nanosec=8), frame_id="camera_optical_frame")


def encoded(
    name: str,
    width: int,
    height: int,
    *,
    padding: int = 0,
    big_endian: bool = False,
    seed: int = 0,
) -> tuple[Image, NDArray[np.uint8]]:
    """A message of random pixels, its rows padded with noise, and its HxWx3 RGB."""
    rng = np.random.default_rng(seed)
    if name in PACKED:
        rows, rgb = _packed(name, width, height, rng)
    elif name in SEMI_PLANAR:
        rows, rgb = _semi_planar(name, width, height, rng)
    else:
        rows, rgb = _plain(name, width, height, big_endian, rng)
    noise = rng.integers(0, 256, (len(rows), padding), dtype=np.uint8)
    message = Image(header=HEADER, width=width, height=height, encoding=name)
    message.is_bigendian = int(big_endian)
    message.step = rows.shape[1] + padding
    message.data = array.array("B", np.hstack([rows, noise]).tobytes())
    return message, rgb.astype(np.uint8)


def _plain(
    name: str, width: int, height: int, big_endian: bool, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Array]:
    order = ORDERS.get(name, "y")
    bits = 16 if name in WIDE else 8
    values = rng.integers(0, 1 << bits, (height, width, len(order)))
    if bits == 16:
        kind = np.dtype(">u2" if big_endian else "<u2")
        rows = np.frombuffer(values.astype(kind).tobytes(), np.uint8)
        values = (values + 128) // 257
    else:
        rows = np.frombuffer(values.astype(np.uint8).tobytes(), np.uint8)
    if name in BAYER:
        rgb = demosaiced(values[..., 0], BAYER[name])
    else:
        rgb = values[..., [order.find(c) if c in order else 0 for c in "rgb"]]
    return rows.reshape(height, -1), rgb


def demosaiced(values: Array, pattern: str) -> Array:
    """Bilinear interpolation of HxW values; the pattern goes on mirrored beyond the border."""
    height, width = values.shape
    at = np.array(list(pattern)).reshape(2, 2)
    letters = np.tile(at, (height // 2 + 1, width // 2 + 1))[:height, :width]
    wide = np.pad(values, 1, mode="reflect")

    def moved(down: int, right: int) -> Array:
        return wide[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    beside = (moved(0, -1) + moved(0, 1) + 1) // 2
    above = (moved(-1, 0) + moved(1, 0) + 1) // 2
    around = (moved(0, -1) + moved(0, 1) + moved(-1, 0) + moved(1, 0) + 2) // 4
    across = (moved(-1, -1) + moved(-1, 1) + moved(1, -1) + moved(1, 1) + 2) // 4
    planes = []
    for colour in "rgb":
        # A row of green pixels has red beside them and blue above, or the other way round.
        in_row = (letters == colour).any(axis=1, keepdims=True)
        far = np.where(in_row, beside, above) if colour != "g" else around
        plane = np.where((letters == "g") & (colour != "g"), far, across)
        plane = np.where((letters != "g") & (colour == "g"), around, plane)
        planes.append(np.where(letters == colour, values, plane))
    return np.stack(planes, axis=-1)


def _packed(
    name: str, width: int, height: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Array]:
    y, u, v = _yuv(height, width, 1, rng)
    row = {
        "uyvy": [u, y[:, 0::2], v, y[:, 1::2]],
        "yuyv": [y[:, 0::2], u, y[:, 1::2], v],
    }[PACKED[name]]
    bytes_ = np.stack(row, axis=-1).reshape(height, -1)
    return bytes_.astype(np.uint8), rgb_of(y, u, v)


def _semi_planar(
    name: str, width: int, height: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Array]:
    y, u, v = _yuv(height, width, 2, rng)
    pair = [u, v] if SEMI_PLANAR[name] == "uv" else [v, u]
    chroma = np.stack(pair, axis=-1).reshape(height // 2, -1)
    return np.vstack([y, chroma]).astype(np.uint8), rgb_of(y, u, v)


def _yuv(
    height: int, width: int, rows: int, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """Random luma and chroma (shared by 2 columns and ``rows``) of which no colour is a tie.

    Halves are rounded up by some and down by others, OpenCV's vector code among them.
    """
    y = rng.integers(0, 256, (height, width))
    u, v = rng.integers(0, 256, (2, height // rows, width // 2))
    while True:
        ties = (_thousandths(y, u, v) % 1000 == 500).any(axis=-1)
        if not ties.any():
            return y, u, v
        y = np.where(ties, (y + 1) % 256, y)


def rgb_of(y: Array, u: Array, v: Array) -> Array:
    """RGB by ITU-R BT.601, studio range, with the customary three digits."""
    return np.clip((_thousandths(y, u, v) + 500) // 1000, 0, 255)


def _thousandths(y: Array, u: Array, v: Array) -> Array:
    rows = len(y) // len(u)
    u, v = (np.repeat(np.repeat(c, rows, axis=0), 2, axis=1) - 128 for c in (u, v))
    grey = 1164 * np.maximum(y - 16, 0)
    return np.stack([grey + 1596 * v, grey - 813 * v - 391 * u, grey + 2018 * u], axis=-1)


def png(values: NDArray) -> bytes:
    """A PNG of HxW or HxWxC values (C = 3 RGB, 4 RGBA), uint8 or uint16, written by hand."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    depth = 8 * values.dtype.itemsize
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    colour = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def compressed(data: bytes, form: str) -> CompressedImage:
    return CompressedImage(header=HEADER, format=form, data=array.array("B", data))
