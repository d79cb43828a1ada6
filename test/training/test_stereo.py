"""Stereo partners: which pictures are pairs, what they explain, and what is refused in words."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import make_told_bundle, shifted, texture
from tiny_trunk import TINY_TRUNK
from torch import Tensor

from depth_prior_ros.bundle import Bundle, load_bundle
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import RecordingError, open_recording
from depth_prior_ros.recordings.bag import BagTopics, open_bag
from depth_prior_ros.recordings.stereo import bag_partners, open_pairs
from depth_prior_ros.recordings.stereo_depth import stereo_depth, with_stereo_depth
from depth_prior_ros.recordings.synthetic.drive import DriveSpec, Rendered, SyntheticDrive
from depth_prior_ros.recordings.synthetic.renderer import RendererUnavailableError
from rosbag_tools.cli import main as depth_bag
from rosbag_tools.extract import ExtractOptions, extract
from rosbag_tools.info import stereo
from rosbag_tools.make import Partner, write_bag
from training.commands.cli import main as depth_train
from training.data.triplets import TripletBatch, TripletSource, load_triplets
from training.errors import TrainingError
from training.loop.progress import WINDOW, Health
from training.losses.photometric import Target, identity_error, view_errors
from training.losses.views import Views
from training.recipes.data import Drive, Mode
from training.recipes.recipe import Recipe
from training.runs.adapt import Request, adapt_bundle
from training.stages.self_supervised import (
    PartnerLook,
    Scene,
    SelfSupervised,
    SelfSupervisedStage,
)
from training.stages.system import motion_sources, views_of
from training.stages.validation import Validation

SIZE = (320, 96)
FOCAL, BASELINE, DEPTH, UNIT = 200.0, 0.5, 10.0, 10.0
SHIFT = FOCAL * BASELINE / DEPTH  # pixels
NAME = "2011_09_26/2011_09_26_drive_0001_sync"


def write_pairs(
    root: Path,
    *,
    frames: int = 4,
    baseline: float = BASELINE,
    other_size: tuple[int, int] = SIZE,
    late: float = 0.0,
) -> Path:
    """A drive as KITTI raw publishes it that looks at a wall 10 m away, its right camera 0.5 m
    beside the left one."""
    drive = root / NAME
    lines = []
    for camera, x, size in (("02", 0.0, SIZE), ("03", SHIFT, other_size)):
        folder = drive / f"image_{camera}"
        (folder / "data").mkdir(parents=True)
        stamps = []
        for i in range(frames):
            picture = shifted(texture(*SIZE, seed=i), -x)
            cv2.imwrite(str(folder / "data" / f"{i:010d}.png"), cv2.resize(picture, size))
            stamps.append(f"2011-09-26 13:00:{i / 10 + (late if x else 0):012.9f}")
        (folder / "timestamps.txt").write_text("\n".join(stamps) + "\n")
        tx = -FOCAL * baseline if x else 0.0
        P = f"{FOCAL} 0 160 {tx} 0 {FOCAL} 48 0 0 0 1 0"
        lines += [f"S_rect_{camera}: {size[0]} {size[1]}", f"P_rect_{camera}: {P}"]
    (drive.parent / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")
    return drive


def source(root: Path, mode: Mode, **values: Any) -> TripletSource:
    return load_triplets(root, [Drive(path=NAME, **values)], SIZE, UNIT, mode=mode)


@pytest.fixture(scope="module")
def wall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wall")
    write_pairs(root)
    return root


# --- which pictures are pairs


def test_the_right_camera_of_the_left_one_and_the_other_way_round(wall: Path) -> None:
    for camera, other, baseline in (("image_02", "image_03", 0.5), ("image_03", "image_02", -0.5)):
        pairs = open_pairs(wall / NAME, open_recording(wall / NAME, camera=camera))
        assert pairs.partner.mount is not None
        assert pairs.partner.mount.camera == other
        assert pairs.baseline == pytest.approx(baseline)
        assert pairs.positions == {i: i for i in range(4)}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"other_size": (160, 48)}, "one size"),
        ({"baseline": -BASELINE}, "swapped"),
        ({"baseline": 0.0}, "stand in the same place"),
        ({"baseline": 500.0}, "is the baseline in metres"),
        ({"baseline": float("nan")}, "not finite"),  # sampling there would end the process
        ({"late": 0.03}, "the nearest two are 30 ms apart"),
    ],
)
def test_what_is_no_pair_is_refused_in_words(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    drive = write_pairs(tmp_path, **values)
    with pytest.raises(RecordingError, match=words) as caught:
        open_pairs(drive, open_recording(drive))
    assert "\n" not in str(caught.value)


def test_pictures_of_other_rows_are_not_rectified(tmp_path: Path) -> None:
    drive = write_pairs(tmp_path)
    for file in (drive / "image_03/data").glob("*.png"):
        cv2.imwrite(str(file), np.roll(cv2.imread(str(file)), 10, axis=0))
    with pytest.raises(RecordingError, match="not rectified"):
        open_pairs(drive, open_recording(drive))


def test_a_frame_without_partner_is_counted(tmp_path: Path) -> None:
    drive = write_pairs(tmp_path)
    (drive / "image_03/data" / f"{2:010d}.png").unlink()
    found = source(tmp_path, "S")
    assert [t[1] for t in found.sequences[0].triplets] == [0, 1, 3]
    assert any("frame 2: no partner" in line for line in found.skipped)
    shutil.rmtree(drive / "image_03")
    with pytest.raises(ValueError, match=r"data.mode needs stereo pairs.*image_03"):
        source(tmp_path, "MS")


def write_stereo_bag(root: Path, out: Path, baseline: float = BASELINE) -> Path:
    recording = open_recording(root / NAME)
    pairs = open_pairs(root / NAME, recording)
    write_bag(recording, out, quality=100, partner=Partner(pairs.by_stamp(), baseline))
    return out


def test_ground_truth_of_the_left_camera_is_not_that_of_the_right_one(
    wall: Path, tmp_path: Path
) -> None:
    recording = open_recording(wall / NAME)
    truth = np.full(SIZE[::-1], 10.0, np.float32)
    recording.frames = [replace(f, load_depth=lambda: truth) for f in recording.frames]
    recording.depth_source = "exact"
    partner = Partner(open_pairs(wall / NAME, recording).by_stamp(), BASELINE)
    bag = write_bag(recording, tmp_path / "pair.mcap", partner=partner).path
    assert all(frame.has_depth for frame in open_bag(bag).frames)
    right = open_bag(bag, topics=BagTopics(image="/camera_right/image_raw/compressed"))
    assert not any(frame.has_depth for frame in right.frames) and right.depth_source is None
    assert "/ground_truth/depth (depth) is of another camera" in " ".join(right.notes)


def test_a_bag_of_two_cameras_trains_as_its_folder(wall: Path, tmp_path: Path) -> None:
    bag = write_stereo_bag(wall, tmp_path / "pair.mcap")
    (topic, metres) = bag_partners(bag, "/camera/image_raw/compressed")[0]
    assert topic.startswith("/camera_right/")
    assert metres == pytest.approx(BASELINE)
    (line,) = stereo(bag, open_bag(bag))
    assert "4 pairs" in line
    assert "0.500 m to the right; serves training in mode S and MS" in line
    ours = load_triplets(tmp_path, [Drive(path="pair.mcap")], SIZE, UNIT, mode="MS")
    folder = source(wall, "MS")
    a, b = (s.batch(4, np.random.default_rng(3)) for s in (ours, folder))
    assert a.partner is not None
    assert b.partner is not None
    torch.testing.assert_close(a.partner_pose, b.partner_pose)
    torch.testing.assert_close(a.partner_K, b.partner_K)
    assert (a.partner - b.partner).abs().mean() < 0.05  # JPEG halves the colour's resolution
    assert (a.partner - a.images[:, 1]).abs().mean() > 0.1


def test_a_bag_keeps_what_a_rectified_pair_stands_apart_in_height(tmp_path: Path) -> None:
    """4 mm of KITTI's colour cameras are a quarter of a pixel at 10 m."""
    drive = write_pairs(tmp_path)
    calibration = drive.parent / "calib_cam_to_cam.txt"
    told = calibration.read_text().replace("200.0 48 0 0 0 1 0", "200.0 48 DOWN 0 0 1 0")
    calibration.write_text(told.replace("DOWN", "0", 1).replace("DOWN", "0.8"))
    bag = tmp_path / "pair.mcap"
    asked = ["make", "--kitti-raw", str(drive), "--out", str(bag), "--stereo"]
    assert depth_bag(asked) == 0
    motions = [open_pairs(p, open_recording(p)).partner_from_camera for p in (drive, bag)]
    np.testing.assert_allclose(motions[0][1, 3], 0.004, atol=1e-9)
    np.testing.assert_allclose(*motions, atol=1e-9)


def test_an_extracted_pair_trains_bit_for_bit_as_its_folder(wall: Path, tmp_path: Path) -> None:
    drive, out = wall / NAME, tmp_path / "set"
    extract(drive, open_recording(drive), out, ExtractOptions(stereo=True))
    assert open_pairs(out, open_recording(out)).baseline == BASELINE
    ours = load_triplets(tmp_path, [Drive(path="set")], SIZE, UNIT, mode="MS")
    a, b = (s.batch(4, np.random.default_rng(3)) for s in (ours, source(wall, "MS")))
    for name in ("images", "partner", "partner_pose", "partner_K"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)


def test_matched_depth_is_written_as_the_depth_of_a_data_set(wall: Path, tmp_path: Path) -> None:
    drive = wall / NAME
    out = tmp_path / drive.name
    assert depth_bag(["extract", str(drive), "--stereo-depth", "--out", str(tmp_path)]) == 0
    found = open_recording(out)
    assert found.depth_source == "stereo" and not (out / "partner").exists()
    expected = with_stereo_depth(open_pairs(drive, open_recording(drive))).frames
    for frame, matched in zip(found.frames, expected, strict=True):
        assert frame.has_depth
        np.testing.assert_allclose(frame.depth(), matched.depth(), atol=1 / 256)


def test_a_bag_says_what_it_lacks(wall: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.mcap"
    write_bag(open_recording(wall / NAME), alone)
    assert "mode M only" in stereo(alone, open_bag(alone))[0]
    with pytest.raises(RecordingError, match="no other camera is known to stand beside"):
        open_pairs(alone, open_bag(alone))
    flat = write_stereo_bag(wall, tmp_path / "flat.mcap", baseline=0.0)
    with pytest.raises(RecordingError, match="baseline"):
        open_pairs(flat, open_bag(flat), "/camera_right/image_raw/compressed")


# --- depth by semi-global matching


@pytest.mark.parametrize("camera", ["image_02", "image_03"])
def test_matched_depth_is_that_of_the_wall(wall: Path, camera: str) -> None:
    recording = open_recording(wall / NAME, camera=camera)
    matched = with_stereo_depth(open_pairs(wall / NAME, recording))
    assert matched.depth_source == "stereo"
    depth = matched.frames[1].depth()
    assert depth is not None
    inner = depth[:, 32:-32]
    assert (inner > 0).mean() > 0.8
    assert np.abs(inner[inner > 0] / DEPTH - 1).mean() < 0.02


def test_parallax_is_counted_from_the_principal_points() -> None:
    camera = Camera(FOCAL, FOCAL, 160.0, 48.0, *SIZE)
    picture = texture(*SIZE, seed=3)
    left, right = shifted(picture, 0.0), shifted(picture, -SHIFT)
    other = replace(camera, cx=camera.cx - 5)  # half of the shift is the camera's, not parallax
    depth = stereo_depth(left, right, camera, other, BASELINE)
    assert np.median(depth[depth > 0]) == pytest.approx(2 * DEPTH, rel=0.03)
    with pytest.raises(RecordingError, match="rectify them together"):
        stereo_depth(left, right, camera, replace(camera, cy=camera.cy + 4), BASELINE)
    with pytest.raises(RecordingError, match="of one size"):
        stereo_depth(left, right[:-8], camera, camera, BASELINE)


@pytest.mark.slow
def test_adapt_takes_metres_from_the_second_camera(wall: Path, tmp_path: Path) -> None:
    bundle = make_told_bundle(tmp_path / "told", trunk=TINY_TRUNK)
    drive = write_pairs(tmp_path / "data", frames=8)
    found = adapt_bundle(Request(bundle.path, drive, tmp_path / "out"))
    assert "stereo depth of 8 pairs with image_03, 0.500 m to the right" in str(found)
    with pytest.raises(TrainingError, match="4 keyframes with depth in metres, and 8"):
        adapt_bundle(Request(bundle.path, wall / NAME, tmp_path / "out", references="stereo"))
    with pytest.raises(RecordingError, match="has to be another camera"):
        adapt_bundle(Request(bundle.path, drive, tmp_path / "out", partner="image_02"))
    shutil.rmtree(drive / "image_03")
    with pytest.raises(TrainingError, match=r"nothing says how far.*second camera.*image_03"):
        adapt_bundle(Request(bundle.path, drive, tmp_path / "out"))


# --- what they explain


def by_partner(batch: TripletBatch) -> Views:
    none = batch.poses.transpose(0, 1)[:0]
    return views_of(batch, batch.K, motion_sources(batch.images, "S"), none)


@pytest.mark.parametrize("camera", ["image_02", "image_03"])
def test_exact_depth_rebuilds_the_frame_flipped_or_not(wall: Path, camera: str) -> None:
    batch = source(wall, "S", camera=camera).batch(8, np.random.default_rng(0))
    assert batch.partner is not None
    assert batch.partner_pose is not None
    assert set(batch.mirrored.tolist()) == {False, True}
    # (left to right, mirrored): the partner stands on the other side of each
    assert set(batch.partner_pose[:, 0, 3].sign().tolist()) == {-1.0, 1.0}
    depth = torch.full((8, 1, 96, 320), DEPTH / UNIT)
    views = by_partner(batch)
    assert len(views.sources) == 1
    inner = (..., slice(16, -16))
    error = (views.rebuild(depth)[0] - batch.images[:, 1])[inner].abs()
    assert error.mean() < 0.01
    assert (batch.partner - batch.images[:, 1])[inner].abs().mean() > 0.1


def test_the_wrong_side_costs_and_is_told(wall: Path) -> None:
    batch = source(wall, "S").batch(4, np.random.default_rng(0))
    assert batch.partner_pose is not None
    depth, target = torch.full((4, 1, 96, 320), DEPTH / UNIT), Target.of(batch.images[:, 1])
    errors, told = [], []
    for sign in (1.0, -1.0):
        pose = batch.partner_pose.clone()
        pose[:, :3, 3] *= sign
        turned = replace(batch, partner_pose=pose)
        views = by_partner(turned)
        rebuilt, health = views.rebuild(depth), Health()
        errors.append(float(view_errors(rebuilt, target).mean()))
        scene = Scene(
            turned,
            views.sources[:0],
            target,
            batch.poses.transpose(0, 1)[:0],
            depth,
            depth,
            rebuilt,
        )
        figures = {k: float(v) for k, v in PartnerLook.of(scene).figures().items()}
        told.append([health.look(figures) for _ in range(WINDOW)][-1])
    assert errors[0] < 0.3 * errors[1]
    assert not told[0]
    assert "left and right swapped" in told[1][0].text


def test_gradients_reach_depth_through_another_camera() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    sources = random(2, 1, 1, 6, 8)
    K = torch.tensor([[[6.0, 0, 3.6], [0, 5.5, 2.4], [0, 0, 1]]], dtype=torch.float64)
    other = torch.stack([K, K + torch.tensor([[0.4, 0, 0.3], [0, 0.2, 0.1], [0, 0, 0]])])
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1, 1)
    poses[1, 0, 0, 3] = -0.31
    depth = (2 + random(1, 1, 6, 8)).requires_grad_(True)
    views = Views.of(sources, K, poses, other)
    assert torch.autograd.gradcheck(views.rebuild, (depth,), atol=1e-4)
    same = Views.of(sources, K, poses, torch.stack([K, K]))
    torch.testing.assert_close(same.rebuild(depth), Views.of(sources, K, poses).rebuild(depth))


def recipe(mode: Mode, **values: Any) -> Recipe:
    content: dict[str, Any] = {
        "size": SIZE,
        "networks": {"trunk": TINY_TRUNK},
        "data": {"drives": [{"path": NAME}], "mode": mode},
        "stages": [{"kind": "self_supervised", "steps": 2, "train": ["student"]}],
        "output": {"name": "x", "licence": "Apache-2.0"},
    }
    return Recipe.model_validate(content | values)


def stage(wall: Path, mode: Mode, **values: Any) -> SelfSupervisedStage:
    from training.stages.system import System

    config = SelfSupervised(kind="self_supervised", steps=2, batch=2, **values)
    system = System.build(recipe(mode), torch.device("cpu"))
    return SelfSupervisedStage(
        config, system, source(wall, mode), None, Validation(wall, SIZE), mode=mode
    )


def test_each_mode_uses_its_sources_and_learns(wall: Path) -> None:
    losses = {}
    for mode, train in (
        ("M", ["student", "pose"]),
        ("S", ["student"]),
        ("MS", ["student", "pose"]),
    ):
        torch.manual_seed(0)
        built = stage(wall, mode, train=train)  # type: ignore[arg-type]
        loss, logs = built.loss(built.draw_batch(np.random.default_rng(1)))
        loss.backward()
        losses[mode] = float(logs["photometric"])
        assert ("stereo_side" in built.logged()) == (mode != "M")
        assert "stereo_side" not in logs  # it costs a reprojection more
        assert ("translation" in logs) == (mode != "S")
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in built.trained)
    assert losses["MS"] <= losses["M"] + 1e-5  # the minimum over one source more


def test_the_multi_frame_network_is_explained_by_the_partner_too(wall: Path) -> None:
    built = stage(wall, "MS", train=["student", "pose", "multi_frame"])
    _, logs = built.loss(built.draw_batch(np.random.default_rng(1)))
    assert torch.isfinite(logs["multi/photometric"])


@functools.cache
def rendered(offset: float) -> tuple[Rendered, Camera]:
    """A frame of a street, seen from `offset` metres to the right. Skips without OpenGL."""
    drive = SyntheticDrive(8, SIZE, DriveSpec(frames=1, stop=False), 1, offset=offset)
    try:
        return drive.render(0), drive.camera
    except RendererUnavailableError as error:
        pytest.skip(str(error))
    finally:
        drive.close()


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.54, -0.54])
def test_rendered_pairs_agree_with_their_depth(offset: float) -> None:
    (left, camera), (right, _) = rendered(0.0), rendered(offset)

    def tensor(picture: np.ndarray) -> Tensor:
        return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255

    motion = torch.eye(4)[None, None].clone()
    motion[..., 0, 3] = -offset
    K = torch.from_numpy(camera.matrix()).float()[None]
    depth = torch.from_numpy(np.where(left.depth > 0, left.depth, 1e3))[None, None].float()
    target, sources = Target.of(tensor(left.image)), tensor(right.image)[None]
    rebuilt = Views.of(sources, K, motion).rebuild(depth)
    swapped = Views.of(sources, K, motion.inverse()).rebuild(depth)
    right_one, wrong, plain = view_errors(torch.cat([rebuilt, swapped, sources]), target)
    ground = torch.from_numpy(left.depth > 0)[None, None] & (depth < 30)
    assert right_one[ground].median() < 0.3 * plain[ground].median()
    assert right_one[ground].median() < 0.3 * wrong[ground].median()


# --- recipes


@pytest.mark.parametrize(
    ("mode", "values", "words"),
    [
        ("S", {"stages": [{"kind": "self_supervised", "steps": 1}]}, "train names pose and multi"),
        ("S", {"stages": [{"kind": "teacher", "steps": 1}]}, "compare frames over time"),
        ("MS", {"output": {"name": "x", "licence": "MIT", "camera_height": 1.6}}, "baselines fix"),
        ("S", {"output": {"name": "x", "licence": "MIT", "scale_drive": "a"}}, "baselines fix"),
    ],
)
def test_what_does_not_go_with_a_mode_is_refused(
    mode: Mode, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        recipe(mode, **values)


def test_scenes_of_mode_s_have_no_motion(wall: Path) -> None:
    built = stage(wall, "S", train=["student"])
    batch = built.draw_batch(np.random.default_rng(0)).triplets
    scene, _, _ = built._student(batch)
    assert isinstance(scene, Scene)
    assert len(scene.sources) == len(scene.poses) == 0
    assert len(scene.rebuilt) == 1
    noise = torch.zeros(1, 2, 1, SIZE[1], SIZE[0])
    assert batch.partner is not None
    plain = identity_error(batch.partner[None], scene.target, noise)
    torch.testing.assert_close(scene.identity, plain, atol=1e-3, rtol=0)


# --- Cityscapes' sequences ------------------------------------------------------------------------


def write_city(root: Path, *, numbers: tuple[int, ...] = (17, 18, 19, 20)) -> Path:
    """Two sequences of a city at an eighth of their size, each with a calibration of its own."""
    for sequence, focal in (("000000", 2262.0), ("000001", 2200.0)):
        for side, x in (("left", 0.0), ("right", 9.0)):
            folder = root / f"{side}Img8bit_sequence" / "train" / "aachen"
            folder.mkdir(parents=True, exist_ok=True)
            for number in numbers:
                picture = shifted(texture(256, 128, seed=number + int(sequence)), -x)
                name = f"aachen_{sequence}_{number:06d}_{side}Img8bit.png"
                cv2.imwrite(str(folder / name), picture)
        cameras = root / "camera" / "train" / "aachen"
        cameras.mkdir(parents=True, exist_ok=True)
        content = {
            "intrinsic": {"fx": focal, "fy": focal, "u0": 1096.0, "v0": 513.0},
            "extrinsic": {"baseline": 0.21},
        }
        (cameras / f"aachen_{sequence}_000019_camera.json").write_text(json.dumps(content))
    return root / "leftImg8bit_sequence" / "train" / "aachen"


def write_rendered_city(root: Path) -> Camera:
    """A rendered street as one sequence of Cityscapes; its camera. Skips without OpenGL."""
    drive = SyntheticDrive(8, (256, 128), DriveSpec(frames=4, stop=False), supersample=1)
    folder = root / "leftImg8bit_sequence" / "train" / "aachen"
    cameras = root / "camera" / "train" / "aachen"
    for made in (folder, cameras):
        made.mkdir(parents=True)
    try:
        for number, frame in enumerate(drive.frames):
            file = folder / f"aachen_000000_{number + 17:06d}_leftImg8bit.png"
            cv2.imwrite(str(file), cv2.cvtColor(frame.image(), cv2.COLOR_RGB2BGR))
    except RendererUnavailableError as error:
        pytest.skip(str(error))
    finally:
        drive.close()
    full = drive.camera.scaled(2048, 1024)
    intrinsics = {"fx": full.fx, "fy": full.fy, "u0": full.cx, "v0": full.cy}
    content = {"intrinsic": intrinsics, "extrinsic": {"baseline": 0.21}}
    (cameras / "aachen_000000_000019_camera.json").write_text(json.dumps(content))
    return drive.camera


def test_a_city_is_a_recording_of_sequences_with_their_own_cameras(tmp_path: Path) -> None:
    city = write_city(tmp_path)
    recording = open_recording(city)
    assert [recording.gap_before(i) for i in range(8)] == [False] * 4 + [True] + [False] * 3
    assert recording.frames[0].camera.size == (256, 96)  # without the bonnet
    focals = [frame.camera.fx for frame in recording.frames]
    assert focals == pytest.approx([2262 / 8] * 4 + [2200 / 8] * 4)
    pairs = open_pairs(city, recording)
    assert pairs.baseline == pytest.approx(0.21)
    drive = Drive(path=str(city))
    found = load_triplets(tmp_path, [drive], (128, 64), UNIT, mode="MS")
    assert [t[1] for t in found.sequences[0].triplets] == [1, 2, 5, 6]  # no triplet across a gap
    batch = found.triplet(0, 3)
    assert float(batch.K[0, 0, 0]) == pytest.approx(2200 / 16)
    (tmp_path / "camera" / "train" / "aachen" / "aachen_000001_000019_camera.json").unlink()
    left = open_recording(city)
    assert len(left.frames) == 4
    assert "000001" in str(left.skipped[0])


# --- ten steps of published recipes ---------------------------------------------------------------


def ten_steps(recipe: str, root: Path, out: Path, *values: str) -> tuple[Bundle, list[Any]]:
    """The bundle of a run on the smallest pictures, and the figures of each step."""
    small = ("stages.0.steps=10", "stages.0.epochs=0", "stages.0.batch=1", "log_every=1")
    small += ("data.workers=0", "data.cache=null", "validate_every=100", f"data.root={root}")
    file = Path(__file__).parents[2] / "config/training" / f"{recipe}.yaml"
    assert depth_train(["run", str(file), "--out", str(out), *small, *values]) == 0
    lines = (out / "0_self_supervised/metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "gradient_norm" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    assert all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in steps)
    return load_bundle(out / "bundle"), steps


@pytest.mark.slow
def test_ten_steps_of_kitti_ms_on_files_as_published(tmp_path: Path) -> None:
    write_pairs(tmp_path / "kitti_raw", frames=5)
    rules = ("data.kitti_raw.drop_static=none", "data.split.validation_share=0")
    size = ("size=[128,64]",)
    made, steps = ten_steps("kitti_monodepth2_ms", tmp_path, tmp_path / "out", *rules, *size)
    depth = made.manifest.depth
    assert depth.unit_by_stereo and depth.metres_per_unit == 10
    assert "(mode MS)" in depth.metres_per_unit_source
    # the pose network learns, and the partner is looked at in every line of the log
    assert all(line["translation"] > 0 and 0 < line["stereo_side"] < 1 for line in steps)


@pytest.mark.slow
def test_ten_steps_of_cityscapes_on_rendered_sequences(tmp_path: Path) -> None:
    root = tmp_path / "cityscapes"
    camera = write_rendered_city(root)
    made, steps = ten_steps("cityscapes_monodepth2", tmp_path, tmp_path / "out", "size=[128,64]")
    assert not made.manifest.depth.unit_by_stereo
    assert "stereo_side" not in steps[0]
    # the sequence's own camera, without the bonnet, at the network's size
    fitted = made.manifest.training_camera
    assert fitted.fx / fitted.width == pytest.approx(camera.fx / camera.width)
    assert fitted.fy / fitted.height == pytest.approx(camera.fy / (0.75 * camera.height))
