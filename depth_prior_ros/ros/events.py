"""Events of the transport, where the distribution and the middleware report them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks


def message_lost_callbacks(on_lost: Callable[[int], None]) -> SubscriptionEventCallbacks:
    """Callbacks for a subscription that report messages which were sent and never arrived.

    Args:
        on_lost: called in the executor's thread with the number of newly lost messages.
    """

    def lost(event: Any) -> None:
        on_lost(int(event.total_count_change))

    return SubscriptionEventCallbacks(message_lost=lost)
