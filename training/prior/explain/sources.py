"""Pictures: of the recordings that a prior came from, found again, and for a student to look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from depth_prior_ros.bundle import Bundle, Manifest
from depth_prior_ros.pipeline.framing import fit_region
from depth_prior_ros.recording_options import recording_options
from depth_prior_ros.recordings import (
    CorruptFrameError,
    RecordingError,
    StoredRecording,
    is_bag,
    open_recording,
)
from depth_prior_ros.recordings.folder import is_image_folder
from depth_prior_ros.recordings.image_files import IMAGE_SUFFIXES, read_image
from depth_prior_ros.share import home_path
from training.data.drives import drive_path, open_drive
from training.data.frames import Window
from training.evaluation.sets import (
    DATA_VARIABLE,
    data_folder,
    drive_key,
    eigen_drive_sets,
    kitti_2015_set,
)
from training.prior.explain.lookup import ExplainError
from training.recipes.base import RecipeError
from training.recipes.data import Drive

Crop = tuple[float, float, float, float]
Picture = NDArray[np.uint8]
Load = Callable[[], Picture]

# Folders that hold a recording's files, not recordings.
_INSIDE = {"data", "oxts", "proj_depth", "velodyne_points", "calib", "poses"}
_LEVELS = 4
_NO_CROP: Crop = (0.0, 0.0, 0.0, 0.0)
_KEPT_PICTURES = 64
_CROP_SHARE = 0.34  # of the image's height, for the surroundings of a reference
_CROP_LEAST = 48


@dataclass(frozen=True)
class Source:
    """A reference pixel in the image that it was taken from.

    Attributes:
        label: recording and frame.
        image: the recorded image (H, W, 3) uint8 RGB; None where it cannot be shown.
        place: (x, y) in pixels of that image.
        why: why there is no image.
    """

    label: str
    image: NDArray[np.uint8] | None
    place: tuple[float, float] = (0.0, 0.0)
    why: str = ""


@dataclass(frozen=True)
class Origins:
    """Where each reference was in its image.

    Attributes:
        image: (N,) int, into `images`.
        x: (N,) place of the reference in the teacher's picture, share of its width; None where
            the size of the teacher's map is not known.
        y: (N,) the same, of its height.
        images: recording ("drive") and position of the frame ("frame") of every image.
        map_size: (width, height) of the teacher's map; None where it is not known.
    """

    image: NDArray[np.int64]
    x: NDArray[np.float64] | None
    y: NDArray[np.float64] | None
    images: Sequence[Mapping[str, Any]]
    map_size: tuple[int, int] | None

    @property
    def drives(self) -> NDArray[np.str_]:
        """The recording's name of every reference, (N,)."""
        names = np.array([drive_name(entry) for entry in self.images])
        return np.asarray(names[self.image])


def data_root(data: Path | None) -> Path | None:
    """The data folder, or None where none was named; one that is named has to be there."""
    return data_folder(data) if data or os.environ.get(DATA_VARIABLE) else None


def drive_name(entry: Mapping[str, Any]) -> str:
    """The recording of a source image without its folders."""
    text = str(entry.get("drive", "?"))
    return Path(text).stem if is_bag(text) else Path(text).name or text


def read_origins(bundle: Bundle) -> Origins | None:
    """The sources that a bundle recorded; None where it recorded none."""
    sources = bundle.prior_sources() if bundle.has("prior") else None
    if sources is None:
        return None
    image = np.asarray(sources.image, dtype=np.int64)
    pixel = np.asarray(sources.pixel, dtype=np.int64)
    size = _map_size(bundle.manifest)
    if size is None:
        return Origins(image, None, None, sources.images, None)
    x, y = (pixel % size[0] + 0.5) / size[0], (pixel // size[0] + 0.5) / size[1]
    return Origins(image, x, y, sources.images, size)


def _map_size(manifest: Manifest) -> tuple[int, int] | None:
    """(width, height) of the teacher's feature map."""
    teacher = manifest.prior.teacher if manifest.prior is not None else None
    if teacher is None:
        return None
    width, height = teacher.size
    return width // teacher.stride, height // teacher.stride


class SourcePictures:
    """Finds the recordings of a prior below a data folder and reads frames of them.

    A recording is looked for at its path, where the bundle's recipe has it, where `depth_train
    adapt` read it, among recordings named beside, and by name below the folder. What is missing is
    told in the `Source`; it is no error.

    Args:
        bundle: whose prior.
        origins: of that prior; None: every source says that none was recorded.
        root: the data folder; None: only absolute paths are found.
        beside: recordings that may be among those of the prior.
    """

    def __init__(
        self,
        bundle: Bundle,
        origins: Origins | None,
        root: Path | None,
        beside: Sequence[Path] = (),
    ) -> None:
        self.origins = origins
        self._root = root
        self._manifest = bundle.manifest
        self._recipe = list(_recipe_drives(bundle.manifest))
        beside = [*_adapted_from(bundle.manifest), *beside]
        self._beside = {name: path for path in beside for name in _names(path)}
        self._opened: dict[str, StoredRecording | str] = {}
        self._below: dict[str, Path] | None = None
        self._picture = lru_cache(maxsize=_KEPT_PICTURES)(self._read)

    def __getitem__(self, reference: int) -> Source:
        """The source of a reference."""
        if self.origins is None:
            return Source("source not recorded", None, why="this prior has no sources")
        number = int(self.origins.image[reference])
        entry = self.origins.images[number]
        label = f"{short(drive_name(entry))} · {entry.get('frame', '?')}"
        found = self._picture(number)
        if isinstance(found, str):
            return Source(label, None, why=found)
        if self.origins.x is None or self.origins.y is None:
            return Source(label, None, why="the size of the teacher's map is not recorded")
        x, y, width, height = self._window(entry, found.shape[1], found.shape[0])
        u, v = float(self.origins.x[reference]), float(self.origins.y[reference])
        return Source(label, found, (x + u * width, y + v * height))

    def missing(self) -> dict[str, str]:
        """Recordings that could not be opened so far, and why."""
        return {name: why for name, why in self._opened.items() if isinstance(why, str)}

    def _read(self, number: int) -> NDArray[np.uint8] | str:
        """The image of an entry, or why there is none."""
        assert self.origins is not None
        entry = self.origins.images[number]
        recording = self._open(str(entry.get("drive", "?")))
        if isinstance(recording, str):
            return recording
        try:
            position = int(entry["frame"])
            if not 0 <= position < len(recording.frames):
                raise IndexError
            return recording.frames[position].image()
        except (KeyError, TypeError, ValueError, IndexError):
            return f"no frame {entry.get('frame', '?')} in the recording"
        except (RecordingError, OSError) as error:
            return f"frame cannot be read: {error}"

    def _open(self, drive: str) -> StoredRecording | str:
        if drive not in self._opened:
            self._opened[drive] = self._try(drive)
        return self._opened[drive]

    def _try(self, drive: str) -> StoredRecording | str:
        known = self._named(drive)
        found = next((path for path in self._candidates(drive, known) if path.exists()), None)
        if found is None:
            where = f"below {self._root}" if self._root else "(no data folder was given)"
            return f"recording not found {where}"
        try:
            if known is None:
                return open_recording(found)
            here = known.model_copy(update={"path": str(found.resolve())})
            return open_drive(Path(), here)
        except (RecordingError, RecipeError, OSError) as error:
            return f"recording cannot be opened: {error}"

    def _candidates(self, drive: str, known: Drive | None) -> Iterator[Path]:
        """Where a recording may lie: as the recipe has it, as it is named, anywhere below."""
        if known is not None:
            yield drive_path(self._root or Path(), known.path)
        path = home_path(drive)
        if self._root is not None or path.is_absolute():
            yield (self._root or Path()) / path
        if drive_name({"drive": drive}) in self._beside:
            yield self._beside[drive_name({"drive": drive})]
        if self._root is not None:
            if self._below is None:
                self._below = dict(_recordings_below(self._root))
            named = self._below.get(drive_name({"drive": drive}))
            if named is not None:
                yield named

    def _named(self, drive: str) -> Drive | None:
        """The recipe's entry of a recording, which says how to open and to crop it."""
        name = drive_name({"drive": drive})
        fits = (d for d in self._recipe if any(fnmatch(name, n) for n in _names(Path(d.path))))
        return next(fits, None)

    def _window(
        self, entry: Mapping[str, Any], width: int, height: int
    ) -> tuple[int, int, int, int]:
        """(x, y, width, height) of what the teacher saw of a recorded image.

        Training crops as the recipe says and stretches the rest; a recording that a prior was
        adapted to is framed as at inference.
        """
        name = drive_name(entry)
        known = self._named(name)
        if self._trained_on(name) and not self._adapted_to(name):
            return Window((1, 1), known.crop if known else _NO_CROP).box(width, height)
        spec = self._manifest.prior
        size = spec.teacher.size if spec and spec.teacher else self._manifest.input_size
        region = fit_region(width, height, size[0] / size[1])
        return region.x, region.y, region.width, region.height

    def _trained_on(self, name: str) -> bool:
        data = self._manifest.provenance.recipe.get("data")
        all_of_kitti = isinstance(data, dict) and data.get("kitti_raw") is not None
        return self._named(name) is not None or (all_of_kitti and drive_key(Path(name)) is not None)

    def _adapted_to(self, name: str) -> bool:
        about = (self._manifest.prior and self._manifest.prior.selection) or {}
        settings = about.get("adapt")
        return isinstance(settings, dict) and settings.get("recording") == name


def short(name: str) -> str:
    """A recording's name as it fits under a small picture."""
    parts = name.split("_drive_")
    if len(parts) == 2 and parts[1].removesuffix("_sync").isdigit():
        return parts[1].removesuffix("_sync")
    return name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}"


def _names(path: Path) -> list[str]:
    """What a recording at a path is called: see the readers in `recordings`."""
    if is_bag(path):
        return [path.stem, path.name]
    return [path.name, f"odometry_{path.name}"]


def _adapted_from(manifest: Manifest) -> Iterator[Path]:
    """The recording that the prior was adapted to, as its path was given to `depth_train adapt`."""
    figures = manifest.metrics.get("adapt")
    recording = figures.get("recording") if isinstance(figures, Mapping) else None
    if isinstance(recording, Mapping) and isinstance(recording.get("path"), str):
        yield Path(recording["path"])


def _recipe_drives(manifest: Manifest) -> Iterator[Drive]:
    """The drives that the bundle's recipe names, as far as this version understands them."""
    data = manifest.provenance.recipe.get("data")
    drives = data.get("drives") if isinstance(data, dict) else None
    for drive in drives if isinstance(drives, list) else ():
        with suppress(ValidationError):
            yield Drive.model_validate(drive)


def _recordings_below(root: Path) -> Iterator[tuple[str, Path]]:
    """Everything below a folder that could be a recording, by name; the nearest comes last."""
    found = []
    # Data sets are often linked into one folder; _LEVELS ends a circle of links.
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        level = len(here.relative_to(root).parts)
        inside = level >= _LEVELS or here.name.startswith("image_")
        folders[:] = [] if inside else sorted(f for f in folders if f not in _INSIDE)
        if level:
            found.append((level, here))
        found += [(level + 1, here / name) for name in files if is_bag(name)]
    for _, path in sorted(found, key=lambda entry: (-entry[0], entry[1])):
        for name in _names(path):
            yield name, path


def crop_around(
    image: NDArray[np.uint8], place: tuple[float, float], aspect: float
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """A window of width / height ``aspect`` around a place, inside the image, and the place in it.

    Returns:
        The window (h, w, 3), and (x, y) as shares of it.
    """
    height, width = image.shape[:2]
    tall = min(height, max(_CROP_LEAST, round(_CROP_SHARE * height)))
    wide = min(width, max(1, round(tall * aspect)))
    tall = min(tall, max(1, round(wide / aspect)))
    left = int(np.clip(round(place[0] - wide / 2), 0, width - wide))
    top = int(np.clip(round(place[1] - tall / 2), 0, height - tall))
    window = image[top : top + tall, left : left + wide]
    return window, ((place[0] - left) / wide, (place[1] - top) / tall)


# -- images to look at -----------------------------------------------------------------------------


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


def one_image(path: Path, frame: int | None = None, reading: Any = None) -> tuple[str, Picture]:
    """The name and pixels (H, W, 3) of an image file, or of a frame of a recording.

    Args:
        path: a JPEG or PNG, or a recording.
        frame: position in the recording; default: its middle.
        reading: how a recording is read, see `recording_options`; default: as it is found.

    Raises:
        ExplainError: it is not there or cannot be read, or has no such frame.
    """
    try:
        if path.suffix.lower() in IMAGE_SUFFIXES or (path.is_file() and not is_bag(path)):
            if frame is not None:
                raise ExplainError(f"{path} is an image: it has no frame {frame}")
            return path.name, read_image(path)
        readers = _readers(path, reading)
        place = len(readers) // 2 if frame is None else frame
        if not 0 <= place < len(readers):
            raise ExplainError(f"{path} has no frame {frame}: 0 to {len(readers) - 1}")
        name, load = readers[place]
        return name, load()
    except RecordingError as error:
        raise ExplainError(str(error)) from error


def example_images(
    paths: Sequence[Path], data: Path | None, count: int, reading: Any = None
) -> ExampleImages:
    """Images to measure a prior's use on.

    Args:
        paths: image files, folders of images, recordings; without any, the evaluation sets below
            ``data`` (KITTI 2015, Eigen test drives), or ``data`` where that is a recording.
        data: the data folder; None: there is none.
        count: how many, evenly spread.
        reading: how recordings among the paths are read, see `recording_options`.

    Raises:
        ExplainError: a path that holds no images.
    """
    if count < 1:
        raise ExplainError(f"{count} images: at least one is needed")
    try:
        if paths:
            readers = [entry for path in paths for entry in _readers(path, reading)]
            origin = ", ".join(path.name for path in paths)
        else:
            readers, origin = _below(data)
    except RecordingError as error:
        raise ExplainError(str(error)) from error
    if not readers:
        return ExampleImages([])
    places = np.unique(np.linspace(0, len(readers) - 1, count).round().astype(int))
    return ExampleImages([readers[place] for place in places], origin=origin)


def _readers(path: Path, reading: Any = None) -> list[tuple[str, Load]]:
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return [(path.name, partial(read_image, path))]
    if is_image_folder(path) and not is_bag(path):  # needs no intrinsics here
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        return [(file.name, partial(read_image, file)) for file in files]
    options = {} if reading is None else recording_options(path, reading)
    recording = open_recording(path, **options)
    return [(f"{recording.name} · {i}", f.image) for i, f in enumerate(recording.frames)]


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
        for place in one.positions
    ]
    return readers, ", ".join(one.name for one in sets)
