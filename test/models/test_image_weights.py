"""ImageNet weights from files: what fits, and in which words the rest is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from depth_prior_ros.models.hrnet import hrnet_w18_small
from depth_prior_ros.models.manydepth import CostVolumeNet
from depth_prior_ros.models.mism import MultiFrameNet
from depth_prior_ros.models.pose import PoseNet
from depth_prior_ros.models.resnet import resnet18
from depth_prior_ros.models.student import Student
from training.runs.initialise import ImageWeightsError, read_image_weights


def _state(net: torch.nn.Module, classifier: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {
        name: torch.randn_like(t) if t.is_floating_point() else t + 7
        for name, t in net.state_dict().items()
    }
    return {
        **state,
        f"{classifier}.weight": torch.zeros(10, 5),
        f"{classifier}.bias": torch.ones(10),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    resnet = _state(resnet18(), "fc")
    save_file(resnet, folder / "resnet18.safetensors")
    torch.save(resnet, folder / "resnet18.pth")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in resnet.items()}},
        folder / "checkpoint.pt",
    )
    save_file(_state(hrnet_w18_small(), "classifier"), folder / "hrnet_w18_small.safetensors")
    return folder


@pytest.mark.parametrize("name", ["resnet18.safetensors", "resnet18.pth", "checkpoint.pt"])
def test_all_kinds_of_files(folder: Path, name: str) -> None:
    expected = _state(resnet18(), "fc")
    net = Student("resnet18", "light")
    net.load_image_weights(read_image_weights(folder / name))
    found = net.trunk.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert found["bn1.num_batches_tracked"] == 7


def test_every_network_that_has_a_place_for_them(folder: Path) -> None:
    first = _state(resnet18(), "fc")["conv1.weight"]
    pose = PoseNet("resnet18")
    pose.load_image_weights(read_image_weights(folder / "resnet18.safetensors"))
    assert torch.equal(pose.encoder.conv1.weight, torch.cat([first, first], dim=1) / 2)
    teacher = CostVolumeNet((64, 64))
    teacher.load_image_weights(read_image_weights(folder / "resnet18.safetensors"))
    assert torch.equal(teacher.encoder.conv1.weight, first)
    student = Student("hrnet_w18_small", "ra_depth")
    student.load_image_weights(read_image_weights(folder / "hrnet_w18_small.safetensors"))


def test_networks_that_have_none(folder: Path) -> None:
    with pytest.raises(ValueError, match="small pose network"):
        PoseNet("small").load_image_weights(read_image_weights(folder / "resnet18.pth"))
    with pytest.raises(ValueError, match="from scratch"):
        MultiFrameNet((32, 32)).load_image_weights(read_image_weights(folder / "resnet18.pth"))


def test_the_wrong_network_is_named(folder: Path) -> None:
    student = Student("hrnet_w18_small", "light")
    before = {k: v.clone() for k, v in student.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        student.load_image_weights(read_image_weights(folder / "resnet18.pth"))
    words = str(caught.value)
    assert "do not fit hrnet_w18_small" in words
    assert "missing (bn2.bias" in words
    assert words.endswith("They seem to be of resnet18")
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.zeros(1), "extra": _Harmful()}, "bad.pth")
    with pytest.raises(ImageWeightsError, match="more than tensors"):
        read_image_weights("bad.pth")
    assert not Path("harm").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ImageWeightsError, match="no such file"):
        read_image_weights(tmp_path / "absent.pth")
    for name, words in (
        ("a.safetensors", "not readable as safetensors"),
        ("a.pth", r"damaged|not readable"),
        ("a.npz", "unknown kind of file"),
    ):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ImageWeightsError, match=words):
            read_image_weights(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ImageWeightsError, match="holds list"):
        read_image_weights(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ImageWeightsError, match="no tensors"):
        read_image_weights(tmp_path / "empty.pth")


def test_a_truncated_file_is_named(folder: Path, tmp_path: Path) -> None:
    for name in ("resnet18.safetensors", "resnet18.pth"):
        whole = (folder / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ImageWeightsError, match=name):
            read_image_weights(tmp_path / name)
