"""Factors that are measured while the vehicle drives."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.scale.filter import FactorFilter, FilterSettings
from depth_prior_ros.scale.road import NoRoadError, RoadSettings, fit_road
from depth_prior_ros.scale.state import (
    FixedScale,
    ScaleMode,
    ScaleSight,
    ScaleState,
    ScaleStatus,
)

_MIN_STEP = 0.1  # metres between two frames; shorter ones are mostly noise
_LEVER = 2.0  # metres between odometry's reference point and a camera
_MAX_SWING = 0.3  # of a step that may come from turning about that point: 5 % of its length


@dataclass(frozen=True)
class Sample:
    """A measured factor, metres per unit, and how much it counts."""

    factor: float
    weight: float = 1.0


class NothingMeasuredError(Exception):
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
        self._why = "nothing measured yet"
        self._status = self._describe(self._why)

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
            self._see(sight)
            if not sight.moving:
                self._status = self._describe("the vehicle stands", standing=True)
                return
            known = sight.seconds is not None and math.isfinite(sight.seconds)
            seconds = max(0.0, sight.seconds) if known and sight.seconds is not None else 0.0
            sample = None
            if sight.looked:
                try:
                    sample = self._measure(sight)
                    if sample is not None:
                        self._why, sample = "", self._plausible(sample)
                except NothingMeasuredError as error:
                    self._why, sample = str(error), None
            self._advance(seconds, sample)
            self._status = self._describe(self._why)

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """See `Scale.mount`; of no use to most."""

    def reset(self) -> None:
        """Begin anew with the factor that was given at the start."""
        with self._lock:
            self._filter.reset()
            self._first = self._start.source
            self._status = self._describe("reset")

    def store(self) -> dict[str, Any]:
        """The factor as plain data."""
        return self._status.stored()

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

    def _see(self, sight: ScaleSight) -> None:
        """A frame has come, also of a vehicle that stands."""

    def snapshot(self) -> dict[str, Any]:
        """All that was measured, as plain data, to go on from exactly; see `resume`."""
        with self._lock:
            return {"filter": self._filter.snapshot(), "why": self._why}

    def resume(self, snapshot: Mapping[str, Any]) -> None:
        """Go on from the `snapshot` of a scale with the same settings."""
        with self._lock:
            self._filter.resume(snapshot["filter"])
            self._why = snapshot["why"]
            self._status = self._describe(self._why)

    def _measure(self, sight: ScaleSight) -> Sample | None:
        """The factor as this frame sees it; None: not this frame's turn. Raises
        NothingMeasuredError."""
        raise NotImplementedError

    def _advance(self, seconds: float, sample: Sample | None) -> None:
        """A frame later, of a vehicle that drives."""
        if sample is None:
            self._filter.advance(seconds, None)
        else:
            self._filter.advance(seconds, sample.factor, sample.weight)

    def _plausible(self, sample: Sample) -> Sample:
        if not self._filter.plausible(sample.factor):
            raise NothingMeasuredError(f"implausible: {sample.factor:.3g} m per unit")
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
        self.camera_height = None if camera_height is None else checked_height(camera_height)
        self._road = road or RoadSettings()
        super().__init__(start, settings)

    def mount(self, camera_height: float | None, road: RoadSettings) -> None:
        """See `Scale.mount`; while the height is not known nothing is measured."""
        self.camera_height, self._road = camera_height, road

    def _measure(self, sight: ScaleSight) -> Sample:
        height = self.camera_height
        if height is None:
            raise NothingMeasuredError("where the camera sits is not known")
        try:
            road = fit_road(seen_depth(sight), sight.camera, self._road)
        except NoRoadError as error:
            raise NothingMeasuredError(str(error)) from error
        return Sample(height / road.height, road.share)


class OdometryScale(MeasuredScale):
    """The step between two frames as odometry measured it, over the same step as networks see it.

    Steps count by their length, as short ones are mostly noise; long ones like the usual one.
    """

    mode: ClassVar[ScaleMode] = "odometry"
    needs_travel: ClassVar[bool] = True

    def _measure(self, sight: ScaleSight) -> Sample:
        metres, units = known_way(sight), sight.units_travelled
        if units is None or not math.isfinite(units) or units <= 0:
            raise NothingMeasuredError("the networks saw no motion")
        if metres < _MIN_STEP:
            raise NothingMeasuredError(f"steps below {_MIN_STEP} m are too short")
        check_swing(metres, sight.radians_turned)
        return Sample(metres / units, metres)


def known_way(sight: ScaleSight) -> float:
    """Metres since the frame before. Raises NothingMeasuredError without odometry."""
    metres = sight.metres_travelled
    if metres is None or not math.isfinite(metres):
        raise NothingMeasuredError("no odometry")
    return abs(metres)


def check_swing(metres: float, turned: float | None) -> None:
    """Raise NothingMeasuredError for a way (m) that may well be due to a turn (radians)."""
    if turned is not None and abs(turned) * _LEVER > _MAX_SWING * metres:
        raise NothingMeasuredError("the vehicle turns on the spot")


def seen_depth(sight: ScaleSight) -> NDArray[np.floating]:
    """Inverse depth of the camera's size. Raises NothingMeasuredError without it."""
    if sight.inverse_units is None:
        raise NothingMeasuredError("no depth of this frame")
    if sight.inverse_units.shape != (sight.camera.height, sight.camera.width):
        raise NothingMeasuredError("the depth is not of the camera's size")
    return sight.inverse_units


def checked_height(camera_height: float) -> float:
    """The height itself. Raises ValueError for one that is not finite and positive."""
    if not (math.isfinite(camera_height) and camera_height > 0):
        raise ValueError(f"camera_height must be finite and positive, got {camera_height}")
    return camera_height


class AutoScale(OdometryScale):
    """Odometry where there is some; until then the given factor, without a word of doubt."""

    mode: ClassVar[ScaleMode] = "auto"

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Go on from a stored factor, if it was measured."""
        if stored.get("state") != "fixed":
            super().restore(stored)

    def _describe(self, why: str, standing: bool = False) -> ScaleStatus:
        known = super()._describe(why, standing)
        if known.samples or known.state != "searching":
            return known
        words = f"{known.metres_per_unit:.4g} m per unit: {self._first}"
        if why:
            words += f" ({why})"
        return replace(known, state="fixed", spread=None, text=words)


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
