"""`depth_bag render`: a bag of a drive through a synthetic street, with exact depth."""

from __future__ import annotations

from pathlib import Path

from depth_prior_ros.recordings import RecordingError
from rosbag_tools.make import make


def render(out: Path, seed: int, frames: int, size: tuple[int, int], quality: int) -> None:
    """Render a street drive and write it; the same arguments give the same bag.

    Raises RecordingError where `out` exists or OpenGL does not work (saying what to install).
    """
    from depth_prior_ros.recordings.synthetic.drive import street_drive
    from depth_prior_ros.recordings.synthetic.renderer import RendererUnavailableError

    drive = street_drive(seed, frames, size)
    try:
        make(drive, out, quality)
    except RendererUnavailableError as error:
        raise RecordingError(str(error)) from error
    finally:
        drive.close()
