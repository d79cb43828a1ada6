"""A child process that answers every camera message with the pixels it made of it, over DDS.

Run as ``python test/pixel_echo.py --ros-args -r __ns:=/somewhere``. Images on ``image`` and
``compressed`` come back on ``rgb`` with the same header; a refused one has no pixels, and its
encoding is the cause.
"""

from __future__ import annotations

import array
import contextlib

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image

from depth_prior_ros.ros.messages import MessageError, check_image, image_to_rgb


def main() -> None:
    rclpy.init()
    node = rclpy.create_node("pixel_echo")
    publisher = node.create_publisher(Image, "rgb", QoSProfile(depth=10))

    def answer(message: Image | CompressedImage) -> None:
        reply = Image(header=message.header)
        try:
            check_image(message)
            rgb = image_to_rgb(message)
        except MessageError as error:
            reply.encoding = error.cause
        else:
            reply.encoding = "rgb8"
            reply.height, reply.width = rgb.shape[:2]
            reply.step = 3 * reply.width
            reply.data = array.array("B", rgb.tobytes())
        publisher.publish(reply)

    node.create_subscription(Image, "image", answer, QoSProfile(depth=10))
    node.create_subscription(CompressedImage, "compressed", answer, QoSProfile(depth=10))
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)


if __name__ == "__main__":
    main()
