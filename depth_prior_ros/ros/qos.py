"""Quality of service of the node's topics, and how a user overrides it."""

from __future__ import annotations

from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions


def qos(depth: int, reliable: bool, latched: bool = False) -> QoSProfile:
    """A profile that keeps the newest ``depth`` messages.

    Args:
        depth: messages kept.
        reliable: sent again where lost; otherwise best effort.
        latched: whoever subscribes later still gets the newest messages (transient local).
    """
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=(
            QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        ),
        durability=(
            QoSDurabilityPolicy.TRANSIENT_LOCAL if latched else QoSDurabilityPolicy.VOLATILE
        ),
    )


def overrides() -> QoSOverridingOptions:
    """Lets ``qos_overrides./TOPIC.{subscription,publisher}.{history,depth,reliability}`` decide.

    The parameters are declared, read only, when the topic is first created; the profile given in
    code is their default.
    """
    return QoSOverridingOptions.with_default_policies()
