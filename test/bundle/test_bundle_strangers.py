"""Bundles from strangers: whatever is in them ends in one line, before memory or time are spent."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from pathlib import Path

import pytest
import torch
import yaml
from helpers import make_tiny_bundle
from safetensors.torch import load_file, save_file
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.bundle import Bundle, BundleError, describe, load_bundle
from depth_prior_ros.bundle.manifest import Manifest, validate_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_tiny_bundle(tmp_path / "b", trunk=TINY_TRUNK)
    return tmp_path / "b"


def text_of(bundle: Path) -> str:
    return (bundle / "bundle.yaml").read_text().rpartition("sha256: ")[0]


def seal(bundle: Path, text: str) -> None:
    body = text.encode()
    digest = hashlib.sha256(body).hexdigest()
    (bundle / "bundle.yaml").write_bytes(body + f"sha256: {digest}\n".encode())


def reseal(bundle: Path) -> None:
    """As somebody does who has changed a file and knows how to say so."""
    data = yaml.safe_load(text_of(bundle))
    for name in data["files"]:
        data["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    seal(bundle, yaml.safe_dump(data, sort_keys=False))


def refused(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    message = str(caught.value)
    assert message.isprintable(), "one line, nothing that moves a cursor"
    return message


def bomb() -> str:
    rows = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    rows += [f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 9)]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("added", "cause"),
    [
        (bomb(), "an alias"),
        ("x: " + "[" * 2000 + "]" * 2000 + "\n", "nest"),
        ("x: [" + "1," * 120_000 + "1]\n", "more than 100,000"),
        ("x: [" + "1," * 500_000 + "1]\n", "bytes, more than"),
        ("x: 1" + ":59" * 500 + ".5\n", "not valid YAML"),
        ("x: 2001-99-99\n", "not valid YAML"),
        ("x: !!bool maybe\n", "not valid YAML"),
        ("x: " + "9" * 400 + "\n", "bits"),
        ('"\\x1b]0;title\\x07": 1\n', "unknown key \\x1b]0;title\\x07"),
    ],
    ids=["aliases", "depth", "nodes", "bytes", "base 60", "date", "tag", "digits", "escape"],
)
def test_yaml(bundle: Path, added: str, cause: str) -> None:
    seal(bundle, text_of(bundle) + added)
    assert cause in refused(bundle)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("reference_channels: 32", "reference_channels: 10000000"),
        ("reference_channels: 32", "reference_channels: .inf"),
        ("reference_channels: 32", "reference_channels: '32'"),
        ("width: 64", "width: 100000"),
        ("width: 64", "width: -64"),
        ("metres_per_unit: 20.0", "metres_per_unit: .nan"),
        ("trunk: ", "trunk: [], old: "),
    ],
)
def test_numbers_that_a_network_is_not_built_from(bundle: Path, old: str, new: str) -> None:
    assert old in text_of(bundle)
    seal(bundle, text_of(bundle).replace(old, new))
    refused(bundle)


def test_an_input_size_for_no_camera(bundle: Path) -> None:
    data = yaml.safe_load(text_of(bundle))
    data["input_size"] = [320000, 320000]
    data["training_camera"].update(width=320000, height=320000, cx=1.6e5, cy=1.6e5)
    seal(bundle, yaml.safe_dump(data, sort_keys=False))
    assert "input_size 320000x320000: at most" in refused(bundle)


def test_numbers_that_are_large_together(bundle: Path) -> None:
    data = yaml.safe_load(text_of(bundle))
    data["architecture"]["multi_frame"].update(hypotheses=4096, groups=4096)
    seal(bundle, yaml.safe_dump(data, sort_keys=False))
    assert "multi_frame at this input size needs a tensor" in refused(bundle)


def test_a_prior_without_bound(bundle: Path) -> None:
    data = load_bundle(bundle).manifest.data()
    data["prior"]["pixels"] = 10_000_000
    with pytest.raises(BundleError, match=r"prior.pixels: .*less than or equal"):
        validate_manifest(bundle, data)


@pytest.mark.parametrize("name", ["bundle.yaml", "student.safetensors"])
@pytest.mark.parametrize("kind", ["zero", "fifo", "socket", "folder", "outside", "hole"])
def test_only_regular_files(
    bundle: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle / name
    path.rename(bundle.parent / "outside")
    if kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(bundle)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "outside":
        path.symlink_to(bundle.parent / "outside")
    else:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", 3 * 10**9))
            file.truncate(4 * 10**9)
    message = refused(bundle)
    assert str(path) in message
    causes = {"outside": "leads out", "zero": "leads out", "hole": "more than", "folder": ""}
    assert causes.get(kind, "not a regular file") in message


def test_a_bundle_reached_by_a_link_is_a_bundle(bundle: Path) -> None:
    (bundle.parent / "link").symlink_to(bundle)
    assert load_bundle(bundle.parent / "link").manifest.name


@pytest.mark.parametrize("part", ["student", "multi_frame", "pose"])
@pytest.mark.parametrize("kind", [torch.bool, torch.int8, torch.complex64, torch.float64])
def test_weights_of_another_kind(bundle: Path, part: str, kind: torch.dtype) -> None:
    path = bundle / f"{part}.safetensors"
    save_file({k: v.to(kind) for k, v in load_file(path).items()}, path)
    reseal(bundle)
    assert f"{part}.safetensors: " in refused(bundle)


@pytest.mark.parametrize("part", ["student", "multi_frame", "pose"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(bundle: Path, part: str, value: float) -> None:
    path = bundle / f"{part}.safetensors"
    weights = load_file(path)
    name = next(n for n, t in weights.items() if t.is_floating_point())
    weights[name].view(-1)[-1] = value
    save_file(weights, path)
    reseal(bundle)
    assert f"tensor {name} holds NaN or infinite values" in refused(bundle)


@pytest.mark.parametrize("part", ["student", "multi_frame", "pose"])
def test_what_was_verified_is_what_is_used(bundle: Path, part: str) -> None:
    opened: Bundle = load_bundle(bundle)
    path = bundle / f"{part}.safetensors"
    save_file({k: torch.zeros_like(v) for k, v in load_file(path).items()}, path)
    with pytest.raises(BundleError, match="altered"):
        getattr(opened, part)()


def test_words_of_a_stranger_on_a_terminal(bundle: Path) -> None:
    opened = load_bundle(bundle)
    data = opened.manifest.data()
    data["name"], data["licence"] = "\x1b[2Jname\r", "free\u202e\x9b1m"
    data["metrics"] = {"\x1b[31mkey": ["\x07"]}
    manifest: Manifest = validate_manifest(bundle, data)
    shown = describe(Bundle(bundle, manifest))
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "\\x1b[2Jname\\r" in shown
