"""Exact depth and poses of rendered drives, times an unknown factor, with 5 % noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings.synthetic.drive import SyntheticDrive, street_drive
from depth_prior_ros.scale import Scale, ScaleSight, make_scale

GIVEN = 10.0  # the factor that a bundle would begin with
NOISE = 0.05
SKY = 200.0  # metres at which a network puts it


@dataclass(frozen=True)
class Driven:
    """A rendered drive: depth of each frame (h, w) in metres, 0 = sky; poses; what moves."""

    camera: Camera
    depth: list[NDArray[np.float32]]
    poses: list[NDArray[np.float64]]
    moving: list[bool]
    seconds: float

    def sights(self, factor: float, seed: int) -> Iterator[ScaleSight]:
        """Each frame as networks of `factor` metres per unit would see it.

        Noise: 5 % of each pixel's depth, of each frame's depth as a whole, and of each step.
        """
        rng = np.random.default_rng(seed)
        for i, depth in enumerate(self.depth):
            units = np.where(depth > 0, depth, SKY) / factor
            units = units * np.exp(NOISE * rng.standard_normal(depth.shape))
            units = units * math.exp(NOISE * rng.standard_normal())
            metres = None
            if i:
                metres = float(np.linalg.norm(self.poses[i][:3, 3] - self.poses[i - 1][:3, 3]))
            noisy = math.exp(NOISE * rng.standard_normal())
            yield ScaleSight(
                stamp_ns=round(i * self.seconds * 1e9),
                inverse_units=(1 / units).astype(np.float32),
                camera=self.camera,
                moving=self.moving[i],
                units_travelled=None if metres is None else metres / factor * noisy,
                metres_travelled=metres,
                seconds=self.seconds if i else None,
            )


def rendered(street: str, frames: int, stop: bool, every: int = 1) -> Driven:
    drive: SyntheticDrive = street_drive(
        frames=frames, size=(160, 48), supersample=1, street=street, stop=stop
    )
    chosen = drive.frames[::every]
    try:
        depth = [frame.depth() for frame in chosen]
    finally:
        drive.close()
    poses = [frame.pose for frame in chosen]
    return Driven(
        drive.camera,
        depth,
        [pose for pose in poses if pose is not None],
        [bool(frame.speed) for frame in chosen],
        every / drive.spec.rate,
    )


@pytest.fixture(
    scope="module", params=["embedded", pytest.param("country", marks=pytest.mark.slow)]
)
def on_the_move(request: pytest.FixtureRequest) -> Driven:
    """Five seconds of driving at 10 frames a second."""
    return rendered(request.param, 51, stop=False)


@pytest.fixture(scope="module")
def with_a_stop() -> Driven:
    """The drive of the package, 5 frames a second: it stands from 3.5 s to 5.9 s."""
    return rendered("embedded", 80, stop=True, every=2)


def odometry() -> Scale:
    return make_scale("odometry", fixed=GIVEN, source="the bundle")


def camera_height() -> Scale:
    return make_scale("camera_height", fixed=GIVEN, source="the bundle", camera_height=1.6)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [GIVEN / 3, 0.7 * GIVEN, GIVEN, 1.5 * GIVEN, 3 * GIVEN])
@pytest.mark.parametrize(("make", "within"), [(camera_height, 0.05), (odometry, 0.03)])
def test_five_seconds_find_an_unknown_factor(
    on_the_move: Driven, make: Callable[[], Scale], within: float, factor: float
) -> None:
    for seed in range(3):
        scale = make()
        published = [GIVEN]
        for sight in on_the_move.sights(factor, seed):
            scale.observe(sight)
            published.append(scale.metres_per_unit)
        status = scale.status
        assert status.state == "measured", status.text
        assert status.metres_per_unit == pytest.approx(factor, rel=within)
        assert status.spread is not None and 0.025 < status.spread < 0.1
        assert np.abs(np.diff(np.log(published))).max() <= 0.03 + 1e-9  # nothing jumps


@pytest.mark.slow
@pytest.mark.parametrize("make", [camera_height, odometry])
def test_a_stop_changes_nothing(with_a_stop: Driven, make: Callable[[], Scale]) -> None:
    scale = make()
    standing: list[float] = []
    for i, sight in enumerate(with_a_stop.sights(1.3 * GIVEN, 1)):
        scale.observe(sight)
        if not sight.moving and i:
            assert scale.status.state == "held"
            standing.append(scale.metres_per_unit)
    assert len(standing) >= 10 and len(set(standing)) == 1
    assert standing[0] == pytest.approx(1.3 * GIVEN, rel=0.05)
    assert scale.status.state == "measured"
    assert scale.metres_per_unit == pytest.approx(1.3 * GIVEN, rel=0.05)


@pytest.mark.slow
def test_a_wrong_height_gives_a_wrong_factor(on_the_move: Driven) -> None:
    """What the tests above show is not due to their tolerance."""
    scale = make_scale("camera_height", fixed=GIVEN, source="the bundle", camera_height=1.9)
    for sight in on_the_move.sights(GIVEN, 0):
        scale.observe(sight)
    assert scale.metres_per_unit > 1.1 * GIVEN
