"""Keyframes of a recorded drive, by its own depth, or matched as a vehicle would."""

from __future__ import annotations

from collections.abc import Sequence

from depth_prior_ros.adaptation.keyframes import (
    DriveMemory,
    Keyframe,
    MatchedKeyframe,
    measured_keyframe,
)
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.geometry.poses import rigid_inverse
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.pipeline import DepthPipeline, InvalidFrameError
from depth_prior_ros.pipeline.framing import Fit, frame_image
from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.recordings import CorruptFrameError, Frame, Recording, read_frames
from depth_prior_ros.recordings.base import name_skipped
from depth_prior_ros.scale import RoadSettings

#: Frames with depth that are read, evenly spaced: twice what is fitted and evaluated on.
_READ = 96


def measured_keyframes(
    recording: Recording,
    trained: Camera,
    fit: Fit = "crop",
    progress: Progress = quiet,
) -> list[Keyframe]:
    """Keyframes with the depth that the recording has (LiDAR, stereo, exact), evenly spaced."""
    known = [i for i, frame in enumerate(recording.frames) if frame.has_depth]
    count = min(len(known), _READ)
    chosen = [known[n * len(known) // count] for n in range(count)]
    found = []
    for done, (position, image) in enumerate(read_frames(recording, chosen)):
        progress("reading frames with depth", done, count)
        frame = recording.frames[position]
        try:
            depth = frame.depth()
            framed = frame_image(image, frame.camera, trained, fit)
        except (CorruptFrameError, InvalidFrameError) as error:
            name_skipped(recording.skipped, f"frame {frame.index}", str(error))
            continue
        assert depth is not None  # those were chosen
        keyframe = measured_keyframe(frame.stamp_ns, framed, depth)
        if keyframe is not None:
            found.append(keyframe)
    return found


def matched_keyframes(
    recording: Recording,
    pipeline: DepthPipeline,
    road: RoadSettings | None = None,
    progress: Progress = quiet,
) -> list[MatchedKeyframe]:
    """Keyframes with multi-frame depth in units, as a vehicle would have kept them.

    Of a bundle without a multi-frame network, with depth of followed points, in metres.

    Args:
        recording: its poses, else its speeds, serve as odometry.
        pipeline: begins anew.
        road: how the road is looked for, where the camera's height is to give metres.
        progress: told of every frame.
    """
    memory = DriveMemory(parallax=pipeline.networks.parallax, road=road)
    frames = recording.frames
    pipeline.reset()
    pipeline.witness = memory.saw
    before: Frame | None = None
    try:
        for position, image in read_frames(recording):
            progress("driving", position, len(frames))
            frame = frames[position]
            if position and recording.gap_before(position):
                before = None
            try:
                pipeline.process(image, frame.stamp_ns, motion_since(before, frame), frame.camera)
            except InvalidFrameError as error:
                name_skipped(recording.skipped, f"frame {frame.index}", str(error))
                continue
            before = frame
    finally:
        pipeline.witness = None
    return memory.keyframes()


def motion_since(before: Frame | None, frame: Frame) -> Motion | None:
    """What a recording says of the vehicle's motion at a frame, `before` the one before it."""
    if before is None or before.pose is None or frame.pose is None:
        return None if frame.speed is None else Motion(frame.speed, "odometry")
    step = rigid_inverse(before.pose) @ frame.pose
    return Motion(frame.speed, "odometry", step, before.stamp_ns)


def knows_metres(frames: Sequence[Frame]) -> bool:
    """Whether a recording says how far the vehicle went."""
    return any(frame.pose is not None or frame.speed is not None for frame in frames)
