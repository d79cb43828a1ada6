"""The drive as a ROS 1 bag, by Debian's rosbag: `/usr/bin/python3 write_ros1.py DIR BAG`."""

import json
import sys
from pathlib import Path

import genpy
import rosbag
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo, CompressedImage, Image


def main(scene, out):
    drive = json.loads((scene / "drive.json").read_text())
    width, height = drive["size"]
    with rosbag.Bag(str(out), "w", compression=rosbag.Compression.BZ2) as bag:
        for i, stamp_ns in enumerate(drive["stamps_ns"]):
            stamp = genpy.Time(stamp_ns // 10**9, stamp_ns % 10**9)

            def write(topic, message, frame, stamp=stamp, number=i):
                message.header.stamp, message.header.frame_id = stamp, frame
                message.header.seq = number
                bag.write(topic, message, stamp)

            image = CompressedImage(format="jpeg", data=(scene / f"{i:02d}.jpg").read_bytes())
            write("/front/image_raw/compressed", image, "front_optical")
            info = CameraInfo(width=width, height=height, distortion_model="plumb_bob")
            info.K, info.D = drive["K"], [0.0] * 5
            info.R = [1, 0, 0, 0, 1, 0, 0, 0, 1]
            k = drive["K"]
            info.P = [*k[:3], 0, *k[3:6], 0, *k[6:], 0]
            write("/front/camera_info", info, "front_optical")
            depth = Image(width=width, height=height, encoding="16UC1", step=2 * width)
            depth.data = (scene / f"{i:02d}.depth").read_bytes()
            write("/front/depth", depth, "front_optical")
            odometry = Odometry(child_frame_id="base_link")
            odometry.pose.pose.position.y = drive["y"][i]
            odometry.pose.pose.orientation.w = 1.0
            odometry.twist.twist.linear.x = drive["speed"]
            write("/odom", odometry, "odom")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
