"""One copy of compiled networks for the cameras of one process, which take turns."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from depth_prior_ros.pipeline.runtime import Networks


class Turns:
    """A lock that is given in the order in which it was asked for; the same thread may ask again.

    An ordinary lock may go to whoever comes by: a camera whose frames follow each other without a
    pause would leave nothing to the others.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[int] = deque()  # threads, the first has its turn
        self._depth = 0

    def __enter__(self) -> None:
        own = threading.get_ident()
        with self._changed:
            if self._depth and self._waiting[0] == own:
                self._depth += 1
                return
            self._waiting.append(own)
            try:
                self._changed.wait_for(lambda: self._waiting[0] == own)
            except BaseException:  # a signal: who comes next must not wait for this one
                self._waiting.remove(own)
                self._changed.notify_all()
                raise
            self._depth = 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._depth -= 1
            if not self._depth:
                self._waiting.popleft()
                self._changed.notify_all()


@dataclass
class NetworkPool:
    """The compiled networks of a process, each held as long as a pipeline uses it.

    Pipelines that ask with the same key get the same networks: compiled once, in memory once, and
    with one order of turns. What differs from camera to camera is each pipeline's own
    (`Networks.for_another_camera`).
    """

    _made: weakref.WeakValueDictionary[tuple[object, ...], Networks] = field(
        default_factory=weakref.WeakValueDictionary
    )
    _reasons: dict[tuple[object, ...], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def networks(
        self, key: tuple[object, ...], make: Callable[[], tuple[Networks, str]]
    ) -> tuple[Networks, str]:
        """Networks of a camera's own with what was compiled for `key`, by `make` if by nobody yet.

        Returns them with the reason for their backend; raises what `make` raises.
        """
        with self._lock:
            made = self._made.get(key)
            if made is None:
                made, self._reasons[key] = make()
                self._made[key] = made
            return made.for_another_camera(), self._reasons[key]
