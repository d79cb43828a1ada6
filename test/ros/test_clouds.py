"""Point clouds, decoded by a reader of their own: every field by its offset, point by point."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.ros.outputs.clouds import CloudMaker

CAMERA = Camera(12.0, 11.0, 4.25, 2.5, 9, 6)
HEADER = Header(frame_id="camera_optical_frame")


def read_point(message: PointCloud2, row: int, column: int) -> dict[str, float]:
    """One point as REP-117 consumers and PCL read it: by name, offset and type."""
    assert all(f.datatype == PointField.FLOAT32 and f.count == 1 for f in message.fields)
    start = row * message.row_step + column * message.point_step
    order = ">" if message.is_bigendian else "<"
    raw = bytes(message.data)
    point = {}
    for field in message.fields:
        at = start + field.offset
        if field.name == "rgb":  # a packed integer in a float's place
            (packed,) = struct.unpack_from(f"{order}I", raw, at)
            point.update(r=packed >> 16 & 255, g=packed >> 8 & 255, b=packed & 255, a=packed >> 24)
        else:
            (point[field.name],) = struct.unpack_from(f"{order}f", raw, at)
    return point


def read_numpy(message: PointCloud2) -> np.ndarray:
    """(height, width) records, the way tools read a cloud through numpy."""
    kind = np.dtype(
        {
            "names": [f.name for f in message.fields],
            "formats": ["<u4" if f.name == "rgb" else "<f4" for f in message.fields],
            "offsets": [f.offset for f in message.fields],
            "itemsize": message.point_step,
        }
    )
    assert not message.is_bigendian
    assert message.row_step == message.width * message.point_step
    assert len(message.data) == message.row_step * message.height
    return np.frombuffer(message.data, dtype=kind).reshape(message.height, message.width)


def depth_and_picture() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 60, (6, 9)).astype(np.float32)
    depth[0, :4] = np.inf
    depth[2, 3] = np.nan
    return depth, rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_organized_points_lie_where_the_pinhole_says() -> None:
    depth, picture = depth_and_picture()
    message = CloudMaker().message(HEADER, depth, CAMERA, rgb=picture, organized=True)
    assert (message.height, message.width, message.is_dense) == (6, 9, False)
    assert message.header == HEADER
    records = read_numpy(message)
    for v in range(6):
        for u in range(9):
            point, z = read_point(message, v, u), float(depth[v, u])
            if math.isfinite(z):
                assert point["z"] == z
                assert math.isclose(point["x"], (u - 4.25) * z / 12.0, rel_tol=1e-6, abs_tol=1e-6)
                assert math.isclose(point["y"], (v - 2.5) * z / 11.0, rel_tol=1e-6, abs_tol=1e-6)
            else:
                assert all(math.isnan(point[name]) for name in "xyz")
            assert [point[name] for name in "rgba"] == [*picture[v, u], 0]
            for name in "xyz":
                assert np.array_equal(records[name][v, u], np.float32(point[name]), equal_nan=True)
            assert records["rgb"][v, u] == point["r"] << 16 | point["g"] << 8 | point["b"]


def test_sparse_points_are_the_finite_ones_in_order() -> None:
    depth, picture = depth_and_picture()
    message = CloudMaker().message(HEADER, depth, CAMERA, rgb=picture)
    finite = [(v, u) for v in range(6) for u in range(9) if math.isfinite(depth[v, u])]
    assert (message.height, message.width, message.is_dense) == (1, len(finite), True)
    for i, (v, u) in enumerate(finite):
        point = read_point(message, 0, i)
        assert point["z"] == depth[v, u]
        assert [point[name] for name in "rgb"] == [*picture[v, u]]


def test_without_colours_a_point_takes_twelve_bytes() -> None:
    depth, _ = depth_and_picture()
    message = CloudMaker().message(HEADER, depth, CAMERA)
    assert [f.name for f in message.fields] == ["x", "y", "z"]
    assert message.point_step == 12
    assert read_point(message, 0, 3)["z"] == read_numpy(message)["z"][0, 3]


def test_stride_takes_every_nth_pixel_where_it_is() -> None:
    depth, picture = depth_and_picture()
    message = CloudMaker().message(HEADER, depth, CAMERA, rgb=picture, stride=2, organized=True)
    assert (message.height, message.width) == (3, 5)
    point = read_point(message, 2, 4)
    z = float(depth[4, 8])
    assert point["z"] == z
    assert math.isclose(point["x"], (8 - 4.25) * z / 12.0, rel_tol=1e-6)
    assert math.isclose(point["y"], (4 - 2.5) * z / 11.0, rel_tol=1e-6)
    assert [point[name] for name in "rgb"] == [*picture[4, 8]]


def test_points_are_left_out_by_confidence_and_by_distance() -> None:
    depth = np.array([[5.0, 10.0, 20.0, 40.0]], dtype=np.float32)
    sure = np.array([[0.9, 0.2, 0.5, 0.9]], dtype=np.float32)
    camera = Camera(5.0, 5.0, 2.0, 0.0, 4, 1)
    options = {"confidence": sure, "min_confidence": 0.5}
    kept = CloudMaker().message(HEADER, depth, camera, **options)
    assert read_numpy(kept)["z"].tolist() == [[5.0, 20.0, 40.0]]
    near = CloudMaker().message(HEADER, depth, camera, **options, max_depth=20.0)
    assert read_numpy(near)["z"].tolist() == [[5.0, 20.0]]


def test_another_camera_gets_other_rays() -> None:
    depth, _ = depth_and_picture()
    maker = CloudMaker()
    first = read_numpy(maker.message(HEADER, depth, CAMERA))
    other = read_numpy(maker.message(HEADER, depth, Camera(24.0, 11.0, 4.25, 2.5, 9, 6)))
    assert np.allclose(first["x"], 2 * other["x"])
    assert np.array_equal(first["y"], other["y"])
    assert np.array_equal(read_numpy(maker.message(HEADER, depth, CAMERA)), first)


def test_nothing_known_is_an_empty_cloud() -> None:
    nothing = np.full((6, 9), np.nan, np.float32)
    message = CloudMaker().message(HEADER, nothing, CAMERA, rgb=np.zeros((6, 9, 3), np.uint8))
    assert (message.height, message.width, message.row_step, len(message.data)) == (1, 0, 0, 0)


def test_infinity_on_the_optical_axis_is_no_point() -> None:
    camera = Camera(5.0, 5.0, 1.0, 0.0, 3, 1)
    depth = np.array([[2.0, np.inf, 2.0]], dtype=np.float32)
    with np.errstate(all="raise"):
        message = CloudMaker().message(HEADER, depth, camera)
    assert message.width == 2


def test_a_picture_of_another_size_is_resized() -> None:
    picture = np.zeros((12, 18, 3), dtype=np.uint8)
    picture[:, 9:] = (255, 128, 1)
    depth = np.full((6, 9), 3.0, dtype=np.float32)
    records = read_numpy(CloudMaker().message(HEADER, depth, CAMERA, rgb=picture, organized=True))
    assert records["rgb"][3, 0] == 0
    assert records["rgb"][3, 8] == 0xFF8001


@pytest.mark.parametrize("size", [(8, 6), (9, 5)])
def test_a_camera_of_another_size_is_refused(size: tuple[int, int]) -> None:
    depth, _ = depth_and_picture()
    with pytest.raises(ValueError, match="the depth image has 9x6"):
        CloudMaker().message(HEADER, depth, Camera(12.0, 11.0, 4.0, 2.0, *size))


def test_confidence_of_another_size_is_refused() -> None:
    depth, _ = depth_and_picture()
    with pytest.raises(ValueError, match="confidence"):
        CloudMaker().message(
            HEADER, depth, CAMERA, confidence=np.ones((3, 3), np.float32), min_confidence=0.5
        )


@given(
    arrays(np.float32, (6, 9), elements=st.floats(width=32)),
    st.booleans(),
    st.booleans(),
    st.integers(1, 10),
)
@settings(deadline=None, max_examples=60)
def test_any_depth_gives_a_cloud_that_fits_its_fields(
    depth: np.ndarray, organized: bool, coloured: bool, stride: int
) -> None:
    picture = np.zeros((6, 9, 3), np.uint8) if coloured else None
    message = CloudMaker().message(
        HEADER, depth, CAMERA, rgb=picture, organized=organized, stride=stride
    )
    z = read_numpy(message)["z"].ravel()
    expected = depth[::stride, ::stride].ravel()
    if organized:
        assert np.array_equal(z, np.where(np.isfinite(expected), expected, np.nan), equal_nan=True)
    else:
        assert np.array_equal(z, expected[np.isfinite(expected)])
