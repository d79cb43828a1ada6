"""compressedDepth, decoded by a reader written from the transport's published format alone.

What that reader does is what compressed_depth_image_transport's `codec.cpp` does with a message:
the encoding before the `;`, "compressedDepth png" behind it, a header of an int32 and two float32,
a 16-bit image, `A / (v - B)` where v is not 0 and NaN where it is. The PNG is read by hand, too.
"""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from depth_prior_ros.ros.outputs.publishers import Quantisation, compress_depth

HEADER = Header(frame_id="camera_optical_frame")
ROADS = Quantisation.of(100.0, 100.0)


def decode(message: CompressedImage) -> np.ndarray:
    """(h, w) float32 depth."""
    encoding, _, compression = message.format.partition(";")
    assert encoding == "32FC1"
    assert "compressedDepth png" in compression
    raw = bytes(message.data)
    kind, a, b = struct.unpack("=iff", raw[:12])
    assert kind == 0  # inverse depth
    values = read_png(raw[12:]).astype(np.float32)
    depth = np.full(values.shape, np.nan, dtype=np.float32)
    there = values != 0
    depth[there] = np.float32(a) / (values[there] - np.float32(b))
    return depth


def read_png(data: bytes) -> np.ndarray:
    """A 16-bit grey PNG without interlacing, by the specification (RFC 2083)."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed = 8, b""
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        assert checksum == zlib.crc32(name + body)
        if name == b"IHDR":
            width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
            assert (bits, colour, interlace) == (16, 0, 0)
        elif name == b"IDAT":
            packed += body
        at += 12 + length
    rows = zlib.decompress(packed)
    line = 1 + 2 * width
    image = np.zeros((height, width), dtype=np.uint16)
    before = bytearray(2 * width)
    for y in range(height):
        before = unfiltered(rows[y * line], rows[y * line + 1 : (y + 1) * line], before)
        image[y] = np.frombuffer(bytes(before), dtype=">u2")
    return image


def unfiltered(kind: int, line: bytes, above: bytearray) -> bytearray:
    found = bytearray(len(line))
    for i, value in enumerate(line):
        left = found[i - 2] if i >= 2 else 0
        up = above[i]
        corner = above[i - 2] if i >= 2 else 0
        if kind == 4:
            guess = left + up - corner
            distances = [abs(guess - left), abs(guess - up), abs(guess - corner)]
            predicted = (left, up, corner)[distances.index(min(distances))]
        else:
            predicted = (0, left, up, (left + up) // 2)[kind]
        found[i] = (value + predicted) & 255
    return found


def test_depth_comes_back_within_a_step() -> None:
    depth = np.random.default_rng(0).uniform(0.5, 99, (24, 40)).astype(np.float32)
    found = decode(compress_depth(depth, HEADER, ROADS))
    step = depth.astype(float) ** 2 / (100 * 101)
    # Values are cut off, so that depth comes back the same or farther, never nearer.
    assert ((found - depth) < step * 1.02).all()
    assert ((found - depth) > -1e-3 * step - 1e-5 * depth).all()


def test_the_usual_parameters_give_the_usual_numbers() -> None:
    """A = q (q + 1), B = 1 - A / m: 10100 and -100 for q = 100 and m = 100 m."""
    message = compress_depth(np.array([[10.0, 50.0]], np.float32), HEADER, ROADS)
    kind, a, b = struct.unpack("=iff", bytes(message.data)[:12])
    assert (kind, a, b) == (0, 10100.0, -100.0)
    assert read_png(bytes(message.data)[12:]).tolist() == [[910, 102]]
    assert message.format == "32FC1; compressedDepth png"
    assert message.header == HEADER


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf, -3.0, 0.0, 100.0, 250.0])
def test_what_is_no_depth_comes_back_as_nan(missing: float) -> None:
    depth = np.full((4, 6), 20.0, dtype=np.float32)
    depth[1, 2] = missing
    found = decode(compress_depth(depth, HEADER, ROADS))
    assert np.argwhere(np.isnan(found)).tolist() == [[1, 2]]


def test_a_road_fits_in_and_ten_metres_are_not_the_end() -> None:
    depth = np.array([[9.9, 10.1, 40.0, 79.0, 99.0]], dtype=np.float32)
    found = decode(compress_depth(depth, HEADER, ROADS))
    assert np.allclose(found, depth, rtol=0.011)


def test_the_nearest_is_clamped_instead_of_running_over() -> None:
    assert 0.15 < ROADS.min_depth < 0.16
    found = decode(compress_depth(np.array([[0.01, 0.2]], np.float32), HEADER, ROADS))
    assert np.isclose(found[0, 0], ROADS.min_depth, rtol=1e-4)
    assert np.isclose(found[0, 1], 0.2, rtol=1e-4)


def test_a_smaller_file_is_the_same_picture() -> None:
    depth = np.linspace(2, 60, 96 * 320, dtype=np.float32).reshape(96, 320)
    fast, small = (compress_depth(depth, HEADER, ROADS, level) for level in (0, 9))
    assert len(small.data) < len(fast.data)
    assert np.array_equal(decode(small), decode(fast))


@pytest.mark.parametrize("numbers", [(0.0, 100.0), (100.0, 0.0), (-1.0, 100.0)])
def test_senseless_numbers_are_refused(numbers: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Quantisation.of(*numbers)


@given(
    arrays(np.float32, (3, 5), elements=st.floats(width=32)),
    st.floats(1.0, 1000.0),
    st.floats(1.0, 250.0),
)
@settings(deadline=None, max_examples=80)
def test_any_depth_comes_back_or_is_nan(depth: np.ndarray, largest: float, q: float) -> None:
    quantisation = Quantisation.of(largest, q)
    found = decode(compress_depth(depth, HEADER, quantisation))
    kept = (depth > 0) & (depth < np.float32(largest))
    assert not np.isfinite(found[~kept]).any()
    there = kept & ~np.isnan(found)
    # The last step before `largest` may be lost to rounding, nothing else.
    last = np.float32(largest) * 0.999
    assert there[kept & (depth < last) & (depth > quantisation.min_depth)].all()
    truth = np.maximum(depth[there].astype(float), quantisation.min_depth)
    step = truth * (truth + np.abs(found[there])) / (q * (q + 1)) + 1e-3 * truth
    assert (np.abs(found[there] - truth) <= step).all()
