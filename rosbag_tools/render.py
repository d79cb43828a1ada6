"""`depth_bag render`: a bag of a drive through a synthetic street, with exact depth."""

from __future__ import annotations

from pathlib import Path

from depth_prior_ros.recordings import RecordingError
from rosbag_tools.make import make


def render(
    out: Path,
    seed: int,
    frames: int,
    size: tuple[int, int],
    quality: int,
    *,
    street: str = "embedded",
    traffic: str = "mixed",
    stop: bool = True,
    moving: bool = False,
    renderer: str = "auto",
) -> None:
    """Render a street drive and write it; the same arguments give the same bag.

    `moving` adds masks of what moves by itself. See `street_drive` for the others. Raises
    RecordingError where `out` exists, or where `renderer` is gl and OpenGL does not work (saying
    what to install).
    """
    from depth_prior_ros.recordings.synthetic.drive import street_drive
    from depth_prior_ros.recordings.synthetic.renderer import RendererUnavailableError

    drive = street_drive(
        seed, frames, size, street=street, traffic=traffic, stop=stop, renderer=renderer
    )
    try:
        make(drive, out, quality, moving=moving)
    except RendererUnavailableError as error:
        raise RecordingError(str(error)) from error
    finally:
        drive.close()
