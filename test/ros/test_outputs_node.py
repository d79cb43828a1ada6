"""The outputs of the real node: points, confidence and pictures fit the depth of the same stamp."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from helpers import make_tiny_bundle
from ros_helpers import (
    BUNDLE_SIZE,
    LOCKSTEP,
    RELIABLE,
    Robot,
    nanoseconds_of,
    node_and_peer,
    view,
    wait_until,
)
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from test_clouds import read_numpy
from test_compressed_depth import decode

from depth_prior_ros.ros.messages import image_to_depth

pytestmark = pytest.mark.timeout(900)  # waits are long on busy machines, and end early


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    make_tiny_bundle(path, BUNDLE_SIZE)
    return path


@pytest.fixture(scope="module")
def robot(bundle: Path) -> Iterator[Robot]:
    options: dict[str, Any] = {"points.organized": True, "max_depth_m": 60.0, **LOCKSTEP}
    with node_and_peer(bundle=bundle, diagnostics_period=0.1, **options) as (process, peer):
        peer.wait_for_node(process)
        yield Robot(process=process, peer=peer, stamp=10**12)
        assert process.alive, process.output


def answered(robot: Robot, kind: type, topic: str, output: str) -> tuple[Any, np.ndarray, int]:
    """A message of an output, the depth of the same stamp, and its frame's stamp."""
    heard: list[Any] = []
    subscription = robot.peer.node.create_subscription(kind, topic, heard.append, RELIABLE)
    try:
        wait_until(
            lambda: robot.peer.status().get(f"subscribers.{output}", "0") != "0",
            f"the node to know its listener on {topic}",
        )
        stamp = robot.next_stamp()
        robot.peer.send(view(0.5 * stamp / 10**8 % 8), stamp, speed=8.0)
        depth = image_to_depth(robot.peer.answer(stamp))
        message = wait_until(
            lambda: next((m for m in heard if nanoseconds_of(m.header.stamp) == stamp), None),
            f"{topic} for stamp {stamp}",
        )
    finally:
        robot.peer.node.destroy_subscription(subscription)
    return message, depth, stamp


def test_points_project_back_to_their_pixels(robot: Robot) -> None:
    message, depth, stamp = answered(robot, PointCloud2, "depth/points", "points")
    points = read_numpy(message)
    assert points.shape == depth.shape
    infos = [i for i in robot.peer.info if nanoseconds_of(i.header.stamp) == stamp]
    p = np.array(infos[0].p).reshape(3, 4)
    finite = np.isfinite(depth)
    assert np.array_equal(points["z"], np.where(finite, depth, np.nan), equal_nan=True)
    xyz1 = np.stack([points["x"], points["y"], points["z"], np.ones_like(points["z"])], axis=-1)
    u, v, w = np.moveaxis(xyz1 @ p.T, -1, 0)
    rows, columns = np.indices(depth.shape)
    assert finite.any()
    assert np.allclose((u / w)[finite], columns[finite], atol=1e-3)
    assert np.allclose((v / w)[finite], rows[finite], atol=1e-3)


def test_confidence_is_of_the_depth_image(robot: Robot) -> None:
    message, depth, _ = answered(robot, Image, "depth/confidence", "confidence")
    sure = image_to_depth(message)
    assert sure.shape == depth.shape
    assert ((sure >= 0) & (sure <= 1)).all()
    assert (sure[~np.isnan(depth)] > 0).all()
    assert not sure[np.isnan(depth)].any()


def test_compressed_depth_is_the_depth(robot: Robot) -> None:
    topic = "depth/image_rect/compressedDepth"
    message, depth, _ = answered(robot, CompressedImage, topic, "compressed")
    found = decode(message)
    finite = np.isfinite(depth)
    assert np.array_equal(np.isfinite(found), finite)
    assert np.allclose(found[finite], depth[finite], rtol=0.01, atol=1e-3)


def test_colour_goes_from_red_to_blue(robot: Robot) -> None:
    message, depth, _ = answered(robot, Image, "depth/colour", "colour")
    picture = np.frombuffer(message.data, np.uint8).reshape(*depth.shape, 3).astype(int)
    finite = np.isfinite(depth)
    # Equal depth, equal colour; the brightest reds and blues of turbo lie at its ends.
    order = np.argsort(depth[finite])
    colours = picture[finite][order]
    steps = np.abs(np.diff(colours, axis=0)).sum(axis=1)
    ratio = np.diff(np.log(depth[finite][order]))
    assert (steps[ratio < math.log(40) / 255 / 2] <= 3 * 10).all()


def test_what_nobody_hears_is_not_made(robot: Robot) -> None:
    """Counted by the node itself."""
    wait_until(
        lambda: all(
            robot.peer.status().get(f"subscribers.{o}") == "0"
            for o in ("points", "colour", "confidence", "compressed")
        ),
        "the listeners to be gone",
    )
    before = robot.peer.status()
    for _ in range(3):
        robot.answered(view(), speed=0.0)
    wait_until(
        lambda: int(robot.peer.status()["published.depth"]) >= int(before["published.depth"]) + 3,
        "three more depth images",
    )
    after = robot.peer.status()
    for output in ("points", "colour", "confidence", "compressed"):
        assert after.get(f"published.{output}") == before.get(f"published.{output}")
