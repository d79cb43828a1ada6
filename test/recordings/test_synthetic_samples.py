"""Training pairs: geometry, determinism, resuming."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.synthetic import samples
from depth_prior_ros.recordings.synthetic.renderer import Renderer
from depth_prior_ros.recordings.synthetic.samples import iterate, write_samples
from depth_prior_ros.recordings.synthetic.textures import TextureBank, tone_quantiles
from depth_prior_ros.recordings.synthetic.world import KINDS, StreetWorld, random_spec

SIZE = (160, 48)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stand-ins for real frames to cut textures from."""
    folder = tmp_path_factory.mktemp("frames")
    paths = []
    for i in range(2):
        picture = np.random.default_rng(i).integers(0, 255, (94, 310, 3), dtype=np.uint8)
        paths.append(folder / f"{i}.png")
        cv2.imwrite(str(paths[-1]), cv2.GaussianBlur(picture, (0, 0), 2))
    return paths


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, frames: list[Path]) -> Path:
    out = tmp_path_factory.mktemp("samples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "PAIRS_PER_SHARD", 4)
        return write_samples(out, 8, SIZE, 5, frames, progress=False)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("shard_*/*.npy"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.slow
def test_files_and_manifest(written: Path, frames: list[Path]) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["seed"] == 5 and manifest["size"] == [160, 48] and manifest["count"] == 8
    assert manifest["texture_sources"] == [str(frames[0].parent)]
    shapes = {p.stem: np.load(p, mmap_mode="r") for p in (written / "shard_00001").glob("*.npy")}
    assert shapes["images"].shape == (4, 2, 48, 160, 3) and shapes["images"].dtype == np.uint8
    assert shapes["depth"].shape == (4, 2, 48, 160) and shapes["depth"].dtype == np.float16
    assert shapes["K"].shape == (4, 3, 3) and shapes["previous_from_current"].shape == (4, 4, 4)
    assert shapes["moving"].shape == (4, 48, 160) and shapes["moving"].max() <= 1


@pytest.mark.slow
def test_pictures_look_like_streets(written: Path) -> None:
    depth = np.load(written / "shard_00000" / "depth.npy").astype(np.float32)
    images = np.load(written / "shard_00000" / "images.npy")
    assert np.isfinite(depth).all() and (depth >= 0).all()
    lower = depth[:, :, 24:]
    assert 4 < np.median(lower[lower > 0]) < 25
    assert (images.reshape(len(images), -1).std(1) > 10).all()


@pytest.mark.slow
def test_interrupted_run_resumes_to_the_same_files(
    written: Path, tmp_path: Path, frames: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PAIRS_PER_SHARD", 4)
    whole = samples._write_shard

    def killed(out: Path, shard: int, pairs: list[samples.RenderedPair]) -> None:
        if shard == 1:
            (out / f".shard_{shard:05d}.1.tmp").mkdir()
            raise KeyboardInterrupt
        whole(out, shard, pairs)

    monkeypatch.setattr(samples, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, 8, SIZE, 5, frames, progress=False)
    assert not (tmp_path / "shard_00001").exists()
    monkeypatch.setattr(samples, "_write_shard", whole)
    write_samples(tmp_path, 8, SIZE, 5, frames, progress=False)
    assert _hashes(tmp_path) == _hashes(written)


@pytest.mark.slow
def test_more_pairs_keep_those_that_are_there(
    written: Path, tmp_path: Path, frames: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PAIRS_PER_SHARD", 4)
    write_samples(tmp_path, 2, SIZE, 5, frames, progress=False)
    short = np.load(tmp_path / "shard_00000" / "images.npy")
    assert len(short) == 2
    write_samples(tmp_path, 4, SIZE, 5, frames, progress=False)
    whole = np.load(tmp_path / "shard_00000" / "images.npy")
    assert np.array_equal(whole[:2], short)
    assert np.array_equal(whole, np.load(written / "shard_00000" / "images.npy"))


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    write_samples(tmp_path, 1, (64, 32), 5, progress=False)
    with pytest.raises(ValueError, match="other seed"):
        write_samples(tmp_path, 1, (64, 32), 6, progress=False)


@pytest.mark.slow
def test_several_processes_write_the_same_files(
    written: Path, tmp_path: Path, frames: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "PAIRS_PER_SHARD", 4)
    write_samples(tmp_path, 8, SIZE, 5, frames, progress=False, processes=2)
    assert _hashes(tmp_path) == _hashes(written)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_another_renderer_or_traffic_is_refused(tmp_path: Path) -> None:
    write_samples(tmp_path, 1, (64, 32), 5, progress=False)
    with pytest.raises(ValueError, match="other schema, dense_traffic"):
        write_samples(tmp_path, 2, (64, 32), 5, progress=False, dense=0.5)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"renderer": "raycast"}))
    with pytest.raises(ValueError, match="other renderer"):
        write_samples(tmp_path, 2, (64, 32), 5, progress=False)


def test_a_manifest_of_before_is_of_opengl_and_has_no_dense_traffic(tmp_path: Path) -> None:
    write_samples(tmp_path, 1, (64, 32), 5, progress=False)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for key in ("renderer", "dense_traffic"):
        del manifest[key]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    write_samples(tmp_path, 1, (64, 32), 5, progress=False)
    with pytest.raises(ValueError, match="dense"):
        write_samples(tmp_path, 1, (64, 32), 5, progress=False, dense=1.0)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="processes"):
        write_samples(tmp_path, 1, SIZE, progress=False, processes=0)
    with pytest.raises(ValueError, match="dense between 0 and 1"):
        write_samples(tmp_path, 1, SIZE, progress=False, dense=2.0)


@pytest.mark.slow
def test_dense_traffic_is_near_and_slow() -> None:
    renderer = Renderer(64)
    pairs = list(iterate(renderer, 0, 12, (64, 32), 9, dense=1.0))
    renderer.release()
    steps = np.array([np.linalg.norm(p.previous_from_current[:3, 3]) for p in pairs])
    assert steps.max() < 0.4 and (steps < 1e-6).any() and (steps > 0.1).any()
    # Straight ahead, at the height of the camera, there is a vehicle and not an empty street.
    ahead = np.array([np.median(p.depth[1, 13:18, 28:35]) for p in pairs])
    assert (ahead < 20).mean() > 0.7 and ahead.min() > 3
    assert np.mean([p.moving.mean() for p in pairs]) > 0.08


@pytest.mark.slow
def test_the_other_streets_do_not_depend_on_dense_traffic(frames: list[Path]) -> None:
    renderer = Renderer(64)
    plain = list(iterate(renderer, 0, 24, (64, 32), 9))
    mixed = list(iterate(renderer, 0, 24, (64, 32), 9, dense=0.5))
    renderer.release()
    same = [any(np.array_equal(p.images, q.images) for q in mixed) for p in plain]
    assert 0 < sum(same) < 24


@pytest.mark.slow
def test_exact_depth_and_pose_explain_the_previous_frame(written: Path) -> None:
    """Lift the current depth, move it by the pose: it must meet the previous depth map."""
    moved = 0
    for shard in sorted(written.glob("shard_*")):
        data = {p.stem: np.load(p) for p in shard.glob("*.npy")}
        for i in range(len(data["K"])):
            K, pose = data["K"][i].astype(float), data["previous_from_current"][i].astype(float)
            previous, current = data["depth"][i].astype(float)
            v, u = np.nonzero((current > 0) & (current < 60) & (data["moving"][i] == 0))
            z = current[v, u]
            points = np.linalg.inv(K) @ np.stack([u, v, np.ones(len(u))]) * z
            seen = pose[:3, :3] @ points + pose[:3, 3:]
            pixels = (K @ seen)[:2] / seen[2]
            x, y = np.floor(pixels).astype(int)
            good = (x >= 0) & (y >= 0) & (x < SIZE[0] - 1) & (y < SIZE[1] - 1) & (seen[2] > 1)
            x, y, expected = x[good], y[good], seen[2][good]
            corners = np.stack([previous[y, x], previous[y, x + 1]])
            corners = np.concatenate(
                [corners, np.stack([previous[y + 1, x], previous[y + 1, x + 1]])]
            )
            low, high = corners.min(0), corners.max(0)
            # Between the four neighbours, up to float16 and what has come into or out of view.
            fits = (expected > 0.985 * low) & (expected < 1.015 * high)
            assert fits.mean() > 0.85, (shard.name, i, fits.mean())
            moved += np.linalg.norm(pose[:3, 3]) > 0.15
            if np.linalg.norm(pose[:3, 3]) > 0.15:
                assert pose[2, 3] > 0  # what lies ahead was further away before
    assert moved >= 4


def test_worlds_follow_from_their_seed() -> None:
    bank = TextureBank(3)
    first, same, other = (StreetWorld(seed, bank).drawing.mesh for seed in (4, 4, 5))
    assert np.array_equal(first.vertices, same.vertices)
    assert np.array_equal(first.indices, same.indices)
    assert first.vertices.shape != other.vertices.shape


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_street_can_be_built(kind: str) -> None:
    rng = np.random.default_rng(0)
    world = StreetWorld(1, TextureBank(3), random_spec(rng, kind))
    assert np.isfinite(world.drawing.mesh.vertices).all()
    assert (np.diff(world.drawing.along) >= 0).all()
    assert world.drawing.mesh.indices.max() < len(world.drawing.mesh.vertices)


def test_real_frames_become_textures_and_tones(frames: list[Path]) -> None:
    bank = TextureBank(1, frames)
    assert "real_any" in bank.kinds and "real_ground" in bank.kinds
    assert "real_any" not in TextureBank(1).kinds
    tones = tone_quantiles(np.random.default_rng(0), frames, 3)
    assert tones.shape == (3, 33, 3) and (np.diff(tones, axis=1) >= 0).all()
    assert tone_quantiles(np.random.default_rng(0), [], 3).shape == (0, 33, 3)


def test_a_camera_that_sees_too_much_of_the_road_is_drawn_again() -> None:
    """In shard 8 of seed 7700 a seventh of the pictures of recording 17 would be road within 3 m:
    every view counted as blocked, and one street after the other was made for it."""
    size = (416, 128)
    drawn = [np.random.default_rng([7700, 8, 17, 3]) for _ in range(2)]
    assert drawn[0].random() < 1.0
    first = samples.Mount.draw(drawn[0])
    assert samples.close_road(first, first.of(samples.random_camera(drawn[0], size))) > 0.1
    mount, camera = samples._recording_camera(drawn[1], size, 1.0)
    assert samples.close_road(mount, camera) <= 0.04
    level = samples.Mount(height=1.5, pitch=0.0, roll=0.0, focal=1.0, row=0.0)
    camera = Camera(100.0, 100.0, 50.0, 0.0, 100, 100)  # looks down 45 degrees at the last row
    # Depth is height * fy / rows below the axis: under 3 m from row 50 on.
    assert samples.close_road(level, camera) == pytest.approx(0.5)


@pytest.mark.slow
def test_recordings_are_of_one_camera_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pairs in a row: one camera and mount, other places; a twin set: the same cameras."""
    monkeypatch.setattr(samples, "PAIRS_PER_SHARD", 5)  # a recording a shard: they stay whole
    sets = []
    for seed, camera_seed in ((5, None), (6, 5)):
        folder = write_samples(
            tmp_path / str(seed),
            6,
            (64, 32),
            seed,
            progress=False,
            cameras=1.0,
            frames_per_street=3,
            camera_seed=camera_seed,
        )
        shards = sorted(folder.glob("shard_*"))
        assert len(shards) == 2
        sets.append([{p.stem: np.load(p) for p in shard.glob("*.npy")} for shard in shards])
    for first, second in zip(*sets, strict=True):
        assert np.array_equal(first["K"], np.repeat(first["K"][:1], 3, axis=0))
        assert np.ptp(first["mount"], axis=0).max() < np.deg2rad(3)
        assert np.ptp(first["mount"][:, 0]) == 0
        assert np.array_equal(first["K"], second["K"]), "the twin has the same camera"
        assert first["mount"][0, 0] == second["mount"][0, 0]
        assert not np.array_equal(first["images"], second["images"])
        steps = np.linalg.norm(first["previous_from_current"][:, :3, 3], axis=1)
        assert ((steps > 0.9) & (steps < 2.1)).all()
    assert not np.array_equal(sets[0][0]["K"], sets[0][1]["K"])
    with pytest.raises(ValueError, match="frames_per_street 4: 0, or what divides"):
        write_samples(tmp_path / "odd", 6, (64, 32), progress=False, frames_per_street=4)
    with pytest.raises(ValueError, match="other schema, pairs_per_shard, frames_per_street"):
        write_samples(tmp_path / "5", 6, (64, 32), 5, progress=False, cameras=1.0, camera_seed=None)
