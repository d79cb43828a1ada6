"""Which frames a network is evaluated on, and where they lie below a data folder.

KITTI 2015 has separate scenes. Of KITTI raw only drives of the Eigen test split count, so that a
folder with training drives can be given without evaluating a network on what it was trained on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from depth_prior_ros.evaluation.frames import EvaluationSet
from depth_prior_ros.evaluation.protocols import PROTOCOLS, protocol_for
from depth_prior_ros.recordings import StoredRecording, open_recording
from depth_prior_ros.recordings.base import FORMATS
from depth_prior_ros.recordings.kitti import DEPTH_SPLITS
from depth_prior_ros.share import recording_path

DATA_VARIABLE = "DEPTH_PRIOR_DATA"

# The test frames of Eigen et al. (2014) by drive, as runs "first-last/step"; a lone number is one
# frame. All of image_02.
_EIGEN_TEST_RUNS = """
2011_09_26 0002: 0-63/3 69-75/3
2011_09_26 0009: 0-176/16 196-388/16
2011_09_26 0013: 0-10/5 20 30-50/5 60-70/5 80-140/5
2011_09_26 0020: 0-21/3 27 33 36 42-78/3 84
2011_09_26 0023: 18-216/18 252-468/18
2011_09_26 0027: 0-98/7 112-147/7 161-182/7
2011_09_26 0029: 0-196/14 268 296-408/14
2011_09_26 0036: 0-704/32 768 800
2011_09_26 0046: 0-120/5
2011_09_26 0048: 0-21/1
2011_09_26 0052: 0-22/2 26-32/2 36-52/2
2011_09_26 0056: 11-121/11 143-286/11
2011_09_26 0059: 0-154/14 182-238/14 274-372/14
2011_09_26 0064: 0-110/22 154-550/22
2011_09_26 0084: 49-153/13 179-374/13
2011_09_26 0086: 7-520/27 574-682/27
2011_09_26 0093: 0-256/16 305-417/16
2011_09_26 0096: 0-456/19
2011_09_26 0101: 80-216/34 284-930/34
2011_09_26 0106: 15 35-219/8
2011_09_26 0117: 0-494/26 546-650/26
2011_09_28 0002: 0-12/3 18-24/3 30-39/3 45-63/3 72 78-90/3
2011_09_29 0071: 0-612/36 735-807/36 879-951/36 1054
2011_09_30 0016: 0-88/11 110-275/11
2011_09_30 0018: 0-214/107 428-2247/107 2419-2740/107
2011_09_30 0027: 0-656/41 753-958/41 1040 1081
2011_10_03 0027: 0-543/181 734-2001/181 2363-4535/181
2011_10_03 0047: 0-224/32 288-800/32
"""
_RUN = re.compile(r"(\d+)(?:-(\d+)/(\d+))?$")
_DRIVE = re.compile(r"(\d{4}_\d\d_\d\d)_drive_(\d{4})(?:_sync|_extract)?$")


Finder = Callable[[Path], list[EvaluationSet]]
# Protocols by name on the command line, with what each looks for, and how.
PROTOCOL_SETS: dict[str, tuple[str, Finder]] = {}


def _protocol(name: str, looks_for: str) -> Callable[[Finder], Finder]:
    """Decorator of the function that finds the sets of a protocol below a folder."""

    def keep(finder: Finder) -> Finder:
        PROTOCOL_SETS[name] = looks_for, finder
        return finder

    return keep


class EvaluationError(Exception):
    """An evaluation cannot be carried out; the message says what is missing."""


def choose_sets(
    data: Path, protocol: str | None, read_as: Mapping[str, Any] | None = None
) -> list[EvaluationSet]:
    """The sets that a protocol (of PROTOCOL_SETS) means below `data`.

    eigen and eigen_improved: the listed test frames of every drive; drive: all frames with depth of
    the recording `data`, or of every Eigen test drive below it. None: kitti2015, and drive, as far
    as they are there. read_as: options of `open_recording`, for the one recording of drive.

    Raises:
        EvaluationError: none is there, or the protocol is unknown.
    """
    if protocol is not None and protocol not in PROTOCOL_SETS:
        known = ", ".join(PROTOCOL_SETS)
        raise EvaluationError(f"unknown protocol '{protocol}': one of {known}")
    if protocol is None:
        looks_for = "kitti_2015 or KITTI raw drives of the Eigen test list with depth"
        found = _scenes(data) + eigen_drive_sets(data, listed_only=False)
    elif protocol == "drive" and read_as:
        looks_for, found = PROTOCOL_SETS[protocol][0], [drive_set(data, read_as)]
    else:
        looks_for, finder = PROTOCOL_SETS[protocol]
        found = finder(data)
    sets = [chosen for chosen in found if chosen.positions]
    if not sets:
        raise EvaluationError(f"{data}: nothing to evaluate there; looked for {looks_for}")
    return sets


@_protocol("kitti2015", "kitti_2015/training with image_2 and disp_occ_0")
def _scenes(data: Path) -> list[EvaluationSet]:
    found = kitti_2015_set(data)
    return [found] if found else []


@_protocol("drive", "a recording with depth")
def _drives(data: Path) -> list[EvaluationSet]:
    if any(folder != data for folder in find_drives(data)):
        return eigen_drive_sets(data, listed_only=False)
    return [drive_set(data)]


def _data_set(data: Path, name: str) -> list[EvaluationSet]:
    """The data set whose format and protocol are called so: `data` or its subfolder `name`."""
    for folder in (data, data / name):
        if folder.is_dir() and FORMATS[name].fits(folder):
            recording = open_recording(folder)
            positions = frames_with_depth(recording)
            return [
                EvaluationSet(recording.name, PROTOCOLS[name], recording, positions, listed=True)
            ]
    return []


for _name in sorted({*FORMATS} & {*PROTOCOLS}):
    _looks_for = f"{FORMATS[_name].title}, in it or in {_name}"
    PROTOCOL_SETS[_name] = _looks_for, partial(_data_set, name=_name)


def eigen_test_frames() -> dict[tuple[str, str], tuple[int, ...]]:
    """Frame numbers of the Eigen test split by (date, drive number)."""
    table = {}
    for line in _EIGEN_TEST_RUNS.strip().splitlines():
        drive, runs = line.split(": ")
        date, number = drive.split()
        frames = [frame for run in runs.split() for frame in _frames_of_run(run)]
        table[date, number] = tuple(frames)
    return table


def _frames_of_run(run: str) -> range:
    match = _RUN.match(run)
    assert match, run
    first = int(match[1])
    if match[2] is None:
        return range(first, first + 1)
    return range(first, int(match[2]) + 1, int(match[3]))


def data_folder(data: str | Path | None) -> Path:
    """The folder given, or the one of the environment variable DEPTH_PRIOR_DATA.

    Raises:
        EvaluationError: when neither names a folder (or, for one recording, a file).
    """
    chosen = data or os.environ.get(DATA_VARIABLE)
    if not chosen:
        raise EvaluationError(
            f"no data given: use --data DIR or set {DATA_VARIABLE} to the folder that holds "
            "kitti_2015 and kitti_raw"
        )
    path = recording_path(chosen)
    if not path.exists():
        raise EvaluationError(f"{path.absolute()}: no such folder (from --data or {DATA_VARIABLE})")
    return path


def drive_key(folder: Path) -> tuple[str, str] | None:
    """(date, drive number) of a folder named as KITTI names its drives, otherwise None."""
    match = _DRIVE.match(folder.name)
    return (match[1], match[2]) if match else None


def find_drives(data: Path) -> Iterator[Path]:
    """KITTI raw drives: `data` itself, or below it at most three folders deep, sorted."""
    if drive_key(data):
        yield data
        return
    found = {
        path
        for depth in range(1, 4)
        for path in data.glob("/".join("*" * depth))
        if path.is_dir() and drive_key(path) and path.parent.name not in DEPTH_SPLITS
    }
    yield from sorted(found)


def frames_with_depth(recording: StoredRecording) -> tuple[int, ...]:
    """Positions of the frames that have depth."""
    return tuple(i for i, frame in enumerate(recording.frames) if frame.has_depth)


def kitti_2015_set(data: Path) -> EvaluationSet | None:
    """The scenes of KITTI 2015, `data` itself or its subfolder kitti_2015; None where none are."""
    for folder in (data, data / "kitti_2015"):
        if FORMATS["kitti_2015"].fits(folder):
            recording, protocol = open_recording(folder), PROTOCOLS["kitti2015"]
            positions = frames_with_depth(recording)
            return EvaluationSet("kitti_2015", protocol, recording, positions)
    return None


def drive_set(path: Path, read_as: Mapping[str, Any] | None = None) -> EvaluationSet:
    """Every frame with depth of one recording (a drive, a bag, a data set), as a sequence.

    Depth from LiDAR is evaluated with Garg's crop up to 80 m, from stereo and exact depth
    everywhere up to 80 m. read_as: options of `open_recording`.
    """
    recording = open_recording(path, **(read_as or {}))
    protocol = protocol_for(recording) or PROTOCOLS["eigen"]
    return EvaluationSet(recording.name, protocol, recording, frames_with_depth(recording))


def eigen_drive_sets(
    data: Path, *, listed_only: bool, improved: bool = False
) -> list[EvaluationSet]:
    """The Eigen test drives below `data` that have depth (image_02).

    `listed_only` keeps the frames of the Eigen list; otherwise all frames with depth are evaluated.
    `improved` takes the accumulated LiDAR of KITTI's depth benchmark instead of single sweeps.
    """
    listed = eigen_test_frames()
    protocol = "eigen_improved" if improved else "eigen"
    kind = "groundtruth" if improved else "velodyne_raw" if listed_only else None
    sets = []
    for folder in find_drives(data):
        key = drive_key(folder)
        if key not in listed or not (folder / "image_02").is_dir():
            continue
        recording = open_recording(folder, camera="image_02", depth=kind)
        positions = frames_with_depth(recording)
        notes: tuple[str, ...] = ()
        if listed_only:
            wanted = set(listed[key])
            positions = tuple(i for i in positions if recording.frames[i].index in wanted)
            notes = (f"{len(positions)} of the {len(wanted)} listed frames are there with depth",)
        if positions:
            sets.append(
                EvaluationSet(
                    recording.name, PROTOCOLS[protocol], recording, positions, notes, listed_only
                )
            )
    return sets


_protocol("eigen", "KITTI raw drives of the Eigen test list with proj_depth/velodyne_raw")(
    partial(eigen_drive_sets, listed_only=True)
)
_protocol("eigen_improved", "KITTI raw drives of the Eigen test list with proj_depth/groundtruth")(
    partial(eigen_drive_sets, listed_only=True, improved=True)
)


def lidar_training_set(data: Path) -> EvaluationSet | None:
    """The frames of drive 0039 with LiDAR: what the image-independent maps are fitted on."""
    for folder in find_drives(data):
        if drive_key(folder) == ("2011_09_26", "0039"):
            recording = open_recording(folder)
            positions = frames_with_depth(recording)
            if positions:
                return EvaluationSet("0039_lidar", PROTOCOLS["eigen"], recording, positions)
    return None
