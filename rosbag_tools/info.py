"""`depth_bag info`: what is in a bag, or in any other recording."""

from __future__ import annotations

import statistics
from pathlib import Path

from depth_prior_ros.recordings import Recording, RecordingError, StoredRecording, is_bag
from depth_prior_ros.recordings.bag_file import BagFile
from depth_prior_ros.untrusted import printable
from rosbag_tools.console import show, show_skipped

_FIRST = 3  # of the things left out, that are shown without --full


def info(path: Path, recording: StoredRecording, full: bool = False) -> None:
    """Print what a recording is; with `full` every topic, and everything that was left out."""
    show(*summary(recording), *stereo(path, recording))
    skipped = len(recording.skipped)
    show_skipped(recording.skipped, skipped if full else _FIRST)
    if full and is_bag(path):
        show("")
        _show_topics(path)
    elif is_bag(path) or skipped > _FIRST:
        show("--full prints every topic, and everything that was left out")


def summary(recording: Recording) -> list[str]:
    """A recording in a few lines."""
    frames = recording.frames
    if not frames:
        raise RecordingError(f"{recording.name}: no frames")
    camera = frames[0].camera
    span = (frames[-1].stamp_ns - frames[0].stamp_ns) * 1e-9
    gaps = sum(recording.gap_before(i) for i in range(len(frames)))
    lines = [
        f"{recording.name}: {len(frames)} frames of {camera.width}x{camera.height}, {span:.1f} s, "
        f"{gaps} gaps",
        f"camera: fx {camera.fx:.2f} fy {camera.fy:.2f} cx {camera.cx:.2f} cy {camera.cy:.2f}",
    ]
    streams = getattr(recording, "streams", {})
    if streams:
        used = ", ".join(f"{use} {topic}" for use, topic in streams.items())
        lines.append(f"topics: {used}")
    speeds = [abs(frame.speed) for frame in frames if frame.speed is not None]
    if speeds:
        lines.append(
            f"speed: in {len(speeds)} frames, median {statistics.median(speeds):.1f} m/s, "
            f"{sum(speed < 0.2 for speed in speeds)} frames standing"
        )
    else:
        lines.append("speed: not recorded")
    depths = sum(frame.has_depth for frame in frames)
    lines.append(f"depth: in {depths} frames" + (f" ({recording.depth_source})" if depths else ""))
    lines += [f"note: {note}" for note in recording.notes]
    return [printable(line) for line in lines]


def stereo(path: Path, recording: StoredRecording) -> list[str]:
    """Whether a bag serves training with stereo pairs (mode S or MS), and with which baseline."""
    if not is_bag(path) or recording.mount is None:
        return []
    from depth_prior_ros.recordings.stereo import bag_partners, open_pairs

    lines = []
    for topic, _ in bag_partners(path, recording.mount.camera):
        try:
            pairs = open_pairs(path, recording, topic)
        except RecordingError as error:
            lines.append(f"stereo: not with {topic}: {error}")
            continue
        alone = f", {len(pairs.skipped)} images without partner" if pairs.skipped else ""
        lines.append(f"stereo: {pairs}{alone}; serves training in mode S and MS")
    return lines or ["stereo: no second camera is known to stand beside this one; mode M only"]


def _show_topics(path: Path) -> None:
    from rich.table import Table

    table = Table("topic", "type", "messages", box=None, pad_edge=False)
    bag = BagFile(path)
    for topic, (kind, count) in sorted(bag.topics().items()):
        table.add_row(printable(topic), printable(kind), str(count))
    for topic in sorted(bag.foreign()):
        table.add_row(printable(topic), "cannot be read", "")
    show(table)
