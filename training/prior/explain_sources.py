"""Where references come from: the recordings of a prior, found again, and their pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from depth_prior_ros.bundle import Bundle, Manifest
from depth_prior_ros.pipeline.framing import fit_region
from depth_prior_ros.recordings import RecordingError, StoredRecording, is_bag, open_recording
from training.data.drives import drive_path, open_drive
from training.data.frames import Window
from training.evaluation.sets import drive_key
from training.recipes.base import RecipeError
from training.recipes.data import Drive

Crop = tuple[float, float, float, float]

# Folders that hold a recording's files, not recordings.
_INSIDE = {"data", "oxts", "proj_depth", "velodyne_points", "calib", "poses"}
_LEVELS = 4
_NO_CROP: Crop = (0.0, 0.0, 0.0, 0.0)
_KEPT_PICTURES = 64


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
    return width // teacher.tap, height // teacher.tap


class SourcePictures:
    """Finds the recordings of a prior below a data folder and reads frames of them.

    A recording is looked for at its path, where the bundle's recipe has it, among recordings named
    beside, and by name below the folder. What is missing is told in the `Source`; it is no error.

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
        path = Path(drive).expanduser()
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
