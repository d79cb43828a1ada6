"""Multi-frame depth beside an imported network, against the bundle that both come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_tiny_bundle
from tiny_trunk import TINY_TRUNK
from torch import Tensor, nn

from depth_prior_ros.backends.onnx_backend import export_onnx
from depth_prior_ros.bundle import Bundle, describe, load_bundle
from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.motion import Motion
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.recordings import open_recording
from depth_prior_ros.share import demo_bag
from training.errors import TrainingError
from training.runs.network_import import ImportRequest, import_network

pytest.importorskip("onnx")


class InMetres(nn.Module):
    """A student as somebody else's network, which gives depth in metres."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        depth = bundle.manifest.depth
        prior = bundle.prior() if bundle.has("prior") else None
        self.runner = StudentRunner(bundle.student(), prior, depth.min_units, depth.max_units)
        self.unit = depth.metres_per_unit

    def forward(self, image: Tensor) -> Tensor:
        inverse: Tensor = self.runner(image)[0]
        return self.unit / inverse


def imported(lite: Bundle, folder: Path) -> Bundle:
    """The student of `lite` as an ONNX file, imported with the other networks of `lite`."""
    (width, height), camera = lite.manifest.input_size, lite.manifest.camera
    file, image = folder / "net.onnx", np.zeros((1, 3, height, width), np.float32)
    export_onnx(InMetres(lite), (image,), file, ["image"])
    focal = camera.fx, camera.fy
    return import_network(
        ImportRequest(f"onnx:{file}", folder / "net", "metric", focal=focal, multi_frame="lite")
    )


@pytest.mark.slow
def test_multi_frame_depth_is_that_of_the_other_bundle(tmp_path: Path) -> None:
    lite = load_bundle("lite")
    other = imported(lite, tmp_path)
    assert "multi-frame" in describe(other)
    pipelines = [DepthPipeline(one, device="cpu", look_up=False) for one in (lite, other)]
    compared = 0
    for frame in open_recording(demo_bag()).frames[:5]:
        told = (frame.image(), frame.stamp_ns, Motion(speed=7.0), frame.camera)
        own, found = (pipeline.process(*told) for pipeline in pipelines)
        assert (found.active_model, found.reason) == (own.active_model, own.reason)
        assert own.reason in ("first_frame", "moving")
        if own.reason == "moving":
            seen = np.isfinite(own.depth) & np.isfinite(found.depth)
            assert seen.mean() > 0.5
            np.testing.assert_allclose(found.depth[seen], own.depth[seen], rtol=1e-3)
            compared += 1
    assert compared == 4


def test_what_does_not_go_with_it_is_said(tmp_path: Path) -> None:
    class Brightness(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean(1, keepdim=True)

    make_tiny_bundle(tmp_path / "tiny", (96, 32), trunk=TINY_TRUNK)
    file = tmp_path / "net.onnx"
    export_onnx(Brightness(), (np.zeros((1, 3, 32, 64), np.float32),), file, ["image"])
    alone = import_network(ImportRequest(f"onnx:{file}", tmp_path / "alone", "disparity"))

    def refused(message: str, depth: str = "disparity", **more: Any) -> None:
        beside = {"multi_frame": str(tmp_path / "tiny"), **more}
        with pytest.raises(TrainingError, match=message):
            import_network(ImportRequest(f"onnx:{file}", tmp_path / "b", depth, **beside))  # type: ignore[arg-type]

    refused("shift as well", depth="affine_invariant")
    refused("give --metres-per-unit")
    refused("looks at 96x32, the network at 64x32", metres_per_unit=10.0)
    refused("has no multi-frame network", multi_frame=str(alone.path))


def test_a_network_of_another_size_is_shown_the_picture_resized(tmp_path: Path) -> None:
    class Brightness(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean(1, keepdim=True) + 0.1

    make_tiny_bundle(tmp_path / "tiny", (96, 32), trunk=TINY_TRUNK)
    file = tmp_path / "net.onnx"
    export_onnx(Brightness(), (np.zeros((1, 3, 64, 192), np.float32),), file, ["image"])
    beside = {"focal": (120, 130), "multi_frame": str(tmp_path / "tiny")}
    request = ImportRequest(f"onnx:{file}", tmp_path / "b", "metric", **beside)  # type: ignore[arg-type]
    manifest = import_network(request).manifest
    assert manifest.network is not None
    assert (manifest.input_size, manifest.network.size) == ((96, 32), (192, 64))
    assert (manifest.camera.fx, manifest.camera.fy) == (60, 65)
