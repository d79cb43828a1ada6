"""A frame with an earlier one: features, the motion between the two, matching.

The networks see every camera as the trained one, and so a world stretched along the viewing
direction; motions here are in that world and in network units (`units_step` leads there).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.pipeline.framing import NetworkInput
from depth_prior_ros.pipeline.guard import (
    Fault,
    MultiFrameGuard,
    is_out_of_memory,
    release_references,
)
from depth_prior_ros.pipeline.results import PoseSource, Reason, holds_depth
from depth_prior_ros.pipeline.runtime import (
    Features,
    MultiFrameTensors,
    Native,
    Networks,
    Stopwatch,
)
from depth_prior_ros.scale import focal_ratio

Transform = NDArray[np.float64]
PoseChoice = Literal["auto", "network", "odometry"]

MIN_POSE_RATIO = 0.1
"""Of the way by odometry: a shorter one by the pose network is not believed."""

ODOMETRY_MARGIN = 1.15
"""How much worse than the refined motion odometry's may explain the picture, and still be used."""

_log = logging.getLogger(__name__)


class PoseError(Exception):
    """The motion between the frames is not known; not a failure of the model."""


@dataclass
class ObservedFrame:
    """A frame that the networks were shown; features are filled in when they are first needed."""

    stamp_ns: int
    framed: NetworkInput
    native: Native
    features: Features | None = None


@dataclass(frozen=True)
class FramePair:
    """A frame and an earlier one, and what is known of them.

    inverse: the current frame's single-frame depth (1, 1, h, w) in 1/units. metres_per_unit: None
    where nobody knows. pose: previous_from_current of odometry (4, 4) in metres; metres: how far
    odometry says it went; both None where unknown. searching: whether metres_per_unit is only where
    a search for it begins. guess: of previous_from_current (4, 4), networks' world and units,
    from the frames before.
    """

    previous: ObservedFrame
    current: ObservedFrame
    inverse: Native
    metres_per_unit: float | None = None
    pose: Transform | None = None
    metres: float | None = None
    searching: bool = False
    guess: Transform | None = None


@dataclass(frozen=True)
class EstimatedMotion:
    """previous_from_current (4, 4) in the networks' world, and who said so."""

    matrix: Transform
    source: PoseSource


class Motions:
    """Finds how the camera moved between two frames."""

    def __init__(self, networks: Networks, trained: Camera) -> None:
        self._networks = networks
        self._trained = trained

    def by_network(self, pair: FramePair) -> EstimatedMotion:
        """What the pose network says. Raises PoseError for numbers that are not finite."""
        pose = self._networks.pose(pair.previous.native, pair.current.native)
        if not np.isfinite(pose).all():
            raise PoseError("the pose network's answer is not finite")
        step = EstimatedMotion(rigid_inverse(pose), "network")
        if pair.guess is None:
            return step
        # The pose network saw neighbouring frames when it learned; a keyframe lies further back.
        guess = EstimatedMotion(pair.guess, "network")
        told, guessed = self.explain(pair, step, guess)
        return guess if guessed < told else step

    def by_odometry(self, pair: FramePair, length: float | None = None) -> EstimatedMotion | None:
        """What odometry says; None where it says nothing.

        length: of the translation in units with the stretch undone, for where no metric factor is
        known.
        """
        if pair.pose is None:
            return None
        metres_per_unit = pair.metres_per_unit
        if metres_per_unit is None:
            metres = float(np.linalg.norm(pair.pose[:3, 3]))
            if not length or metres == 0:
                return None
            metres_per_unit = metres / length
        return EstimatedMotion(
            units_step(pair.pose, metres_per_unit, self.stretch(pair)), "odometry"
        )

    def refined(self, pair: FramePair, step: EstimatedMotion) -> EstimatedMotion:
        """The step made to fit the pictures and the single-frame depth, if the bundle asks for it.

        Raises PoseError for numbers that are not finite.
        """
        return self._aligned(pair, step, length_only=False)

    def in_unit(self, pair: FramePair, step: EstimatedMotion) -> EstimatedMotion:
        """Odometry's step in the unit of this frame's single-frame depth, if the bundle aligns.

        The metric factor is one number, and the depth's unit differs from frame to frame: matching
        would follow the one and the search range the other. Rotation and direction stay. Raises
        PoseError as `refined`.
        """
        return self._aligned(pair, step, length_only=True)

    def _aligned(
        self, pair: FramePair, step: EstimatedMotion, *, length_only: bool
    ) -> EstimatedMotion:
        if not self._networks.aligns:
            return step
        matrix = self._networks.refine(
            pair.previous.native,
            pair.current.native,
            step.matrix,
            self.matching_matrix(pair),
            pair.inverse,
            length_only=length_only,
        )
        if not np.isfinite(matrix).all():
            raise PoseError("the refined motion is not finite")
        return EstimatedMotion(matrix, step.source)

    def explain(self, pair: FramePair, *steps: EstimatedMotion) -> list[float]:
        """How badly the previous picture, moved by each step, fits; inf: not at all."""
        costs = self._networks.photometric_costs(
            pair.previous.native,
            pair.current.native,
            [step.matrix for step in steps],
            self.matching_matrix(pair),
            pair.inverse,
        )
        return [cost if math.isfinite(cost) else math.inf for cost in costs]

    def units_travelled(self, pair: FramePair, step: EstimatedMotion) -> float:
        """Length of a step in units, with the stretch of the networks' world undone."""
        return float(np.linalg.norm(step.matrix[:3, 3] * (1.0, 1.0, self.stretch(pair))))

    def matching_matrix(self, pair: FramePair) -> NDArray[np.float64]:
        """K (3, 3) of the networks' world: the trained focal length, the actual principal point."""
        camera = pair.current.framed.camera
        return replace(camera, fx=self._trained.fx, fy=self._trained.fy).matrix()

    def stretch(self, pair: FramePair) -> float:
        """True depth over the depth that the networks see."""
        return stretch_of(pair.current.framed, self._trained)


@dataclass(frozen=True)
class MultiFrameResult:
    """What came of a pair of frames.

    output: None where there was no matching. pair: what was compared; None where nothing was.
    step: the motion that was matched with. units: its length by picture and single-frame depth, or
    that of the pose network's own, stretch undone; None where neither is known. error: in words,
    what went wrong.
    """

    output: MultiFrameTensors | None = None
    pair: FramePair | None = None
    step: EstimatedMotion | None = None
    units: float | None = None
    error: str | None = None


class MultiFrameStep:
    """Runs the multi-frame network on a frame and an earlier one.

    pose_source: `network`, refined against the single-frame depth; `odometry`, its length in the
    unit of that depth (the network where there is none); `auto`: odometry, unless the picture
    contradicts it. min_pose_ratio: a motion by the network shorter than this share of odometry's is
    a pose network that has lost it.
    guard: told of failures.
    """

    def __init__(self, networks: Networks, trained: Camera, guard: MultiFrameGuard) -> None:
        self.pose_source: PoseChoice = "auto"
        self.min_pose_ratio = MIN_POSE_RATIO
        self.motions = Motions(networks, trained)
        self._networks = networks
        self._guard = guard

    def attempt(
        self, pairs: Sequence[FramePair], clock: Stopwatch, *, forced: bool, measure: bool
    ) -> tuple[MultiFrameResult, Reason]:
        """Multi-frame depth, or why there is none: whatever it is, nothing is raised.

        pairs: of the same frame, the best one first; the next one's turn comes where the motion of
        the one before is not found. forced: the pose network is not compared with odometry.
        measure: see `motion`.
        """
        found = MultiFrameResult()
        try:
            with clock("pose"):
                found = self._first_motion(pairs, check=not forced, measure=measure)
            assert found.pair is not None
            assert found.step is not None
            output = self.depth(found.pair, found.step, clock)
            if not holds_depth(self._networks.backend.to_numpy(output.depth)):
                raise ValueError("the multi-frame network's answer holds no number")
            return replace(found, output=output), "forced" if forced else "moving"
        except PoseError as error:
            return MultiFrameResult(error=str(error)), "pose"
        except Exception as error:
            # Whatever it was, the vehicle still gets the single-frame depth.
            reason, message = self.report(error)
            return MultiFrameResult(pair=found.pair, units=found.units, error=message), reason

    def _first_motion(
        self, pairs: Sequence[FramePair], *, check: bool, measure: bool
    ) -> MultiFrameResult:
        """The motion of the first pair of which there is one. Raises PoseError."""
        *keyframes, last = pairs
        for pair in keyframes:
            try:
                found = self.motion(pair, check=check, measure=measure)
            except PoseError:
                continue
            assert found.step is not None
            if math.isfinite(self.motions.explain(pair, found.step)[0]):
                return found
        return self.motion(last, check=check, measure=measure)

    def travel(self, pair: FramePair, clock: Stopwatch) -> MultiFrameResult:
        """The pose network's motion alone, for the scale; nothing is raised."""
        try:
            with clock("pose"):
                step = self.motions.refined(pair, self.motions.by_network(pair))
                return MultiFrameResult(pair=pair, units=self.motions.units_travelled(pair, step))
        except PoseError:
            return MultiFrameResult()
        except Exception as error:
            return MultiFrameResult(error=self.report(error)[1])

    def report(self, error: Exception) -> tuple[Fault, str]:
        """Log a failure and pause the network for it: the reason, and what to say."""
        reason: Fault = "memory" if is_out_of_memory(error) else "model_failed"
        message = f"{type(error).__name__}: {error}"
        self._guard.failed(reason, message)
        _log.warning("multi-frame network left out (%s): %s", reason, message)
        if reason == "memory":
            release_references(error)
            self._networks.backend.free_memory()
        return reason, message

    def motion(
        self, pair: FramePair, *, check: bool = True, measure: bool = False
    ) -> MultiFrameResult:
        """The motion to match with; `MultiFrameResult.step` is there.

        check: compare the pose network with odometry. measure: tell how many units that is even
        where odometry's motion is used. Raises PoseError where nobody knows the motion.
        """
        motions, wanted = self.motions, self.pose_source
        alone = wanted == "odometry" and pair.pose is not None and pair.metres_per_unit is not None
        network: EstimatedMotion | None = None
        units: float | None = None
        lost: PoseError | None = None
        if not alone or (measure and (pair.searching or not self._networks.aligns)):
            try:
                network = motions.refined(pair, motions.by_network(pair))
                units = motions.units_travelled(pair, network)
                # A factor that travel is yet to be measured for must not decide about that travel.
                if check and not alone and not (measure and pair.searching):
                    self._check(pair, units)
            except PoseError as error:
                network, units, lost = None, None, error
        told = None if wanted == "network" else self._by_odometry(pair, units)
        odometry = None if told is None else motions.in_unit(pair, told)
        step = network if odometry is None else odometry
        if wanted == "auto" and odometry is not None:
            step = self._better(pair, network or motions.refined(pair, odometry), odometry)
        if step is None:
            raise lost or PoseError("nobody knows the motion")
        if step is odometry and told is not None and _fitted(step, told):
            units = motions.units_travelled(pair, step)  # by picture and depth, not by the factor
        return MultiFrameResult(pair=pair, step=step, units=units)

    def _by_odometry(self, pair: FramePair, units: float | None) -> EstimatedMotion | None:
        """Odometry's motion, as long as the factor says; as the pose network's where it is no more
        than where a search begins, as a fit that began there might not get away from it."""
        if pair.searching and units and self._networks.aligns:
            pair = replace(pair, metres_per_unit=None)
        return self.motions.by_odometry(pair, units)

    def _better(
        self, pair: FramePair, refined: EstimatedMotion, odometry: EstimatedMotion
    ) -> EstimatedMotion:
        """Odometry's motion, unless the picture contradicts it.

        The refined one always fits the picture a little better, as it was made to; where odometry's
        fits nearly as well, it is the truer one.
        """
        told, best = self.motions.explain(pair, odometry, refined)
        return odometry if math.isfinite(told) and told <= ODOMETRY_MARGIN * best else refined

    def _check(self, pair: FramePair, units: float) -> None:
        if pair.metres is None or pair.metres <= 0 or pair.metres_per_unit is None:
            return
        predicted = units * pair.metres_per_unit
        if predicted < self.min_pose_ratio * pair.metres:
            raise PoseError(
                f"the pose network sees {predicted:.3f} m of motion where odometry says "
                f"{pair.metres:.3f} m"
            )

    def rehearse(self, shown: ObservedFrame, inverse: Native) -> None:
        """Run everything once on one frame as its own predecessor."""
        pair = FramePair(shown, shown, inverse, 1.0, np.eye(4))
        step = self.motions.refined(pair, self.motions.by_network(pair))
        self.motions.explain(pair, step)
        self._networks.backend.to_numpy(self.depth(pair, step).depth)

    def depth(
        self, pair: FramePair, step: EstimatedMotion, clock: Stopwatch | None = None
    ) -> MultiFrameTensors:
        """What the multi-frame network says of a pair."""
        clock = clock or Stopwatch(self._networks.backend.synchronize)
        previous, current = pair.previous, pair.current
        with clock("features"):
            if previous.features is None:
                previous.features = self._networks.features(previous.native)
            if current.features is None:
                current.features = self._networks.features(current.native)
        with clock("multi"):
            return self._networks.multi(
                current.features,
                previous.features,
                step.matrix,
                self.motions.matching_matrix(pair),
                pair.inverse,
            )


def stretch_of(framed: NetworkInput, trained: Camera) -> float:
    """True depth over the depth that the networks see."""
    camera = framed.camera
    return focal_ratio(camera.fx, camera.fy, trained.fx, trained.fy)


def units_step(metres: Transform, metres_per_unit: float, stretch: float) -> Transform:
    """A rigid motion (4, 4) in metres as the networks' world shows it, in units.

    That world is `1 / stretch` times as long along the viewing direction; a rotation becomes an
    affine map there, exactly.
    """
    world = np.array([1.0, 1.0, 1.0 / stretch])
    result = np.eye(4)
    result[:3, :3] = world[:, np.newaxis] * metres[:3, :3] / world
    result[:3, 3] = metres[:3, 3] * world / metres_per_unit
    return result


def turned(step: Transform) -> float:
    """The angle of a motion's rotation in radians."""
    cosine = (float(np.trace(step[:3, :3])) - 1) / 2
    return math.acos(min(max(cosine, -1.0), 1.0))


def _fitted(step: EstimatedMotion, told: EstimatedMotion) -> bool:
    """Whether the picture had a say in a motion: one that it left alone, in single precision, has
    the length that the factor in use gives it, and would confirm that factor."""
    return not np.allclose(step.matrix, told.matrix, rtol=1e-6, atol=1e-7)
