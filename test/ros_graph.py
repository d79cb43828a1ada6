"""What the ROS graph says about a node, asked from a process of its own, as ``ros2 node info`` is.

    python test/ros_graph.py /namespace/node TOPIC_TO_WAIT_FOR

prints JSON: ``publishers`` and ``subscribers`` (topic -> types, reliability, durability),
``services`` and ``clients`` (name -> types). Ends with 1 when the topic is not there in time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAIT = 240.0
SETTLED = 3  # equal answers in a row: discovery is not instantaneous


def graph_of(node: str, topic: str) -> dict[str, dict[str, Any]]:
    """Run this file and return what it found about ``node`` once it publishes ``topic``."""
    done = subprocess.run(
        [sys.executable, __file__, node, topic],
        capture_output=True,
        text=True,
        timeout=WAIT + 60,
        env=os.environ,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def _ends(observer: Any, node: str, kind: str) -> dict[str, Any]:
    namespace, _, name = node.rpartition("/")
    names = getattr(observer, f"get_{kind}_names_and_types_by_node")(name, namespace or "/")
    ends = {}
    for topic, types in names:
        infos = getattr(
            observer, f"get_{kind.replace('subscriber', 'subscription')}s_info_by_topic"
        )
        (mine,) = [
            info
            for info in infos(topic)
            if (info.node_name, info.node_namespace) == (name, namespace or "/")
        ]
        ends[topic] = {
            "types": types,
            "reliability": mine.qos_profile.reliability.name.lower(),
            "durability": mine.qos_profile.durability.name.lower(),
        }
    return ends


def _look(observer: Any, node: str) -> dict[str, Any]:
    namespace, _, name = node.rpartition("/")
    found: dict[str, Any] = {
        "publishers": _ends(observer, node, "publisher"),
        "subscribers": _ends(observer, node, "subscriber"),
    }
    for kind in ("service", "client"):
        names = getattr(observer, f"get_{kind}_names_and_types_by_node")(name, namespace or "/")
        found[f"{kind}s"] = dict(names)
    return found


def main(node: str, topic: str) -> int:
    import rclpy
    from rclpy.node import NodeNameNonExistentError

    rclpy.init()
    observer = rclpy.create_node("graph_observer", start_parameter_services=False)
    deadline, seen = time.monotonic() + WAIT, []
    while time.monotonic() < deadline:
        time.sleep(0.3)
        try:
            found = _look(observer, node)
        except (NodeNameNonExistentError, ValueError):
            continue  # not yet there, or just changing
        if topic not in found["publishers"]:
            continue
        seen.append(found)
        if len(seen) >= SETTLED and all(other == found for other in seen[-SETTLED:]):
            print(json.dumps(found))
            rclpy.shutdown()
            return 0
    print(f"{node} does not publish {topic}; seen: {seen[-1:]}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
