"""Every parameter of the depth node: the one place where it is declared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

from depth_prior_ros.backends import BACKENDS, Precision
from depth_prior_ros.backends.choice import auto_order
from depth_prior_ros.motion.gate import GateSettings
from depth_prior_ros.pipeline.framing import Fit
from depth_prior_ros.pipeline.guard import FAILURE_PAUSE
from depth_prior_ros.pipeline.keyframes import MAX_GAP
from depth_prior_ros.pipeline.multi_frame_step import MIN_POSE_RATIO, PoseChoice
from depth_prior_ros.pipeline.results import parse_output_size
from depth_prior_ros.ros.parameters.declaration import declarations, parameter
from depth_prior_ros.scale import FilterSettings, RoadSettings, ScaleMode
from depth_prior_ros.scale.obstacles import ObstacleSettings

MotionSource = Literal["auto", "odometry", "twist", "twist_with_covariance", "image"]

FIRST_RATE_RATIO = 6.0
"""How much faster the scale may change until it has been measured for the first time."""

_GROUPS = (
    *("scale", "adapt", "motion", "mount", "tf", "points", "colour", "compressed_depth"),
    "obstacles",
)
_GATE = GateSettings()
_FILTER = FilterSettings()
_OBSTACLES = ObstacleSettings()
_BASE = "in the frame that odometry describes (x forward, y left, z up)."


def _computing(precision: Precision) -> str:
    return ", ".join(name for name, backend in BACKENDS.items() if precision in backend.precisions)


@dataclass(frozen=True)
class Settings:
    """The parameters' values, checked one by one and together.

    A field is the parameter of its name, with ``_`` for ``.``: ``scale_mode`` is ``scale.mode``.

    Raises:
        ValueError: saying which value is wrong and what would be right.
    """

    bundle: str = parameter(
        "lite",
        "Trained system: the name of a shipped bundle or a path.",
        "reload",
        section="Model and how it is run",
    )
    backend: str = parameter(
        "auto",
        f"What runs the networks. 'auto': {', then '.join(auto_order('cuda'))} on CUDA (for an "
        f"imported ONNX file {', then '.join(auto_order('cuda_onnx'))}), otherwise "
        f"{', then '.join(auto_order('cpu'))}.",
        "reload",
        choices=("auto", *BACKENDS),
    )
    device: str = parameter("auto", "Where they run: 'auto', 'cpu', 'cuda' or 'cuda:N'.", "reload")
    threads: int = parameter(
        1,
        "Threads for inference on a CPU. One is the safe choice beside other nodes: on cores that "
        "others use too, more threads wait for each other.",
        "reload",
        limits=(1, 256),
    )
    precision: Precision = parameter(
        "f32",
        f"Arithmetic of the networks; 'bf16' with {_computing('bf16')}; 'f16' with "
        f"{_computing('f16')}.",
        "reload",
    )
    backend_fallback: bool = parameter(
        True,
        "Where backend, device or precision are not supported: true takes the best one that is, "
        "with a warning and the reason in the diagnostics; false refuses to start.",
        "reload",
    )
    look_up: bool = parameter(
        True,
        "Whether single-frame depth looks up the references that the bundle holds, where they are "
        "of this camera; false: they are left out, which takes less time.",
        "reload",
    )
    force_model: Literal["", "single_frame", "multi_frame"] = parameter(
        "", "Which network to use whatever the motion; empty: by motion."
    )
    max_depth_m: float = parameter(
        0.0,
        "Depth beyond which pixels become +Inf; 0: as the bundle says.",
        limits=(0.0, 10_000.0),
        unit="m",
    )
    time_budget: float = parameter(
        -1.0,
        "Time that a frame with multi-frame may take (median) before that network is left out for "
        "a while; -1: as long as the camera's frame interval lets, 0: no limit.",
        limits=(-1.0, 60.0),
        unit="s",
    )
    failure_pause: int = parameter(
        FAILURE_PAUSE,
        "Frames for which multi-frame is left out after it failed or ran out of memory.",
        limits=(1, 100_000),
    )
    output_size: str = parameter(
        "model",
        "Size of the depth image: 'model' is that of the network; 'input' that of the camera's "
        "image, NaN where the network did not look; or WIDTHxHEIGHT such as '640x192'.",
    )

    rectify: Literal["auto", "always", "never"] = parameter(
        "auto",
        "Whether distorted images are rectified: 'auto' does where camera_info has distortion and "
        "no part of the image topic's name says rect or rectified; 'always' goes by the "
        "distortion alone; 'never' takes images for rectified.",
        section="Camera",
    )
    fit: Fit = parameter(
        "crop",
        "What is done about an aspect ratio other than the network's (5 % are stretched): 'crop' "
        "shows the middle of the image at full detail, 'pad' all of it, smaller, with a border of "
        "unknown depth (NaN).",
        pipeline="fit",
    )

    fov_guess_deg: float = parameter(
        0.0,
        "Horizontal field of view to go by while no usable camera_info has arrived; a guess, which "
        "the diagnostics say. 60 fits most webcams. 0: images without calibration are refused.",
        limits=(0.0, 150.0),
        unit="degrees",
    )

    scale_mode: ScaleMode = parameter(
        "auto",
        "Where metres come from: 'auto' (scale.metres_per_unit where it is given; else 'odometry' "
        "where there is some, until then the bundle's factor), 'fixed' (scale.metres_per_unit, or "
        "the bundle's factor), 'camera_height' (the road lies scale.camera_height below the "
        "camera), 'odometry' (measured travel over the networks' travel) or 'none' (relative "
        "depth, published on depth/relative instead).",
        "activate",
        section="Metres",
    )
    scale_metres_per_unit: float = parameter(
        0.0,
        "Metres per network unit: used in modes 'auto' and 'fixed', to begin with in the others; "
        "0: as the bundle says.",
        limits=(0.0, 10_000.0),
    )
    scale_camera_height: float = parameter(
        0.0,
        "Height of the camera above the road; mode 'camera_height' needs it. 0: not given.",
        limits=(0.0, 20.0),
        unit="m",
    )
    scale_camera_pitch_deg: float = parameter(
        0.0,
        "Angle by which the camera looks down as it is mounted, for mode 'camera_height'.",
        limits=(-30.0, 30.0),
        unit="degrees",
    )
    scale_ignore_bottom: float = parameter(
        0.0,
        "Share of the image's height, from below, that shows the vehicle itself, for mode "
        "'camera_height'.",
        limits=(0.0, 0.45),
    )
    scale_window: float = parameter(
        _FILTER.window,
        "Time of driving over which measurements are combined (median); standing does not count.",
        limits=(1.0, 600.0),
        unit="s",
    )
    scale_rate: float = parameter(
        _FILTER.rate,
        "Largest relative change of the factor once it has been measured; until then "
        f"{FIRST_RATE_RATIO:g} times as much.",
        limits=(0.001, 1.0),
        unit="1/s",
    )
    scale_limit: float = parameter(
        _FILTER.limit,
        "Measurements further than this ratio from the factor to begin with are left out.",
        limits=(1.01, 1_000.0),
    )
    scale_file: str = parameter(
        "",
        "File in which the measured factor is kept: taken up with the first frame, if it was "
        "measured with this bundle and camera, and written when the node is deactivated or ends; "
        "empty: not kept.",
        "activate",
    )

    adapt_seconds: float = parameter(
        300.0,
        "How far back the keyframes go that ~/adapt fits the student to its camera on: at most 128 "
        "and 100 MB of them are kept; 0: none, and ~/adapt is refused.",
        "activate",
        section="Adaptation to the camera",
        limits=(0.0, 36_000.0),
        unit="s",
    )
    adapt_file: str = parameter(
        "",
        "File in which what ~/adapt found is kept: taken up with the first frame, if it was found "
        "with this bundle and camera; empty: beside scale.file, or not kept where that is empty.",
        "activate",
    )
    adapt_niceness: int = parameter(
        10,
        "Niceness of the thread that fits, on Linux: 19 takes only what nobody else wants, and may "
        "take for ever beside processes that never wait; 0 competes with the camera's frames.",
        limits=(0, 19),
    )

    motion_source: MotionSource = parameter(
        "auto",
        "Who says how fast the vehicle is: one of the topics odom, twist and "
        "twist_with_covariance, or motion in the picture. 'auto': whichever of the topics "
        "has a speed nearest to the image's stamp, and the picture where none has.",
        "activate",
        section="Motion",
    )
    motion_pose_source: PoseChoice = parameter(
        "auto",
        "Where the multi-frame network has its motion between two frames from: 'network' (the "
        "pose network), 'odometry' (the poses on odom, and the network where there are none) or "
        "'auto' (both, and of them the one that explains the picture better).",
        pipeline="pose_source",
    )
    motion_min_pose_ratio: float = parameter(
        MIN_POSE_RATIO,
        "A motion by the pose network that is shorter than this share of what odometry says is "
        "not used (reason 'pose').",
        pipeline="min_pose_ratio",
        limits=(0.0, 1.0),
    )
    motion_start_speed: float = parameter(
        _GATE.start_speed,
        "Speed above which a standing vehicle counts as moving.",
        limits=(0.0, 100.0),
        unit="m/s",
    )
    motion_stop_speed: float = parameter(
        _GATE.stop_speed,
        "Speed below which a moving vehicle counts as stationary; at most start_speed.",
        limits=(0.0, 100.0),
        unit="m/s",
    )
    motion_start_flow: float = parameter(
        _GATE.start_flow,
        "Without odometry: image motion, in a picture of 160x48 pixels, above which a standing "
        "vehicle counts as moving.",
        limits=(0.0, 100.0),
        unit="pixels",
    )
    motion_stop_flow: float = parameter(
        _GATE.stop_flow,
        "Without odometry: image motion below which a moving vehicle counts as stationary; at "
        "most start_flow.",
        limits=(0.0, 100.0),
        unit="pixels",
    )
    motion_hold_start: float = parameter(
        _GATE.hold_start,
        "Time for which a standing vehicle must be above the start threshold.",
        limits=(0.0, 60.0),
        unit="s",
    )
    motion_hold_stop: float = parameter(
        _GATE.hold_stop,
        "Time for which a moving vehicle must be below the stop threshold.",
        limits=(0.0, 60.0),
        unit="s",
    )
    max_gap: float = parameter(
        MAX_GAP,
        "Time between two frames beyond which the earlier one is of no use to the multi-frame "
        "network.",
        pipeline="max_gap",
        limits=(0.001, 3600.0),
        unit="s",
    )
    odometry_max_age: float = parameter(
        0.5,
        "Time between an image and its nearest odometry or twist beyond which image motion is "
        "used; two poses further apart than twice this are not interpolated.",
        limits=(0.0, 60.0),
        unit="s",
    )

    mount_x: float = parameter(
        0.0,
        f"Where the camera sits: forward, {_BASE}",
        limits=(-100.0, 100.0),
        unit="m",
        section="Mount of the camera",
    )
    mount_y: float = parameter(
        0.0, f"Where the camera sits: to the left, {_BASE}", limits=(-100.0, 100.0), unit="m"
    )
    mount_z: float = parameter(
        0.0, f"Where the camera sits: up, {_BASE}", limits=(-100.0, 100.0), unit="m"
    )
    mount_roll: float = parameter(
        0.0,
        "How the camera is turned about the forward axis; 0: the picture is level.",
        limits=(-3.15, 3.15),
        unit="rad",
    )
    mount_pitch: float = parameter(
        0.0,
        "How the camera is turned about the left axis; positive looks down.",
        limits=(-1.6, 1.6),
        unit="rad",
    )
    mount_yaw: float = parameter(
        0.0,
        "How the camera is turned about the up axis; positive looks to the left, 0 forward.",
        limits=(-3.15, 3.15),
        unit="rad",
    )

    tf_base_frame: str = parameter(
        "",
        "Frame of the vehicle, x forward and z up, such as base_link: the camera's height, pitch, "
        "roll and mount are then looked up in tf from this frame to the image's, at its stamp; "
        "scale.camera_height, scale.camera_pitch_deg and mount.* go before it where they are not "
        "0. Needs tf2_msgs and shape_msgs. Empty: tf is not listened to.",
        "activate",
    )
    tf_base_height: float = parameter(
        0.0,
        "Height of that frame's origin above the road; 0: it lies on the road, as base_footprint.",
        "activate",
        limits=(-5.0, 20.0),
        unit="m",
    )

    image_transport: Literal["raw", "compressed"] = parameter(
        "raw",
        "'raw' listens to sensor_msgs/Image on image, 'compressed' to CompressedImage (JPEG or "
        "PNG) on image/compressed, as image_transport names it.",
        "activate",
        section="Input",
    )
    sync_wait: float = parameter(
        0.02,
        "Time that an image waits for odometry where that comes with the images' own stamps, or "
        "where there is none yet, and for camera_info where none fits its size. Topics are not "
        "ordered among each other; a lockstep replay sets this to seconds.",
        limits=(0.0, 60.0),
        unit="s",
    )
    image_reliability: Literal["auto", "best_effort", "reliable"] = parameter(
        "auto",
        "QoS of the subscriptions to image and camera_info. 'best_effort' fits every publisher and "
        "loses large images, 'reliable' needs a reliable one and loses nothing; 'auto' is reliable "
        "where all publishers of the topic are, also of those that come later.",
        "activate",
    )
    odom_reliability: Literal["best_effort", "reliable"] = parameter(
        "best_effort",
        "QoS of the subscriptions to odom and the twists, as image_reliability.",
        "activate",
    )

    points_colour: bool = parameter(
        True,
        "Give the points of depth/points the camera's colours (field rgb, 16 bytes a point); "
        "without, 12 bytes a point.",
        section="Output",
    )
    points_organized: bool = parameter(
        False,
        "Keep the points of depth/points in the image's rows and columns, NaN where there is no "
        "depth; without, only points with depth are sent, in one row.",
    )
    points_stride: int = parameter(
        1,
        "Take every n-th column and row of the depth image for depth/points.",
        limits=(1, 64),
    )
    points_max_depth_m: float = parameter(
        0.0,
        "Depth beyond which depth/points has no point; 0: wherever depth is finite.",
        limits=(0.0, 10_000.0),
        unit="m",
    )
    points_min_confidence: float = parameter(
        0.0,
        "Confidence below which depth/points has no point; 0: all points, and no confidence is "
        "computed for them.",
        limits=(0.0, 1.0),
    )
    colour_min_depth_m: float = parameter(
        2.0,
        "Depth at the near (red) end of depth/colour.",
        limits=(0.01, 1_000.0),
        unit="m",
    )
    colour_max_depth_m: float = parameter(
        80.0,
        "Depth at the far (blue) end of depth/colour; above colour.min_depth_m. The scale between "
        "them is logarithmic and does not change from frame to frame.",
        limits=(0.01, 10_000.0),
        unit="m",
    )
    compressed_depth_max_depth_m: float = parameter(
        100.0,
        "Depth beyond which depth/image_rect/compressedDepth has none (depth_max of "
        "compressed_depth_image_transport, whose own default of 10 is for rooms).",
        limits=(1.0, 10_000.0),
        unit="m",
    )
    compressed_depth_quantization: float = parameter(
        100.0,
        "depth_quantization of compressed_depth_image_transport: at depth z neighbouring values "
        "are z*z/(q*(q+1)) m apart.",
        limits=(1.0, 250.0),
    )
    compressed_depth_png_level: int = parameter(
        1, "PNG compression level of compressedDepth: higher is smaller and slower.", limits=(0, 9)
    )

    obstacles_min_height_m: float = parameter(
        _OBSTACLES.min_height,
        "Height above the road from which something is an obstacle (depth/obstacles, depth/scan); "
        "1 % more of every metre beyond 10 m, and 2.5 % of every metre beyond 2 m to the side.",
        limits=(0.01, 100.0),
        unit="m",
        section="Obstacles",
    )
    obstacles_max_height_m: float = parameter(
        _OBSTACLES.max_height,
        "Height above the road beyond which nothing is in the way; above obstacles.min_height_m.",
        limits=(0.02, 100.0),
        unit="m",
    )
    obstacles_max_range_m: float = parameter(
        _OBSTACLES.max_range,
        "Distance along the road up to which obstacles are looked for.",
        limits=(0.5, 200.0),
        unit="m",
    )
    obstacles_voxel_m: float = parameter(
        _OBSTACLES.voxel,
        "Edge of the cubes by which depth/obstacles is thinned: each has one point at most.",
        limits=(0.01, 10.0),
        unit="m",
    )
    obstacles_hold: float = parameter(
        60.0,
        "Time for which the newest road serves where none is in sight; after it the one that "
        "scale.camera_height and scale.camera_pitch_deg say, and without those neither "
        "depth/obstacles nor depth/scan is made: empty ones would say that the way is free.",
        limits=(0.0, 3600.0),
        unit="s",
    )
    obstacles_scan_frame: str = parameter(
        "",
        "frame_id of depth/scan, x forward and y left at the camera's place; empty: that of the "
        "image without '_optical' (camera_optical_frame: camera_frame).",
    )

    snapshot_folder: str = parameter(
        "~/.ros/depth_snapshots",
        "Folder in which ~/save_snapshot makes one folder per snapshot; ~ is the home folder.",
        section="Operation",
    )
    diagnostics_period: float = parameter(
        1.0,
        "Time between two messages on /diagnostics.",
        "start",
        limits=(0.05, 60.0),
        unit="s",
    )
    autostart: bool = parameter(True, "Configure and activate by itself after the start.", "start")

    def __post_init__(self) -> None:
        for declared in PARAMETERS:
            value = declared.check(getattr(self, declared.attribute))
            object.__setattr__(self, declared.attribute, value)
        _check_device(self.device)
        if self.time_budget < 0 and self.time_budget != -1.0:
            raise ValueError(
                f"time_budget must be -1, 0 or a number of seconds, not {self.time_budget}"
            )
        unknown = self.scale_camera_height <= 0 and not self.tf_base_frame
        if self.scale_mode == "camera_height" and unknown:
            raise ValueError(
                "scale.mode 'camera_height' needs scale.camera_height in metres, or tf.base_frame"
            )
        if self.scale_mode == "odometry" and self.motion_source == "image":
            raise ValueError("scale.mode 'odometry' needs another motion.source than 'image'")
        if self.colour_max_depth_m <= self.colour_min_depth_m:
            raise ValueError(
                f"colour.max_depth_m ({self.colour_max_depth_m:g}) must be above "
                f"colour.min_depth_m ({self.colour_min_depth_m:g})"
            )
        if self.obstacles_max_height_m <= self.obstacles_min_height_m:
            raise ValueError(
                f"obstacles.max_height_m ({self.obstacles_max_height_m:g}) must be above "
                f"obstacles.min_height_m ({self.obstacles_min_height_m:g})"
            )
        parse_output_size(self.output_size)
        _ = self.gate  # the thresholds are checked together

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Settings:
        """From values by the parameters' names; what is missing has its default.

        Raises:
            ValueError: as the class, and for a name that no parameter has.
        """
        if strange := [name for name in values if name not in _BY_NAME]:
            raise ValueError(f"there is no parameter {strange[0]}{nearest(strange[0])}")
        return cls(**{_BY_NAME[name].attribute: value for name, value in values.items()})

    @cached_property
    def gate(self) -> GateSettings:
        """Thresholds of the motion gate; it outlives every hold time and gap between frames."""
        holds = self.motion_hold_start, self.motion_hold_stop
        return GateSettings(
            start_speed=self.motion_start_speed,
            stop_speed=self.motion_stop_speed,
            start_flow=self.motion_start_flow,
            stop_flow=self.motion_stop_flow,
            hold_start=holds[0],
            hold_stop=holds[1],
            max_gap=max(_GATE.max_gap, self.max_gap + max(holds)),
        )

    @cached_property
    def road(self) -> RoadSettings:
        """Where the road is looked for."""
        return RoadSettings(
            pitch=math.radians(self.scale_camera_pitch_deg),
            ignore_bottom=self.scale_ignore_bottom,
        )

    @cached_property
    def obstacles(self) -> ObstacleSettings:
        """What counts as an obstacle."""
        return ObstacleSettings(
            min_height=self.obstacles_min_height_m,
            max_height=self.obstacles_max_height_m,
            max_range=self.obstacles_max_range_m,
            voxel=self.obstacles_voxel_m,
        )


PARAMETERS = declarations(Settings, _GROUPS)
_BY_NAME = {declared.name: declared for declared in PARAMETERS}


def nearest(name: str, names: Iterable[str] = _BY_NAME) -> str:
    """``; is NAME meant?`` with the most similar of the names; empty where none is similar."""
    close = get_close_matches(name, list(names), n=1)
    return f"; is {close[0]} meant?" if close else ""


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    plain = device in ("auto", "cpu", "cuda")
    if not plain and not (kind == "cuda" and number.isdecimal()):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', not {device!r}")
