"""`depth_bag make`: a bag out of a KITTI drive, an odometry sequence or a folder of images."""

from __future__ import annotations

from pathlib import Path

from depth_prior_ros.recordings import Recording
from rosbag_tools.console import progress, show, show_skipped
from rosbag_tools.info import summary
from rosbag_tools.writing import write_bag


def make(recording: Recording, out: Path, quality: int, *, moving: bool = False) -> None:
    """Write the recording and print what went in and what was left out.

    moving: with masks of what moves by itself, where the recording has them.
    """
    with progress(f"writing {out.name}") as update:
        written = write_bag(recording, out, quality=quality, moving=moving, progress=update)
    show(*summary(recording))
    show_skipped(recording.skipped)
    show(
        f"{written.path}: {written.images} images, {written.depths} depth maps, "
        + (f"{written.movings} motion masks, " if written.movings else "")
        + f"{written.odometry} odometry messages, {written.size / 1e6:.1f} MB"
    )
