"""The drive as a ROS 2 bag, by the package `mcap` and rclpy: `python write_mcap.py DIR BAG`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from builtin_interfaces.msg import Time
from mcap.writer import CompressionType, Writer
from nav_msgs.msg import Odometry
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image


def main(scene: Path, out: Path) -> None:
    """Write the bag."""
    drive = json.loads((scene / "drive.json").read_text())
    width, height = drive["size"]
    kinds = {
        "/front/image_raw/compressed": CompressedImage,
        "/front/camera_info": CameraInfo,
        "/front/depth": Image,
        "/odom": Odometry,
    }
    with out.open("wb") as file:
        writer = Writer(file, compression=CompressionType.ZSTD)
        writer.start(profile="ros2", library="mcap, by hand")
        channels = {}
        for topic, kind in kinds.items():
            package, name = kind.__module__.split(".")[0], kind.__name__
            schema = writer.register_schema(
                name=f"{package}/msg/{name}", encoding="ros2msg", data=definition(package, name)
            )
            channels[topic] = writer.register_channel(
                topic=topic, message_encoding="cdr", schema_id=schema
            )
        for i, stamp_ns in enumerate(drive["stamps_ns"]):
            image = CompressedImage(format="jpeg", data=(scene / f"{i:02d}.jpg").read_bytes())
            k = [float(value) for value in drive["K"]]
            info = CameraInfo(
                width=width,
                height=height,
                distortion_model="plumb_bob",
                d=[0.0] * 5,
                k=k,
                r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
                p=[*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0],
            )
            depth = Image(width=width, height=height, encoding="16UC1", step=2 * width)
            depth.data = (scene / f"{i:02d}.depth").read_bytes()
            odometry = Odometry(child_frame_id="base_link")
            odometry.pose.pose.position.y = drive["y"][i]
            odometry.pose.pose.orientation.w = 1.0
            odometry.twist.twist.linear.x = drive["speed"]
            messages: tuple[Any, ...] = (image, info, depth, odometry)
            for (topic, channel), message in zip(channels.items(), messages, strict=True):
                message.header.stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
                message.header.frame_id = "odom" if topic == "/odom" else "front_optical"
                writer.add_message(
                    channel, stamp_ns, bytes(serialize_message(message)), stamp_ns, i
                )
        writer.finish()


def definition(package: str, name: str) -> bytes:
    """A message's definition with those that it names, as bags of ROS 2 have it."""
    wanted, texts = [(package, name)], {}
    while wanted:
        kind = wanted.pop()
        if kind in texts:
            continue
        place = Path(get_package_share_directory(kind[0])) / "msg" / f"{kind[1]}.msg"
        texts[kind] = place.read_text()
        for line in texts[kind].splitlines():
            words = line.split("#")[0].split()
            if words and words[0][0].isalpha() and ("/" in words[0] or words[0][0].isupper()):
                named = words[0].split("[")[0].split("/")
                wanted.append((named[0] if len(named) > 1 else kind[0], named[-1]))
    whole, *others = texts
    parts = [texts[whole], *(f"MSG: {p}/{n}\n{texts[p, n]}" for p, n in others)]
    return f"\n{'=' * 80}\n".join(parts).encode()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
