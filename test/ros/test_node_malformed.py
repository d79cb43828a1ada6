"""A thousand malformed messages of every kind, as fast as they can be sent, among good images.

Counting them all takes a queue that holds them all: with a queue of one, which is the node's
default, the middleware replaces unread messages by newer ones, and nobody sees those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

import malformed
from camera_process import CameraProcess
from fault_scenes import PATIENCE, Scene, new_namespace, scene
from rcl_interfaces.srv import GetParameters
from ros_helpers import BUNDLE_SIZE

pytestmark = pytest.mark.slow

COUNT = 1000
QUEUE = 4 * COUNT
WAIT = 5.0  # s for the calibration of a good image: not what is looked at here
TOPICS = ("image", "image/compressed", "camera_info", "odom", "twist", "twist_with_covariance")
FILM: dict[str, Any] = {
    "size": BUNDLE_SIZE,
    "rate": 0,
    "speed": 5.0,
    "stamp": 10**15,
    "step": 10**8,
}


@dataclass
class Stage:
    """A node that keeps every message until it is read, and a camera that films on demand."""

    one: Scene
    camera: CameraProcess

    def flood(self, kind: str, harmless: bool = False) -> None:
        """1,000 of that kind between good images: all are counted, and depth goes on.

        harmless: they are refused nowhere.
        """
        wrong = malformed.KINDS[kind]
        refused = 0 if harmless else COUNT
        count, images = self.one.witness.count, wrong.topic.startswith("image")
        keys = ("received", "inferred", "dropped_stale", "refused", f"refused.{wrong.cause}")
        before = {key: count(key) for key in keys}
        sent = self.camera.sent()["images"]
        self.camera.film(rate=10)
        self.camera.burst(kind, COUNT)
        self.one.depth_goes_on(self.camera)
        self.camera.film(rate=0)
        good = self.camera.sent()["images"] - sent

        def more() -> dict[str, int]:
            return {key: count(key) - before[key] for key in keys}

        def all_counted() -> bool:
            now = more()
            handled = now["inferred"] + now["dropped_stale"]
            bad = refused if images else 0
            return (
                now[f"refused.{wrong.cause}"] == now["refused"] == refused
                and now["received"] - bad == handled == good
            )

        try:
            self.one.until(all_counted, f"{COUNT} {kind} and {good} images to be counted")
        except AssertionError as error:
            raise AssertionError(f"counted since: {more()}; {error}") from error
        status = self.one.witness.status()
        assert harmless or status[f"refused.{wrong.cause}.last"]
        assert status["message_lost"] == "0"


def stage(bundle: Path, **parameters: Any) -> Iterator[Stage]:
    namespace = new_namespace()
    overrides = [
        word
        for topic in TOPICS
        for policy in (f"depth:={QUEUE}", "reliability:=reliable")
        for word in ("-p", f"qos_overrides.{namespace}/{topic}.subscription.{policy}")
    ]
    with scene(bundle, *overrides, namespace=namespace, sync_wait=WAIT, **parameters) as one:
        compressed = parameters.get("image_transport") == "compressed"
        camera = one.camera(**FILM, compressed=compressed, depth=QUEUE)
        one.until(lambda: camera.sent()["subscribers"], "the camera to see the node")
        one.until(lambda: one.witness.count("publishers.image"), "the node to see the camera")
        yield Stage(one, camera)


@pytest.fixture(scope="module")
def raw(tiny_bundle: Path) -> Iterator[Stage]:
    yield from stage(tiny_bundle)


@pytest.fixture(scope="module")
def jpeg(tiny_bundle: Path) -> Iterator[Stage]:
    yield from stage(tiny_bundle, image_transport="compressed")


@pytest.mark.parametrize("kind", malformed.IMAGE)
def test_malformed_images(raw, kind):
    raw.flood(kind)


@pytest.mark.parametrize("kind", malformed.INFO)
def test_malformed_calibrations(raw, kind):
    # other_size is a good calibration, of images that are not sent: it is kept, not counted.
    raw.flood(kind, harmless=kind == "other_size")


@pytest.mark.parametrize("kind", malformed.MOTION)
def test_malformed_motion(raw, kind):
    raw.flood(kind)


@pytest.mark.parametrize("kind", malformed.COMPRESSED)
def test_malformed_compressed_images(jpeg, kind):
    jpeg.flood(kind)


def test_a_flood_at_the_default_queue(tiny_bundle):
    """More than anybody can read: what was read is counted, services answer, depth goes on."""
    with scene(tiny_bundle, sync_wait=WAIT) as one:
        camera = one.camera(**{**FILM, "rate": 10})
        one.depth_goes_on(camera)
        for kind in ("truncated", "nan", "odometry_nan"):
            camera.burst(kind, 10 * COUNT)
            request = GetParameters.Request(names=["bundle"])
            one.witness.call(GetParameters, "depth_node/get_parameters", request, PATIENCE)
            one.depth_goes_on(camera)
        camera.film(rate=0)
        assert one.witness.count("refused.truncated") > 0

        def adds_up() -> bool:
            count = one.witness.count
            frames = ("inferred", "dropped_stale", "refused.truncated")
            return count("received") == sum(count(key) for key in frames)

        one.until(adds_up, "received = inferred + dropped + refused")
