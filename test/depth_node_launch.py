"""What launch_testing checks while depth.launch.py runs; test_launch.py starts it.

By hand, with ROS 2 and the package sourced:
    TEST_BUNDLE=lite launch_test test/depth_node_launch.py
"""

from __future__ import annotations

import contextlib
import os
import sys
import unittest
import uuid
from pathlib import Path

import launch_testing.actions
import launch_testing.asserts
import launch_testing.markers
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchDescription

sys.path.insert(0, str(Path(__file__).resolve().parent))

from helpers import shifted, texture
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters, ListParameters
from ros_helpers import Peer, nanoseconds_of, wait_until

ROOT = Path(__file__).resolve().parents[1]
NAMESPACE = f"/launched_{uuid.uuid4().hex[:12]}"
STEP = 10**8


@launch_testing.markers.keep_alive
def generate_test_description() -> LaunchDescription:
    arguments = {
        "bundle": os.environ["TEST_BUNDLE"],
        "namespace": NAMESPACE,
        "backend": "torch",
        "image": f"{NAMESPACE}/image",
        "camera_info": f"{NAMESPACE}/camera_info",
        "odom": f"{NAMESPACE}/odom",
    }
    file = PythonLaunchDescriptionSource(str(ROOT / "launch" / "depth.launch.py"))
    node = IncludeLaunchDescription(file, launch_arguments=list(arguments.items()))
    return LaunchDescription([node, launch_testing.actions.ReadyToTest()])


class TestWhileItRuns(unittest.TestCase):
    """Methods run in the order of their names."""

    peer: Peer

    @classmethod
    def setUpClass(cls) -> None:
        cls.peer = Peer(NAMESPACE)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.peer.__exit__()

    def test_1_it_becomes_active(self) -> None:
        def state() -> str:
            # While it loads the bundle it answers nobody.
            with contextlib.suppress(AssertionError):
                request = GetState.Request()
                answer = self.peer.call(GetState, "depth_node/get_state", request, 10.0)
                return str(answer.current_state.label)
            return "silent"

        wait_until(lambda: state() == "active", "the node to be active", 240.0)

    def test_2_images_become_depth(self) -> None:
        self.peer.wait_for_node(_Running(), 240.0)
        for number in range(1, 4):
            self.peer.send(shifted(texture(), number), number * STEP, speed=5.0)
            depth = self.peer.answer(number * STEP, 60.0)
            assert depth.encoding == "32FC1"
            assert depth.header.frame_id == "camera_optical_frame"
        stamps = [nanoseconds_of(message.header.stamp) for message in self.peer.depth]
        assert stamps == [STEP, 2 * STEP, 3 * STEP]
        wait_until(lambda: "multi_frame moving" in self.peer.models, "the moving vehicle's model")

    def test_3_parameters_are_read(self) -> None:
        request = GetParameters.Request(names=["bundle", "max_gap"])
        values = self.peer.call(GetParameters, "depth_node/get_parameters", request).values
        assert values[0].string_value == os.environ["TEST_BUNDLE"]
        assert values[1].double_value == 0.5
        listed = self.peer.call(
            ListParameters, "depth_node/list_parameters", ListParameters.Request()
        )
        assert {"force_model", "motion.start_speed", "use_sim_time"} <= set(listed.result.names)


@launch_testing.post_shutdown_test()
class TestAfterwards(unittest.TestCase):
    def test_it_ended_cleanly(self, proc_info) -> None:
        assert any("depth_node" in name for name in proc_info.process_names())
        launch_testing.asserts.assertExitCodes(proc_info)


class _Running:
    """launch_testing ends the test by itself when a process dies."""

    alive = True
    output = "(see the output above)"
