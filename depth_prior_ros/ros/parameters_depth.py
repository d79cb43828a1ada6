"""Parameters that decide what depth is made and how: networks, camera, motion."""

from __future__ import annotations

from depth_prior_ros.motion.gate import GateSettings
from depth_prior_ros.ros.declaration import Declaration
from depth_prior_ros.scale import SCALE_MODES, FilterSettings

GATE = GateSettings()
FILTER = FilterSettings()
FIRST_RATE_RATIO = 6.0

MODEL = (
    Declaration(
        "bundle", "lite", "Trained system: the name of a shipped bundle or a path.", "reload"
    ),
    Declaration(
        "backend",
        "auto",
        "What runs the networks. 'auto': torch on CUDA, otherwise openvino, otherwise torch.",
        "reload",
        choices=("auto", "torch", "openvino", "onnxruntime"),
    ),
    Declaration("device", "auto", "Where they run: 'auto', 'cpu', 'cuda' or 'cuda:N'.", "reload"),
    Declaration(
        "threads",
        1,
        "Threads for inference on a CPU. One is the safe choice beside other nodes: on cores that "
        "others use too, more threads wait for each other.",
        "reload",
        low=1,
        high=256,
    ),
    Declaration(
        "precision",
        "f32",
        "Arithmetic of the networks; 'bf16' with openvino and torch.",
        "reload",
        choices=("f32", "bf16"),
    ),
    Declaration(
        "backend_fallback",
        True,
        "Where backend, device or precision cannot be had: true takes the best one that can, with "
        "a warning and the reason in the diagnostics; false refuses to start.",
        "reload",
    ),
    Declaration(
        "force_model",
        "",
        "Which network to use whatever the motion; empty: by motion.",
        choices=("", "single_frame", "multi_frame"),
    ),
    Declaration(
        "max_depth_m",
        0.0,
        "Depth in metres beyond which pixels become +Inf; 0: as the bundle says.",
        low=0.0,
        high=10_000.0,
    ),
    Declaration(
        "time_budget",
        -1.0,
        "Seconds that a frame with multi-frame may take (median) before that network is left out "
        "for a while; -1: as long as the camera's frame interval lets, 0: no limit.",
        low=-1.0,
        high=60.0,
    ),
    Declaration(
        "failure_pause",
        30,
        "Frames for which multi-frame is left out after it failed or ran out of memory.",
        low=1,
        high=100_000,
    ),
    Declaration(
        "output_size",
        "model",
        "Size of the depth image: 'model' is that of the network; 'input' that of the camera's "
        "image, NaN where the network did not look; or WIDTHxHEIGHT such as '640x192'.",
    ),
)

CAMERA = (
    Declaration(
        "rectify",
        "auto",
        "Whether distorted images are rectified: 'auto' does where camera_info has distortion and "
        "no part of the image topic's name says rect or rectified; 'always' goes by the "
        "distortion alone; 'never' takes images for rectified.",
        choices=("auto", "always", "never"),
    ),
    Declaration(
        "fit",
        "crop",
        "What is done about an aspect ratio other than the network's (5 % are stretched): 'crop' "
        "shows the middle of the image at full detail, 'pad' all of it, smaller, with a border of "
        "unknown depth (NaN).",
        choices=("crop", "pad"),
    ),
)

SCALE = (
    Declaration(
        "scale.mode",
        "fixed",
        "Where metres come from: 'fixed' (scale.metres_per_unit, or the bundle's factor), "
        "'camera_height' (the road lies scale.camera_height below the camera), 'odometry' "
        "(measured travel over the networks' travel) or 'none' (relative depth, published on "
        "depth/relative instead).",
        "activate",
        choices=SCALE_MODES,
    ),
    Declaration(
        "scale.metres_per_unit",
        0.0,
        "Metres per network unit: used in mode 'fixed', and to begin with in the others; 0: as "
        "the bundle says.",
        low=0.0,
        high=10_000.0,
    ),
    Declaration(
        "scale.camera_height",
        0.0,
        "Metres from the road to the camera; mode 'camera_height' needs it. 0: not given.",
        low=0.0,
        high=20.0,
    ),
    Declaration(
        "scale.camera_pitch_deg",
        0.0,
        "Degrees by which the camera looks down as it is mounted, for mode 'camera_height'.",
        low=-30.0,
        high=30.0,
    ),
    Declaration(
        "scale.ignore_bottom",
        0.0,
        "Share of the image's height, from below, that shows the vehicle itself, for mode "
        "'camera_height'.",
        low=0.0,
        high=0.45,
    ),
    Declaration(
        "scale.window",
        FILTER.window,
        "Seconds of driving over which measurements are combined (median); standing does not "
        "count.",
        low=1.0,
        high=600.0,
    ),
    Declaration(
        "scale.rate",
        FILTER.rate,
        "Largest relative change of the factor per second once it has been measured; until then "
        f"{FIRST_RATE_RATIO:g} times as much.",
        low=0.001,
        high=1.0,
    ),
    Declaration(
        "scale.limit",
        FILTER.limit,
        "Measurements further than this ratio from the factor to begin with are left out.",
        low=1.01,
        high=1_000.0,
    ),
    Declaration(
        "scale.file",
        "",
        "File in which the measured factor is kept: taken up with the first frame, if it was "
        "measured with this bundle and camera, and written when the node is deactivated or ends; "
        "empty: not kept.",
        "activate",
    ),
)

MOTION = (
    Declaration(
        "motion.source",
        "auto",
        "Who says how fast the vehicle is: one of the topics odom, twist and twist_with_covariance,"
        " or motion in the picture. 'auto': whichever of the topics has a speed nearest to the "
        "image's stamp, and the picture where none has.",
        "activate",
        choices=("auto", "odometry", "twist", "twist_with_covariance", "image"),
    ),
    Declaration(
        "motion.pose_source",
        "auto",
        "Where the multi-frame network has its motion between two frames from: 'network' (the "
        "pose network), 'odometry' (the poses on odom, and the network where there are none) or "
        "'auto' (both, and of them the one that explains the picture better).",
        choices=("auto", "network", "odometry"),
    ),
    Declaration(
        "motion.min_pose_ratio",
        0.1,
        "A motion by the pose network that is shorter than this share of what odometry says is "
        "not used (reason 'pose').",
        low=0.0,
        high=1.0,
    ),
    Declaration(
        "motion.start_speed",
        GATE.start_speed,
        "Speed in m/s above which a standing vehicle counts as moving.",
        low=0.0,
        high=100.0,
    ),
    Declaration(
        "motion.stop_speed",
        GATE.stop_speed,
        "Speed in m/s below which a moving vehicle counts as stationary; at most start_speed.",
        low=0.0,
        high=100.0,
    ),
    Declaration(
        "motion.start_flow",
        GATE.start_flow,
        "Without odometry: image motion, in pixels of a 160x48 picture, above which a standing "
        "vehicle counts as moving.",
        low=0.0,
        high=100.0,
    ),
    Declaration(
        "motion.stop_flow",
        GATE.stop_flow,
        "Without odometry: image motion below which a moving vehicle counts as stationary; at "
        "most start_flow.",
        low=0.0,
        high=100.0,
    ),
    Declaration(
        "motion.hold_start",
        GATE.hold_start,
        "Seconds for which a standing vehicle must be above the start threshold.",
        low=0.0,
        high=60.0,
    ),
    Declaration(
        "motion.hold_stop",
        GATE.hold_stop,
        "Seconds for which a moving vehicle must be below the stop threshold.",
        low=0.0,
        high=60.0,
    ),
    Declaration(
        "max_gap",
        0.5,
        "Seconds between two frames beyond which the earlier one is of no use to the multi-frame "
        "network.",
        low=0.001,
        high=3600.0,
    ),
    Declaration(
        "odometry_max_age",
        0.5,
        "Seconds between an image and its nearest odometry or twist beyond which image motion is "
        "used; two poses further apart than twice this are not interpolated.",
        low=0.0,
        high=60.0,
    ),
)


def _mount(name: str, text: str, limit: float) -> Declaration:
    return Declaration(
        f"mount.{name}", 0.0, f"Where the camera sits: {text}", low=-limit, high=limit
    )


_BASE = "in the frame that odometry describes (x forward, y left, z up)."

MOUNT = (
    _mount("x", f"metres forward, {_BASE}", 100.0),
    _mount("y", f"metres to the left, {_BASE}", 100.0),
    _mount("z", f"metres up, {_BASE}", 100.0),
    _mount("roll", "radians about the forward axis; 0: the picture is level.", 3.15),
    _mount("pitch", "radians about the left axis; positive looks down.", 1.6),
    _mount("yaw", "radians about the up axis; positive looks to the left, 0 forward.", 3.15),
)
