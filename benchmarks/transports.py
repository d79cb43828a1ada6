"""Which images arrive, and how late, between two processes: by size, reliability and transport.

    python benchmarks/transports.py [--messages 90] [--rate 30] [--image 1242x375]

One process sends images, another takes them; nothing else runs. First table: Fast DDS as it starts
without being told anything, by size of the message. Second table: images of `--image` in rgb8 with
what is said to help:

- profile: config/fastdds_large_images.xml at both processes, at the sender's only, at the
  receiver's only;
- FASTDDS_BUILTIN_TRANSPORTS=UDPv4, =LARGE_DATA at both.

Received: of the messages sent, without those of the first second, in which the two connect.
Milliseconds: median from right before publishing until the callback.

`figure transport_received_CASE` is a share.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test"))

SIZES = (60_000, 368_640, 491_520, 700_000)

RECEIVER = """
import json, sys, threading, time
import rclpy
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("receiver")
ages = {}
def take(message):
    stamp = message.header.stamp
    sent = stamp.sec * 10**9 + stamp.nanosec
    ages[int(message.header.frame_id)] = (time.time_ns() - sent) * 1e-6
qos = QoSProfile(depth=5, reliability=QoSReliabilityPolicy[sys.argv[2]])
node.create_subscription(Image, sys.argv[1], take, qos)
threading.Thread(target=rclpy.spin, args=(node,), daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(dict(ages)), flush=True)
"""

SENDER = """
import array, sys, time
import rclpy
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
topic, reliability, size, count, rate, before = sys.argv[1:]
rclpy.init()
node = rclpy.create_node("sender")
qos = QoSProfile(depth=5, reliability=QoSReliabilityPolicy[reliability])
publisher = node.create_publisher(Image, topic, qos)
message = Image(encoding="mono8", width=int(size), height=1, step=int(size))
message.data = array.array("B", bytes(int(size)))
while publisher.get_subscription_count() == 0:
    time.sleep(0.01)
start = time.monotonic()
for number in range(int(before) + int(count)):
    time.sleep(max(0.0, start + number / float(rate) - time.monotonic()))
    message.header.frame_id = str(number - int(before))
    now = time.time_ns()
    message.header.stamp.sec, message.header.stamp.nanosec = now // 10**9, now % 10**9
    publisher.publish(message)
time.sleep(1.0)  # the last ones are on their way
"""


@dataclass
class Case:
    """name: of the figure. sender, receiver: environment that is added to each."""

    name: str
    title: str
    size: int
    sender: dict[str, str] = field(default_factory=dict)
    receiver: dict[str, str] = field(default_factory=dict)


def run(case: Case, reliability: str, messages: int, rate: float) -> list[float]:
    """Milliseconds of each message that arrived."""
    topic = f"/transport_{uuid.uuid4().hex[:8]}"
    arguments = [sys.executable, "-c", RECEIVER, topic, reliability]
    environment = {**os.environ, **case.receiver}
    with subprocess.Popen(
        arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as receiver:
        try:
            assert receiver.stdin and receiver.stdout
            receiver.stdout.readline()
            numbers = (str(n) for n in (case.size, messages, rate, round(rate)))
            subprocess.run(
                [sys.executable, "-c", SENDER, topic, reliability, *numbers],
                env={**os.environ, **case.sender},
                check=True,
                timeout=60 + 3 * messages / rate,
            )
            receiver.stdin.write("\n")
            receiver.stdin.flush()
            ages = json.loads(receiver.stdout.readline())
        finally:
            receiver.kill()
    return [age for number, age in ages.items() if int(number) >= 0]


def cases(image: int) -> tuple[list[Case], list[Case]]:
    """Of the first and of the second table."""
    from camera_process import large_images

    profile = large_images()
    built_in = "FASTDDS_BUILTIN_TRANSPORTS"
    by_size = [Case(f"default_{size}", f"{size:,} bytes", size) for size in (*SIZES, image)]
    remedies = [
        Case("profile_both", "profile at both", image, profile, profile),
        Case("profile_sender", "profile at the sender", image, sender=profile),
        Case("profile_receiver", "profile at the receiver", image, receiver=profile),
        *(
            Case(value.lower(), f"{built_in}={value}", image, {built_in: value}, {built_in: value})
            for value in ("UDPv4", "LARGE_DATA")
        ),
    ]
    return by_size, remedies


def table(title: str, rows: list[Case], messages: int, rate: float) -> dict[str, float]:
    """Print it; shares received by name of the figure."""
    print(f"{title:42}{'best effort':>12}{'ms':>8}{'reliable':>12}{'ms':>8}")
    shares = {}
    for case in rows:
        line = f"  {case.title:40}"
        for reliability in ("BEST_EFFORT", "RELIABLE"):
            ages = run(case, reliability, messages, rate)
            median = f"{statistics.median(ages):.1f}" if ages else ""
            line += f"{f'{len(ages)} of {messages}':>12}{median:>8}"
            kind = "" if reliability == "BEST_EFFORT" else "_reliable"
            shares[case.name + kind] = len(ages) / messages
        print(line, flush=True)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=90)
    parser.add_argument("--rate", type=float, default=30.0, help="messages per second")
    parser.add_argument("--image", default="1242x375", help="of the large images, in rgb8")
    arguments = parser.parse_args()
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    for variable in ("FASTDDS", "FASTRTPS"):
        os.environ.pop(f"{variable}_DEFAULT_PROFILES_FILE", None)
    width, height = (int(part) for part in arguments.image.split("x"))
    by_size, remedies = cases(3 * width * height)
    title = f"{arguments.messages} messages at {arguments.rate:g} Hz"
    shares = table(title, by_size, arguments.messages, arguments.rate)
    shares |= table(
        f"{arguments.image} rgb8", [by_size[-1], *remedies], arguments.messages, arguments.rate
    )
    for name, share in shares.items():
        print(f"figure transport_received_{name} {share:.2f}")


if __name__ == "__main__":
    main()
