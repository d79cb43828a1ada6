"""Runners export to ONNX and give the same result in onnxruntime and OpenVINO."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.models.export import (
    FeatureRunner,
    MultiFrameRunner,
    PoseRunner,
    StudentRunner,
)
from depth_prior_ros.models.matching import Features
from depth_prior_ros.models.mism import MultiFrameNet
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.prior_fusion import FusionConfig, Prior
from depth_prior_ros.models.student import Student

H, W = 32, 64
RUNNERS = ["plain", "fused", "ra_depth", "monodepth2", "pose", "features", "multi_frame", "tracked"]
STUDENTS = RUNNERS[:4]
Case = tuple[torch.nn.Module, tuple[torch.Tensor, ...]]


def _prior(n: int = 50) -> Prior:
    return Prior(torch.randn(n, 32), torch.rand(n) + 0.05)


@torch.no_grad()
def _student(fused: bool) -> Case:
    net = Student("hrnet_w18_small", "light", FusionConfig() if fused else None)
    net.train()(torch.rand(4, 3, H, W))  # batch statistics as after training
    prior = None
    if net.fusion is not None:
        torch.nn.init.normal_(net.fusion.out.weight, std=0.05)
        prior = _prior()
    return StudentRunner(net, prior), (torch.rand(1, 3, H, W),)


@torch.no_grad()
def _other_student(trunk: str, decoder: str) -> Case:
    net = Student(trunk, decoder)
    net.train()(torch.rand(2, 3, 64, 64))  # these decoders need a side of 64
    return StudentRunner(net), (torch.rand(1, 3, 64, 64),)


@torch.no_grad()
def _pose() -> Case:
    net = PoseNet("small")
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    return PoseRunner(net), (torch.rand(1, 3, H, W), torch.rand(1, 3, H, W))


@torch.no_grad()
def _multi_frame(mode: str = "pads") -> tuple[MultiFrameNet, tuple[torch.Tensor, ...]]:
    net = MultiFrameNet((H, W), range_mode=mode).train()
    net.delta.uniform_(0.1, 2)
    pose = Pose.from_axis_angle(torch.tensor([[0.01, 0.02, 0]]), torch.tensor([[0.1, 0, 0.3]]))
    K = torch.tensor([[[40.0, 0, 31.5], [0, 40.0, 15.5], [0, 0, 1]]])
    single = torch.rand(1, 1, H, W) * 3 + 1
    f = net.features(torch.rand(4, 3, H, W))
    other = Features(f.matching.flip(0), f.context)
    batched = (Pose(pose.matrix.repeat(4, 1, 1)), K.repeat(4, 1, 1), single.repeat(4, 1, 1, 1))
    net(f, other, *batched)
    net.regulariser.logits.weight.mul_(20)  # peaked, as after training
    net.eval()
    a, b = (net.features(torch.rand(1, 3, H, W)) for _ in range(2))
    return net, (a.matching, a.context, b.matching, pose.matrix, K, single)


def _case(name: str) -> Case:
    torch.manual_seed(0)
    if name in ("plain", "fused"):
        return _student(name == "fused")
    if name in ("ra_depth", "monodepth2"):
        return _other_student("hrnet_w18_small" if name == "ra_depth" else "resnet18", name)
    if name == "pose":
        return _pose()
    net, arguments = _multi_frame("tracked" if name == "tracked" else "pads")
    if name == "features":
        return FeatureRunner(net), (torch.rand(1, 3, H, W),)
    return MultiFrameRunner(net), arguments


def _reference(runner: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = runner(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [tensor.numpy() for tensor in outputs]


def _to_onnx(runner: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about shapes that are static on purpose
        torch.onnx.export(
            runner,
            arguments,
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=list(runner.INPUTS),
            output_names=list(runner.OUTPUTS),
        )
    return buffer.getvalue()


def _assert_close(name: str, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        error = float(np.abs(a - b).max() / np.abs(b).max())
        # A single-frame confidence amplifies differences of the depth: a tenfold allowance.
        limit = 1e-3 if name in STUDENTS and index == 1 else 1e-4
        assert error < limit, (name, index, error)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNERS)
def test_exported_runners_agree(name: str) -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs the extra cpu")
    ov = pytest.importorskip("openvino", reason="needs the extra cpu")
    runner, arguments = _case(name)
    expected = _reference(runner, arguments)
    model = _to_onnx(runner, arguments)
    feeds = {n: t.numpy() for n, t in zip(runner.INPUTS, arguments, strict=True)}

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(runner.INPUTS)
    assert all(isinstance(side, int) for i in session.get_inputs() for side in i.shape)
    _assert_close(name, session.run(None, feeds), expected)

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(ov.Core().read_model(io.BytesIO(model)), "CPU", settings)
    result = compiled(feeds)
    _assert_close(name, [result[i] for i in range(len(expected))], expected)


def test_runner_equals_network() -> None:
    torch.manual_seed(1)
    net = Student("hrnet_w18_small", "light", FusionConfig())
    prior, image = _prior(), torch.rand(1, 3, H, W)
    torch.nn.init.normal_(net.fusion.out.weight, std=0.05)
    runner = StudentRunner(net, prior)
    with torch.no_grad():
        inverse, confidence = runner(image)
        disparity = net(image, prior).disparity[0]
    assert torch.allclose(inverse, 0.01 + 9.99 * disparity, rtol=1e-5)
    assert inverse.shape == confidence.shape == (1, 1, H, W)
    assert ((confidence > 0) & (confidence <= 1)).all()


def test_multi_frame_runner_equals_network() -> None:
    torch.manual_seed(2)
    net, (matching, context, previous, matrix, K, single) = _multi_frame()
    with torch.no_grad():
        depth, confidence, parallax, matched = MultiFrameRunner(net)(
            matching, context, previous, matrix, K, single
        )
        current = Features(matching, context)
        output = net(current, Features(previous, context), Pose(matrix), K, single)
    assert torch.equal(depth, output.depth)
    assert torch.equal(parallax, output.parallax)
    assert torch.equal(matched, output.matched)
    assert torch.equal(confidence[..., ::4, ::4], output.confidence)
    assert confidence.shape == depth.shape


def test_prior_and_fusion_go_together() -> None:
    with pytest.raises(ValueError, match="needs its prior"):
        StudentRunner(Student("hrnet_w18_small", "light", FusionConfig()))
    with pytest.raises(ValueError, match="no prior fusion"):
        StudentRunner(Student("hrnet_w18_small", "light"), _prior())
