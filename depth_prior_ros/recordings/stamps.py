"""Stamps of images in the order in which they were logged: which count, and where a clock was set.

What the live node does frame by frame, a recording can do knowing what follows: a single stamp
that lies ahead costs its image, one that comes late costs its image, a copy is left out, and a
clock that is set back costs a gap. After it stamps are moved on, so that those of a recording
always increase.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from depth_prior_ros.recordings.base import Skipped

NANOSECONDS = 1_000_000_000
_FAR_AHEAD = 2 * NANOSECONDS
# More missing frames than this are told as a time.
_COUNTED = 1000


class Logged(NamedTuple):
    """A stamp in a header and the time at which the message was logged, both in nanoseconds."""

    stamp: int
    time: int


@dataclass
class StampOrder:
    """Which entries of a sequence count, and by what a recording's clock was set.

    kept: positions, in order. stamps: theirs, increasing. gaps: positions in `kept` before which
    the clock was set back. skipped: what was left out and why. notes: what was done about clocks.
    """

    kept: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    gaps: set[int] = field(default_factory=set)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _set_at: list[int] = field(default_factory=list)  # times of logging
    _moved_on: list[int] = field(default_factory=list)  # nanoseconds from then on

    def moved(self, stamp: int, time: int) -> int:
        """The stamp of another message, on the recording's own time."""
        place = bisect.bisect_right(self._set_at, time)
        return stamp + (self._moved_on[place - 1] if place else 0)


def order_stamps(entries: Sequence[Logged]) -> StampOrder:
    """Sort out the stamps of images that were logged one after the other."""
    order = StampOrder()
    offset = 0
    for position, (raw, time) in enumerate(entries):
        stamp = raw + offset
        newest = order.stamps[-1] if order.stamps else None
        what = f"image logged at {time}"
        if newest is None or stamp > newest:
            _keep(order, position, stamp)
        elif stamp == newest:
            order.skipped.append(Skipped(what, f"its stamp {raw} stands still (a copy)"))
        elif (following := _following(entries, position, offset)) is None or following > newest:
            order.skipped.append(Skipped(what, f"its stamp {raw} runs backwards"))
        elif _is_ahead(order, stamp):
            _leave_out_newest(order, entries, stamp, "what follows")
            _keep(order, position, stamp)
        else:
            offset += newest - stamp + _elapsed(order, entries, position)
            seconds = (newest - stamp) / NANOSECONDS
            order.notes.append(
                f"the clock was set back by {seconds:.1f} s at the image logged at {time}: a gap; "
                "later stamps are moved on"
            )
            order._set_at.append(time)
            order._moved_on.append(offset)
            order.gaps.add(len(order.kept))
            _keep(order, position, raw + offset)
    _leave_out_last(order, entries)
    return order


def nearest(stamps: Sequence[int], stamp: int) -> int | None:
    """Position of the nearest of increasing stamps, of two the earlier one; None without any."""
    place = bisect.bisect_left(stamps, stamp)
    near = range(max(0, place - 1), min(place + 1, len(stamps)))
    return min(near, key=lambda i: abs(stamps[i] - stamp), default=None)


def number_frames(order: StampOrder) -> list[int]:
    """Frame numbers that jump where frames are missing, measured by the usual period."""
    steps = [b - a for a, b in pairwise(order.stamps)]
    period = statistics.median(steps) if steps else 1
    numbers = [0]
    for place, step in enumerate(steps, start=1):
        missing = max(int(place in order.gaps), round(step / period) - 1)
        if missing and place not in order.gaps:
            many = f"{step / NANOSECONDS:.1f} s" if missing > _COUNTED else str(missing)
            order.skipped.append(Skipped(f"after frame {numbers[-1]}", f"{many} missing"))
        numbers.append(numbers[-1] + 1 + missing)
    return numbers[: len(order.stamps)]


def _keep(order: StampOrder, position: int, stamp: int) -> None:
    order.kept.append(position)
    order.stamps.append(stamp)


def _leave_out_newest(
    order: StampOrder, entries: Sequence[Logged], expected: int, what: str
) -> None:
    ahead = order.kept.pop()
    seconds = (order.stamps.pop() - expected) / NANOSECONDS
    order.skipped.append(
        Skipped(
            f"image logged at {entries[ahead].time}",
            f"its stamp {entries[ahead].stamp} lies {seconds:.1f} s ahead of {what}",
        )
    )


def _leave_out_last(order: StampOrder, entries: Sequence[Logged]) -> None:
    """The last image has none that follows: whether it lies ahead the time of logging tells, where
    it went with the stamps before."""
    last = len(order.kept) - 1
    if last < 2 or last in order.gaps:
        return

    def ahead(i: int) -> int:
        logged = entries[order.kept[i]].time - entries[order.kept[i - 1]].time
        return order.stamps[i] - order.stamps[i - 1] - logged

    if ahead(last) > _FAR_AHEAD >= ahead(last - 1):
        expected = order.stamps[last] - ahead(last)
        _leave_out_newest(order, entries, expected, "the time of logging")


def _following(entries: Sequence[Logged], position: int, offset: int) -> int | None:
    """The next stamp that is no copy of this one."""
    stamp = entries[position].stamp
    return next((e.stamp + offset for e in entries[position + 1 :] if e.stamp != stamp), None)


def _is_ahead(order: StampOrder, stamp: int) -> bool:
    """Whether the newest stamp alone does not fit: what came before it lies before this one."""
    if len(order.kept) - 1 in order.gaps:
        return False
    return len(order.stamps) < 2 or order.stamps[-2] < stamp


def _elapsed(order: StampOrder, entries: Sequence[Logged], position: int) -> int:
    """Nanoseconds between the newest image and this one: as they were logged, at least one."""
    return max(1, entries[position].time - entries[order.kept[-1]].time)
