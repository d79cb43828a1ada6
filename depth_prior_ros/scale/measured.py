"""A scale from what the node's parameters and the bundle say.

Factors that are measured while the vehicle drives.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from depth_prior_ros.scale.filter import FactorFilter, FilterSettings
from depth_prior_ros.scale.road import NoRoadError, RoadSettings, fit_road
from depth_prior_ros.scale.state import (
    SCALE_MODES,
    FixedScale,
    NoScale,
    Scale,
    ScaleMode,
    ScaleSight,
    ScaleState,
    ScaleStatus,
)

_MIN_STEP = 0.1  # metres between two frames; shorter ones are mostly noise
_LEVER = 2.0  # metres between odometry's reference point and a camera
_MAX_SWING = 0.3  # of a step that may come from turning about that point: 5 % of its length


@dataclass(frozen=True)
class _Sample:
    factor: float
    weight: float = 1.0


class _NothingError(Exception):
    """A frame that measures nothing; the message says why."""


class MeasuredScale:
    """What both measured modes share: the filter, the states, storing. Thread-safe."""

    mode: ClassVar[ScaleMode]
    needs_depth: ClassVar[bool] = False
    needs_travel: ClassVar[bool] = False

    def __init__(self, start: FixedScale, settings: FilterSettings | None = None) -> None:
        """`start`: the factor to begin with and its source."""
        self._start = start
        self._filter = FactorFilter(start.metres_per_unit, settings or FilterSettings())
        self._lock = threading.Lock()
        self._first = start.source
        self._status = self._describe("nothing measured yet")

    @property
    def metres_per_unit(self) -> float:
        """The factor in use."""
        return self._status.metres_per_unit

    @property
    def source(self) -> str:
        """The status in words."""
        return self._status.text

    @property
    def status(self) -> ScaleStatus:
        """Mode, state, factor and spread of this moment."""
        return self._status

    def observe(self, sight: ScaleSight) -> None:
        """Learn from a frame; see `Scale.observe`."""
        with self._lock:
            if not sight.moving:
                self._status = self._describe("the vehicle stands", standing=True)
                return
            known = sight.seconds is not None and math.isfinite(sight.seconds)
            seconds = max(0.0, sight.seconds) if known and sight.seconds is not None else 0.0
            sample, why = None, ""
            try:
                sample = self._plausible(self._measure(sight))
            except _NothingError as error:
                why = str(error)
            if sample is None:
                self._filter.advance(seconds, None)
            else:
                self._filter.advance(seconds, sample.factor, sample.weight)
            self._status = self._describe(why)

    def reset(self) -> None:
        """Begin anew with the factor that was given at the start."""
        with self._lock:
            self._filter.reset()
            self._first = self._start.source
            self._status = self._describe("reset")

    def store(self) -> dict[str, Any]:
        """The factor as plain data."""
        status = self._status
        return {
            "mode": status.mode,
            "state": status.state,
            "metres_per_unit": status.metres_per_unit,
            "spread": status.spread,
            "samples": status.samples,
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a stored factor: as measured if it was, else as one to begin with.

        Raises ValueError for what `store` cannot have written, or a factor beyond the limit.
        """
        factor, spread = stored_factor(stored), stored.get("spread")
        with self._lock:
            if not self._filter.plausible(factor):
                raise ValueError(
                    f"the stored factor {factor:.4g} is more than "
                    f"{self._filter.settings.limit:g} times off the given one"
                )
            measured = stored.get("state") in ("measured", "held")
            self._filter.take_up(factor, spread if measured else None, measured)
            self._first = "stored"
            self._status = self._describe("stored in an earlier run")

    def _measure(self, sight: ScaleSight) -> _Sample:
        """The factor as this frame sees it. Raises _NothingError."""
        raise NotImplementedError

    def _plausible(self, sample: _Sample) -> _Sample:
        if not self._filter.plausible(sample.factor):
            raise _NothingError(f"implausible: {sample.factor:.3g} m per unit")
        return sample

    def _describe(self, why: str, standing: bool = False) -> ScaleStatus:
        state: ScaleState = "searching"
        if self._filter.arrived:
            state = "measured" if self._filter.enough and not standing else "held"
        factor, spread, samples = self._filter.factor, self._filter.spread, self._filter.samples
        words = f"{factor:.4g} m per unit, {state} by {self.mode}"
        if not self._filter.arrived:
            words += f", begun with {self._first}"
        if spread is not None:
            words += f", spread {spread:.1%}, {samples} samples"
        if why:
            words += f" ({why})"
        return ScaleStatus(self.mode, state, factor, spread, samples, words)


class CameraHeightScale(MeasuredScale):
    """The road plane lies a known height below the camera."""

    mode: ClassVar[ScaleMode] = "camera_height"
    needs_depth: ClassVar[bool] = True

    def __init__(
        self,
        start: FixedScale,
        camera_height: float | None,
        settings: FilterSettings | None = None,
        road: RoadSettings | None = None,
    ) -> None:
        """`camera_height`: metres from the road to the camera's optical centre; None: not known
        until `mount` tells it.

        Raises ValueError for a height that is not finite and positive.
        """
        if camera_height is not None and not (math.isfinite(camera_height) and camera_height > 0):
            raise ValueError(f"camera_height must be finite and positive, got {camera_height}")
        self.camera_height = camera_height
        self._road = road or RoadSettings()
        super().__init__(start, settings)

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """How the camera is mounted from the next frame on; None: not known, nothing measured."""
        self.camera_height, self._road = camera_height, road

    def _measure(self, sight: ScaleSight) -> _Sample:
        height = self.camera_height
        if height is None:
            raise _NothingError("where the camera sits is not known")
        if sight.inverse_units is None:
            raise _NothingError("no depth of this frame")
        if sight.inverse_units.shape != (sight.camera.height, sight.camera.width):
            raise _NothingError("the depth is not of the camera's size")
        try:
            road = fit_road(sight.inverse_units, sight.camera, self._road)
        except NoRoadError as error:
            raise _NothingError(str(error)) from error
        return _Sample(height / road.height, road.share)


class OdometryScale(MeasuredScale):
    """The step between two frames as odometry measured it, over the same step as networks see it.

    Steps count by their length, as short ones are mostly noise; long ones like the usual one.
    """

    mode: ClassVar[ScaleMode] = "odometry"
    needs_travel: ClassVar[bool] = True

    def _measure(self, sight: ScaleSight) -> _Sample:
        metres, units = sight.metres_travelled, sight.units_travelled
        if metres is None or not math.isfinite(metres):
            raise _NothingError("no odometry")
        if units is None or not math.isfinite(units) or units <= 0:
            raise _NothingError("the networks saw no motion")
        metres = abs(metres)
        if metres < _MIN_STEP:
            raise _NothingError(f"steps below {_MIN_STEP} m are too short")
        turned = sight.radians_turned
        if turned is not None and abs(turned) * _LEVER > _MAX_SWING * metres:
            raise _NothingError("the vehicle turns on the spot")
        return _Sample(metres / units, metres)


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


def make_scale(
    mode: str,
    *,
    fixed: float,
    source: str,
    camera_height: float | None = None,
    settings: FilterSettings | None = None,
    road: RoadSettings | None = None,
    mounted_later: bool = False,
) -> Scale:
    """The scale of a mode.

    mode: one of SCALE_MODES. fixed, source: the factor to use (mode `fixed`) or to begin with, and
    where it is from. camera_height: metres, for mode `camera_height`; it may be left out where it
    is told later (`CameraHeightScale.mount`).

    Raises ValueError for an unknown mode, a missing camera height, and values out of range.
    """
    start = FixedScale(fixed, source)
    if mode == "fixed":
        return start
    if mode == "none":
        return NoScale(fixed, source)
    if mode == "odometry":
        return OdometryScale(start, settings)
    if mode == "camera_height":
        if camera_height is None and not mounted_later:
            raise ValueError("scale mode camera_height needs the camera's height in metres")
        return CameraHeightScale(start, camera_height, settings, road)
    raise ValueError(f"scale mode must be one of {', '.join(SCALE_MODES)}, got {mode!r}")
