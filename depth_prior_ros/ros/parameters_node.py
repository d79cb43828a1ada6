"""Parameters of the node around the depth: what it listens to, what it sends, how it is run."""

from __future__ import annotations

from depth_prior_ros.ros.declaration import Declaration
from depth_prior_ros.ros.output_settings import OutputSettings

RELIABILITY = ("best_effort", "reliable")

_OUTPUT = OutputSettings()

INPUT = (
    Declaration(
        "image_transport",
        "raw",
        "'raw' listens to sensor_msgs/Image on image, 'compressed' to CompressedImage (JPEG or "
        "PNG) on image/compressed, as image_transport names it.",
        "activate",
        choices=("raw", "compressed"),
    ),
    Declaration(
        "sync_wait",
        0.02,
        "Seconds that an image waits for odometry as new as it is, and for camera_info where none "
        "fits its size. Topics are not ordered among each other; a lockstep replay sets this to "
        "seconds.",
        low=0.0,
        high=60.0,
    ),
    Declaration(
        "image_reliability",
        "best_effort",
        "QoS of the subscriptions to image and camera_info. 'best_effort' fits every publisher, "
        "'reliable' needs a reliable one and then loses nothing on the way.",
        "activate",
        choices=RELIABILITY,
    ),
    Declaration(
        "odom_reliability",
        "best_effort",
        "QoS of the subscriptions to odom and the twists, as image_reliability.",
        "activate",
        choices=RELIABILITY,
    ),
)

OUTPUT = (
    Declaration(
        "points.colour",
        _OUTPUT.points_colour,
        "Give the points of depth/points the camera's colours (field rgb, 16 bytes a point); "
        "without, 12 bytes a point.",
    ),
    Declaration(
        "points.organized",
        _OUTPUT.points_organized,
        "Keep the points of depth/points in the image's rows and columns, NaN where there is no "
        "depth; without, only points with depth are sent, in one row.",
    ),
    Declaration(
        "points.stride",
        _OUTPUT.points_stride,
        "Take every n-th column and row of the depth image for depth/points.",
        low=1,
        high=64,
    ),
    Declaration(
        "points.max_depth_m",
        _OUTPUT.points_max_depth_m,
        "Depth in metres beyond which depth/points has no point; 0: wherever depth is finite.",
        low=0.0,
        high=10_000.0,
    ),
    Declaration(
        "points.min_confidence",
        _OUTPUT.points_min_confidence,
        "Confidence below which depth/points has no point; 0: all points, and no confidence is "
        "computed for them.",
        low=0.0,
        high=1.0,
    ),
    Declaration(
        "colour.min_depth_m",
        _OUTPUT.colour_min_depth_m,
        "Depth in metres at the near (red) end of depth/colour.",
        low=0.01,
        high=1_000.0,
    ),
    Declaration(
        "colour.max_depth_m",
        _OUTPUT.colour_max_depth_m,
        "Depth in metres at the far (blue) end of depth/colour; above colour.min_depth_m. The "
        "scale between them is logarithmic and does not change from frame to frame.",
        low=0.01,
        high=10_000.0,
    ),
    Declaration(
        "compressed_depth.max_depth_m",
        _OUTPUT.compressed_depth_max_depth_m,
        "Depth in metres beyond which depth/image_rect/compressedDepth has none (depth_max of "
        "compressed_depth_image_transport, whose own default of 10 is for rooms).",
        low=1.0,
        high=10_000.0,
    ),
    Declaration(
        "compressed_depth.quantization",
        _OUTPUT.compressed_depth_quantization,
        "depth_quantization of compressed_depth_image_transport: at depth z neighbouring values "
        "are z*z/(q*(q+1)) m apart.",
        low=1.0,
        high=250.0,
    ),
    Declaration(
        "compressed_depth.png_level",
        _OUTPUT.compressed_depth_png_level,
        "PNG compression level of compressedDepth: higher is smaller and slower.",
        low=0,
        high=9,
    ),
)

OPERATION = (
    Declaration(
        "snapshot_folder",
        "~/.ros/depth_snapshots",
        "Folder in which ~/save_snapshot makes one folder per snapshot; ~ is the home folder.",
    ),
    Declaration(
        "diagnostics_period",
        1.0,
        "Seconds between two messages on /diagnostics.",
        "start",
        low=0.05,
        high=60.0,
    ),
    Declaration(
        "autostart",
        True,
        "Configure and activate by itself after the start.",
        "start",
    ),
)
