"""A teacher's outputs: computed once, mirrored with the sample, resumed, kept apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import TINY_SIZE, make_tiny_bundle, texture
from test_training_data import write_drive
from torch import Tensor

from depth_prior_ros.geometry.warping import Pose
from depth_prior_ros.recordings.base import CorruptFrameError
from training.data.augmentation import mirror_pose
from training.data.triplets import Drive, TripletBatch, TripletSource, load_triplets
from training.errors import TrainingError
from training.prior.teachers.base import TeacherError, TeacherIdentity, TeacherView
from training.prior.teachers.bundle import BundleTeacher
from training.prior.teachers.outputs import TeacherOutputs

FRAMES = 9


def textured(root: Path, size: tuple[int, int] = TINY_SIZE) -> TripletSource:
    """Two drives of pictures that move; 7 and 2 triplets."""
    drives = []
    for number, frames in ((1, FRAMES), (5, 4)):
        drive = write_drive(root / str(number), list(range(frames)))
        picture = texture(124, 38, seed=number)
        for i in range(frames):
            path = drive / "image_02" / f"{i:010d}.png"
            cv2.imwrite(str(path), picture[64:102, 64 - i : 188 - i])
        drives.append(Drive(path=str(drive.relative_to(root))))
    return load_triplets(root, drives, size, 10.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TripletSource:
    return textured(tmp_path_factory.mktemp("drives"))


class Counting:
    """A teacher whose depth is the red of the middle frame, and that counts what it saw."""

    def __init__(self, size: tuple[int, int] = TINY_SIZE, sha256: str = "a" * 64) -> None:
        self.identity = TeacherIdentity(
            name="counting",
            kind="bundle",
            sha256=sha256,
            stride=4,
            channels=3,
            size=size,
            licence="Apache-2.0",
        )
        self.seen = 0
        self.motions = True

    def look(
        self,
        images: Tensor,
        K: Tensor,
        poses: Tensor | None = None,
        known: Tensor | None = None,
    ) -> TeacherView:
        self.seen += len(images)
        depth = 1 + images[:, 1, :1]
        small = torch.nn.functional.avg_pool2d(depth, 4)
        shift = Pose.from_axis_angle(images.mean((1, 3, 4)) - 0.4, images[:, 1].mean((2, 3))).matrix
        motions = torch.stack([shift, 2 * shift - torch.eye(4)]) if self.motions else None
        return TeacherView(small.expand(-1, 3, -1, -1), 1 / small, depth, motions)


def draw(source: TripletSource, size: int = 8, seed: int = 0) -> TripletBatch:
    return source.batch(size, np.random.default_rng([seed, 1]))


@pytest.mark.parametrize("kept", ["memory", "folder"])
def test_outputs_are_those_of_looking_at_the_batch(
    kept: str, source: TripletSource, tmp_path: Path
) -> None:
    teacher = Counting()
    folder = tmp_path if kept == "folder" else None
    outputs = TeacherOutputs.open(folder, teacher, source, batch=4, shard=3)
    batch = draw(source, 16)
    assert 0 < batch.mirrored.sum() < 16
    depth, motions = outputs.of(batch)
    assert depth.dtype == torch.float32
    # The picture is mirrored in the batch, so depth out of its red is mirrored by itself.
    torch.testing.assert_close(depth, 1 + batch.images[:, 1, :1], atol=1e-3, rtol=0)
    plain = torch.where(
        batch.mirrored[:, None, None, None, None], batch.images.flip(-1), batch.images
    )
    expected = teacher.look(plain, batch.K).motions
    assert expected is not None and motions is not None
    which = batch.mirrored[None, :, None, None]
    expected = torch.where(which, mirror_pose(Pose(expected)).matrix, expected)
    torch.testing.assert_close(motions, expected)


def test_each_triplet_is_looked_at_once_and_only_once(
    source: TripletSource, tmp_path: Path
) -> None:
    first, again = Counting(), Counting()
    TeacherOutputs.open(tmp_path, first, source, batch=2, shard=4)
    assert first.seen == len(source) == 9
    a = TeacherOutputs.open(tmp_path, again, source, batch=2, shard=4)
    assert again.seen == 0
    assert a.folder is not None and not list(a.folder.glob(".*"))


def test_an_interrupted_run_goes_on_with_the_missing_shards(
    source: TripletSource, tmp_path: Path
) -> None:
    whole = TeacherOutputs.open(tmp_path, Counting(), source, shard=4)
    assert whole.folder is not None
    expected, _ = whole.of(draw(source))
    files = sorted(whole.folder.glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-100])
    files[2].unlink()
    again = Counting()
    repaired = TeacherOutputs.open(tmp_path, again, source, shard=4)
    assert again.seen == 4 + 1
    torch.testing.assert_close(repaired.of(draw(source))[0], expected)


def test_what_a_killed_run_left_is_no_shard(source: TripletSource, tmp_path: Path) -> None:
    class Stopping(Counting):
        def look(self, images: Tensor, *rest: Tensor | None) -> TeacherView:  # type: ignore[override]
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().look(images, *rest)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        TeacherOutputs.open(tmp_path, Stopping(), source, batch=1, shard=3)
    again = Counting()
    TeacherOutputs.open(tmp_path, again, source, batch=1, shard=3)
    assert again.seen == 6


def test_another_teacher_and_other_data_are_other_folders(
    source: TripletSource, tmp_path: Path
) -> None:
    fresh = textured(tmp_path / "drives")
    fresh.sequences[0].triplets = fresh.sequences[0].triplets[1:]
    brighter = textured(tmp_path / "more")
    for picture in brighter.sequences[0].images.pictures.values():  # type: ignore[attr-defined]
        picture += 1
    same = textured(tmp_path / "same")
    folder = tmp_path / "outputs"
    teachers = [Counting(), Counting(sha256="b" * 64), *(Counting() for _ in range(3))]
    sources = [source, source, fresh, brighter, same]
    opened = [TeacherOutputs.open(folder, *pair) for pair in zip(teachers, sources, strict=True)]
    assert [teacher.seen > 0 for teacher in teachers] == [True, True, True, True, False]
    assert len({one.folder for one in opened}) == 4


def test_progress_counts_to_the_end(source: TripletSource) -> None:
    told = []
    TeacherOutputs.open(
        None, Counting(), source, batch=2, shard=4, progress=lambda *told_: told.append(told_[1:])
    )
    assert told[0] == (0, 9) and told[-1] == (9, 9)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_teacher_without_motions_has_none(source: TripletSource, tmp_path: Path) -> None:
    teacher = Counting()
    teacher.motions = False
    for folder in (None, tmp_path):
        assert TeacherOutputs.open(folder, teacher, source).of(draw(source))[1] is None


def test_pictures_of_another_size_are_refused(source: TripletSource) -> None:
    with pytest.raises(
        TeacherError, match=r"input is 192x64, the pictures are 96x32.*teacher_size"
    ):
        TeacherOutputs.open(None, Counting((192, 64)), source)


def test_pictures_of_the_second_size_are_shown(tmp_path: Path) -> None:
    source, large = textured(tmp_path / "a", (48, 16)), textured(tmp_path / "b", TINY_SIZE)
    for sequence, other in zip(source.sequences, large.sequences, strict=True):
        sequence.teacher_images, sequence.teacher_K = other.images, other.K
    teacher = Counting()
    depth, _ = TeacherOutputs.open(None, teacher, source).of(draw(source))
    assert depth.shape[-2:] == (TINY_SIZE[1], TINY_SIZE[0])
    images = draw(source).teacher_images
    assert images is not None
    torch.testing.assert_close(depth, 1 + images[:, 1, :1], atol=1e-3, rtol=0)


def test_a_corrupt_triplet_is_left_out(source: TripletSource) -> None:
    broken = TripletSource([replace(s) for s in source.sequences], source.metres_per_unit)

    class Broken:
        def __init__(self) -> None:
            self.slow, self.corrupt = False, {4: "frame 4"}

        def __getitem__(self, position: int) -> np.ndarray:
            if position == 4:
                raise CorruptFrameError("frame 4")
            return source.sequences[0].images[position]

    broken.sequences[0].images = Broken()
    teacher = Counting()
    outputs = TeacherOutputs.open(None, teacher, broken, batch=4)
    assert teacher.seen == 9 - 3
    for seed in range(4):
        batch = draw(broken, 8, seed)
        torch.testing.assert_close(
            outputs.of(batch)[0], 1 + batch.images[:, 1, :1], atol=1e-3, rtol=0
        )
    batch = draw(broken)
    batch.drive[0], batch.triplet[0] = 0, 3
    with pytest.raises(TrainingError, match="could not be read"):
        outputs.of(batch)


def test_a_batch_of_unknown_triplets_is_refused(source: TripletSource) -> None:
    outputs = TeacherOutputs.open(None, Counting(), source)
    batch = draw(source)
    batch.triplet[2] = -1
    with pytest.raises(ValueError, match="does not say which triplets"):
        outputs.of(batch)


def test_a_teacher_that_is_not_finite_is_refused(source: TripletSource, tmp_path: Path) -> None:
    class Broken(Counting):
        def look(self, images: Tensor, *rest: Tensor | None) -> TeacherView:  # type: ignore[override]
            view = super().look(images, *rest)  # type: ignore[arg-type]
            return view._replace(depth=view.depth / 0 * 0)

    with pytest.raises(TeacherError, match="not finite"):
        TeacherOutputs.open(tmp_path, Broken(), source)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_that_cannot_be_written_says_so(source: TripletSource, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written .* MiB"):
        TeacherOutputs.open(tmp_path / "file", Counting(), source)


def test_outputs_of_a_bundle(source: TripletSource, tmp_path: Path) -> None:
    teacher = BundleTeacher(make_tiny_bundle(tmp_path / "bundle"), metres_per_unit=10.0)
    outputs = TeacherOutputs.open(tmp_path / "outputs", teacher, source, batch=4)
    one = source.triplet(1, 1)
    view = teacher.look(one.images, one.K, one.poses, one.known)
    depth, motions = outputs.of(one)
    torch.testing.assert_close(depth, view.depth, rtol=2e-3, atol=0)
    torch.testing.assert_close(motions, view.motions, rtol=1e-3, atol=1e-4)


def test_what_a_kill_left_half_written_is_removed(source: TripletSource, tmp_path: Path) -> None:
    """A shard of 1024x320 is 160 MiB, and every kill would leave another one."""
    opened = TeacherOutputs.open(tmp_path, Counting(), source)
    assert opened.folder is not None
    left = opened.folder / ".00000.safetensors.99999999.partial"
    left.write_bytes(b"half")
    TeacherOutputs.open(tmp_path, Counting(), source)
    assert not left.exists() and list(opened.folder.glob("*.safetensors"))
