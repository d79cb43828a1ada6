"""MobileNetV2 against a second implementation in float64, its padding, its weights, its export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from depth_prior_ros.models.export import StudentRunner
from depth_prior_ros.models.mobilenet_v2 import (
    MobileNetV2,
    fold_batch_norm,
    mobilenet_v2_symmetric,
)
from depth_prior_ros.models.student import Student

GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
GROUPS = (*GROUPS, (6, 160, 3, 2), (6, 320, 1, 1))


def tensorflow_convolution(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, depthwise: bool
) -> np.ndarray:
    """One image (C, H, W), padded as TensorFlow documents SAME, without a library for it."""
    kernel = weight.shape[-1]
    height, width = (-(-side // stride) for side in x.shape[1:])
    pads = []
    for side, out in ((x.shape[1], height), (x.shape[2], width)):
        total = max((out - 1) * stride + kernel - side, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(x, [(0, 0), *pads])
    result = np.zeros((len(weight), height, width))
    for dy in range(kernel):
        for dx in range(kernel):
            part = padded[:, dy::stride, dx::stride][:, :height, :width]
            w = weight[:, :, dy, dx]
            result += w[:, :, None] * part if depthwise else np.einsum("oi,ihw->ohw", w, part)
    return result + bias[:, None, None]


def reference(net: MobileNetV2, image: np.ndarray) -> dict[int, np.ndarray]:
    """The features at strides 2 to 32 of an image (3, H, W), float64."""
    state = {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}

    def layer(x: np.ndarray, name: str, stride: int = 1, depthwise: bool = False) -> np.ndarray:
        weight, bias = state[f"{name}.0.weight"], state[f"{name}.0.bias"]
        return tensorflow_convolution(x, weight, bias, stride, depthwise)

    x = np.clip(layer(2 * image - 1, "stem", 2), 0, 6)
    at, features, number = 2, {}, 0
    for expansion, outputs, repeats, first in GROUPS:
        for place in range(repeats):
            stride = first if place == 0 else 1
            y, name = x, f"blocks.{number}"
            if expansion != 1:
                y = np.clip(layer(y, f"{name}.expand"), 0, 6)
            y = np.clip(layer(y, f"{name}.depth", stride, depthwise=True), 0, 6)
            y = layer(y, f"{name}.project")
            x = x + y if stride == 1 and len(x) == outputs else y
            at, number = at * stride, number + 1
            features[at] = x
    return features


@pytest.fixture(scope="module")
def net() -> MobileNetV2:
    torch.manual_seed(3)
    net = MobileNetV2()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return net.eval()


def test_a_second_implementation_agrees_at_every_stride(net: MobileNetV2) -> None:
    image = np.random.default_rng(0).random((3, 64, 96))
    with torch.no_grad():
        found = net.double()(torch.from_numpy(image)[None])
    net.float()
    expected = reference(net, image)
    assert {s: [t.shape[1] for t in maps] for s, maps in found.items()} == net.channels
    for stride, (features,) in found.items():
        assert features.shape[2:] == (64 // stride, 96 // stride)
        np.testing.assert_allclose(features[0].numpy(), expected[stride], rtol=1e-9, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4))
def test_the_two_paddings_mirror_each_other(rows: int, columns: int) -> None:
    # Padding on the other side is the same as turning image and kernels by half a turn.
    torch.manual_seed(0)
    same, symmetric = MobileNetV2(), mobilenet_v2_symmetric()
    state = same.state_dict()
    symmetric.load_state_dict({n: t.flip(2, 3) if t.dim() == 4 else t for n, t in state.items()})
    image = torch.rand(1, 3, 32 * rows, 32 * columns)
    with torch.no_grad():
        a, b = same(image), symmetric(image.flip(2, 3))
    for stride in a:
        turned = b[stride][0].flip(2, 3)
        torch.testing.assert_close(a[stride][0], turned, rtol=1e-4, atol=1e-4)


def test_folding_a_batch_norm() -> None:
    torch.manual_seed(1)
    convolution, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.1, 3)
    weight, bias = fold_batch_norm(convolution.weight, norm.state_dict())
    x = torch.rand(2, 3, 8, 8)
    folded, expected = nn.functional.conv2d(x, weight, bias), norm.eval()(convolution(x))
    torch.testing.assert_close(folded, expected, rtol=1e-5, atol=1e-5)


class Torchvision(nn.Module):
    """MobileNetV2 with torchvision's names and batch norms, to make its weights and features."""

    def __init__(self) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Module:
            layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, 1, groups, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())

        layers = [unit(3, 32, 3, 2, 1)]
        inputs = 32
        for expansion, outputs, repeats, first in GROUPS:
            for place in range(repeats):
                width = inputs * expansion
                parts = [unit(inputs, width, 1, 1, 1)] if expansion != 1 else []
                parts.append(unit(width, width, 3, first if place == 0 else 1, width))
                parts += [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
                block = nn.Module()
                block.conv = nn.Sequential(*parts)
                layers.append(block)
                inputs = outputs
        layers.append(unit(320, 1280, 1, 1, 1))
        self.features = nn.ModuleList(layers)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 10))

    def at_16(self, image: Tensor) -> Tensor:
        """Features at stride 16 of an image with values in [0, 1]."""
        mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
        deviation = torch.tensor((0.229, 0.224, 0.225))[:, None, None]
        x = self.features[0]((image - mean) / deviation)
        for block in self.features[1:14]:
            y = block.conv(x)
            x = x + y if y.shape == x.shape else y
        return x


@pytest.fixture(scope="module")
def torchvision() -> Torchvision:
    torch.manual_seed(5)
    net = Torchvision()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.3)
    return net.eval()


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by timm's names."""
    back = {"features.0.0": "conv_stem", "features.0.1": "bn1"}
    number = 1
    for group, (expansion, _, repeats, _) in enumerate(GROUPS):
        for place in range(repeats):
            own, other = f"blocks.{group}.{place}", f"features.{number}.conv"
            names = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
            places = ["0.0", "0.1", "1.0", "1.1", "2", "3"]
            if expansion == 1:
                names, places = ["conv_dw", "bn1", "conv_pw", "bn2"], ["0.0", "0.1", "1", "2"]
            back |= {f"{other}.{p}": f"{own}.{n}" for n, p in zip(names, places, strict=True)}
            number += 1
    result = {"conv_head.weight": state["features.18.0.weight"]}
    for name, tensor in state.items():
        module, _, part = name.rpartition(".")
        if module in back:
            result[f"{back[module]}.{part}"] = tensor
    return result


@pytest.mark.parametrize("naming", ["torchvision", "timm"])
def test_weights_with_other_names_are_folded_in(torchvision: Torchvision, naming: str) -> None:
    state = torchvision.state_dict()
    net = mobilenet_v2_symmetric()
    net.load_weights(state if naming == "torchvision" else timm_names(state))
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        found, expected = net(image)[16][0], torchvision.at_16(image)
    # Beyond the frame the stem sees grey instead of the mean, which spreads from the border.
    error = (found - expected)[..., 7:-7, 7:-7].abs().max() / expected.abs().max()
    assert float(error) < 1e-4
    with pytest.raises(ValueError, match="choose the trunk mobilenet_v2_symmetric"):
        MobileNetV2().load_weights(state)
    damaged = {n: t for n, t in state.items() if n != "features.3.conv.1.1.running_var"}
    with pytest.raises(ValueError, match=r"missing \(blocks.2.depth.0.bias"):
        net.load_weights(damaged)


@pytest.mark.slow
@pytest.mark.parametrize("told", [False, True])
def test_the_exported_student_agrees_with_pytorch(tmp_path: Path, told: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    from depth_prior_ros.backends.onnx_backend import export_onnx

    torch.manual_seed(0)
    student = Student("mobilenet_v2", "convex", camera_code=told)
    if student.camera_code is not None:
        for layer in student.camera_code.added.values():
            nn.init.normal_(layer.weight, 0, 1)
    runner = StudentRunner(student).eval()
    inputs = (torch.rand(1, 3, 64, 96), *([torch.randn(1, 5)] if told else []))
    path = tmp_path / "student.onnx"
    example = tuple(i.numpy() for i in inputs)
    export_onnx(runner, example, path, list(runner.INPUTS), list(runner.OUTPUTS))
    with torch.no_grad():
        expected = runner(*inputs)[0].numpy()
        if told:
            other = runner(inputs[0], inputs[1] + 1)[0].numpy()
            assert np.abs(other - expected).max() > 1e-3 * expected.max()
    feeds = dict(zip(runner.INPUTS, example, strict=True))
    found = onnxruntime.InferenceSession(path).run(None, feeds)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    np.testing.assert_allclose(compiled(example)[0], expected, rtol=1e-3, atol=1e-5)


def test_early_layers_are_found(net: MobileNetV2) -> None:
    frozen = {id(p) for layer in net.layers_to(4) for p in layer.parameters()}
    names = {".".join(n.split(".")[:2]) for n, p in net.named_parameters() if id(p) in frozen}
    assert names == {"stem.0", "blocks.0", "blocks.1", "blocks.2"}
    with pytest.raises(ValueError, match="no features at stride 3"):
        net.layers_to(3)
