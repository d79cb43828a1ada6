from __future__ import annotations

import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import make_tiny_bundle, tiny_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.bundle import (
    SCHEMA_VERSION,
    Bundle,
    BundleError,
    Manifest,
    build_network,
    describe,
    load_bundle,
    rewrite_manifest,
    save_bundle,
)

FILES = (
    "bundle.yaml",
    "student.safetensors",
    "prior.safetensors",
    "multi_frame.safetensors",
    "pose.safetensors",
)


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """Another content of a file for a while; None for no file."""
    original = path.read_bytes()
    try:
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        yield
    finally:
        path.write_bytes(original)


def resealed(path: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A manifest changed by somebody who knows how to seal one."""
    data = yaml.safe_load(path.read_text().rpartition("sha256: ")[0])
    change(data)
    body = yaml.safe_dump(data, sort_keys=False)
    return f"{body}sha256: {hashlib.sha256(body.encode()).hexdigest()}\n".encode()


# -- what goes in comes out ------------------------------------------------------------------------


def test_weights_survive_as_half_precision(bundle: Bundle, tmp_path: Path) -> None:
    student = bundle.student()
    assert not student.training
    assert {t.dtype for t in student.state_dict().values()} <= {torch.float32, torch.int64}
    manifest = tiny_manifest()
    net = build_network(manifest, "student")
    saved = save_bundle(
        tmp_path / "b", manifest.model_copy(update={"prior": None}), student=net
    ).student()
    for name, tensor in net.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(saved.state_dict()[name], expected), name


def test_every_part_comes_back(bundle: Bundle) -> None:
    again = load_bundle(bundle.path)
    assert again.manifest == bundle.manifest
    assert again.digest == bundle.digest
    assert sorted(again.manifest.files) == sorted(FILES[1:])
    assert tuple(again.prior().features.shape) == (16, 32)
    assert again.prior().inverse_depth.dtype == torch.float32
    assert tuple(again.multi_frame().delta.shape) == (1, 1, 8, 24)
    assert again.pose().architecture == {"variant": "small"}
    assert not any(p.requires_grad for p in again.student().parameters())
    camera = again.manifest.camera
    assert camera.size == (96, 32)


def test_it_is_half_precision_on_disk(bundle: Bundle) -> None:
    parameters = sum(t.numel() for t in bundle.student().state_dict().values())
    assert (bundle.path / "student.safetensors").stat().st_size < 2.2 * parameters


def test_loading_leaves_the_random_state_alone(bundle: Bundle) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_bundle(bundle.path).student()
    assert torch.equal(torch.rand(3), expected)


def test_a_bundle_may_be_a_student_alone(tmp_path: Path) -> None:
    manifest = tiny_manifest().model_copy(update={"prior": None})
    bundle = save_bundle(tmp_path / "b", manifest, student=build_network(manifest, "student"))
    assert not bundle.has("pose")
    with pytest.raises(BundleError, match="no pose"):
        bundle.pose()


def test_describe_tells_what_people_ask(bundle: Bundle) -> None:
    text = describe(bundle)
    for part in ("tiny", "96x32", "Apache-2.0", "20 (made up)", "random numbers, for tests"):
        assert part in text
    for file in FILES[1:]:
        assert file in text


def test_a_full_disk_leaves_the_bundle_that_was_there(tmp_path: Path) -> None:
    """Files may grow to a hundred thousand bytes only."""
    before = make_tiny_bundle(tmp_path / "b", trunk=TINY_TRUNK)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    try:
        with pytest.raises(BundleError, match=r"student\.safetensors: cannot be written"):
            make_tiny_bundle(tmp_path / "b", seed=5, trunk=TINY_TRUNK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert load_bundle(tmp_path / "b").digest == before.digest
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_altered_byte_is_refused(bundle: Bundle, file: str, data: st.DataObject) -> None:
    path = bundle.path / file
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with changed(path, bytes(content)), pytest.raises(BundleError) as caught:
        load_bundle(bundle.path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_truncation_is_refused(bundle: Bundle, file: str, data: st.DataObject) -> None:
    path = bundle.path / file
    content = path.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1))
    with changed(path, content[:length]), pytest.raises(BundleError) as caught:
        load_bundle(bundle.path)
    assert caught.value.path == path
    if file != "bundle.yaml":
        assert "truncated" in caught.value.cause


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_refused(bundle: Bundle, file: str) -> None:
    with changed(bundle.path / file, None), pytest.raises(BundleError, match="missing") as caught:
        load_bundle(bundle.path)
    assert caught.value.path.name == file


@settings(max_examples=40, deadline=None)
@given(
    place=st.sampled_from(
        [(), ("depth",), ("training_camera",), ("architecture",), ("provenance",), ("prior",)]
    ),
    key=st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12),
)
def test_an_unknown_key_is_refused(bundle: Bundle, place: tuple[str, ...], key: str) -> None:
    path = bundle.path / "bundle.yaml"
    known = False

    def add(data: dict[str, Any]) -> None:
        nonlocal known
        for step in place:
            data = data[step]
        known = key in data or key == "schema_version"
        data.setdefault(key, 1)

    content = resealed(path, add)
    if known:
        return
    with changed(path, content), pytest.raises(BundleError, match="unknown key") as caught:
        load_bundle(bundle.path)
    assert ".".join([*place, key]) in caught.value.cause


@given(version=st.integers(SCHEMA_VERSION + 1, 10**6))
@settings(max_examples=10, deadline=None)
def test_a_newer_schema_is_refused(bundle: Bundle, version: int) -> None:
    path = bundle.path / "bundle.yaml"
    # A newer manifest may have keys, and a seal, that this version knows nothing of.
    data = yaml.safe_load(path.read_text()) | {"schema": version, "new": {"things": [1]}}
    content = yaml.safe_dump(data).encode()
    with changed(path, content), pytest.raises(BundleError, match="newer version") as caught:
        load_bundle(bundle.path)
    assert "update the package" in caught.value.cause


def _set(*place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for step in place[:-1]:
            data = data[step]
        data[place[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_set("input_size", value=[100, 32]), "multiples of 32"),
        (_set("input_size", value=[192, 64]), "training_camera is given at 96x32"),
        (_set("input_size", value="96x32"), "input_size"),
        (_set("training_camera", "fx", value=0.0), "focal lengths must be positive"),
        (_set("training_camera", "fx", value=float("nan")), "training_camera"),
        (_set("depth", "metres_per_unit", value=0.0), "metres_per_unit"),
        (_set("depth", "metres_per_unit", value="20"), "metres_per_unit"),
        (_set("depth", "min_units", value=200.0), "not below max_units"),
        (_set("licence", value=""), "licence"),
        (_set("name", value=7), "name"),
        (_set("schema", value=0), "schema"),
        (_set("files", "../evil.safetensors", value="0" * 64), "no bundle has"),
        (_set("files", value={}), "no student.safetensors"),
        (_set("architecture", "student", "trunk", value="resnet50"), "resnet50"),
        (_set("architecture", "student", "colour", value="red"), "colour"),
        (_set("architecture", "multi_frame", "groups", value=5), "groups"),
        (_set("architecture", "multi_frame", "size", value=[64, 64]), "not the input size"),
        (_set("architecture", "multi_frame", value=None), "no entry for multi_frame"),
        (_set("architecture", "pose", "variant", value="resnet18"), "do not fit"),
        (_set("architecture", "student", "fusion", value=None), "do not fit"),
        (_set("prior", value=None), "no `prior`"),
        (_set("prior", "pixels", value=17), "has shape"),
    ],
)
def test_a_manifest_that_makes_no_sense(
    bundle: Bundle, change: Callable[[dict[str, Any]], None], cause: str
) -> None:
    path = bundle.path / "bundle.yaml"
    with changed(path, resealed(path, change)), pytest.raises(BundleError, match=cause):
        load_bundle(bundle.path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"- 1\n- 2\n", b"a: [", b"\x00"])
def test_a_manifest_that_is_none(bundle: Bundle, content: bytes) -> None:
    path = bundle.path / "bundle.yaml"
    with changed(path, content), pytest.raises(BundleError) as caught:
        load_bundle(bundle.path)
    assert caught.value.path == path


def test_a_missing_bundle_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        load_bundle(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"bundle\.yaml: missing"):
        load_bundle(tmp_path / "empty")


# -- writing ---------------------------------------------------------------------------------------


def test_saving_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "b"
    make_tiny_bundle(path, seed=0, trunk=TINY_TRUNK)
    first = load_bundle(path).digest
    make_tiny_bundle(path, seed=1, trunk=TINY_TRUNK)
    assert load_bundle(path).digest != first
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BundleError, match="other things"):
        make_tiny_bundle(foreign, trunk=TINY_TRUNK)
    assert (foreign / "cat.jpg").exists()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        make_tiny_bundle(file, trunk=TINY_TRUNK)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_cannot_be_stored(tmp_path: Path, value: float) -> None:
    manifest = tiny_manifest()
    student = build_network(manifest, "student")
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] = value
    path = tmp_path / "b"
    with pytest.raises(BundleError, match="cannot be stored"):
        save_bundle(path, manifest, student=student)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b"
    before = make_tiny_bundle(path, trunk=TINY_TRUNK).digest
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self != path and target == path and "old" not in self.name:
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk on fire"):
        make_tiny_bundle(path, seed=1, trunk=TINY_TRUNK)
    monkeypatch.undo()
    assert load_bundle(path).digest == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_wrong_network_is_not_saved(tmp_path: Path) -> None:
    manifest = tiny_manifest()
    with pytest.raises(BundleError, match="do not fit"):
        save_bundle(tmp_path / "b", manifest, student=build_network(manifest, "pose"))
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_can_be_rewritten(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "b", trunk=TINY_TRUNK)
    metrics = {"kitti2015": {"all": {"abs_rel": 0.2, "frames": 91}}}
    changed_bundle = rewrite_manifest(bundle, metrics=metrics)
    assert load_bundle(bundle.path).manifest.metrics == metrics
    assert changed_bundle.digest == bundle.digest
    before = (bundle.path / "bundle.yaml").read_bytes()
    for changes in ({"colour": "red"}, {"files": {}}, {"input_size": [192, 64]}):
        with pytest.raises(BundleError):
            rewrite_manifest(changed_bundle, **changes)
    assert (bundle.path / "bundle.yaml").read_bytes() == before


def test_a_manifest_on_a_full_disk_stays_as_it_was(tmp_path: Path) -> None:
    """Files may grow to a thousand bytes only."""
    bundle = make_tiny_bundle(tmp_path / "b", trunk=TINY_TRUNK)
    before = (bundle.path / "bundle.yaml").read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    try:
        with pytest.raises(BundleError, match=r"bundle\.yaml: cannot be written") as caught:
            rewrite_manifest(bundle, metrics={"abs_rel": 0.2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert caught.value.path == bundle.path / "bundle.yaml"
    assert (bundle.path / "bundle.yaml").read_bytes() == before
    assert sorted(path.name for path in bundle.path.iterdir()) == sorted(FILES)


def test_manifest_round_trip() -> None:
    manifest = tiny_manifest()
    data = json.loads(json.dumps(manifest.model_dump(by_alias=True, mode="json")))
    assert data["schema"] == SCHEMA_VERSION
    assert Manifest.model_validate_json(json.dumps(data)) == manifest


def test_an_unreadable_file_is_named(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "b"
    shutil.copytree(bundle.path, copy)
    (copy / "pose.safetensors").unlink()
    (copy / "pose.safetensors").mkdir()
    with pytest.raises(BundleError, match=r"pose\.safetensors: cannot be read"):
        load_bundle(copy)


def test_numpy_values_in_metrics_are_refused_clearly(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "b", trunk=TINY_TRUNK)
    with pytest.raises(BundleError, match="cannot have"):
        rewrite_manifest(bundle, metrics={"abs_rel": np.float32(0.2)})


def test_every_user_may_read_the_files(tmp_path: Path) -> None:
    made = make_tiny_bundle(tmp_path / "tiny", trunk=TINY_TRUNK)
    saved = save_bundle(
        tmp_path / "saved", made.manifest, student=made.student(), prior=made.prior()
    )
    for file in saved.path.iterdir():
        assert file.stat().st_mode & 0o044 == 0o044, file.name


def test_a_bundle_keeps_the_map_but_not_what_only_training_needs(tmp_path: Path) -> None:
    from safetensors import safe_open

    bundle = make_tiny_bundle(tmp_path / "b", trunk=TINY_TRUNK)
    with safe_open(bundle.path / "multi_frame.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "delta" in names
    assert not [name for name in names if name.startswith("window")]
    net = bundle.multi_frame()
    assert net.window_seen == 0
    assert (net.delta - 0.4).abs().max() < 0.21


def test_the_shipped_bundle_of_before_the_window_still_loads() -> None:
    net = load_bundle("lite").multi_frame()
    assert net.architecture["range_mode"] == "pads"
    assert net.window_max.shape == net.delta.shape
    assert (net.delta != 1).any()
