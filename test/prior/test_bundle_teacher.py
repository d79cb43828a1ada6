"""A bundle as a teacher: its own networks run as they are meant to be, in the unit asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import METRES_PER_UNIT, TINY_SIZE, make_tiny_bundle, tiny_manifest
from tiny_trunk import TINY_TRUNK
from torch import Tensor

from depth_prior_ros.bundle import Architecture, Bundle, build_network, save_bundle
from depth_prior_ros.geometry.warping import Pose, disparity_to_depth
from depth_prior_ros.models.alignment import align_motion
from depth_prior_ros.models.matching import Lookup
from training.prior.teachers.base import TeacherError, TeacherIdentity, TeacherView, open_teacher
from training.prior.teachers.bundle import BundleTeacher

WIDTH, HEIGHT = TINY_SIZE
TALL = (96, 64)


def write(
    path: Path,
    size: tuple[int, int] = TINY_SIZE,
    parts: tuple[str, ...] = (),
    trunk: str = TINY_TRUNK,
    **changes: Any,
) -> Bundle:
    """A random bundle without a prior, of the student and these parts."""
    torch.manual_seed(3)
    manifest = tiny_manifest(size, trunk)
    architecture = manifest.architecture.model_dump() | changes
    architecture["student"] = architecture["student"] | {"fusion": None}
    manifest = manifest.model_copy(
        update={"architecture": Architecture(**architecture), "prior": None}
    )
    nets = {part: build_network(manifest, part) for part in ("student", *parts)}  # type: ignore[arg-type]
    return save_bundle(path, manifest, **nets)  # type: ignore[arg-type]


def triplets(count: int = 2, size: tuple[int, int] = TINY_SIZE, seed: int = 0) -> tuple[Any, ...]:
    """Images that move, intrinsics, recorded motions in units, and which are known."""
    generator = torch.Generator().manual_seed(seed)
    width, height = size
    wide = torch.rand(count, 3, height // 4, width // 4 + 4, generator=generator)
    wide = torch.nn.functional.interpolate(wide, scale_factor=4, mode="bicubic").clamp(0, 1)
    images = torch.stack([wide[..., i : i + width] for i in (0, 2, 4)], dim=1)
    K = torch.tensor([[0.58 * width, 0, width / 2], [0, 1.92 * height, height / 2], [0, 0, 1]])
    shift = torch.tensor([[0.1, 0.0, 0.0], [-0.1, 0.0, 0.02]])
    poses = Pose.from_axis_angle(0.01 * torch.randn(2, 3, generator=generator), shift).matrix
    known = torch.arange(count) % 2 == 0
    return images, K.repeat(count, 1, 1), poses.repeat(count, 1, 1, 1), known


def close(a: TeacherView, b: TeacherView, **tolerance: Any) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def single_depth(bundle: Bundle, image: Tensor) -> Tensor:
    prior = bundle.prior() if bundle.has("prior") else None
    disparity = bundle.student()(image, prior, scales=(0,)).disparity[0]
    return disparity_to_depth(disparity)[1]


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [False, True])
def test_depth_is_that_of_the_networks_put_together_by_hand(tmp_path: Path, align: bool) -> None:
    bundle = write(tmp_path / "b", parts=("multi_frame", "pose"), align_motion=align)
    images, K, poses, known = triplets()
    before, now, after = images.unbind(1)
    single = single_depth(bundle, now)
    pose = bundle.pose()
    motions = [pose(before, now).inverse().matrix, pose(now, after).matrix]
    motions = [
        torch.where(known[:, None, None], poses[:, i], motion) for i, motion in enumerate(motions)
    ]
    if align:
        motions = [
            align_motion(now, image, single, K, Pose(motion)).matrix
            for image, motion in zip((before, after), motions, strict=True)
        ]
    net = bundle.multi_frame()
    mine = net.features(now)
    lookups = [
        Lookup(net.features(image).matching, Pose(motion))
        for image, motion in zip((before, after), motions, strict=True)
    ]
    expected = net.match_many(mine, lookups, K, single)
    view = BundleTeacher(bundle).look(images, K, poses, known)
    tolerance: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(view.motions, torch.stack(motions), **tolerance)
    torch.testing.assert_close(view.depth, expected.depth, **tolerance)
    torch.testing.assert_close(view.inverse_depth, 1 / expected.depth_quarter, **tolerance)
    torch.testing.assert_close(view.features, mine.matching, **tolerance)
    assert not any(t.requires_grad for t in view)  # type: ignore[union-attr]


def test_its_prior_is_looked_up(bundle: Bundle) -> None:
    images, K, *_ = triplets()
    teacher = BundleTeacher(bundle)
    # The fusion of the tiny bundle starts at zero, so only its inputs can show what was looked up.
    calls: list[Any] = []
    fusion = teacher._student.fusion
    assert fusion is not None
    fusion.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[1]))
    teacher.look(images, K)
    torch.testing.assert_close(calls[0].values[0, 0, :, :32], bundle.prior().features)


def test_time_reversed_the_past_is_the_future(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", parts=("multi_frame", "pose"))
    images, K, poses, _ = triplets()
    known = torch.ones(2, dtype=torch.bool)
    past = BundleTeacher(bundle, lookup=(-1,)).look(images, K, poses, known)
    future = BundleTeacher(bundle, lookup=(1,)).look(images.flip(1), K, poses.flip(1), known)
    both = BundleTeacher(bundle).look(images, K, poses, known)
    torch.testing.assert_close(past.depth, future.depth)
    torch.testing.assert_close(past.features, both.features)
    assert (past.depth / both.depth).log().abs().max() > 1e-3, "the future frame changes nothing"
    reversed_ = BundleTeacher(bundle).look(images.flip(1), K, poses.flip(1), known)
    torch.testing.assert_close(both.depth, reversed_.depth, rtol=1e-4, atol=1e-4)


def test_samples_do_not_know_each_other(bundle: Bundle) -> None:
    teacher = BundleTeacher(bundle)
    images, K, poses, known = triplets(3)
    whole = teacher.look(images, K, poses, known)
    last = teacher.look(images[2:], K[2:], poses[2:], known[2:])
    motions = None if whole.motions is None else whole.motions[:, 2:]
    close(
        TeacherView(whole.features[2:], whole.inverse_depth[2:], whole.depth[2:], motions),
        last,
        rtol=1e-3,
        atol=1e-4,
    )


def test_units_are_those_asked_for(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", parts=("multi_frame", "pose"))
    images, K, poses, known = triplets()
    own = BundleTeacher(bundle).look(images, K, poses, known)
    # The same recorded motion in a unit of a fourth is four times as long.
    longer = poses.clone()
    longer[..., :3, 3] *= 4
    quarter = METRES_PER_UNIT / 4
    other = BundleTeacher(bundle, metres_per_unit=quarter).look(images, K, longer, known)
    torch.testing.assert_close(other.depth, 4 * own.depth)
    torch.testing.assert_close(other.inverse_depth, own.inverse_depth / 4)
    torch.testing.assert_close(other.features, own.features)
    assert own.motions is not None and other.motions is not None
    torch.testing.assert_close(other.motions[..., :3, 3], 4 * own.motions[..., :3, 3])
    torch.testing.assert_close(other.motions[..., :3, :3], own.motions[..., :3, :3])
    torch.testing.assert_close(other.motions[:, known].transpose(0, 1), longer[known])


def test_half_precision_is_close(bundle: Bundle) -> None:
    images, K, poses, known = triplets()
    full = BundleTeacher(bundle).look(images, K, poses, known)
    half = BundleTeacher(bundle, precision="bf16").look(images, K, poses, known)
    assert half.depth.dtype == half.features.dtype == torch.float32
    error = (half.depth / full.depth).log().abs()
    assert 0 < error.mean() < 0.02


# --- bundles of all kinds -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose multi-frame network is a cost volume."""
    path = tmp_path_factory.mktemp("volume") / "b"
    settings = {"kind": "cost_volume", "hypotheses": 8}
    return write(path, TALL, ("multi_frame", "pose"), multi_frame=settings)


@pytest.mark.parametrize(("stride", "channels"), [(2, 64), (4, 64), (8, 128), (32, 512)])
def test_a_cost_volume_network_has_several_strides(
    volume: Bundle, stride: int, channels: int
) -> None:
    bundle = volume
    teacher = BundleTeacher(bundle, stride=stride)
    images, K, poses, known = triplets(size=TALL)
    view = teacher.look(images, K, poses, known)
    assert (teacher.identity.stride, teacher.identity.channels) == (stride, channels)
    assert view.features.shape == (2, channels, TALL[1] // stride, TALL[0] // stride)
    assert view.inverse_depth.shape == (2, 1, TALL[1] // stride, TALL[0] // stride)
    assert (view.inverse_depth > 0).all()
    if stride == 8:
        blocks = torch.nn.functional.avg_pool2d(1 / view.depth, 8)
        torch.testing.assert_close(view.inverse_depth, blocks)


@pytest.mark.parametrize(("stride", "channels"), [(4, 16), (16, 64)])
def test_without_multi_frame_network_the_trunk_gives_the_features(
    tmp_path: Path, stride: int, channels: int
) -> None:
    bundle = write(tmp_path / "b", trunk="hrnet_w18_small")
    images, K, *_ = triplets()
    teacher = BundleTeacher(bundle, stride=stride)
    view = teacher.look(images, K)
    trunk = bundle.student().trunk(images[:, 1])
    torch.testing.assert_close(view.features, torch.cat(trunk[stride], 1), rtol=1e-3, atol=1e-4)
    assert teacher.identity.channels == view.features.shape[1] >= channels
    torch.testing.assert_close(view.depth, single_depth(bundle, images[:, 1]), rtol=1e-3, atol=1e-4)
    assert view.motions is None
    assert not teacher._student.trunk._forward_hooks


@pytest.mark.parametrize("parts", [("multi_frame", "pose"), ()])
def test_decoder_features_are_what_its_disparity_is_made_of(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    bundle = write(tmp_path / "b", parts=parts)
    images, K, *_ = triplets()
    teacher = BundleTeacher(bundle, stride=4, features="decoder")
    encoder = BundleTeacher(bundle, stride=4)
    view, other = teacher.look(images, K), encoder.look(images, K)
    student = bundle.student()
    disparity = student(images[:, 1], scales=(2,)).disparity[2]
    head = student.decoder.heads[2]
    torch.testing.assert_close(head(view.features), disparity, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(view.depth, other.depth)
    assert teacher.identity.sha256 != encoder.identity.sha256
    assert teacher.identity.channels == view.features.shape[1]
    assert not student.decoder.heads[2]._forward_pre_hooks


def test_a_pose_network_alone_gives_motions(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b", parts=("pose",))
    view = BundleTeacher(bundle).look(*triplets())
    assert view.motions is not None and view.motions.shape == (2, 2, 4, 4)


# --- who it is ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_identity_is_of_all_that_decides(bundle: Bundle, tmp_path: Path) -> None:
    first = BundleTeacher(bundle).identity
    assert (first.name, first.kind, first.size) == ("tiny", "bundle", TINY_SIZE)
    assert (first.stride, first.channels, first.licence) == (4, 32, "Apache-2.0")
    assert BundleTeacher(bundle, lookup=(1, -1)).identity == first
    assert BundleTeacher(bundle, metres_per_unit=METRES_PER_UNIT).identity == first
    assert BundleTeacher(make_tiny_bundle(tmp_path / "copy", trunk=TINY_TRUNK)).identity == first
    others = [
        BundleTeacher(bundle, lookup=(-1,)),
        BundleTeacher(bundle, metres_per_unit=10.0),
        BundleTeacher(make_tiny_bundle(tmp_path / "other", seed=7, trunk=TINY_TRUNK)),
    ]
    assert len({first.sha256, *(other.identity.sha256 for other in others)}) == 4
    assert TeacherIdentity.of(first.to_dict()) == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 8}, r"no features at stride 8: choose one of \[4\]"),
        ({"lookup": ()}, "lookup"),
        ({"lookup": (-2,)}, r"lookup \[-2\]: -1 \(previous\), 1 \(next\), or both"),
        ({"size": (192, 64)}, "its input is 96x32 and cannot be 192x64"),
    ],
)
def test_what_it_has_not_is_refused(bundle: Bundle, options: Any, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        open_teacher(str(bundle.path), **options)


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    for spec in (str(tmp_path), "no-such-bundle"):
        with pytest.raises(TeacherError, match=r"teacher .*missing"):
            open_teacher(spec)
    with pytest.raises(TeacherError, match="name a bundle"):
        open_teacher(" ")
    alone = write(tmp_path / "b", parts=("multi_frame",))
    with pytest.raises(TeacherError, match="without a pose network"):
        BundleTeacher(alone)


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    file = make_tiny_bundle(tmp_path / "b", trunk=TINY_TRUNK).path / "multi_frame.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(TeacherError, match=r"multi_frame.safetensors: truncated"):
        open_teacher(str(tmp_path / "b"))


def test_images_of_another_shape_are_refused(bundle: Bundle) -> None:
    teacher = BundleTeacher(bundle)
    _, K, *_ = triplets()
    for shape in ((2, 3, 3, 64, 96), (2, 2, 3, HEIGHT, WIDTH), (2, 3, HEIGHT, WIDTH)):
        with pytest.raises(ValueError, match="this teacher takes triplets"):
            teacher.look(torch.rand(shape), K)


@pytest.mark.gpu
def test_on_a_gpu_it_says_the_same(bundle: Bundle) -> None:
    batch = triplets()
    here = BundleTeacher(bundle).look(*batch)
    there = BundleTeacher(bundle, device="cuda").look(*batch)
    assert there.depth.device.type == "cuda"
    torch.testing.assert_close(there.depth.cpu(), here.depth, rtol=1e-2, atol=1e-2)
