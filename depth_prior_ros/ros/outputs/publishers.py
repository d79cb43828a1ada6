"""The node's publishers: what is made of a depth result, and for whom.

`depth/image_rect` and `depth/camera_info` are made of every frame. Everything else is made only
while somebody listens; `Outputs.counts` tells how often.

`depth/colour` is turbo over a fixed range: near is red, far is blue.

Compressed depth is as compressed_depth_image_transport writes it, quantised inverse depth in a PNG:
the data of the `CompressedImage` are a header of twelve bytes, in the byte order of the machine
(an int32 that is 0 for inverse depth, float32 A, float32 B), and a 16-bit PNG. Its values v mean
depth A / (v - B); 0 means no depth. With q the quantisation and m the largest depth, A = q (q + 1)
and B = 1 - A / m, so that v = 1 at m. Values are cut off, not rounded.
"""

from __future__ import annotations

import math
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2
from std_msgs.msg import Header, String

from depth_prior_ros.ros.messages import byte_array, depth_to_image, image_message
from depth_prior_ros.ros.mounting import MountSight, plane_message, road_of
from depth_prior_ros.ros.outputs.clouds import (
    CloudMaker,
    RoadWatch,
    obstacle_cloud,
    obstacle_scan,
    obstacles_of,
    scan_frame,
)
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.ros.qos import overrides, qos
from depth_prior_ros.scale.road import plane_in_base

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthResult
    from depth_prior_ros.scale import ScaleStatus
    from depth_prior_ros.scale.obstacles import Obstacles


FORMAT = "32FC1; compressedDepth png"
INVERSE_DEPTH = 0
LARGEST = 65535


@dataclass(frozen=True)
class Quantisation:
    """How depth becomes 16 bits.

    Attributes:
        max_depth: depth at and beyond which there is none.
        a: the constant A; neighbouring values at depth z are z * z / A apart.

    Raises:
        ValueError: numbers that are not positive.
    """

    max_depth: float
    a: float

    def __post_init__(self) -> None:
        if not (self.max_depth > 0 and self.a > 0):
            raise ValueError(f"max_depth {self.max_depth} and A {self.a} must be positive")

    @classmethod
    def of(cls, max_depth: float, quantization: float) -> Quantisation:
        """From the parameters `depth_max` and `depth_quantization` of the transport."""
        return cls(max_depth, quantization * (quantization + 1.0))

    @property
    def b(self) -> float:
        """The constant B."""
        return 1.0 - self.a / self.max_depth

    @property
    def min_depth(self) -> float:
        """The smallest depth that has a value of its own; nearer ones become it."""
        return self.a / (LARGEST - self.b)

    def values(self, depth: NDArray[np.float32]) -> NDArray[np.uint16]:
        """(h, w) uint16; 0 for NaN, +inf and depth from `max_depth` on."""
        values = np.zeros(depth.shape, dtype=np.float32)
        # False for NaN.
        known = (depth > 0) & (depth < np.float32(self.max_depth))
        resolved = np.maximum(depth, np.float32(self.min_depth))
        np.divide(np.float32(self.a), resolved, out=values, where=known)
        np.add(values, np.float32(self.b), out=values, where=known)
        return np.minimum(values, LARGEST).astype(np.uint16)


def compress_depth(
    depth: NDArray[np.float32], header: Header, quantisation: Quantisation, png_level: int = 1
) -> CompressedImage:
    """A message that image_transport's `compressedDepth` subscribers read as `32FC1`.

    Args:
        depth: (h, w) float32; NaN and +inf both become "no depth", which is read as NaN.
        header: taken over as it is.
        quantisation: see the class.
        png_level: 0 (fast) to 9 (small).

    Raises:
        RuntimeError: OpenCV could not write the PNG.
    """
    options = [cv2.IMWRITE_PNG_COMPRESSION, png_level]
    written, png = cv2.imencode(".png", quantisation.values(depth), options)
    if not written:
        raise RuntimeError("the depth image could not be compressed")
    start = struct.pack("=iff", INVERSE_DEPTH, quantisation.a, quantisation.b)
    message = CompressedImage()
    message.header = header
    message.format = FORMAT
    message.data = byte_array(start, png.data)
    return message


UNKNOWN = (0, 0, 0)
"""Colour of pixels without depth."""


@dataclass(frozen=True)
class ColourScale:
    """From which depth to which the colours run, in the unit of the depth.

    The scale is logarithmic, so that a colour step is the same relative step everywhere, and fixed:
    a colour means the same depth in every frame.

    Raises:
        ValueError: ends that are not positive, or in the wrong order.
    """

    near: float
    far: float

    def __post_init__(self) -> None:
        if not 0 < self.near < self.far < math.inf:
            raise ValueError(f"a colour scale cannot run from {self.near} to {self.far}")

    def colours(self, depth: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB of depth (h, w).

        Depth at or below `near` is turbo's last colour, at or beyond `far`, +inf too, its first;
        what is no depth is black.
        """
        unknown = ~(depth >= 0)  # NaN, too
        place = np.log(np.float32(self.far) / np.clip(depth, self.near, self.far))
        place *= np.float32(255.0 / math.log(self.far / self.near))
        place[unknown] = 0.0
        index = np.rint(np.clip(place, 0, 255)).astype(np.uint8)
        picture = turbo()[index]
        picture[unknown] = UNKNOWN
        return picture


@lru_cache(maxsize=1)
def turbo() -> NDArray[np.uint8]:
    """The 256 colours of Google's turbo map, (256, 3) uint8 RGB, dark blue first."""
    steps = np.arange(256, dtype=np.uint8)[:, np.newaxis]
    return np.ascontiguousarray(cv2.applyColorMap(steps, cv2.COLORMAP_TURBO)[:, 0, ::-1])


def colour_image(depth: NDArray[np.float32], header: Header, scale: ColourScale) -> Image:
    """An `rgb8` message of a depth image; the header is taken over as it is."""
    return image_message(scale.colours(depth), "rgb8", header)


ALWAYS = ("depth", "info")
"""Outputs made of every frame; `model` and `scale` are made when they change."""

ON_DEMAND = ("confidence", "points", "colour", "compressed", "obstacles", "scan")
"""Outputs made only while somebody listens."""

SCALE_PERIOD = 1.0
"""Seconds between two `~/scale` messages whose state is the same."""


@dataclass(frozen=True)
class Topic:
    """One output: type, relative name, its name where depth is not metres, and whether latched."""

    kind: type
    name: str
    relative: str | None = None
    latched: bool = False


TOPICS: dict[str, Topic] = {
    "depth": Topic(Image, "depth/image_rect", "depth/relative"),
    "info": Topic(CameraInfo, "depth/camera_info"),
    "confidence": Topic(Image, "depth/confidence"),
    "points": Topic(PointCloud2, "depth/points", "depth/relative/points"),
    "colour": Topic(Image, "depth/colour"),
    "compressed": Topic(
        CompressedImage, "depth/image_rect/compressedDepth", "depth/relative/compressedDepth"
    ),
    "obstacles": Topic(PointCloud2, "depth/obstacles"),
    "scan": Topic(LaserScan, "depth/scan"),
    "model": Topic(String, "~/active_model", latched=True),
    "scale": Topic(DiagnosticStatus, "~/scale", latched=True),
}


def topic_name(output: str, metres: bool = True) -> str:
    """The relative name of an output; `metres` is False where the scale mode is `none`."""
    topic = TOPICS[output]
    return topic.name if metres or topic.relative is None else topic.relative


class Outputs:
    """The publishers of one configured node. `publish` runs in the worker's thread.

    Args:
        node: whose lifecycle publishers these become.
        settings: of what is made on demand; replaced by `reconfigure` between two frames.
        metres: False where nobody knows the metres (scale mode `none`): the topics are then called
            `depth/relative`. Ranges given in metres count in the depth's unit then.
        qos_overrides: declare `qos_overrides.<topic>.publisher.*` parameters.

    Attributes:
        counts: how many messages of each output were made.
        active_model: the newest one, such as `single_frame stationary`; empty before the first.
        scale: the newest scale status; None before the first.
        metres: whether the depth is metres.
        road: the road under the newest frame that somebody wanted to know it of.
    """

    def __init__(
        self,
        node: LifecycleNode,
        settings: Settings | None = None,
        *,
        metres: bool = True,
        qos_overrides: bool = True,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.active_model = ""
        self.scale: ScaleStatus | None = None
        self.metres = metres
        self._node = node
        self._settings = settings or Settings()
        self._cloud = CloudMaker()
        self.road = RoadWatch(self._settings.obstacles_hold)
        self._obstacles: tuple[DepthResult, Obstacles | None] | None = None
        self._scale_told = (-np.inf, "")
        self._mount: MountSight | None = None
        self._road_told = -np.inf
        self._makers: dict[str, Callable[[Header, DepthResult], Any]] = {
            "confidence": self._confidence,
            "points": self._points,
            "colour": self._colour,
            "compressed": self._compressed,
            "obstacles": self._obstacle_cloud,
            "scan": self._scan,
        }
        self._publishers: dict[str, Any] = {}
        try:
            for output in TOPICS:
                self._publishers[output] = self._publisher(output, qos_overrides)
            if self._settings.tf_base_frame:
                self._publishers["road"] = self._road_publisher()
        except BaseException:
            self.destroy()  # nobody else knows of those that were made
            raise

    @property
    def tells_road(self) -> bool:
        """Whether there is a topic for the road, which needs tf."""
        return "road" in self._publishers

    @property
    def depth_topic(self) -> str:
        """The relative name of the depth image's topic."""
        return topic_name("depth", self.metres)

    def reconfigure(self, settings: Settings) -> None:
        """Use other settings from the next frame on; called between two frames."""
        self._settings = settings
        self.road.hold = settings.obstacles_hold

    def reset(self) -> None:
        """Tell model and scale again, as after activation."""
        self.active_model = ""
        self._scale_told = (-np.inf, "")

    def wanted(self) -> frozenset[str]:
        """The outputs on demand that somebody listens to.

        `confidence` is among them also where points are to be left out by it, and for the sigma of
        obstacles: then the pipeline has to be asked for it.
        """
        heard = {o for o in ON_DEMAND if self._publishers[o].get_subscription_count() > 0}
        if "points" in heard and self._settings.points_min_confidence > 0:
            heard.add("confidence")
        if "obstacles" in heard:
            heard.add("confidence")
        return frozenset(heard)

    def subscriptions(self) -> dict[str, int]:
        """How many listen to each output."""
        return {o: int(p.get_subscription_count()) for o, p in self._publishers.items()}

    def publish(
        self,
        header: Header,
        info: CameraInfo,
        result: DepthResult,
        mount: MountSight | None = None,
    ) -> None:
        """Publish what a frame is worth: model and scale first, so that whoever sees depth knows.

        Args:
            header: of the camera's image; every message gets it.
            info: camera_info of the depth image.
            result: of the pipeline.
            mount: where tf says that the camera sits; None: not known.
        """
        self._mount = mount
        self._tell_model(result.active_model)
        self._tell_scale(getattr(result, "scale", None))
        self._tell_road(result)
        info.header = header
        self._send("info", info)
        self._send("depth", depth_to_image(result.depth, header))
        for output in ON_DEMAND:
            if self._publishers[output].get_subscription_count() > 0:
                self._send(output, self._makers[output](header, result))

    def destroy(self) -> None:
        """Give the publishers back."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def _publisher(self, output: str, overridable: bool) -> Any:
        # Reliable serves both reliable and best-effort listeners.
        latched = TOPICS[output].latched
        return self._node.create_lifecycle_publisher(
            TOPICS[output].kind,
            topic_name(output, self.metres),
            qos(1 if latched else 2, reliable=True, latched=latched),
            **({"qos_overriding_options": overrides()} if overridable else {}),
        )

    def _road_publisher(self) -> Any:
        # Late: only who asks for tf needs these messages.
        from shape_msgs.msg import Plane

        profile = qos(1, reliable=True, latched=True)
        return self._node.create_lifecycle_publisher(Plane, "~/road", profile)

    def _send(self, output: str, message: Any) -> None:
        if message is not None:
            self.counts[output] += 1
            self._publishers[output].publish(message)

    def _tell_model(self, model: str) -> None:
        if model != self.active_model:
            self.active_model = model
            self._send("model", String(data=model))

    def _tell_scale(self, status: ScaleStatus | None) -> None:
        if status is None:
            return
        self.scale = status
        then, state = self._scale_told
        now = time.monotonic()
        if status.state != state or now - then >= SCALE_PERIOD:
            self._scale_told = (now, status.state)
            self._send("scale", scale_message(status, self._node.get_fully_qualified_name()))

    def _tell_road(self, result: DepthResult) -> None:
        """The road in the base frame, where tf says what that is; once a second at most."""
        publisher, now = self._publishers.get("road"), time.monotonic()
        if publisher is None or self._mount is None or now - self._road_told < SCALE_PERIOD:
            return
        road = self.road.of(result, *road_of(self._settings, self._mount)).road
        if road is not None:
            self._road_told = now
            plane = plane_in_base(road, self._mount.base_from_optical)
            self._send("road", plane_message(plane))

    def _confidence(self, header: Header, result: DepthResult) -> Image | None:
        # Somebody began to listen after the pipeline was asked: from the next frame on.
        return None if result.confidence is None else depth_to_image(result.confidence, header)

    def _points(self, header: Header, result: DepthResult) -> PointCloud2 | None:
        s = self._settings
        if s.points_min_confidence > 0 and result.confidence is None:
            return None  # as above: points that nobody vouches for are not sent
        return self._cloud.message(
            header,
            result.depth,
            result.camera,
            rgb=getattr(result, "rgb", None) if s.points_colour else None,
            confidence=result.confidence if s.points_min_confidence > 0 else None,
            min_confidence=s.points_min_confidence,
            max_depth=s.points_max_depth_m,
            stride=s.points_stride,
            organized=s.points_organized,
        )

    def _colour(self, header: Header, result: DepthResult) -> Image:
        s = self._settings
        scale = ColourScale(s.colour_min_depth_m, s.colour_max_depth_m)
        return colour_image(result.depth, header, scale)

    def _compressed(self, header: Header, result: DepthResult) -> CompressedImage:
        s = self._settings
        quantisation = Quantisation.of(
            s.compressed_depth_max_depth_m, s.compressed_depth_quantization
        )
        return compress_depth(result.depth, header, quantisation, s.compressed_depth_png_level)

    def _obstacles_of(self, result: DepthResult) -> Obstacles | None:
        """Those of a frame, looked for once; None where there is no road to stand on."""
        if self._obstacles is None or self._obstacles[0] is not result:
            road = self.road.of(result, *road_of(self._settings, self._mount)).road
            settings = self._settings.obstacles
            found = None if road is None else obstacles_of(result, road, settings)
            self._obstacles = (result, found)
        return self._obstacles[1]

    def _obstacle_cloud(self, header: Header, result: DepthResult) -> PointCloud2 | None:
        # Without confidence somebody began to listen after the pipeline was asked.
        if result.confidence is None or (obstacles := self._obstacles_of(result)) is None:
            return None
        spread = None if result.scale is None else result.scale.spread
        return obstacle_cloud(header, obstacles, result.confidence, spread)

    def _scan(self, header: Header, result: DepthResult) -> LaserScan | None:
        if (obstacles := self._obstacles_of(result)) is None:
            return None
        frame = scan_frame(header.frame_id, self._settings.obstacles_scan_frame)
        return obstacle_scan(header, obstacles, frame)


def scale_message(status: ScaleStatus, node: str) -> DiagnosticStatus:
    """A scale status as a message: level, words, and the numbers as key and value."""
    message = DiagnosticStatus()
    message.level = DiagnosticStatus.WARN if status.unsure else DiagnosticStatus.OK
    message.name = f"{node.lstrip('/')}: scale"
    message.message = status.text
    message.values = [KeyValue(key=k, value=value) for k, value in status.values().items()]
    return message
