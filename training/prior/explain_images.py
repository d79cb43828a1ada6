"""Images for a student to look at: one to explain, or some to see what of a prior is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.recordings import CorruptFrameError, RecordingError, is_bag, open_recording
from depth_prior_ros.recordings.folder import is_image_folder
from depth_prior_ros.recordings.image_files import IMAGE_SUFFIXES, read_image
from training.evaluation.sets import eigen_drive_sets, kitti_2015_set
from training.prior.explain_lookup import ExplainError

Picture = NDArray[np.uint8]
Load = Callable[[], Picture]


@dataclass
class ExampleImages:
    """Images spread evenly over what was found; those that cannot be read are left out.

    Attributes:
        found: name and reader of each.
        left_out: what could not be read, and why; filled while iterating.
        origin: in words, where they are from.
    """

    found: list[tuple[str, Load]]
    left_out: list[str] = field(default_factory=list)
    origin: str = ""

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[tuple[str, Picture]]:
        for name, load in self.found:
            try:
                yield name, load()
            except CorruptFrameError as error:
                self.left_out.append(f"{name}: {error}")


def one_image(path: Path, frame: int | None = None) -> tuple[str, Picture]:
    """The name and pixels (H, W, 3) of an image file, or of a frame of a recording.

    Args:
        path: a JPEG or PNG, or a recording.
        frame: position in the recording; default: its middle.

    Raises:
        ExplainError: it is not there or cannot be read, or has no such frame.
    """
    try:
        if path.suffix.lower() in IMAGE_SUFFIXES or (path.is_file() and not is_bag(path)):
            if frame is not None:
                raise ExplainError(f"{path} is an image: it has no frame {frame}")
            return path.name, read_image(path)
        readers = _readers(path)
        place = len(readers) // 2 if frame is None else frame
        if not 0 <= place < len(readers):
            raise ExplainError(f"{path} has no frame {frame}: 0 to {len(readers) - 1}")
        name, load = readers[place]
        return name, load()
    except RecordingError as error:
        raise ExplainError(str(error)) from error


def example_images(paths: Sequence[Path], data: Path | None, count: int) -> ExampleImages:
    """Images to measure a prior's use on.

    Args:
        paths: image files, folders of images, recordings; without any, the evaluation sets below
            ``data`` (KITTI 2015, Eigen test drives), or ``data`` where that is a recording.
        data: the data folder; None: there is none.
        count: how many, evenly spread.

    Raises:
        ExplainError: a path that holds no images.
    """
    if count < 1:
        raise ExplainError(f"{count} images: at least one is needed")
    try:
        if paths:
            readers = [entry for path in paths for entry in _readers(path)]
            origin = ", ".join(path.name for path in paths)
        else:
            readers, origin = _below(data)
    except RecordingError as error:
        raise ExplainError(str(error)) from error
    if not readers:
        return ExampleImages([])
    places = np.unique(np.linspace(0, len(readers) - 1, count).round().astype(int))
    return ExampleImages([readers[place] for place in places], origin=origin)


def _readers(path: Path) -> list[tuple[str, Load]]:
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return [(path.name, lambda: read_image(path))]
    if is_image_folder(path) and not is_bag(path):  # needs no intrinsics here
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        return [(file.name, _reader(file)) for file in files]
    recording = open_recording(path)
    return [(f"{recording.name} · {i}", f.image) for i, f in enumerate(recording.frames)]


def _reader(file: Path) -> Load:
    return lambda: read_image(file)


def _below(data: Path | None) -> tuple[list[tuple[str, Load]], str]:
    """Frames of the evaluation sets below a folder, or of the recording that it is."""
    if data is None:
        return [], ""
    kitti = kitti_2015_set(data)
    sets = ([kitti] if kitti else []) + eigen_drive_sets(data, listed_only=False)
    if not sets:
        try:
            return _readers(data), data.name
        except RecordingError:
            return [], ""
    readers = [
        (f"{one.name} · {place}", one.recording.frames[place].image)
        for one in sets
        for place in one.judged
    ]
    return readers, ", ".join(one.name for one in sets)
