"""Every encoding, both byte orders, every padding against exact pixels; every way to be wrong."""

from __future__ import annotations

import array
import io
import struct
import sys
import types
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from camera_encodings import (
    BAYER,
    ENCODINGS,
    PACKED,
    SEMI_PLANAR,
    WIDE,
    compressed,
    demosaiced,
    encoded,
    png,
)
from sensor_msgs.msg import CompressedImage, Image

from depth_prior_ros.images.encodings import MessageError
from depth_prior_ros.ros import messages as module
from depth_prior_ros.ros.messages import check_image, image_size, image_to_rgb, supported_encodings

IMAGE_CAUSES = {"zero_size", "odd_size", "wrong_step", "truncated", "unknown_encoding"}
EVEN_WIDTH = {*PACKED, *SEMI_PLANAR}

patient = settings(deadline=None, max_examples=30)  # for each of many encodings
names = st.sampled_from(ENCODINGS)
sizes = st.integers(1, 24)
seeds = st.integers(0, 2**32 - 1)


def fitting(name: str, width: int, height: int) -> tuple[int, int]:
    """The size, made even where the encoding needs it, two where a pattern needs neighbours."""
    if name in BAYER:
        return max(2, width), max(2, height)
    width += width % 2 if name in EVEN_WIDTH else 0
    height += height % 2 if name in SEMI_PLANAR else 0
    return width, height


def error_of(message: Image | CompressedImage) -> MessageError:
    with pytest.raises(MessageError) as caught:
        image_to_rgb(message)
    assert caught.value.text, "an error without words helps nobody"
    return caught.value


def cause_of(message: Image | CompressedImage) -> str:
    with pytest.raises(MessageError) as caught:
        check_image(message)
    error = error_of(message)
    assert caught.value.cause == error.cause, "the callback must see what the worker would"
    return error.cause


def test_the_table_of_encodings_is_the_documented_one():
    assert set(supported_encodings()) == set(ENCODINGS)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("name", ENCODINGS)
@patient
@given(sizes, sizes, st.integers(0, 9), seeds)
def test_pixels_arrive_as_rgb(name, big_endian, width, height, padding, seed):
    width, height = fitting(name, width, height)
    message, expected = encoded(
        name, width, height, padding=padding, big_endian=big_endian, seed=seed
    )
    check_image(message)
    assert image_size(message) == (width, height)
    rgb = image_to_rgb(message)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, expected)


@pytest.mark.parametrize("name", [n for n in ENCODINGS if n not in ("rgb8", *WIDE)])
def test_a_large_image_has_the_same_pixels(name):
    """OpenCV takes other ways (vectors, threads) where there is more to do."""
    message, expected = encoded(name, 642, 374, padding=7, seed=3)
    np.testing.assert_array_equal(image_to_rgb(message), expected)


def test_the_byte_order_matters():
    little, _ = encoded("mono16", 40, 30)
    little.is_bigendian = 1
    assert not np.array_equal(image_to_rgb(little), encoded("mono16", 40, 30)[1])


@pytest.mark.parametrize("value", [0, 128, 129, 256, 385, 32767, 65535])
def test_16_bits_are_divided_by_257_and_rounded(value):
    message, _ = encoded("mono16", 3, 2)
    message.data = array.array("B", struct.pack("<6H", *[value] * 6))
    assert image_to_rgb(message)[0, 0, 0] == round(value / 257)


@pytest.mark.parametrize(
    ("yuv", "rgb"),
    # ITU-R BT.601: black, white, and the corners of a 75 % colour bar, to within rounding.
    [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((180, 128, 128), (191, 191, 191)),
        ((65, 100, 212), (191, 0, 0)),
        ((112, 72, 58), (0, 191, 0)),
        ((35, 212, 114), (0, 0, 191)),
    ],
)
def test_colours_of_the_standard_come_out_right(yuv, rgb):
    y, u, v = yuv
    message = Image(width=2, height=1, encoding="yuv422", step=4)
    message.data = array.array("B", [u, y, v, y])
    np.testing.assert_allclose(image_to_rgb(message)[0, 0].astype(int), rgb, atol=1)


@pytest.mark.parametrize("name", sorted(BAYER))
def test_a_red_wall_is_red_through_every_pattern(name):
    """Independent of any interpolation: where only red pixels saw light, everything is red."""
    white = 65535 if name in WIDE else 255
    letters = np.tile(np.array(list(BAYER[name])).reshape(2, 2), (8, 8))
    message, _ = encoded(name, 16, 16)
    kind = np.uint16 if name in WIDE else np.uint8
    message.data = array.array("B", np.where(letters == "r", white, 0).astype(kind).tobytes())
    np.testing.assert_array_equal(image_to_rgb(message), np.full((16, 16, 3), (255, 0, 0)))


@pytest.mark.parametrize("padding", [0, 5])
def test_rgb8_is_a_view_that_cannot_be_written(padding):
    message, _ = encoded("rgb8", 8, 4, padding=padding)
    rgb = image_to_rgb(message)
    assert np.shares_memory(rgb, np.frombuffer(message.data, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        rgb[0, 0] = 0


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_message_stays_as_it_is(name):
    message, _ = encoded(name, 16, 8, padding=3, big_endian=True)
    before = bytes(message.data)
    image_to_rgb(message)
    assert bytes(message.data) == before


@pytest.mark.parametrize("name", sorted(SEMI_PLANAR))
def test_a_step_that_counts_both_planes_is_understood(name):
    message, expected = encoded(name, 32, 16, padding=4)
    message.step = message.step * 3 // 2
    assert message.step * message.height == len(message.data)
    np.testing.assert_array_equal(image_to_rgb(message), expected)


# -- refused -------------------------------------------------------------------------------------


@patient
@given(names, st.sampled_from([(0, 4), (4, 0), (0, 0)]), seeds)
def test_zero_sized(name, size, seed):
    message, _ = encoded(name, 4, 4, seed=seed)
    message.width, message.height = size
    assert cause_of(message) == "zero_size"


@pytest.mark.parametrize("name", sorted(EVEN_WIDTH))
def test_half_a_pair_of_pixels(name):
    message, _ = encoded(name, 8, 4)
    message.width -= 1
    assert cause_of(message) == "odd_size"


@pytest.mark.parametrize("name", sorted(SEMI_PLANAR))
def test_half_a_pair_of_rows(name):
    message, _ = encoded(name, 8, 4)
    message.height -= 1
    assert cause_of(message) == "odd_size"


@patient
@given(names, sizes, sizes, seeds, st.data())
def test_step_shorter_than_a_row(name, width, height, seed, data):
    message, _ = encoded(name, *fitting(name, width, height), seed=seed)
    message.step = data.draw(st.integers(0, message.step - 1))
    assert cause_of(message) == "wrong_step"


@patient
@given(names, sizes, sizes, st.integers(0, 9), seeds, st.data())
def test_truncated(name, width, height, padding, seed, data):
    message, _ = encoded(name, *fitting(name, width, height), padding=padding, seed=seed)
    message.data = message.data[: data.draw(st.integers(0, len(message.data) - 1))]
    assert cause_of(message) == "truncated"


@patient
@given(names, sizes, sizes, st.integers(1, 50))
def test_more_data_than_rows(name, width, height, extra):
    message, _ = encoded(name, *fitting(name, width, height))
    message.data.extend(bytes(extra))
    assert cause_of(message) == "wrong_step"


@pytest.mark.slow
@patient
@given(st.text(max_size=20).filter(lambda n: n not in ENCODINGS), sizes, sizes)
def test_unknown_encoding_is_named_and_the_package_that_may_know_it(name, width, height):
    if module.cv_bridge_installed():
        pytest.skip("cv_bridge is installed")
    message, _ = encoded("rgb8", width, height)
    message.encoding = name
    assert cause_of(message) == "unknown_encoding"
    text = error_of(message).text
    assert repr(name) in text
    assert "install cv_bridge" in text


numbers = st.integers(0, 2**32 - 1) | st.integers(0, 8)


@patient
@given(names | st.text(max_size=8), numbers, numbers, numbers, st.booleans(), st.binary())
def test_whatever_comes_is_read_or_refused_with_a_known_cause(
    name, width, height, step, big_endian, data
):
    message = Image(encoding=name, width=width, height=height, step=step)
    message.is_bigendian = int(big_endian)
    message.data = array.array("B", data)
    try:
        rgb = image_to_rgb(message)
    except MessageError as error:
        assert error.cause in IMAGE_CAUSES
    else:
        assert rgb.shape == (height, width, 3)


# -- compressed ----------------------------------------------------------------------------------


def pictures(kind: type, channels: int | None) -> np.ndarray:
    shape = (10, 14) if channels is None else (10, 14, channels)
    return np.random.default_rng(5).integers(0, np.iinfo(kind).max + 1, shape).astype(kind)


@pytest.mark.parametrize("form", ["png", "rgb8; png compressed bgr8", "", "bgr8; jpeg compressed"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [None, 3, 4])
def test_a_png_is_read_exactly_whatever_the_format_says(kind, channels, form):
    values = pictures(kind, channels)
    message = compressed(png(values), form)
    check_image(message)
    assert image_size(message) == (14, 10)
    grey = values[..., np.newaxis] if channels is None else values[..., :3]
    eight = grey.astype(int) if kind is np.uint8 else (grey.astype(int) + 128) // 257
    expected = np.broadcast_to(eight, (10, 14, 3)).astype(np.uint8)
    rgb = image_to_rgb(message)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, expected)


@pytest.mark.parametrize("name", sorted(BAYER))
def test_a_raw_bayer_pattern_in_a_png_is_interpolated(name):
    """image_transport compresses Bayer images as they are; only the format tells."""
    values = pictures(np.uint16 if name in WIDE else np.uint8, None)
    eight = (values.astype(np.int64) + 128) // 257 if name in WIDE else values.astype(np.int64)
    message = compressed(png(values), f"{name}; png compressed ")
    np.testing.assert_array_equal(image_to_rgb(message), demosaiced(eight, BAYER[name]))


def test_a_bayer_image_that_was_interpolated_before_is_left_alone():
    values = pictures(np.uint8, 3)
    message = compressed(png(values), "bayer_rggb8; png compressed bgr8")
    np.testing.assert_array_equal(image_to_rgb(message), values)


def test_colours_that_the_format_says_are_swapped_are_swapped_back():
    values = pictures(np.uint8, 3)
    message = compressed(png(values[..., ::-1]), "rgb8; png compressed rgb8")
    np.testing.assert_array_equal(image_to_rgb(message), values)


def smooth_picture(width: int = 64, height: int = 48) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 2], axis=-1).astype(np.uint8)


def jpeg(rgb: np.ndarray, quality: int = 98) -> bytes:
    full = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), full)
    assert ok
    return data.tobytes()


def test_a_jpeg_is_read():
    picture = smooth_picture()
    message = compressed(jpeg(picture), "jpeg")
    check_image(message)
    assert image_size(message) == (64, 48)
    rgb = image_to_rgb(message)
    assert np.abs(rgb.astype(int) - picture).max() <= 4


def test_a_jpeg_gives_the_pixels_of_another_decoder():
    pillow = pytest.importorskip("PIL.Image", reason="needs Pillow, the second decoder")
    data = jpeg(smooth_picture(), 60)
    expected = np.asarray(pillow.open(io.BytesIO(data)).convert("RGB"))
    rgb = image_to_rgb(compressed(data, "jpeg"))
    assert np.abs(rgb.astype(int) - expected).max() <= 1


def test_a_grey_jpeg_is_grey():
    grey = smooth_picture()[..., 0]
    ok, data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 98])
    assert ok
    rgb = image_to_rgb(compressed(data.tobytes(), "mono8; jpeg compressed "))
    assert np.abs(rgb.astype(int) - grey[..., np.newaxis]).max() <= 3


def with_orientation(data: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF segment that asks viewers to turn it."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def test_an_exif_orientation_is_not_followed():
    """camera_info describes the sensor's rows, not the viewer's."""
    data = jpeg(smooth_picture())
    turned = compressed(with_orientation(data, 6), "jpeg")
    assert cv2.imdecode(np.frombuffer(turned.data, np.uint8), 1).shape == (64, 48, 3)
    assert image_size(turned) == (64, 48)
    np.testing.assert_array_equal(image_to_rgb(turned), image_to_rgb(compressed(data, "jpeg")))


@pytest.mark.parametrize(
    "data", [jpeg(smooth_picture()), png(pictures(np.uint8, 3))], ids=["jpeg", "png"]
)
class TestBroken:
    @patient
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_cut_off(self, data, share):
        message = compressed(data[: int(share * len(data))], "jpeg")
        assert error_of(message).cause in ("compressed_broken", "unknown_encoding")
        with pytest.raises(MessageError):
            check_image(message)

    @patient
    @given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
    def test_one_byte_changed(self, data, at, value):
        changed = bytearray(data)
        changed[int(at * len(data))] = value
        try:
            assert image_to_rgb(compressed(bytes(changed), "jpeg")).ndim == 3
        except MessageError as error:
            assert error.cause in ("compressed_broken", "unknown_encoding")

    def test_followed_by_the_rest_of_a_buffer(self, data):
        expected = image_to_rgb(compressed(data, "jpeg"))
        padded = compressed(data + bytes(100_000), "jpeg")
        np.testing.assert_array_equal(image_to_rgb(padded), expected)


def test_a_cut_jpeg_is_not_half_a_picture():
    """Some decoders fill the missing half with grey and say nothing."""
    data = jpeg(smooth_picture())
    error = error_of(compressed(data[: len(data) // 2], "jpeg"))
    assert error.cause == "compressed_broken"
    assert "ends before" in error.text


def test_a_thumbnail_does_not_pass_for_the_end_of_the_picture():
    data = jpeg(smooth_picture())
    thumbnail = b"\xff\xe1" + struct.pack(">H", 102) + (b"\xff\xd8" + b"x" * 96 + b"\xff\xd9")
    with_thumbnail = data[:2] + thumbnail + data[2:]
    image_to_rgb(compressed(with_thumbnail, "jpeg"))
    assert cause_of(compressed(with_thumbnail[:-2], "jpeg")) == "compressed_broken"


def test_a_header_that_promises_too_much_takes_no_memory():
    data = bytearray(png(pictures(np.uint8, 3)))
    data[16:24] = struct.pack(">II", 60000, 60000)
    error = error_of(compressed(bytes(data), "png"))
    assert (error.cause, "60000x60000" in error.text) == ("compressed_broken", True)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "compressed_broken"),
        (b"\xff\xd8\xff", "compressed_broken"),
        (b"RIFF\0\0\0\0WEBP", "unknown_encoding"),
        # compressedDepth: twelve bytes of quantisation before the PNG.
        (bytes(12) + png(pictures(np.uint16, None)), "unknown_encoding"),
    ],
)
def test_what_is_neither_jpeg_nor_png(data, cause):
    message = compressed(data, "16UC1; compressedDepth png")
    error = error_of(message)
    assert error.cause == cause
    if cause == "unknown_encoding":
        assert "'16UC1; compressedDepth png'" in error.text


@patient
@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_whatever_bytes_come_are_read_or_refused(data, start):
    try:
        image_to_rgb(compressed(start + data, "jpeg"))
    except MessageError as error:
        assert error.cause in ("compressed_broken", "unknown_encoding")


# -- cv_bridge -----------------------------------------------------------------------------------


@pytest.fixture
def forgotten() -> Iterator[None]:
    module._cv_bridge.cache_clear()
    yield
    module._cv_bridge.cache_clear()


def stand_in(convert) -> types.ModuleType:
    """A package with cv_bridge's interface: the real one needs Boost and a ROS installation."""
    package = types.ModuleType("cv_bridge")
    package.CvBridge = type("CvBridge", (), {"imgmsg_to_cv2": staticmethod(convert)})
    return package


def of_another_encoding() -> Image:
    message, _ = encoded("rgb8", 4, 3)
    message.encoding = "hsv8"
    return message


def test_the_real_cv_bridge_is_asked_where_it_is_installed(forgotten):
    pytest.importorskip("cv_bridge", reason="needs cv_bridge of a ROS 2 installation")
    message, _ = encoded("mono8", 6, 4)
    message.encoding = "8SC1"
    try:
        assert image_to_rgb(message).shape == (4, 6, 3)
    except MessageError as error:
        assert error.cause == "unknown_encoding"


def test_an_encoding_outside_the_table_goes_through_cv_bridge(monkeypatch, forgotten):
    asked = []

    def convert(message, wanted):
        asked.append((message.encoding, wanted))
        return np.full((3, 4, 3), 7, np.uint8)

    monkeypatch.setitem(sys.modules, "cv_bridge", stand_in(convert))
    check_image(of_another_encoding())
    np.testing.assert_array_equal(image_to_rgb(of_another_encoding()), np.full((3, 4, 3), 7))
    assert asked == [("hsv8", "rgb8")]
    known, pixels = encoded("bgr8", 4, 3)
    np.testing.assert_array_equal(image_to_rgb(known), pixels)
    assert len(asked) == 1, "common encodings need no cv_bridge"


def test_what_cv_bridge_cannot_do_either_is_refused_with_its_words(monkeypatch, forgotten):
    def convert(message, wanted):
        raise RuntimeError("no such colour")

    monkeypatch.setitem(sys.modules, "cv_bridge", stand_in(convert))
    error = error_of(of_another_encoding())
    assert error.cause == "unknown_encoding"
    assert "no such colour" in error.text
    wrong = stand_in(lambda message, wanted: np.zeros((3, 4), np.float32))
    monkeypatch.setitem(sys.modules, "cv_bridge", wrong)
    module._cv_bridge.cache_clear()
    assert "float32" in error_of(of_another_encoding()).text


def test_a_cv_bridge_that_does_not_import_is_none(monkeypatch, forgotten):
    monkeypatch.setitem(sys.modules, "cv_bridge", None)
    assert not module.cv_bridge_installed()
    assert cause_of(of_another_encoding()) == "unknown_encoding"
