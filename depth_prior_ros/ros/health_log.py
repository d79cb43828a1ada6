"""What the diagnostics say, in the log as well: not everybody has a monitor for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from depth_prior_ros.ros.diagnostics import OK, Report

LASTING = 3.0
"""Seconds after which a change is one to tell: a single lost image does not fill the log."""


class HealthLog:
    """Tells a change of level once it has lasted, and not again.

    Args:
        get_logger: of the node.
        clock: steady seconds.
    """

    def __init__(
        self, get_logger: Callable[[], Any], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._get_logger = get_logger
        self._clock = clock
        self._told = OK
        self._seen = OK
        self._since = clock()

    def take(self, report: Report) -> None:
        """One report, as often as they are made."""
        now = self._clock()
        if report.level != self._seen:
            self._seen, self._since = report.level, now
        if report.level == self._told or now - self._since < LASTING:
            return
        self._told = report.level
        if report.level == OK:
            self._get_logger().info(f"well again: {report.message}")
        else:
            self._get_logger().warning(report.message)
