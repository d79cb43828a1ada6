"""What goes wrong around a node: every fault with a real node and a real camera, as processes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from builtin_interfaces.msg import Time
from fault_scenes import EASY, PATIENCE, Scene, scene
from ros_helpers import BUNDLE_SIZE, NodeProcess, nanoseconds_of
from sensor_msgs.msg import CameraInfo
from std_srvs.srv import Trigger

HOUR = 3600 * 10**9
BEGIN = 10**9 * 10**6
STEP = 10**8
MULTI, JUMP = "multi_frame moving", "single_frame time_jump"
MOVING = {"speed": 5.0, "rate": 10.0, "stamp": BEGIN, "step": STEP}


@pytest.fixture(scope="module")
def shared(tiny_bundle: Path) -> Iterator[Scene]:
    with scene(tiny_bundle) as made:
        yield made


@pytest.fixture
def one(shared: Scene) -> Iterator[Scene]:
    """The module's node, which has forgotten what it was shown, and no camera that films."""
    shared.begin_again()
    yield shared
    shared.rest()


def test_a_camera_is_killed_and_another_takes_its_place(one):
    camera = one.camera(**MOVING)
    one.depth_goes_on(camera)
    one.model_becomes(MULTI)
    camera.kill()
    one.until(lambda: one.witness.status()["level"] == "3", "STALE in the diagnostics")
    assert "image" in one.witness.status()["message"]
    seen = len(one.witness.models)
    again = one.camera(**{**MOVING, "stamp": BEGIN + HOUR})
    one.depth_goes_on(again)
    one.model_becomes("single_frame gap", since=seen)
    one.model_becomes(MULTI, since=seen)
    one.until(lambda: one.witness.status()["level"] == "0", "OK in the diagnostics")


def test_a_camera_that_says_goodbye_is_missed_at_once(one):
    camera = one.camera(**MOVING)
    one.depth_goes_on(camera)
    assert camera.close() == 0
    one.until(lambda: one.witness.status()["publishers.image"] == "0", "nobody to publish images")
    one.until(lambda: "publish" in one.witness.status()["message"], "words about it")
    one.depth_goes_on(one.camera(**{**MOVING, "stamp": BEGIN + HOUR}))


@pytest.mark.parametrize(
    ("jump", "reason"), [(-HOUR, "single_frame time_jump"), (HOUR, "single_frame gap")]
)
def test_the_clock_jumps(one, jump, reason):
    camera = one.camera(**MOVING)
    one.model_becomes(MULTI)
    seen = len(one.witness.models)
    camera.film(stamp=BEGIN + jump)
    there = range(BEGIN + jump, BEGIN + jump + HOUR // 2)
    one.until(lambda: one.witness.stamps()[-1] in there, "depth of the other time")
    one.model_becomes(reason, since=seen)
    one.model_becomes(MULTI, since=seen)
    one.depth_goes_on(camera)


def test_a_bag_loops(one):
    camera = one.camera(**{**MOVING, "loop": 12})
    one.depth_goes_on(camera)
    one.model_becomes(MULTI)
    before = len(one.witness.depth)

    def rounds() -> int:
        stamps = one.witness.stamps()[before:]
        return sum(b < a for a, b in itertools.pairwise(stamps))

    one.until(lambda: rounds() >= 3, "three rounds of the bag")
    end = BEGIN + 12 * STEP
    assert all(BEGIN <= stamp < end for stamp in one.witness.stamps()[before:])

    def reasons() -> list[str]:
        return [model for model in one.witness.models if not model.endswith("stationary")]

    one.until(lambda: reasons().count(JUMP) >= 3, "the jumps to be told")
    # After every jump the frames are compared again; odometry of the round before harms nobody.
    one.until(lambda: reasons().count(MULTI) >= 3, "multi-frame in every round")
    assert set(reasons()) <= {"single_frame first_frame", JUMP, MULTI}


@pytest.mark.slow
def test_the_simulated_clock_jumps_back(tiny_bundle):
    """With use_sim_time, diagnostics go on by the steady clock and carry the simulated time."""
    with scene(tiny_bundle, use_sim_time=True) as one:
        camera = one.camera(**MOVING, clock=True)
        one.depth_goes_on(camera)

        def told_at() -> int:
            return nanoseconds_of(one.witness.diagnostics[-1].header.stamp)

        one.until(lambda: told_at() >= BEGIN, "diagnostics in simulated time")
        camera.film(stamp=BEGIN - HOUR)
        one.until(lambda: one.witness.stamps()[-1] < BEGIN, "depth after the jump")
        one.until(lambda: 0 < told_at() < BEGIN, "diagnostics after the jump")
        one.depth_goes_on(camera)
        camera.film(rate=0)  # the bag pauses: its time stands, the node's diagnostics do not
        heard = len(one.witness.diagnostics)
        one.until(lambda: len(one.witness.diagnostics) > heard + 3, "diagnostics in a pause")


def info_of(one: Scene, stamp: Time, first: int) -> CameraInfo | None:
    """The camera_info of the depth with that stamp, if it has come, among those since `first`.

    A camera that was started again, in a test before, repeats its stamps.
    """
    return next((m for m in one.witness.info[first:] if m.header.stamp == stamp), None)


def test_the_image_size_changes_in_flight(one):
    camera = one.camera(**MOVING)
    one.model_becomes(MULTI)
    refused = one.witness.count("refused")
    for size in ((192, 64), (640, 192), (330, 240), (384, 128)):
        seen, told = len(one.witness.models), len(one.witness.info)
        camera.film(size=size)
        # The focal length is 0.58 widths of the image, of which the middle is seen that is three
        # times as wide as high. Frames of the size before may still be on their way.
        width, height = BUNDLE_SIZE
        focal = pytest.approx(0.58 * size[0] * width / min(size[0], 3 * size[1]))
        one.until(lambda n=told, f=focal: any(i.p[0] == f for i in one.witness.info[n:]), f"{size}")
        depth = one.depth_goes_on(camera)[-1]
        assert (depth.width, depth.height) == BUNDLE_SIZE
        stamp = depth.header.stamp
        info = one.until(lambda s=stamp, n=told: info_of(one, s, n), "its camera_info")
        assert info.p[0] == focal, size
        assert (info.p[2], info.p[6]) == pytest.approx((width / 2, height / 2)), size
        one.model_becomes("single_frame resolution", since=seen)
        one.model_becomes(MULTI, since=seen)
    # Each change may cost the image that waited while its calibration was replaced; no more.
    assert one.witness.count("refused") - refused <= 4


def test_camera_info_comes_late(one):
    before, depth = one.witness.count("refused.no_camera_info"), len(one.witness.depth)
    camera = one.camera(**MOVING, info="none")
    one.until(
        lambda: one.witness.count("refused.no_camera_info") > before, "a frame without calibration"
    )
    assert "camera_info" in one.witness.status()["refused.no_camera_info.last"]
    assert len(one.witness.depth) == depth, "depth without calibration"
    camera.film(info="good")
    one.depth_goes_on(camera)


@pytest.mark.parametrize(
    ("info", "cause"),
    [
        ("nan", "bad_intrinsics"),
        ("infinite", "bad_intrinsics"),
        ("zeros", "bad_intrinsics"),
        ("negative", "bad_intrinsics"),
        ("no_size", "camera_info_size"),
        ("other_size", "camera_info_size"),
    ],
)
def test_wrong_camera_info_gives_no_depth_and_good_one_does(one, info, cause):
    before, depth = one.witness.count(f"refused.{cause}"), len(one.witness.depth)
    camera = one.camera(**MOVING, info=info)
    one.until(lambda: one.witness.count(f"refused.{cause}") >= before + 3, f"{cause} to be counted")
    assert one.witness.status()[f"refused.{cause}.last"]
    assert len(one.witness.depth) == depth, "depth from a calibration that cannot be"
    camera.film(info="good")
    one.depth_goes_on(camera)


def test_wrong_camera_info_does_not_replace_a_good_one(one):
    camera = one.camera(**MOVING)
    one.depth_goes_on(camera)
    before = one.witness.count("refused.bad_intrinsics")
    camera.film(info="nan")
    one.until(lambda: one.witness.count("refused.bad_intrinsics") >= before + 5, "it to be counted")
    one.depth_goes_on(camera)


def test_odometry_stops_and_the_picture_takes_over(one):
    camera = one.camera(**MOVING)
    one.model_becomes(MULTI)
    camera.film(speed=None)
    one.depth_goes_on(camera, frames=10)
    assert one.witness.models[-1] == MULTI, "the picture moves on"
    seen = len(one.witness.models)
    camera.film(shift=0)
    one.model_becomes("single_frame stationary", since=seen)
    camera.film(speed=5.0, shift=3)
    one.model_becomes(MULTI, since=seen)


REFUSED = """
import itertools, sys
from rclpy.publisher import Publisher
publish, calls = Publisher.publish, itertools.count()
def refusing(self, message):
    if type(message).__name__ == "DiagnosticArray" and next(calls) % 2:
        raise RuntimeError("Failed to publish: cannot publish data")
    return publish(self, message)
Publisher.publish = refusing
from depth_prior_ros.ros.node import main
sys.exit(main())
"""


@pytest.mark.slow
def test_a_message_that_the_middleware_does_not_take_ends_nothing(tiny_bundle):
    """On a machine under load a writer may be busy for longer than its time-out."""
    with scene(tiny_bundle, code=REFUSED) as one:
        camera = one.camera(**MOVING)
        one.depth_goes_on(camera)
        heard = len(one.witness.diagnostics)
        one.until(lambda: len(one.witness.diagnostics) > heard + 3, "diagnostics")
        one.depth_goes_on(camera)


# -- the bundle ------------------------------------------------------------------------------------

PARTS = ("bundle.yaml", "student.safetensors", "prior.safetensors", "multi_frame.safetensors")


def copy_of(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "bundle"))


def alter(file: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["removed", "altered"])
@pytest.mark.parametrize("part", PARTS)
def test_a_node_does_not_start_with_a_broken_bundle(tiny_bundle, tmp_path, part, fault):
    bundle = copy_of(tiny_bundle, tmp_path)
    (Path.unlink if fault == "removed" else alter)(bundle / part)
    with NodeProcess(**{**EASY, "bundle": bundle}) as process:
        assert process.process.wait(PATIENCE) == 1
        assert part in process.output or "bundle.yaml" in process.output
        assert str(bundle) in process.output
        assert "Traceback" not in process.output


@pytest.mark.slow
def test_a_bundle_breaks_under_a_running_node(tiny_bundle, tmp_path):
    bundle = copy_of(tiny_bundle, tmp_path)
    with scene(bundle) as one:
        camera = one.camera(**MOVING)
        one.depth_goes_on(camera)

        def reload() -> Trigger.Response:
            return one.witness.call(
                Trigger, "depth_node/reload_bundle", Trigger.Request(), PATIENCE
            )

        for fault in (Path.unlink, alter):
            broken = bundle / "student.safetensors"
            fault(broken)
            one.depth_goes_on(camera)
            answer = reload()
            assert not answer.success
            assert broken.name in answer.message
            one.depth_goes_on(camera)
            assert one.witness.status()["state"] == "active"
            shutil.copy(tiny_bundle / broken.name, broken)
        refused = one.witness.count("refused")
        assert reload().success
        one.depth_goes_on(camera)
        assert one.witness.count("refused") == refused


# -- memory ----------------------------------------------------------------------------------------

EXHAUSTED = """
import sys
from pathlib import Path
from depth_prior_ros.backends.torch_backend import TorchBackend
compile, switches = TorchBackend.compile, Path({switches!r})
def exhaustible(self, module, example_inputs):
    run, name = compile(self, module, example_inputs), type(module).__name__
    def guarded(*inputs):
        if (switches / name).exists():
            raise MemoryError("out of memory: tried to allocate 1.00 GiB")
        return run(*inputs)
    return guarded
TorchBackend.compile = exhaustible
from depth_prior_ros.ros.node import main
sys.exit(main())
"""


@pytest.mark.slow
def test_memory_runs_out_and_comes_back(tiny_bundle, tmp_path):
    """First for the multi-frame network, then for the one that every frame needs."""
    with scene(tiny_bundle, code=EXHAUSTED.format(switches=str(tmp_path))) as one:
        camera = one.camera(**MOVING)
        one.model_becomes(MULTI)
        switch = tmp_path / "MultiFrameRunner"
        switch.touch()
        seen = len(one.witness.models)
        one.model_becomes("single_frame memory", since=seen)
        one.depth_goes_on(camera)
        one.until(lambda: "out of memory" in one.witness.status()["model_error"], "the cause")
        seen = len(one.witness.models)
        switch.unlink()
        one.model_becomes(MULTI, since=seen)
        switch = tmp_path / "StudentRunner"
        switch.touch()
        one.until(lambda: one.witness.count("refused.memory") >= 3, "frames without depth")
        assert "out of memory" in one.witness.status()["refused.memory.last"]
        switch.unlink()
        one.depth_goes_on(camera)


GREEDY = """
import sys, threading, time
from pathlib import Path
import torch
torch.cuda.set_per_process_memory_fraction(2**31 / torch.cuda.mem_get_info()[1])
def take_all_while(switch):
    held = []
    while True:
        if switch.exists():
            for size in (2**26, 2**20, 2**16, 2**9):  # down to the allocator's smallest blocks
                try:
                    while True:
                        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                except torch.cuda.OutOfMemoryError:
                    pass
        else:
            held.clear()
        time.sleep(0.01)
threading.Thread(target=take_all_while, args=(Path({switch!r}),), daemon=True).start()
from depth_prior_ros.ros.node import main
sys.exit(main())
"""


@pytest.mark.gpu
@pytest.mark.slow
def test_memory_of_a_gpu_runs_out_and_comes_back(tiny_bundle, tmp_path):
    """Another part of the process takes what there is, up to 2 GiB, and gives it back."""
    switch = tmp_path / "take"
    with scene(tiny_bundle, code=GREEDY.format(switch=str(switch)), device="cuda") as one:
        camera = one.camera(**MOVING)
        one.model_becomes(MULTI)
        switch.touch()
        one.until(lambda: one.witness.count("refused.memory") >= 3, "frames without depth")
        switch.unlink()
        one.depth_goes_on(camera)
        one.until(lambda: one.witness.models[-1] == MULTI, "multi-frame depth again")
