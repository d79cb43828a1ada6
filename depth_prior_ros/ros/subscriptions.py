"""What the node listens to while it is active. Callbacks check, count and store; nothing else.

Events of the transport, where the distribution and the middleware report them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import TwistStamped, TwistWithCovarianceStamped
from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSDurabilityPolicy, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from depth_prior_ros.motion.gate import Source
from depth_prior_ros.motion.odometry import OdometryReading, read_odometry
from depth_prior_ros.ros.diagnostics import Statistics
from depth_prior_ros.ros.inputs import Inputs, stamp_ns
from depth_prior_ros.ros.messages import MessageError, check_image
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.ros.qos import all_reliable, qos, subscription_overrides

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


def subscription_callbacks(
    on_lost: Callable[[int], None] | None, *, any_qos: bool = False
) -> SubscriptionEventCallbacks:
    """Callbacks for a subscription that report messages which were sent and never arrived.

    Args:
        on_lost: called in the executor's thread with the number of newly lost messages.
        any_qos: do not warn of publishers whose QoS does not fit; rclpy does it otherwise.
    """
    chosen: dict[str, Callable[[Any], None]] = {}
    if on_lost is not None:
        chosen["message_lost"] = lambda event: on_lost(int(event.total_count_change))
    if any_qos:
        chosen["incompatible_qos"] = lambda event: None
    return SubscriptionEventCallbacks(**chosen)


FOLLOW_PERIOD = 0.2
"""Seconds between two looks at how reliable the camera's publishers are, and whether one keeps its
calibration for late subscribers."""

_LATCHED = "camera_info (latched)"

_MOTION: tuple[tuple[str, Source, type], ...] = (
    ("odom", "odometry", Odometry),
    ("twist", "twist", TwistStamped),
    ("twist_with_covariance", "twist_with_covariance", TwistWithCovarianceStamped),
)


def image_topic(node: LifecycleNode, settings: Settings) -> str:
    """The fully resolved name of the topic that images come from."""
    name: str = node.resolve_topic_name("image")
    if settings.image_transport == "raw":
        return name
    # image_transport appends the transport to the remapped name; the result may be remapped too.
    return str(node.resolve_topic_name(f"{name}/compressed"))


class Subscriptions:
    """Subscriptions of an active node; :meth:`destroy` ends them.

    Args:
        node: whose topics these are.
        settings: which transport, which sources of motion, how reliable.
        inputs: where messages are stored.
        statistics: counts them.
        refuse: called with cause, text, and whether it was an image, for every message that cannot
            be used.
        saw: called with the stamp (ns) of every image that can be used.
        enabled: whether images are looked at; otherwise they are not even counted.
    """

    def __init__(
        self,
        node: LifecycleNode,
        settings: Settings,
        inputs: Inputs,
        statistics: Statistics,
        refuse: Callable[[str, str, bool], None],
        saw: Callable[[int], None],
        enabled: Callable[[], bool] = lambda: True,
    ) -> None:
        self._node = node
        self._inputs = inputs
        self._statistics = statistics
        self._refuse = refuse
        self._saw = saw
        self._enabled = enabled
        self._all: dict[str, Any] = {}
        self._settings = settings
        self._reliable: dict[str, bool] = {}  # how image and camera_info are subscribed to
        self._follower: Any = None
        self._newest_stamp = 0  # of an image, in nanoseconds
        self._twist_is_filled = False  # of odometry: that once it was not zero
        self.image_topic = image_topic(node, settings)
        try:
            self._subscribe_all(settings)
        except BaseException:
            self.destroy()  # nobody else knows of those that were made
            raise

    def _subscribe_all(self, settings: Settings) -> None:
        for name in ("camera_info", "image"):  # served in this order where both have arrived
            # Without a publisher: reliable, so that the first image of one that is counts, too.
            present = settings.image_reliability == "auto" and self._all_reliable(name) is not False
            self._subscribe_camera(name, present or settings.image_reliability == "reliable")
        self._follow()
        # Steady time: publishers come and go while a simulation stands still, too.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._follower = self._node.create_timer(FOLLOW_PERIOD, self._follow, clock=clock)
        for topic, source, message in _MOTION:
            if settings.motion_source in ("auto", source):
                callback = self._on_odometry if source == "odometry" else self._on_twist(source)
                motion = qos(50, settings.odom_reliability == "reliable")
                self._subscribe(topic, topic, message, callback, motion)

    def _subscribe_camera(self, name: str, reliable: bool) -> None:
        """Subscribe to `image` or `camera_info`, in the place of the subscription there is."""
        old = self._all.get(name)
        following = self._settings.image_reliability == "auto"
        lost = self._statistics.message_lost if name == "image" else None
        events = {"event_callbacks": subscription_callbacks(lost, any_qos=following)}
        if name == "image":
            compressed = self._settings.image_transport == "compressed"
            kind = CompressedImage if compressed else Image
            profile = qos(1, reliable)
            self._subscribe(name, self.image_topic, kind, self._on_image, profile, **events)
        else:
            profile = qos(5, reliable)
            self._subscribe(name, name, CameraInfo, self._on_camera_info, profile, **events)
        self._reliable[name] = reliable
        if old is not None:
            self._node.destroy_subscription(old)

    def _all_reliable(self, name: str) -> bool | None:
        """Whether all publishers of `image` or `camera_info` are reliable; None without any."""
        topic = self.image_topic if name == "image" else self._node.resolve_topic_name(name)
        return all_reliable(self._node, topic)

    def _follow(self) -> None:
        """Be as reliable as the publishers that are there now, and ask for what one has kept."""
        if _LATCHED not in self._all:
            self._take_up_latched()
        if self._settings.image_reliability != "auto":
            return
        for name, reliable in self._reliable.items():
            present = self._all_reliable(name)
            if present is not None and present != reliable:
                how = "reliable" if present else "best effort, for a publisher of it is no more"
                self._node.get_logger().info(f"the subscription to {name} becomes {how}")
                self._subscribe_camera(name, present)

    def _subscribe(
        self,
        name: str,
        topic: str,
        kind: type,
        callback: Callable[[Any], None],
        profile: Any,
        **options: Any,
    ) -> None:
        allowed = subscription_overrides(self._node, topic, profile)
        self._all[name] = self._node.create_subscription(
            kind, topic, callback, profile, qos_overriding_options=allowed, **options
        )

    def _take_up_latched(self) -> None:
        """Ask for the calibration that was sent once, before this node listened.

        Only a subscription of the same durability gets it, which does not fit publishers of the
        usual one: so it is made beside the other, once such a publisher is there.
        """
        topic = self._node.resolve_topic_name("camera_info")
        latched = [
            found.qos_profile
            for found in self._node.get_publishers_info_by_topic(topic)
            if found.qos_profile.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
        ]
        if latched:
            reliable = any(p.reliability == QoSReliabilityPolicy.RELIABLE for p in latched)
            profile = qos(5, reliable, latched=True)
            self._all[_LATCHED] = self._node.create_subscription(
                CameraInfo, "camera_info", self._on_camera_info, profile
            )

    def destroy(self) -> None:
        """End all of them."""
        if self._follower is not None:
            self._node.destroy_timer(self._follower)
            self._follower = None
        for subscription in self._all.values():
            self._node.destroy_subscription(subscription)
        self._all = {}

    def publishers(self) -> dict[str, int]:
        """How many publishers each input is connected to, by the input's name."""
        return {name: self._publishers(name) for name in self._all if name != _LATCHED}

    def _publishers(self, name: str) -> int:
        subscription = self._all[name]
        if hasattr(subscription, "get_publisher_count"):
            return int(subscription.get_publisher_count())
        # Humble: those that exist, connected or not. It counts under the name that it is told.
        topic = self.image_topic if name == "image" else self._node.resolve_topic_name(name)
        return int(self._node.count_publishers(topic))

    def forget_stamp(self) -> None:
        """The newest image was not used: the same one may come again."""
        self._newest_stamp = 0

    def _on_image(self, message: Image | CompressedImage) -> None:
        if not self._enabled():
            return
        self._statistics.received(len(message.data))
        try:
            check_image(message)
        except MessageError as error:
            self._refuse(error.cause, error.text, True)
            return
        stamp = stamp_ns(message.header.stamp)
        if stamp == self._newest_stamp != 0:
            text = f"an image with the stamp of the one before it, {stamp} ns: a copy"
            self._refuse("copied_stamp", text, True)
            return
        self._newest_stamp = stamp
        self._saw(stamp)
        self._inputs.put_image(message)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._statistics.camera_info(int(message.width), int(message.height))
        try:
            self._inputs.put_camera_info(message)
        except MessageError as error:
            self._refuse(error.cause, error.text, False)

    def _on_odometry(self, message: Odometry) -> None:
        stamp, reading = stamp_ns(message.header.stamp), read_odometry(message)
        # The pose first: storing the speed wakes whoever waits for both.
        if reading.position is not None and reading.quaternion is not None:
            numbers = reading.position, reading.quaternion
            # Odometry of speeds only leaves the quaternion at zero, which is no fault.
            if not self._inputs.put_pose(stamp, *numbers) and not _finite(*numbers):
                self._refuse("bad_odometry", "odom: the pose is not finite", False)
        self._twist_is_filled |= bool(reading.speed)
        reading = self._inputs.with_speed_of_poses(reading, self._twist_is_filled)
        self._on_speed(stamp, reading, "odometry")

    def _on_twist(self, source: Source) -> Callable[[Any], None]:
        def received(message: TwistStamped | TwistWithCovarianceStamped) -> None:
            self._on_speed(stamp_ns(message.header.stamp), read_odometry(message), source)

        return received

    def _on_speed(self, stamp: int, reading: OdometryReading, source: Source) -> None:
        if reading.speed is None:
            return
        speed = abs(reading.speed)
        if not self._inputs.put_speed(stamp, speed, source, reading.course):
            self._refuse("bad_odometry", f"the speed of {source} is {speed}", False)


def _finite(*groups: tuple[float, ...]) -> bool:
    return all(math.isfinite(number) for group in groups for number in group)
