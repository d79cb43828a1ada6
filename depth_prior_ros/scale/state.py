"""What a scale is told about a frame and says about itself; factors that nobody measures; files.

A measured factor may be kept on disk, so that the next run need not search for it. The file belongs
to one bundle and one camera: another network has other units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.atomic_files import remove_leftovers, write_text
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.scale.road import RoadSettings
from depth_prior_ros.share import home_path

ScaleMode = Literal["auto", "fixed", "camera_height", "odometry", "none"]
ScaleState = Literal["fixed", "searching", "measured", "held", "none"]

SCALE_MODES: tuple[ScaleMode, ...] = ("auto", "fixed", "camera_height", "odometry", "none")


@dataclass(frozen=True)
class ScaleSight:
    """What one frame tells about the factor from network units to metres.

    stamp_ns: of the frame.
    inverse_units: (h, w) float32 inverse depth of the frame in 1/units at the network's input size,
        corrected for the camera's focal length (see `focal_ratio`), without any metric factor; not
        finite or not positive where unknown. None where `Scale.needs_depth` is false.
    camera: of `inverse_units`.
    moving: whether the vehicle moves; while it stands nothing is measured.
    units_travelled: length of the camera's translation since the previous frame as the networks see
        it, in units, focal-corrected as the depth is. None where it was not estimated.
    metres_travelled: the same step as odometry measured it.
    seconds: since the previous frame; None where there is none, or its stamp is not an earlier one.
    radians_turned: how far the vehicle turned in the step, of either sign, where known.
    picture: (h, w, 3) uint8 RGB, of `camera`.
    looked: whether anybody tried to measure; not so for frames between two measurements.
    """

    stamp_ns: int
    inverse_units: NDArray[np.floating] | None
    camera: Camera
    moving: bool
    units_travelled: float | None = None
    metres_travelled: float | None = None
    seconds: float | None = None
    radians_turned: float | None = None
    picture: NDArray[np.uint8] | None = None
    looked: bool = True


@dataclass(frozen=True)
class ScaleStatus:
    """What is known about the factor.

    mode: how it is found. state: `fixed` (given), `searching` (measurements are too few, or the
    published factor is still on its way to them), `measured` (it follows them), `held` (measured
    before, nothing new to measure: the vehicle stands, or sees no road), `none` (nobody knows it).
    metres_per_unit: the factor in use.
    spread: how far single measurements lie apart, as a relative standard deviation (robust);
    None where nothing was measured.
    samples: measurements that the factor rests on.
    text: the same in words, with the reason while nothing can be measured.
    shift: what is added to inverse depth first, in 1/units; not zero for affine-invariant depth
    only.
    """

    mode: ScaleMode
    state: ScaleState
    metres_per_unit: float
    spread: float | None
    samples: int
    text: str
    shift: float = 0.0

    @property
    def relative(self) -> bool:
        """Whether nobody knows the factor, so that depth is no metres."""
        return self.state == "none"

    @property
    def unsure(self) -> bool:
        """Whether depth is not, or not yet, to be taken for metres."""
        return self.relative or self.state == "searching"

    @property
    def preliminary(self) -> bool:
        """Whether the factor is only where a search for it begins."""
        return self.state == "searching" or (self.mode == "auto" and self.state == "fixed")

    def stored(self) -> dict[str, Any]:
        """The factor as plain data: what `Scale.store` gives."""
        names = ("mode", "state", "metres_per_unit", "spread", "samples")
        return {name: getattr(self, name) for name in names}

    def values(self) -> dict[str, str]:
        """Keys and values as messages carry them."""
        return {
            "mode": self.mode,
            "state": self.state,
            "unit": "relative" if self.relative else "metres",
            "metres_per_unit": f"{self.metres_per_unit:.6g}",
            "spread": "" if self.spread is None else f"{self.spread:.4g}",
            "samples": str(self.samples),
        }


class Scale(Protocol):
    """Where the pipeline gets the metric factor from. May be asked from any thread."""

    @property
    def metres_per_unit(self) -> float:
        """Metres per network unit, for the training camera's focal length."""

    @property
    def source(self) -> str:
        """In words, where the factor comes from."""

    @property
    def status(self) -> ScaleStatus:
        """Mode, state, factor and spread of this moment."""

    @property
    def needs_depth(self) -> bool:
        """Whether `observe` reads `ScaleSight.inverse_units`."""

    @property
    def needs_travel(self) -> bool:
        """Whether `observe` reads `ScaleSight.units_travelled` and `metres_travelled`."""

    def observe(self, sight: ScaleSight) -> None:
        """Learn from a frame. Never raises for bad values: those are left out."""

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """How the camera is mounted from the next frame on; height (metres) None: not known.

        Of no use to a scale that does not rest on the road.
        """

    def reset(self) -> None:
        """Begin anew with the factor that was given at the start."""

    def store(self) -> dict[str, Any]:
        """The factor as plain data, for `restore` and `save_scale`."""

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a stored factor.

        Raises ValueError for what `store` cannot have written.
        """


@dataclass(frozen=True)
class FixedScale:
    """A factor that was fitted once, offline. ``shift``: see `ScaleStatus`.

    Raises ValueError for a factor that is not finite and positive.
    """

    metres_per_unit: float
    source: str = "given"
    shift: float = 0.0

    mode: ClassVar[ScaleMode] = "fixed"
    needs_depth: ClassVar[bool] = False
    needs_travel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.metres_per_unit) and self.metres_per_unit > 0):
            raise ValueError(
                f"metres_per_unit must be finite and positive, got {self.metres_per_unit}"
            )

    @property
    def status(self) -> ScaleStatus:
        """`fixed`, with the source as text."""
        text = f"{self.metres_per_unit:.4g} m per unit: {self.source}"
        return ScaleStatus("fixed", "fixed", self.metres_per_unit, None, 0, text)

    def observe(self, sight: ScaleSight) -> None:
        """Nothing to learn."""

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """Of no use."""

    def reset(self) -> None:
        """Nothing to forget."""

    def store(self) -> dict[str, Any]:
        """The factor as plain data."""
        return self.status.stored()

    def restore(self, stored: Mapping[str, Any]) -> None:
        """A given factor stays: nothing is taken up."""


class NoScale(FixedScale):
    """Nobody knows the metres: depth is relative, right up to one factor.

    The bundle's factor is applied all the same, so that range limits keep their meaning; whoever
    publishes the depth must not call it metres.
    """

    mode: ClassVar[ScaleMode] = "none"

    @property
    def status(self) -> ScaleStatus:
        """`none`."""
        text = "relative depth, right up to one unknown factor: not metres"
        if self.shift:
            text = "relative depth, right up to a factor and a shift of inverse depth: not metres"
        return ScaleStatus("none", "none", self.metres_per_unit, None, 0, text, self.shift)


def focal_ratio(fx: float, fy: float, trained_fx: float, trained_fy: float) -> float:
    """Factor for a camera whose focal length (pixels at the input size) is not the trained one.

    A network takes every image for one of the training camera. An object of a given size at
    depth z covers f/z pixels, so the depth it reads off is z * f_trained / f; the factor undoes
    that. The two axes differ only where the image was stretched: their geometric mean is taken.
    """
    return math.sqrt((fx / trained_fx) * (fy / trained_fy))


def stored_factor(stored: Mapping[str, Any]) -> float:
    """The factor in what `store` wrote. Raises ValueError where it cannot have been written so."""
    factor, spread = stored.get("metres_per_unit"), stored.get("spread")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        raise ValueError(f"metres_per_unit must be a number, got {factor!r}")
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"metres_per_unit must be finite and positive, got {factor}")
    if spread is not None:
        number = isinstance(spread, (int, float)) and not isinstance(spread, bool)
        if not (number and math.isfinite(spread) and spread >= 0):
            raise ValueError(f"spread must be a finite number or none, got {spread!r}")
    return float(factor)


_FORMAT = 1
_SAME_CAMERA = 0.02  # relative difference of focal lengths: calibrations of one camera


class ScaleFileError(Exception):
    """A scale file cannot be used; the message says why."""


def save_scale(
    path: str | Path, stored: Mapping[str, Any], *, bundle: str, camera: Camera | None
) -> None:
    """Write what `Scale.store` gave; a reader sees the old file or the new one, never a part.

    bundle: `Bundle.digest`. camera: of the images, None where it is not known.

    Raises OSError; ValueError for what `Scale.store` cannot have given.
    """
    from depth_prior_ros import strict_yaml

    stored_factor(stored)
    data = {
        "format": _FORMAT,
        **{
            key: stored.get(key)
            for key in ("mode", "state", "metres_per_unit", "spread", "samples")
        },
        **({"shift": stored["shift"]} if "shift" in stored else {}),
        "bundle": bundle,
        "camera": None if camera is None else _view(camera),
    }
    text = "# Metric factor of a depth bundle, measured by depth_node.\n"
    place = home_path(path)
    remove_leftovers(place.parent, place.name)
    write_text(place, text + strict_yaml.dump(data))


def load_scale(path: str | Path, *, bundle: str, camera: Camera | None) -> dict[str, Any]:
    """What `Scale.restore` takes, from a file of this bundle and camera.

    camera: None where it is not known yet: then it is not compared.

    Raises ScaleFileError; FileNotFoundError where there is no file, as before the first run.
    """
    from depth_prior_ros import strict_yaml

    try:
        path = home_path(path)
    except OSError as error:
        raise ScaleFileError(f"{path}: cannot be read: {strict_yaml.problem_of(error)}") from error
    data = strict_yaml.read_as(path, ScaleFileError)
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ScaleFileError(f"{path}: not a scale file of format {_FORMAT}")
    try:
        stored_factor(data)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ScaleFileError(f"{path}: {error}") from error
    if data.get("bundle") != bundle:
        raise ScaleFileError(f"{path}: measured with another bundle")
    if camera is not None and not _same_view(data.get("camera"), camera):
        raise ScaleFileError(f"{path}: measured with another camera")
    return data


def same_view(one: Camera, other: Camera) -> bool:
    """Whether a factor measured with one camera holds for the other: as far as calibrations of one
    camera differ, whatever the image's size."""
    return _same_view(_view(one), other)


def _view(camera: Camera) -> dict[str, float]:
    """What of a camera decides the factor: its field of view, whatever the image's size."""
    return {"fx_per_width": camera.fx / camera.width, "fy_per_height": camera.fy / camera.height}


def _same_view(known: Any, camera: Camera) -> bool:
    if known is None:
        return True
    try:
        return all(
            abs(float(known[key]) / value - 1) <= _SAME_CAMERA
            for key, value in _view(camera).items()
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return False
