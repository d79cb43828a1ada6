"""Extraction of a reference set: which pixels, whatever interrupts it, and whoever shares it."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_tiny_bundle
from reference_files import SIZE, PictureTeacher, drive, source
from tiny_trunk import TINY_TRUNK
from training_files import SMALL, damage, write_moving_drive

from depth_prior_ros.recordings.base import CorruptFrameError
from training.commands.cli import main
from training.data.sources import load_data
from training.data.triplets import TripletSource, load_triplets
from training.errors import TrainingError
from training.loop.distributed import ProcessGroup
from training.prior.reference.extraction import choose_triplets, extract_reference_set
from training.prior.reference.files import MANIFEST_NAME, ReferenceSetError, shard_name
from training.prior.reference.set import ReferenceSet
from training.prior.teachers.bundle import open_bundle_teacher
from training.recipes.base import RecipeError
from training.recipes.data import Data, Drive

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"triplets": 11, "per_image": 7, "seed": 1, "shard_images": 4}


def extract(folder: Path, teacher: Any = None, data: Any = None, **changes: Any) -> ReferenceSet:
    return extract_reference_set(
        teacher or PictureTeacher(),
        source() if data is None else data,
        folder,
        **{**SETTINGS, **changes},
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name[0] != "."
    }


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.partial")]


# -- what is in it -------------------------------------------------------------------------------


def test_pixels_are_those_of_the_teachers_map(tmp_path: Path) -> None:
    """Every row again by hand, from its image and pixel."""
    data = source()
    found = extract(tmp_path, data=data)
    assert len(found) == 11 * 7
    everything = found.rows(range(len(found)))
    images, pixels = found.sources(range(len(found)))
    drives = {s.name: i for i, s in enumerate(data.sequences)}
    for row, (image, pixel) in enumerate(zip(images, pixels, strict=True)):
        about = found.images[image]
        number = drives[about["drive"]]
        batch = data.triplet(number, about["frame"] - 1)
        view = PictureTeacher().look(batch.images, batch.K)
        width = view.features.shape[-1]
        y, x = divmod(int(pixel), width)
        torch.testing.assert_close(
            everything.features[row], view.features[0, :, y, x].half().float(), rtol=0, atol=0
        )
        inverse = view.inverse_depth[0, 0]
        assert everything.inverse_depth[row] == inverse[y, x].half().float()
        assert about["median_inverse_depth"] == pytest.approx(float(np.median(inverse)))


def test_no_image_and_no_pixel_twice(tmp_path: Path) -> None:
    found = extract(tmp_path)
    images, pixels = found.sources(range(len(found)))
    assert len({*zip(images.tolist(), pixels.tolist(), strict=True)}) == len(found)
    frames = [(about["drive"], about["frame"]) for about in found.images]
    assert len(set(frames)) == 11
    assert np.bincount(images).tolist() == [7] * 11
    assert pixels.max() < (SIZE[0] // 4) * (SIZE[1] // 4)


def test_another_seed_is_another_set(tmp_path: Path) -> None:
    assert files(extract(tmp_path / "a").folder) == files(extract(tmp_path / "b").folder)
    other = extract(tmp_path / "c", seed=2)
    assert extract(tmp_path / "a").images != other.images


def test_pixels_do_not_depend_on_the_shards(tmp_path: Path) -> None:
    one = extract(tmp_path / "a", shard_images=4).rows(range(77))
    other = extract(tmp_path / "b", shard_images=50).rows(range(77))
    assert one.features.equal(other.features)


def test_fewer_triplets_than_asked_for(tmp_path: Path) -> None:
    found = extract(tmp_path, triplets=1000)
    assert len(found.images) == 15
    assert found.notes == ["1000 triplets were asked for, the data have 15: all are taken"]
    assert extract(tmp_path / "all", triplets=15).notes == []


def test_drives_are_chosen_by_weight() -> None:
    """As in training: how often a drive is drawn does not depend on how long it is."""
    data = source(drive("long", 402, weight=1.0), drive("short", 102, weight=3.0))
    counts = np.zeros(2)
    for seed in range(40):
        plan = choose_triplets(data, 20, seed)
        counts += np.bincount([d for d, _ in plan.chosen], minlength=2)
    assert counts[1] / counts.sum() == pytest.approx(0.75, abs=0.04)


def test_a_larger_second_size_is_what_the_teacher_sees(tmp_path: Path) -> None:
    """A run's pictures are small; those of the teacher's size lie beside them."""
    write_moving_drive(tmp_path, numbers=range(8))
    path = "kitti_raw/2011_09_26/2011_09_26_drive_0001_sync"
    data = Data(drives=(Drive(path=path),))
    both = load_data(tmp_path, data, (64, 32), 10.0, teacher_size=SIZE).training
    alone = load_data(tmp_path, data, SIZE, 10.0).training
    a, b = extract(tmp_path / "a", data=both), extract(tmp_path / "b", data=alone)
    assert files(a.folder) == files(b.folder)
    small = load_data(tmp_path, data, (64, 32), 10.0).training
    with pytest.raises(TrainingError, match="looks at 32x16, the data are read at 64x32"):
        extract(tmp_path / "c", data=small)


def test_a_bundle_teaches(tmp_path: Path) -> None:
    make_tiny_bundle(tmp_path / "bundle", trunk=TINY_TRUNK)
    write_moving_drive(tmp_path, numbers=range(6))
    drives = [Drive(path="kitti_raw/2011_09_26/2011_09_26_drive_0001_sync")]
    data = load_triplets(tmp_path, drives, SMALL, 20.0)
    teacher = open_bundle_teacher(str(tmp_path / "bundle"))
    found = extract(tmp_path / "set", teacher, data, per_image=192)
    found.require(teacher.identity, 32)
    assert len(found) == 4 * 192  # every pixel of the map, in order
    batch = data.triplet(0, 2)
    view = teacher.look(batch.images, batch.K, batch.poses, batch.known)
    rows = found.rows(range(2 * 192, 3 * 192))
    expected = view.features[0].flatten(1).T
    torch.testing.assert_close(rows.features, expected.half().float())
    depth = 1 / rows.inverse_depth.reshape(8, 24)
    torch.testing.assert_close(depth, 1 / view.inverse_depth[0, 0], rtol=2e-3, atol=0)


# -- interruptions and processes -------------------------------------------------------------------


class KilledError(Exception):
    """Instead of a kill."""


def test_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    """Stopped in every image; a set that stopped after a shard does not make it again."""
    whole = files(extract(tmp_path / "whole").folder)
    for stop in range(1, 12):
        folder = tmp_path / str(stop)

        def progress(text: str, done: int, total: int, stop: int = stop) -> None:
            if done == stop:
                raise KilledError

        with pytest.raises(KilledError):
            extract(folder, progress=progress)
        with pytest.raises(ReferenceSetError, match="not finished"):
            ReferenceSet.open(folder)
        teacher = PictureTeacher()
        found = extract(folder, teacher)
        assert teacher.seen == 11 - (stop - 1) // 4 * 4
        assert files(found.folder) == whole
        assert hidden(folder) == []


def test_a_finished_set_is_only_opened(tmp_path: Path) -> None:
    extract(tmp_path)
    teacher = PictureTeacher()
    assert len(extract(tmp_path, teacher)) == 77
    assert teacher.seen == 0


def test_a_finished_set_that_cannot_be_written_is_opened(tmp_path: Path) -> None:
    whole = extract(tmp_path)
    (tmp_path / ".extracting").unlink()
    (tmp_path / ".extracting").mkdir()  # opening it for writing fails, as on a read-only disk
    assert len(extract(tmp_path)) == len(whole)


@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_is_made_again(tmp_path: Path, finished: bool) -> None:
    whole = files(extract(tmp_path).folder)
    file = tmp_path / shard_name(1)
    file.write_bytes(file.read_bytes()[:-9])
    if not finished:
        (tmp_path / shard_name(2)).unlink()
    with pytest.raises(ReferenceSetError, match="cut off"):
        ReferenceSet.open(tmp_path)
    teacher = PictureTeacher()
    extract(tmp_path, teacher)
    assert files(tmp_path) == whole
    assert teacher.seen == (4 if finished else 7)


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    extract(tmp_path)
    (tmp_path / "shards" / ".00001.safetensors.123.partial").write_bytes(b"half")
    extract(tmp_path)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 2}, "other settings .seed 1, not 2"),
        ({"per_image": 8}, "per_image 7, not 8"),
        ({"triplets": 10}, "triplets 11, not 10"),
        (
            {"teacher": PictureTeacher(name="another", digest="f" * 16)},
            "another teacher .picture, .* not another",
        ),
        ({"data": source(drive("a", 12), drive("c", 7))}, "other settings .other frames"),
    ],
)
def test_a_folder_of_something_else(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    extract(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ReferenceSetError, match=words):
        extract(tmp_path, **changes)
    assert files(tmp_path) == before


def test_a_folder_with_other_things_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ReferenceSetError, match="holds other things"):
        extract(tmp_path)
    with pytest.raises(ReferenceSetError, match="is a file"):
        extract(tmp_path / "thesis.tex")


WORKER = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from reference_files import PictureTeacher, source
from training.loop.distributed import start_processes
from training.prior.reference.extraction import extract_reference_set
processes = start_processes(torch.device("cpu"))
found = extract_reference_set(PictureTeacher(), source(), sys.argv[1], triplets=11, per_image=7,
                              seed=1, shard_images=2, processes=processes)
assert len(found) == 77
"""


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    whole = extract(tmp_path / "one", shard_images=2)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    folder = tmp_path / "two"
    extract_some(folder)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(script), str(folder), str(ROOT / "test")),
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert files(folder) == files(whole.folder)


def extract_some(folder: Path) -> None:
    """The first shard only, by one process."""

    def stop(text: str, done: int, total: int) -> None:
        if done == 3:
            raise KilledError

    with pytest.raises(KilledError):
        extract(folder, shard_images=2, progress=stop)


def test_processes_share_the_shards(tmp_path: Path) -> None:
    """Without starting any: the second of three processes makes shards 1 and 4 of 0 to 5."""

    class Second(ProcessGroup):
        def broadcast(self, value: Any) -> Any:
            return ([0, 1, 2, 3, 4, 5], False)

        def barrier(self) -> None:
            pass

    (tmp_path / "shards").mkdir()
    with pytest.raises(ReferenceSetError, match="no reference set"):  # nobody wrote the manifest
        extract(tmp_path, shard_images=2, processes=Second(1, 3))
    made = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert made == ["00001.safetensors", "00004.safetensors"]


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("features", float("nan")),
        ("features", float("inf")),
        ("depth", float("nan")),
        ("depth", 0.0),
        ("depth", -1.0),
    ],
)
def test_a_teacher_that_is_not_finite(tmp_path: Path, what: str, value: float) -> None:
    teacher = PictureTeacher(spoil={5: (what, value)})
    with pytest.raises(TrainingError, match=r"frame \d+, are not finite and positive"):
        extract(tmp_path, teacher)
    assert sorted(files(tmp_path)) == [MANIFEST_NAME, shard_name(0)]
    assert len(extract(tmp_path)) == 77


def test_a_teacher_of_another_shape(tmp_path: Path) -> None:
    class Wide(PictureTeacher):
        def look(self, *arguments: Any) -> Any:
            view = super().look(*arguments)
            return view._replace(features=view.features[:, :5])

    with pytest.raises(TrainingError, match="returns features of shape"):
        extract(tmp_path, Wide())


def test_more_pixels_than_the_map_has(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"per_image 33: .* has 32 pixels only"):
        extract(tmp_path, per_image=33)
    assert not (tmp_path / MANIFEST_NAME).exists()


def test_no_triplets(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no triplet"):
        extract(tmp_path, data=TripletSource([], 10.0))


def spoiled(bad: set[int], frames: int = 40) -> TripletSource:
    """One drive whose frames ``bad`` turn out to be damaged when they are decoded."""
    data = source(drive("a", frames))
    store = data.sequences[0].images
    read = store.__class__.__getitem__

    class Damaged(store.__class__):  # type: ignore[name-defined, misc]
        def __getitem__(self, position: int) -> Any:
            if position in bad:
                self.corrupt[position] = f"{position}.png: damaged"
                raise CorruptFrameError(self.corrupt[position])
            return read(self, position)

    data.sequences[0].images = Damaged(store.pictures)  # type: ignore[attr-defined]
    return data


def test_another_triplet_stands_in_for_a_damaged_one(tmp_path: Path) -> None:
    plan = choose_triplets(spoiled(set()), 11, 1)
    bad = plan.chosen[3][1] + 1
    found = extract(tmp_path / "a", data=spoiled({bad}))
    assert len(found) == 77 and found.notes == []
    frames = [about["frame"] for about in found.images]
    assert len(set(frames)) == 11 and not set(frames) & {bad - 1, bad, bad + 1}
    # The others keep their pixels.
    clean = extract(tmp_path / "b", data=spoiled(set()))
    same = [a == b for a, b in zip(found.images, clean.images, strict=True)]
    assert same.count(True) >= 8 and not same[3]


def test_damaged_triplets_are_left_out_where_none_stands_in(tmp_path: Path) -> None:
    found = extract(tmp_path, data=spoiled({10}), triplets=38)
    assert len(found) == (38 - 3) * 7
    assert found.notes == ["3 images left out: 10.png: damaged"]
    out = [about for about in found.images if not about["pixels"]]
    assert [about["frame"] for about in out] == [9, 10, 11]
    assert out[0]["median_inverse_depth"] is None and out[0]["left_out"] == "10.png: damaged"
    images, _ = found.sources(range(len(found)))
    assert not {9 - 1, 10 - 1, 11 - 1} & set(images.tolist())


def test_too_many_damaged_frames(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="data seem to be damaged"):
        extract(tmp_path, data=spoiled(set(range(5, 35))), triplets=38)


def test_a_damaged_file(tmp_path: Path) -> None:
    """Found when the drive is read, in real files."""
    folder = write_moving_drive(tmp_path, numbers=range(12))
    damage(folder / "image_02" / "data" / f"{4:010d}.png")
    path = str(folder.relative_to(tmp_path))
    found = extract(tmp_path / "set", data=load_triplets(tmp_path, [Drive(path=path)], SIZE, 10.0))
    assert [about["index"] for about in found.images] == [1, 2, 6, 7, 8, 9, 10]


# -- full disks ------------------------------------------------------------------------------------

SMALL_FILES = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from reference_files import PictureTeacher, source
from training.prior.reference.extraction import extract_reference_set
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
extract_reference_set(PictureTeacher(), source(), sys.argv[1], triplets=11, per_image=32, seed=1,
                      shard_images=4)
"""


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_not_kept(tmp_path: Path) -> None:
    """The system itself refuses the bytes, in the middle of a shard."""
    folder = tmp_path / "set"
    done = subprocess.run(
        [sys.executable, "-c", SMALL_FILES, str(folder), str(ROOT / "test")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "00000.safetensors: cannot be written: File too large" in done.stderr
    assert "the same command goes on" in done.stderr
    assert sorted(files(folder)) == [MANIFEST_NAME] and hidden(folder) == []
    assert len(extract(folder, per_image=32)) == 11 * 32


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third file that is written meets a full disk when it is made to last."""
    whole = files(extract(tmp_path / "whole").folder)
    real, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == 5:  # a file and its folder, twice
            raise OSError(28, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ReferenceSetError, match=r"00001.safetensors: cannot be written: No space"):
        extract(tmp_path / "set")
    assert sorted(files(tmp_path / "set")) == [MANIFEST_NAME, shard_name(0)]
    assert hidden(tmp_path / "set") == []
    assert files(extract(tmp_path / "set").folder) == whole


# -- the command -----------------------------------------------------------------------------------

RECIPE = """
size: [64, 32]
metres_per_unit: 20.0
networks: {{fusion: {{stride: 16, width: 16, heads: 2}}}}
teacher: {{model: {root}/teacher}}
data: {{root: {root}/data, drives: [{{path: kitti_raw/2011_09_26/2011_09_26_drive_0001_sync}}]}}
stages:
  - {{kind: reference, triplets: 8, per_image: 50, shard_images: 3}}
  - {{kind: student, steps: 2, batch: 2}}
  - {{kind: select, keep: 30, images: 2}}
output: {{name: t, licence: Apache-2.0}}
device: cpu
"""


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_tiny_bundle(tmp_path / "teacher", trunk=TINY_TRUNK)
    write_moving_drive(tmp_path / "data", numbers=range(12))
    (tmp_path / "r.yaml").write_text(RECIPE.format(root=tmp_path))
    assert main(["reference", "r.yaml", "--out", "set", "seed=3"]) == 0
    said = capsys.readouterr().out
    assert "reference set: set" in said and "400 pixels with 32 channels of 8 images" in said
    assert "teacher: tiny (bundle, 96x32, features at 1/4, Apache-2.0)" in said
    assert main(["reference", "r.yaml", "--out", "set", "seed=4"]) == 1
    assert "other settings (seed 3, not 4)" in capsys.readouterr().err
    # Where `depth_train run` looks for it.
    assert main(["reference", "r.yaml", "seed=3"]) == 0
    there = tmp_path / "runs" / "r" / "0_reference"
    same = filecmp.cmpfiles(there, tmp_path / "set", [MANIFEST_NAME, shard_name(0)], shallow=False)
    assert same[0] == [MANIFEST_NAME, shard_name(0)]


def test_a_recipe_without_a_reference_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "config" / "training" / "small_student.yaml"
    assert main(["reference", str(recipe), "--out", str(tmp_path / "set")]) == 1
    assert "needs a stage {kind: reference}" in capsys.readouterr().err
