"""Reload, snapshot and scale: services of the real node, called over DDS."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

import rclpy
from helpers import METRES_PER_UNIT, make_tiny_bundle
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from ros_helpers import (
    BUNDLE_SIZE,
    IMAGE_SIZE,
    PATIENCE,
    RELIABLE,
    Peer,
    Robot,
    camera_info_for,
    node_and_peer,
    view,
    wait_for_future,
    wait_until,
)
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger

from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.images.calibration import Calibration
from depth_prior_ros.scale import load_scale, save_scale

pytestmark = pytest.mark.timeout(900)  # waits are long on busy machines, and end early

# A node that loads only while nobody asks it to wait, so that a test can act meanwhile.
WAITING = """
import sys, time
from pathlib import Path
from depth_prior_ros.ros import loading
load = loading.load_pipeline
def waiting(settings, pool=None):
    while Path({hold!r}).exists():
        time.sleep(0.01)
    return load(settings, pool)
loading.load_pipeline = waiting
from depth_prior_ros.ros.node import main
sys.exit(main())
"""


class Served(Robot):
    """A robot that also calls the node's services."""

    def trigger(self, name: str) -> Trigger.Response:
        return self.peer.call(Trigger, f"depth_node/{name}", Trigger.Request(), PATIENCE)

    def told_in(self, key: str, value: str) -> None:
        wait_until(lambda: self.peer.status().get(key) == value, f"{key} {value}", PATIENCE)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate(("first", "second")):
        make_tiny_bundle(folder / name, BUNDLE_SIZE, seed=seed)
    return [folder / "first", folder / "second"]


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists, the node's loading waits."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def robot(bundles: list[Path], hold: Path) -> Iterator[Served]:
    running = node_and_peer(
        code=WAITING.format(hold=str(hold)),
        bundle=bundles[0],
        backend="torch",
        force_model="single_frame",
        diagnostics_period=0.1,
    )
    with running as (process, peer):
        peer.wait_for_node(process)
        yield Served(process=process, peer=peer, stamp=10**12)
        assert process.alive, f"the node did not survive the tests:\n{process.output}"
        assert process.interrupt() == 0


def test_reloading_takes_another_bundle_up_and_the_first_again(robot, bundles):
    first = robot.answered(view())
    assert robot.set(bundle=str(bundles[1]))[0].successful
    np.testing.assert_array_equal(robot.answered(view()), first, "not before it is asked to")
    answer = robot.trigger("reload_bundle")
    assert answer.success, answer.message
    assert str(bundles[1]) in answer.message
    assert not np.array_equal(robot.answered(view()), first)
    robot.told_in("bundle", str(bundles[1]))
    robot.set(bundle=str(bundles[0]))
    assert robot.trigger("reload_bundle").success
    np.testing.assert_array_equal(robot.answered(view()), first)


def test_enable_pauses_and_goes_on_without_a_transition(robot):
    def enable(value: bool) -> SetBool.Response:
        request = SetBool.Request(data=value)
        return robot.peer.call(SetBool, "depth_node/enable", request, PATIENCE)

    before = robot.answered(view())
    answer = enable(False)
    assert answer.success
    assert "paused" in answer.message
    robot.told_in("enabled", "false")
    made = robot.peer.status()["published.depth"]
    for _ in range(3):
        robot.peer.send(view(), robot.next_stamp())
    seen = len(robot.peer.diagnostics)
    wait_until(lambda: len(robot.peer.diagnostics) >= seen + 4, "four reports", PATIENCE)
    status = robot.peer.status()
    assert (status["state"], status["published.depth"], status["level"]) == ("active", made, "0")
    assert "paused by ~/enable" in status["message"]
    assert enable(True).success
    np.testing.assert_array_equal(robot.answered(view()), before)
    robot.told_in("enabled", "true")


def test_a_bundle_that_cannot_be_loaded_changes_nothing(robot, bundles, tmp_path):
    before = robot.answered(view())
    altered = tmp_path / "altered"
    altered.mkdir()
    for file in bundles[1].iterdir():
        (altered / file.name).write_bytes(file.read_bytes())
    weights = altered / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    for wrong, word in ((tmp_path / "none", "none"), (altered, "student.safetensors")):
        robot.set(bundle=str(wrong))
        answer = robot.trigger("reload_bundle")
        assert not answer.success
        assert word in answer.message
    np.testing.assert_array_equal(robot.answered(view()), before)
    status = robot.peer.status()
    assert status["state"] == "active"
    assert status["bundle"] == str(bundles[0]), "the diagnostics name the one that runs"
    robot.set(bundle=str(bundles[0]))


def test_frames_and_parameters_are_answered_while_a_bundle_is_loaded(robot, hold):
    def loadings() -> int:
        return robot.process.output.count("loading bundle")

    hold.touch()
    before = loadings()
    with robot.peer.client(Trigger, "depth_node/reload_bundle") as client:
        try:
            answer = client.call_async(Trigger.Request())
            wait_until(lambda: loadings() > before, "the first call to begin", PATIENCE)
            second = robot.trigger("reload_bundle")
            assert not second.success
            assert "busy" in second.message
            request = GetParameters.Request(names=["threads"])
            values = robot.peer.call(GetParameters, "depth_node/get_parameters", request).values
            assert values[0].integer_value == 1
            assert robot.set(max_depth_m=0.001)[0].successful
            assert np.all(np.isinf(robot.answered(view())))
            assert robot.trigger("reset_scale").success
            assert not answer.done()
        finally:
            hold.unlink()
        assert wait_for_future(answer, "reload_bundle", PATIENCE).success
    # What was changed meanwhile holds for the new networks too.
    assert np.all(np.isinf(robot.answered(view())))
    robot.set(max_depth_m=0.0)
    assert np.isfinite(robot.answered(view())).any()


def test_a_snapshot_holds_what_was_seen_published_and_set(robot, tmp_path):
    folder = tmp_path / "new" / "snapshots"
    robot.set(snapshot_folder=str(folder), max_depth_m=60.0)
    picture = view(7)
    depth = robot.answered(picture)
    answer = robot.trigger("save_snapshot")
    assert answer.success, answer.message
    made = Path(answer.message)
    assert made == folder / f"{robot.stamp // 10**9}_{robot.stamp % 10**9:09d}"
    assert cv2.imread(str(made / "image.png"))[..., ::-1].tolist() == picture.tolist()
    np.testing.assert_array_equal(np.load(made / "depth.npy"), depth)
    whole = cv2.imread(str(made / "depth.png"), cv2.IMREAD_UNCHANGED)
    finite = np.isfinite(depth)
    np.testing.assert_array_equal(whole, np.where(finite, np.round(depth * 256), 0))
    check_cloud(made / "points.ply", depth)
    values = yaml.safe_load((made / "parameters.yaml").read_text())["/**"]["ros__parameters"]
    assert values["max_depth_m"] == 60.0
    assert values["force_model"] == "single_frame"
    facts = json.loads((made / "snapshot.json").read_text())
    assert (facts["model"], facts["reason"]) == ("single_frame", "forced")
    assert facts["node"]["backend"] == "torch"
    assert facts["scale"]["metres_per_unit"] == METRES_PER_UNIT
    # A second one of the same frame is another folder.
    again = Path(robot.trigger("save_snapshot").message)
    assert again == made.with_name(made.name + "_2")
    assert sorted(p.name for p in folder.iterdir()) == [made.name, again.name]
    robot.set(max_depth_m=0.0)


def check_cloud(path: Path, depth: np.ndarray) -> None:
    """One vertex for every finite depth, where the camera's rays meet it."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    kinds = {"float": "<f4", "uchar": "u1"}
    words = [line.split() for line in header.decode().splitlines()]
    columns = [(w[2], kinds[w[1]]) for w in words if w[0] == "property"]
    vertices = np.frombuffer(body, dtype=columns)
    rows, across = np.nonzero(np.isfinite(depth))
    assert ["element", "vertex", str(len(rows))] in words
    camera = (
        Calibration.from_message(camera_info_for(*IMAGE_SIZE))
        .camera(*IMAGE_SIZE)
        .scaled(*BUNDLE_SIZE)
    )
    z = depth[rows, across]
    np.testing.assert_array_equal(vertices["z"], z)
    np.testing.assert_allclose(vertices["x"], z * (across - camera.cx) / camera.fx, rtol=1e-5)
    np.testing.assert_allclose(vertices["y"], z * (rows - camera.cy) / camera.fy, rtol=1e-5)


def test_a_snapshot_that_cannot_be_written_leaves_nothing_behind(robot, tmp_path):
    robot.answered(view())
    (tmp_path / "file").write_text("in the way")
    robot.set(snapshot_folder=str(tmp_path / "file"))
    answer = robot.trigger("save_snapshot")
    assert not answer.success
    assert str(tmp_path / "file") in answer.message
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@contextlib.contextmanager
def unconfigured_node(namespace: str) -> Iterator[None]:
    """A node of this process that waits to be configured."""
    from depth_prior_ros.ros.lifecycle_node import DepthNode

    context = Context()
    rclpy.init(context=context)
    node = DepthNode(context=context, namespace=namespace)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        context.try_shutdown()
        thread.join(30)
        node.destroy_node()


def test_an_unconfigured_node_refuses_with_words():
    with unconfigured_node("/unconfigured"), Peer("/unconfigured") as peer:
        for name, word in (
            ("reload_bundle", "not configured"),
            ("save_snapshot", "no frame"),
            ("reset_scale", "not configured"),
        ):
            answer = peer.call(Trigger, f"depth_node/{name}", Trigger.Request(), PATIENCE)
            assert not answer.success
            assert word in answer.message


def test_a_stored_scale_is_taken_up_with_the_first_frame_until_it_is_reset(bundles, tmp_path):
    path = tmp_path / "scale.yaml"
    digest = load_bundle(bundles[0]).digest
    camera = Calibration.from_message(camera_info_for(*IMAGE_SIZE)).camera(*IMAGE_SIZE)
    measured = {"mode": "odometry", "state": "measured", "spread": 0.1, "samples": 50}
    factor = 2 * METRES_PER_UNIT
    save_scale(path, {**measured, "metres_per_unit": factor}, bundle=digest, camera=camera)
    running = node_and_peer(
        bundle=bundles[0],
        backend="torch",
        diagnostics_period=0.1,
        **{"scale.mode": "odometry", "scale.file": path},
    )
    with running as (process, peer):
        peer.wait_for_node(process)
        robot = Served(process=process, peer=peer)
        assert peer.status()["scale.state"] == "searching"
        depth = robot.answered(view(), speed=0.0)
        robot.told_in("scale.metres_per_unit", f"{factor:g}")
        assert robot.trigger("reset_scale").success
        doubled = robot.answered(view(), speed=0.0)
        known = np.isfinite(depth) & np.isfinite(doubled)
        np.testing.assert_allclose(depth[known], 2 * doubled[known], rtol=1e-5)
        robot.told_in("scale.state", "searching")
        assert process.interrupt() == 0
    # What was reset is not a measurement: the file stays as it was.
    assert load_scale(path, bundle=digest, camera=camera)["metres_per_unit"] == factor


def test_without_a_scale_depth_is_called_relative_until_there_is_one(bundles):
    running = node_and_peer(
        bundle=bundles[0], backend="torch", diagnostics_period=0.1, **{"scale.mode": "none"}
    )
    with running as (process, peer):
        robot = Served(process=process, peer=peer)
        relative: list[Image] = []
        peer.node.create_subscription(Image, "depth/relative", relative.append, RELIABLE)
        wait_until(
            lambda: (
                "0"
                not in [
                    peer.status().get(f"{n}", "0")
                    for n in ("publishers.image", "subscribers.depth")
                ]
            ),
            "the node to be connected",
            PATIENCE,
        )

        def seen() -> bool:
            peer.send(view(), robot.next_stamp())
            return bool(relative)

        wait_until(seen, "relative depth", PATIENCE)
        assert "relative" in peer.status()["message"]
        assert not peer.depth
        assert not peer.node.get_publishers_info_by_topic(
            f"{peer.node.get_namespace()}/depth/image_rect"
        )
        assert not robot.set(scale__mode="fixed")[0].successful, "not while it is active"
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request(transition=Transition(id=transition))
            answer = peer.call(ChangeState, "depth_node/change_state", request, PATIENCE)
            assert answer.success
            if transition == Transition.TRANSITION_DEACTIVATE:
                assert robot.set(scale__mode="fixed")[0].successful
        peer.wait_for_node(process)
        assert np.isfinite(robot.answered(view())).any()
        assert "relative" not in peer.status()["message"]


def test_a_node_that_was_configured_anew_keeps_its_bundle(bundles, tmp_path):
    """Not the one that a reload from before was still loading."""
    hold = tmp_path / "hold"
    code = WAITING.format(hold=str(hold))
    with node_and_peer(code=code, bundle=bundles[0], backend="torch") as (process, peer):
        peer.wait_for_node(process)
        robot = Served(process=process, peer=peer)

        def loadings(count: int) -> None:
            wait_until(lambda: process.output.count("loading bundle") == count, "loading", PATIENCE)

        def change(transition: int) -> None:
            request = ChangeState.Request(transition=Transition(id=transition))
            assert peer.call(ChangeState, "depth_node/change_state", request, PATIENCE).success

        configure = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        hold.touch()
        with (
            peer.client(Trigger, "depth_node/reload_bundle") as reload,
            peer.client(ChangeState, "depth_node/change_state") as state,
        ):
            reloaded = reload.call_async(Trigger.Request())
            loadings(2)
            change(Transition.TRANSITION_DEACTIVATE)
            change(Transition.TRANSITION_CLEANUP)
            robot.set(bundle=str(bundles[1]))
            configured = state.call_async(configure)
            loadings(3)
            hold.unlink()
            assert wait_for_future(configured, "change_state", PATIENCE).success
            answer = wait_for_future(reloaded, "reload_bundle", PATIENCE)
        assert not answer.success
        assert "meanwhile" in answer.message
        robot.told_in("bundle", str(bundles[1]))


def test_the_end_of_a_node_waits_for_a_bundle_that_is_being_loaded(bundles, tmp_path):
    """A process must not end below a library that is starting: that is a crash now and then."""
    hold = tmp_path / "hold"
    code = WAITING.format(hold=str(hold))
    with node_and_peer(code=code, bundle=bundles[0], backend="torch") as (process, peer):
        peer.wait_for_node(process)
        hold.touch()
        with peer.client(Trigger, "depth_node/reload_bundle") as client:
            client.call_async(Trigger.Request())
            wait_until(lambda: process.output.count("loading bundle") == 2, "loading", PATIENCE)
            threading.Timer(0.5, hold.unlink).start()
            assert process.interrupt(timeout=PATIENCE) == 0, process.output
        assert "Traceback" not in process.output
