"""Start, stop, faults and load of the real node: every test has a node of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

import rclpy
from helpers import make_tiny_bundle
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from ros_helpers import (
    FRAME,
    PATIENCE,
    STEP,
    NodeProcess,
    Peer,
    Robot,
    image_message,
    node_and_peer,
    stamp_of,
    view,
    wait_for_future,
    wait_until,
)
from std_msgs.msg import Header

pytestmark = pytest.mark.timeout(900)  # waits are long on busy machines, and end early


def test_without_camera_info_frames_are_refused_until_it_comes(tiny_bundle):
    impatient = node_and_peer(
        backend="torch", bundle=tiny_bundle, diagnostics_period=0.1, sync_wait=0.02
    )
    with impatient as (process, peer):
        peer.wait_for_node(process)
        message = image_message(view(), Header(frame_id=FRAME, stamp=stamp_of(STEP)))

        def refused() -> bool:
            peer.image_publisher.publish(message)
            return "refused.no_camera_info" in peer.status()

        wait_until(refused, "the missing camera_info to be counted")
        assert not peer.depth
        peer.send(view(), STEP)  # the same stamp: what was not used is not copied
        peer.answer(STEP)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly(tiny_bundle, number):
    with node_and_peer(fresh=True, backend="torch", bundle=tiny_bundle) as (process, peer):
        peer.wait_for_node(process)
        peer.send(view(), STEP)
        peer.answer(STEP)
        peer.send(view(), 2 * STEP)  # in flight while the signal comes
        assert process.interrupt(number) == 0, process.output
        assert "Traceback" not in process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("library", ["rclpy", "libtorch_cpu"])
def test_a_signal_during_the_start_ends_the_node_cleanly(tiny_bundle, number, library):
    """Imports and loading take seconds; launch would report a node that dies in them."""
    with NodeProcess(fresh=True, bundle=tiny_bundle, backend="torch") as process:
        maps = Path(f"/proc/{process.process.pid}/maps")
        wait_until(lambda: library in maps.read_text(), f"{library} to be imported")
        assert process.interrupt(number) == 0, process.output
        said = [line for line in process.output.splitlines() if "loading bundle" not in line]
        assert not said, "no traceback, no complaint"


@pytest.mark.parametrize("phase", ["start", "active"])
def test_a_second_signal_does_not_disturb_the_end(tiny_bundle, phase):
    """A service manager signals launch and node alike, and launch hands the signal on."""
    with node_and_peer(fresh=True, backend="torch", bundle=tiny_bundle) as (process, peer):
        if phase == "active":
            peer.wait_for_node(process)
            peer.send(view(), STEP)
            peer.answer(STEP)
        else:
            maps = Path(f"/proc/{process.process.pid}/maps")
            wait_until(lambda: "libtorch_cpu" in maps.read_text(), "the start")
        process.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while process.alive and time.monotonic() < deadline:
            process.process.send_signal(signal.SIGINT)
            time.sleep(0.02)  # not a wait: signals are to fall into every part of the end
        assert process.process.wait(1) == 0, process.output
        assert "Traceback" not in process.output


def test_a_bundle_that_is_not_there_ends_the_node_with_its_name(tmp_path):
    with NodeProcess(fresh=True, bundle=tmp_path / "nothing") as process:
        assert process.process.wait(2 * PATIENCE) == 1
        assert str(tmp_path / "nothing") in process.output
        assert "Traceback" not in process.output


def test_an_altered_bundle_ends_the_node_with_file_and_cause(tiny_bundle, tmp_path):
    bundle = tmp_path / "altered"
    bundle.mkdir()
    for file in tiny_bundle.iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    weights = bundle / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with NodeProcess(backend="torch", bundle=bundle) as process:
        assert process.process.wait(2 * PATIENCE) == 1
        assert "student.safetensors" in process.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--params-file", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["-r", "image:="], "image:="),
    ],
)
def test_a_command_line_that_cannot_be_read_ends_the_node_with_the_cause(arguments, named):
    with NodeProcess(*arguments) as process:
        assert process.process.wait(2 * PATIENCE) == 1
        assert named in process.output
        assert "Traceback" not in process.output


@pytest.mark.parametrize("wrong", [{"sync_wait": -1.0}, {"threads": 1.5}, {"device": "gpu"}])
def test_a_wrong_parameter_ends_the_node_with_its_name(wrong):
    with NodeProcess(**wrong) as process:
        assert process.process.wait(2 * PATIENCE) == 1
        assert next(iter(wrong)) in process.output
        assert "Traceback" not in process.output


def test_lifecycle_without_autostart(tiny_bundle):
    with node_and_peer(backend="torch", bundle=tiny_bundle, autostart=False) as (process, peer):

        def change(transition: int) -> bool:
            request = ChangeState.Request(transition=Transition(id=transition))
            return peer.call(ChangeState, "depth_node/change_state", request).success

        def state() -> int:
            return peer.call(GetState, "depth_node/get_state", GetState.Request()).current_state.id

        assert state() == State.PRIMARY_STATE_UNCONFIGURED
        assert change(Transition.TRANSITION_CONFIGURE)
        assert state() == State.PRIMARY_STATE_INACTIVE
        assert peer.node.count_subscribers("image") == 0, "an inactive node does not listen"
        for round_ in range(2):
            assert change(Transition.TRANSITION_ACTIVATE)
            peer.wait_for_node(process)
            stamp = (round_ + 1) * STEP
            peer.send(view(), stamp)
            peer.answer(stamp)
            assert change(Transition.TRANSITION_DEACTIVATE)
            wait_until(lambda: peer.node.count_subscribers("image") == 0, "no subscription")
            Robot(process, peer).set(force_model="single_frame")
        assert peer.models == ["single_frame first_frame", "single_frame forced"]
        assert change(Transition.TRANSITION_CLEANUP)
        assert state() == State.PRIMARY_STATE_UNCONFIGURED
        assert change(Transition.TRANSITION_CONFIGURE)
        assert change(Transition.TRANSITION_INACTIVE_SHUTDOWN)
        assert state() == State.PRIMARY_STATE_FINALIZED
        assert process.interrupt() == 0


def test_a_wrong_bundle_leaves_a_managed_node_unconfigured_until_it_is_set_right(
    tiny_bundle, tmp_path
):
    with node_and_peer(backend="torch", bundle=tmp_path / "none", autostart=False) as (
        process,
        peer,
    ):
        configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        assert not peer.call(ChangeState, "depth_node/change_state", configure).success
        robot = Robot(process=process, peer=peer)
        assert robot.set(bundle=str(tiny_bundle))[0].successful
        assert peer.call(ChangeState, "depth_node/change_state", configure).success


FAILING = """
import sys
from depth_prior_ros.pipeline import DepthPipeline
process, calls = DepthPipeline.process, iter(range(10**9))
def failing(*arguments, **options):
    if next(calls) % 2:
        raise RuntimeError("every second frame fails")
    return process(*arguments, **options)
DepthPipeline.process = failing
from depth_prior_ros.ros.node import main
sys.exit(main())
"""


def test_an_unexpected_error_costs_one_frame_only(tiny_bundle):
    failing = node_and_peer(
        code=FAILING, backend="torch", bundle=tiny_bundle, diagnostics_period=0.1
    )
    with failing as (process, peer):
        peer.wait_for_node(process)
        robot = Robot(process=process, peer=peer)
        for count in range(1, 4):
            robot.answered(view())
            peer.send(view(), robot.next_stamp())
            wait_until(lambda n=count: robot.refused("internal") == n, "the error to be counted")
        assert "every second frame fails" in peer.status()["refused.internal.last"]
        assert process.interrupt() == 0


def test_what_a_signal_cuts_short_is_no_fault_of_the_node():
    """The context ends first, and whatever is being published then fails."""
    from depth_prior_ros.ros.lifecycle_node import DepthNode

    context = Context()
    rclpy.init(context=context)
    node = DepthNode(context=context, namespace="/cut_short")
    try:
        node.callback_failed(RuntimeError("a real one"))
        context.try_shutdown()
        node.callback_failed(RuntimeError("publisher's context is invalid"))
        values = node._statistics.report({}).values
        assert values["refused.internal.last"] == "RuntimeError: a real one"
    finally:
        node.destroy_node()


@pytest.mark.slow
def test_services_answer_while_a_frame_is_being_inferred(tmp_path, record_property):
    """Frames follow each other without a pause, each far longer than the answer may take."""
    make_tiny_bundle(tmp_path / "slow", (1216, 352))
    slow = node_and_peer(bundle=tmp_path / "slow", diagnostics_period=0.1, sync_wait=0.02)
    with slow as (process, peer):
        peer.wait_for_node(process)
        done = threading.Event()
        pictures = [view(0), view(3)]

        def film() -> None:
            stamp = 0
            while not done.wait(0.05):
                stamp += STEP // 2
                peer.send(pictures[stamp // STEP % 2], stamp, speed=5.0)

        camera = threading.Thread(target=film)
        camera.start()
        try:
            wait_until(lambda: int(peer.status().get("inferred", 0)) > 2, "the first depth")
            before = peer.status()
            rounds = timed_calls(peer, rounds=4, count=80)
            after = peer.status()
        finally:
            done.set()
            camera.join()
    infer = float(after["latency_ms.infer.p50"])
    answers = np.concatenate(rounds)
    longest = [max(answers) for answers in rounds]
    print(
        f"\n{answers.size} answers while frames of {infer:.0f} ms were inferred: p50 "
        f"{np.percentile(answers, 50):.1f} ms, p95 {np.percentile(answers, 95):.1f} ms, longest of "
        f"each round {', '.join(f'{ms:.1f}' for ms in longest)} ms"
    )
    record_property("longest_answer_ms", [round(ms, 1) for ms in longest])
    assert int(after["inferred"]) > int(before["inferred"]), "frames went on meanwhile"
    assert int(after["dropped_stale"]) > 0, "a camera faster than the node leaves frames behind"
    # All but one in 320: the scheduler of a busy machine may stop either process once. A node that
    # let calls wait for its frames would do so in every round.
    assert np.sort(answers)[-2] < 100


def timed_calls(peer: Peer, rounds: int, count: int) -> list[list[float]]:
    """Milliseconds from request to answer of reading a parameter, by round."""
    request = GetParameters.Request(names=["force_model", "motion.start_speed"])

    def call() -> float:
        start = time.perf_counter()
        wait_for_future(client.call_async(request), "get_parameters")
        milliseconds = (time.perf_counter() - start) * 1e3
        time.sleep(0.01)  # not a wait: calls are to fall into every part of a frame
        return milliseconds

    with peer.client(GetParameters, "depth_node/get_parameters") as client:
        # The first answer may wait until the node's answering side has found this client.
        call()
        return [[call() for _ in range(count)] for _ in range(rounds)]


def test_help_explains_and_starts_nothing() -> None:
    command = [sys.executable, "-m", "depth_prior_ros.ros.node", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "config/depth.yaml" in done.stdout
