"""Which topic of a bag is what, and why: of several cameras one is taken and the others are named.

A camera is a namespace with image topics (raw, compressed, rectified). What can be read goes before
what cannot, a camera with a calibration of its own before one without, then the usual name, then
the one with the most images. A calibration that belongs to another camera is never taken by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from depth_prior_ros.recordings.base import RecordingError

COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
IMAGE = "sensor_msgs/msg/Image"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
ODOMETRY = "nav_msgs/msg/Odometry"
TWISTS = ("geometry_msgs/msg/TwistStamped", "geometry_msgs/msg/TwistWithCovarianceStamped")
STRING = "std_msgs/msg/String"
TRANSFORMS = ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
POINTS = "sensor_msgs/msg/PointCloud2"

SOURCE_TOPIC = "/ground_truth/source"
MOVING_TOPIC = "/ground_truth/moving"
TRUTH = "/ground_truth/"

_NOT_COLOUR = ("depth", "disparity", "confidence", "mask", "segment", "label")
# Streams of pictures that only their own programs read.
_FOREIGN_PICTURES = ("Packet", "CompressedVideo")

There = Mapping[str, tuple[str, int]]
"""Message type and count by topic."""


@dataclass(frozen=True)
class BagTopics:
    """Which topic is what; None: found by type and name, or not there."""

    image: str | None = None
    camera_info: str | None = None
    odom: str | None = None
    depth: str | None = None
    moving: str | None = None


def choose_topics(
    there: There,
    wanted: BagTopics,
    path: Path,
    unreadable: Mapping[str, str] | None = None,
) -> tuple[BagTopics, list[str]]:
    """Which topic is what, as wanted, else by type and name; and what to say about the choice.

    Args:
        there: what can be read of the bag.
        wanted: what somebody named; the image topic by its camera's namespace, too.
        path: of the bag, for errors.
        unreadable: topics of images that cannot be decoded, and why.

    Raises:
        RecordingError: no such topic, no images, or no calibration that belongs to them.
    """
    unreadable = unreadable or {}
    if wanted.image is not None and wanted.image not in there:
        of_camera = [t for t in image_topics(there) if camera_of(t) == wanted.image.rstrip("/")]
        wanted = replace(wanted, image=min(of_camera, default=wanted.image))
    for item in fields(wanted):
        topic = getattr(wanted, item.name)
        if topic is not None and topic not in there:
            raise RecordingError(f"{path}: no topic {topic}. {listing(there)}")
    for topic, kinds in (
        (wanted.image, (IMAGE, COMPRESSED_IMAGE)),
        (wanted.camera_info, (CAMERA_INFO,)),
    ):
        if topic is not None and there[topic][0] not in kinds:
            raise RecordingError(
                f"{path}: {topic} is {there[topic][0]}, not {' or '.join(kinds)}. {listing(there)}"
            )
    notes: list[str] = []
    pictures = {t: v for t, v in there.items() if t not in (wanted.depth, wanted.moving)}
    image = wanted.image or _find_image(pictures, unreadable, path, notes)
    info = wanted.camera_info or _find_info(there, image, notes)
    moving = (
        MOVING_TOPIC if there.get(MOVING_TOPIC, ("", 0))[0] in (IMAGE, COMPRESSED_IMAGE) else None
    )
    found = BagTopics(image, info, _find_odometry(there), _find_depth(there), moving)
    notes += [
        f"{topic} ({kind}) is not read: no stream of images that this project knows"
        for topic, (kind, _) in sorted(there.items())
        if kind.endswith(_FOREIGN_PICTURES)
    ]
    clouds = [] if wanted.depth else _of_type(there, POINTS)
    if clouds:
        notes.append(f"points of {', '.join(clouds)} give depth where named as the depth topic")
    return replace(found, **{k: v for k, v in vars(wanted).items() if v is not None}), notes


def image_topics(there: There) -> list[str]:
    """Topics of pictures that a camera may have taken, the fullest first."""
    return [
        topic
        for topic in _of_type(there, COMPRESSED_IMAGE, IMAGE)
        if not _is_special(topic) and not topic.endswith("compressedDepth")
    ]


def listing(there: There) -> str:
    """The topics of a bag in a sentence."""
    if not there:
        return "It holds no topics at all."
    rows = ", ".join(f"{t} ({kind}, {n})" for t, (kind, n) in sorted(there.items()))
    return f"Its topics: {rows}"


def camera_of(image: str) -> str:
    """The namespace of an image topic: `/front` of `/front/image_raw/compressed`."""
    base = image.removesuffix("/compressed")
    return base.rsplit("/", 1)[0]


def _find_image(there: There, unreadable: Mapping[str, str], path: Path, notes: list[str]) -> str:
    found = image_topics(there)
    usable = [topic for topic in found if topic not in unreadable]
    if not found:
        raise RecordingError(f"{path}: no images in this bag. {listing(there)}")
    if not usable:
        whys = "; ".join(f"{topic}: {unreadable[topic]}" for topic in found)
        raise RecordingError(f"{path}: no image topic can be read ({whys})")
    notes += [
        f"{topic} cannot be read: {unreadable[topic]}" for topic in found if topic in unreadable
    ]
    infos = _infos(there)

    def rank(topic: str) -> tuple[bool, bool, int]:
        usual = topic.startswith("/camera/image_raw")
        return f"{camera_of(topic)}/camera_info" in infos, usual, there[topic][1]

    best = max(sorted(usable), key=rank)
    others: dict[str, str] = {}
    for topic in usable:
        others.setdefault(camera_of(topic), topic)
    mine = others.pop(camera_of(best))
    if others:
        second = max(rank(topic) for topic in others.values())
        names = ", ".join(f"{t} ({there[t][1]} images)" for t in sorted(others.values()))
        why = next(
            (
                word
                for word, ours, theirs in zip(
                    ("it has a calibration", "it has the usual name", "it has the most images"),
                    rank(mine),
                    second,
                    strict=True,
                )
                if ours != theirs
            ),
            "it comes first by name",
        )
        notes.append(
            f"of {len(others) + 1} cameras {best} is taken, as {why}; there are also {names}: "
            "name one as the image topic (--image-topic, camera of a recipe's drive, topics.yaml)"
        )
    return best


def _find_info(there: There, image: str, notes: list[str]) -> str | None:
    """The calibration of an image topic: of its own namespace, else one that is nobody's."""
    infos = _infos(there)
    own = f"{camera_of(image)}/camera_info"
    if own in infos:
        return own
    cameras = {camera_of(topic) for topic in image_topics(there)}
    free = [topic for topic in infos if topic.rsplit("/", 1)[0] not in cameras]
    if len(free) == 1:
        notes.append(f"there is no {own}: the calibration is taken from {free[0]}")
        return free[0]
    if infos:
        notes.append(
            f"there is no {own}; not taken, as they belong to others or there are several: "
            f"{', '.join(infos)}"
        )
    return None


def _find_odometry(there: There) -> str | None:
    return _first(_of_type(there, ODOMETRY), "/odom") or _first(_of_type(there, *TWISTS), "/twist")


def _find_depth(there: There) -> str | None:
    pictures = _of_type(there, COMPRESSED_IMAGE, IMAGE)
    depths = [t for t in pictures if t.startswith(TRUTH) and "depth" in t]
    return _first(depths, f"{TRUTH}depth")


def _infos(there: There) -> list[str]:
    return [t for t in _of_type(there, CAMERA_INFO) if not _is_special(t)]


def _of_type(there: There, *types: str) -> list[str]:
    """Topics of these types that have messages, the fullest first."""
    found = [t for t, (kind, count) in there.items() if kind in types and count]
    return sorted(found, key=lambda t: (-there[t][1], t))


def _first(topics: list[str], favourite: str) -> str | None:
    return favourite if favourite in topics else next(iter(topics), None)


def _is_special(topic: str) -> bool:
    return topic.startswith(TRUTH) or any(word in topic for word in _NOT_COLOUR)
