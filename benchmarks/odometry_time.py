"""What matching odometry costs a frame, and how many frames get a pose.

    python benchmarks/odometry_time.py [--seconds 3]

A camera at 30 Hz and odometry at 100, 50, 20 and 5 Hz, late by 0 to 100 ms, in order and out of
order, in real time: a thread stores odometry as the node's subscription does, this one asks as the
node's worker does. Printed: milliseconds that asking takes (p50, p95), the share of frames with a
pose, and the error of the distance between two frames. The vehicle drives 10 m/s on a circle.
"""

from __future__ import annotations

import argparse
import math
import threading
import time

import numpy as np

from depth_prior_ros.motion.odometry import CameraMount
from depth_prior_ros.ros.inputs import Inputs

CAMERA_HZ, WAIT, MAX_AGE = 30.0, 0.02, 0.5  # the node's defaults
SPEED, TURN = 10.0, 0.2  # m/s, rad/s
START_NS = 1_700_000_000 * 10**9


def messages(rate: float, late: float, shuffled: bool, seconds: float) -> list[tuple[float, float]]:
    """(arrival, stamp) in seconds from the start, by arrival.

    shuffled: every third one comes 1.5 periods later than the others.
    """
    stamps = np.arange(-1.0, seconds, 1 / rate) + 0.0037  # not those of the images
    delay = np.full(stamps.size, late)
    if shuffled:
        delay[::3] += 1.5 / rate
    return sorted(zip(stamps + delay, stamps, strict=True))


def feed(inputs: Inputs, sent: list[tuple[float, float]], begin: float) -> None:
    """Store the odometry, each at its time."""
    for arrival, stamp in sent:
        time.sleep(max(0.0, begin + arrival - time.perf_counter()))
        angle = TURN * stamp
        place = (SPEED / TURN * math.sin(angle), SPEED / TURN * (1 - math.cos(angle)), 0.0)
        ns = START_NS + round(stamp * 1e9)
        inputs.put_pose(ns, place, (0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2)))
        inputs.put_speed(ns, SPEED)


def measure(rate: float, late: float, shuffled: bool, seconds: float) -> tuple[float, ...]:
    """(p50 ms, p95 ms, share with a pose, largest error in metres)."""
    inputs = Inputs(lambda: None)
    sent = messages(rate, late, shuffled, seconds)
    begin = time.perf_counter() + 1.5  # odometry runs before the camera does
    thread = threading.Thread(target=feed, args=(inputs, sent, begin), daemon=True)
    thread.start()
    milliseconds, errors, previous, frames = [], [], None, 0
    for number in range(int(seconds * CAMERA_HZ)):
        due = number / CAMERA_HZ
        time.sleep(max(0.0, begin + due - time.perf_counter()))
        stamp = START_NS + round(due * 1e9)
        before = time.perf_counter()
        motion = inputs.motion_at(stamp, MAX_AGE, WAIT, previous, CameraMount())
        milliseconds.append(1e3 * (time.perf_counter() - before))
        if previous is not None:
            frames += 1
            if motion is not None and motion.pose is not None:
                metres = float(np.linalg.norm(motion.pose[:3, 3]))
                errors.append(abs(metres - SPEED / CAMERA_HZ))
        previous = stamp
    thread.join()
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return float(p50), float(p95), len(errors) / frames, max(errors, default=math.nan)


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of every row")
    seconds = parser.parse_args().seconds
    print("| odometry | late | order | p50 ms | p95 ms | frames with a pose | error m |")
    print("|---|---|---|---|---|---|---|")
    serving, fewest = [], 1.0
    for rate in (100.0, 50.0, 20.0, 5.0):
        for late in (0.0, 0.025, 0.05, 0.1):
            for shuffled in (False, True):
                p50, p95, share, error = measure(rate, late, shuffled, seconds)
                # The newest odometry of a frame is at most this old.
                age = late + (2.5 if shuffled else 1.0) / rate
                if age <= 0.1:
                    serving.append(p95)
                    fewest = min(fewest, share)
                order = "mixed" if shuffled else "in order"
                print(
                    f"| {rate:.0f} Hz | {1e3 * late:.0f} ms | {order} | {p50:.2f} | {p95:.2f} | "
                    f"{share:.1%} | {error:.3f} |",
                    flush=True,
                )
    print(f"figure odometry_added_ms_p95_where_100_ms_serve {max(serving):.3f}")
    print(f"figure odometry_share_with_a_pose_where_100_ms_serve {fewest:.4f}")


if __name__ == "__main__":
    main()
