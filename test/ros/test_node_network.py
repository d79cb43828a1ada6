"""An imported network in the real node, over DDS, with every mode of the scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import import_student, make_tiny_bundle
from ros_helpers import (
    BUNDLE_SIZE,
    IMAGE_SIZE,
    PATIENCE,
    RELIABLE,
    Robot,
    camera_info_for,
    node_and_peer,
    view,
    wait_until,
)
from sensor_msgs.msg import Image

from depth_prior_ros.bundle import load_bundle
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.ros.messages import image_to_depth

pytest.importorskip("onnx")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "bundle"
    make_tiny_bundle(folder, BUNDLE_SIZE)
    return folder


@pytest.fixture(scope="module")
def disparity(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, bundle = tmp_path_factory.mktemp("imported"), load_bundle(own)
    unit = bundle.manifest.depth.metres_per_unit
    return import_student(bundle, folder, "disparity", unit).path


@pytest.fixture(scope="module")
def wanted(own: Path) -> np.ndarray:
    """What the bundle itself says of the picture."""
    info = camera_info_for(*IMAGE_SIZE)
    camera = Camera(info.k[0], info.k[4], info.k[2], info.k[5], *IMAGE_SIZE)
    pipeline = DepthPipeline(str(own), "torch", force_model="single_frame")
    return pipeline.infer(view(), order="rgb", camera=camera).depth


@pytest.mark.parametrize("mode", ["fixed", "camera_height", "odometry", "none"])
def test_an_imported_student_says_what_its_bundle_says(
    disparity: Path, wanted: np.ndarray, mode: str
):
    """Nothing is measured of one frame: each mode begins with the factor that was given."""
    options = {"scale.mode": mode, "scale.camera_height": 1.6}
    with node_and_peer(bundle=disparity, diagnostics_period=0.1, **options) as (process, peer):
        if mode == "none":
            relative: list[Image] = []
            peer.node.create_subscription(Image, "depth/relative", relative.append, RELIABLE)
            robot = Robot(process=process, peer=peer)

            def seen() -> bool:
                peer.send(view(), robot.next_stamp())
                return bool(relative)

            wait_until(seen, "relative depth", PATIENCE)
            depth = image_to_depth(relative[0])
        else:
            peer.wait_for_node(process)
            depth = Robot(process=process, peer=peer).answered(view())
        wait_until(lambda: peer.status().get("active_model") == "single_frame", "its model")
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(np.isfinite(depth), finite)
    np.testing.assert_allclose(depth[finite], wanted[finite], rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without CUDA")
def test_diagnostics_say_why_it_does_not_run_on_cuda(disparity: Path, wanted: np.ndarray):
    with node_and_peer(bundle=disparity, device="cuda", diagnostics_period=0.1) as (process, peer):
        peer.wait_for_node(process)
        depth = Robot(process=process, peer=peer).answered(view())
        status = wait_until(peer.status, "diagnostics")
    np.testing.assert_allclose(depth, wanted, rtol=1e-4)
    assert (status["device"], status["backend_fell_back"]) == ("cpu", "true")
    # The one with onnxruntime, the other with onnxruntime-gpu.
    told = ("no TensorrtExecutionProvider", "no CUDAExecutionProvider"), ("sees no CUDA device",)
    assert any(all(words in status["backend_reason"] for words in some) for some in told)


def test_affine_invariant_depth_is_no_metres_by_a_fixed_factor(own: Path, tmp_path: Path):
    bundle = import_student(load_bundle(own), tmp_path, "affine_invariant")
    with node_and_peer(bundle=bundle.path, **{"scale.mode": "fixed"}) as (process, _):
        wait_until(lambda: "so it has no metres" in process.output, "the refusal", PATIENCE)
