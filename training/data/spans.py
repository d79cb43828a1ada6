"""Spans of a recording that training leaves out, to choose by or to evaluate on.

Frames beside each other show the same place, so whole spans are held out, and never one end of the
drive alone, which may be another kind of road. No triplet reaches from one part into another: a
part is the recording without the other frames, whose numbers tell the gaps.
"""

from __future__ import annotations

from dataclasses import replace

from depth_prior_ros.recordings import StoredRecording
from training.recipes.data import Part

#: Of eight spans, two are held out.
_TURN: tuple[Part, ...] = (
    "training",
    "training",
    "choosing",
    "training",
    "training",
    "evaluation",
    "training",
    "training",
)
_LEAST, _MOST = 40, 64  # frames of a span at least, as far as eight spans allow; and spans


def span_of(position: int, frames: int) -> Part:
    """The part that the frame at a position belongs to, in a recording of so many frames."""
    spans = len(_TURN) * min(max(1, frames // (_LEAST * len(_TURN))), _MOST // len(_TURN))
    return _TURN[position * spans // frames % len(_TURN)]


def part_of(recording: StoredRecording, part: Part) -> StoredRecording:
    """A recording with the frames of one part alone; what was skipped stays named once for all."""
    if part == "all":
        return recording
    frames, count = recording.frames, len(recording.frames)
    return replace(recording, frames=[f for i, f in enumerate(frames) if span_of(i, count) == part])
