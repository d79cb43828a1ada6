"""Imported networks: what is checked of an ONNX file, what stands in the manifest, what is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_prior_ros.bundle import BundleError, describe, load_bundle, rewrite_manifest
from depth_prior_ros.models.imported import GAUGE_SHIFT
from depth_prior_ros.pipeline import DepthPipeline
from depth_prior_ros.scale import make_scale
from training.errors import TrainingError
from training.runs.network_import import ImportRequest, import_network

onnx = pytest.importorskip("onnx")
W, H = 48, 32


def write_onnx(
    path: Path, nodes: Sequence[Any], shape: Sequence[Any] = (1, 3, H, W), **more: Any
) -> str:
    """A file whose input is `image` and whose output is `depth`; its name as it is imported."""
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    inputs += more.pop("inputs", [])
    outputs = [helper.make_tensor_value_info("depth", TensorProto.FLOAT, None)]
    graph = helper.make_graph(list(nodes), "net", inputs, outputs, **more)
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return f"onnx:{path}"


def mean_of_channels(scale: float = 1.0) -> list[Any]:
    """Depth is the mean of what the network is shown."""
    from onnx import helper, numpy_helper

    weight = numpy_helper.from_array(np.full((1, 3, 1, 1), scale / 3, np.float32))
    return [
        helper.make_node("Constant", [], ["weight"], value=weight),
        helper.make_node("Conv", ["image", "weight"], ["depth"]),
    ]


def picture() -> np.ndarray:
    return np.random.default_rng(3).integers(20, 256, (H, W, 3), dtype=np.uint8)


def test_a_network_is_shown_what_was_said_and_its_kinds_of_depth_are_told_apart(
    tmp_path: Path,
) -> None:
    from onnx import helper, numpy_helper

    # The first channel alone, so that the order counts.
    weight = numpy_helper.from_array(np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1))
    nodes = [
        helper.make_node("Constant", [], ["weight"], value=weight),
        helper.make_node("Conv", ["image", "weight"], ["depth"]),
    ]
    spec = write_onnx(tmp_path / "net.onnx", nodes)
    image = picture()
    blue = image[..., 2].astype(np.float64) / 255
    seen = (blue - 0.05) / 0.2
    bundle = import_network(
        ImportRequest(
            spec,
            tmp_path / "metric",
            "metric",
            mean=(0.0, 0.0, 0.05),
            std=(1.0, 1.0, 0.2),
            bgr=True,
            focal=(40.0, 40.0),
        )
    )
    assert bundle.manifest.has_metres
    result = DepthPipeline(bundle).infer(image, order="rgb")
    np.testing.assert_allclose(result.depth, seen, rtol=1e-5)
    bundle = import_network(
        ImportRequest(spec, tmp_path / "disparity", "disparity", bgr=True, metres_per_unit=3.0)
    )
    result = DepthPipeline(bundle).infer(image, order="rgb")
    np.testing.assert_allclose(result.depth, 3 / blue, rtol=1e-5)
    text = describe(load_bundle(bundle.path))
    assert "disparity" in text
    assert "bgr" in text


def test_normalisation_of_bgr_follows_the_channels(tmp_path: Path) -> None:
    """Mean and deviation are those of red, green and blue, whatever comes first."""
    bundle = import_network(
        ImportRequest(
            write_onnx(tmp_path / "net.onnx", mean_of_channels()),
            tmp_path / "b",
            "scale_invariant",
            mean=(1.0, 2.0, 3.0),
            std=(0.5, 0.25, 2.0),
            largest=255.0,
            bgr=True,
            metres_per_unit=1.0,
        )
    )
    image = picture()
    wanted = (image - (1.0, 2.0, 3.0)) / (0.5, 0.25, 2.0)
    depth = DepthPipeline(bundle, max_metres=1e9).infer(image, order="rgb").depth
    np.testing.assert_allclose(depth, wanted.mean(axis=2), rtol=1e-4)


def test_affine_invariant_depth_does_not_know_gain_and_shift(tmp_path: Path) -> None:
    from onnx import helper, numpy_helper

    image = picture()
    maps = []
    for gain, shift in ((1.0, 0.0), (0.02, 5.0), (300.0, -70.0)):
        add = numpy_helper.from_array(np.array(shift, np.float32))
        conv = mean_of_channels(gain)
        conv[1].output[0] = "scaled"
        nodes = [
            *conv,
            helper.make_node("Constant", [], ["shift"], value=add),
            helper.make_node("Add", ["scaled", "shift"], ["depth"]),
        ]
        spec = write_onnx(tmp_path / "net.onnx", nodes)
        bundle = import_network(ImportRequest(spec, tmp_path / "b", "affine_invariant"))
        pipeline = DepthPipeline(bundle, max_metres=1e9)
        assert pipeline.scale.status.relative
        assert pipeline.scale.status.shift == GAUGE_SHIFT
        maps.append(pipeline.infer(image, order="rgb").depth)
    np.testing.assert_allclose(maps[1], maps[0], rtol=2e-2)
    np.testing.assert_allclose(maps[2], maps[0], rtol=2e-2)
    with pytest.raises(ValueError, match="no metres; choose camera_height or odometry"):
        make_scale("fixed", fixed=1.0, source="x", shift=GAUGE_SHIFT)
    with pytest.raises(ValueError, match=r"nobody knows.*scale\.metres_per_unit"):
        make_scale("fixed", fixed=1.0, source="x", known=False)


def test_files_that_lead_out_of_themselves_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    out = tmp_path / "b"
    foreign = helper.make_node("Run", ["image"], ["depth"], domain="their.library")
    with pytest.raises(BundleError, match=r"operators of their\.library"):
        import_network(ImportRequest(write_onnx(tmp_path / "a.onnx", [foreign]), out, "disparity"))
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 3, 1, 1])
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret")
    conv = helper.make_node("Conv", ["image", "w"], ["depth"])
    spec = write_onnx(tmp_path / "c.onnx", [conv], initializer=[outside])
    with pytest.raises(BundleError, match="keeps weights in another file"):
        import_network(ImportRequest(spec, out, "disparity"))
    branch = helper.make_graph([], "branch", [], [], initializer=[outside])  # without a node
    within = [
        *mean_of_channels(),
        helper.make_node("If", ["image"], ["x"], then_branch=branch, else_branch=branch),
    ]
    with pytest.raises(BundleError, match="keeps weights in another file"):
        import_network(ImportRequest(write_onnx(tmp_path / "e.onnx", within), out, "disparity"))
    (tmp_path / "d.onnx").write_bytes(b"no network")
    with pytest.raises(BundleError, match="not readable as ONNX"):
        import_network(ImportRequest(f"onnx:{tmp_path / 'd.onnx'}", out, "disparity"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": "metric"}, "belongs to a focal length"),
        ({"depth": "affine_invariant", "metres_per_unit": 2.0}, "shift is unknown"),
        ({"size": (64, 64)}, "takes pictures of 48x32 only"),
        ({"output": "other"}, "has no output other, but depth"),
        ({"std": (1.0, 0.0, 1.0)}, "std .* must be positive"),
        ({"spec": "net.onnx"}, "name a network as hf:FOLDER or onnx:FILE"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    spec = write_onnx(tmp_path / "net.onnx", mean_of_channels())
    values = {"spec": spec, "out": tmp_path / "b", "depth": "disparity", **changes}
    with pytest.raises((TrainingError, BundleError), match=message):
        import_network(ImportRequest(**values))


def test_a_further_input_has_to_be_filled_and_an_altered_file_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    code = helper.make_tensor_value_info("code", TensorProto.FLOAT, (1, 1, 1, 1))
    nodes = mean_of_channels()
    nodes[1].output[0] = "mean"
    nodes.append(helper.make_node("Add", ["mean", "code"], ["depth"]))
    spec = write_onnx(tmp_path / "net.onnx", nodes, inputs=[code])
    request = {"out": tmp_path / "b", "depth": "disparity", "metres_per_unit": 1.0}
    with pytest.raises(TrainingError, match="--fill code=0"):
        import_network(ImportRequest(spec, **request))
    bundle = import_network(ImportRequest(spec, fill={"code": 0.5}, **request))
    image = picture()
    depth = DepthPipeline(bundle, "onnxruntime").infer(image, order="rgb").depth
    np.testing.assert_allclose(depth, 1 / (image.mean(axis=2) / 255 + 0.5), rtol=1e-5)
    with pytest.raises(BundleError, match="can be run, not trained"):
        bundle.student()
    with pytest.raises(BundleError):
        rewrite_manifest(bundle, network=None)
    file = bundle.path / "network.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="altered"):
        load_bundle(bundle.path)
