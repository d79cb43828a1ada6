"""Quality of service of the node's topics, and how a user overrides it."""

from __future__ import annotations

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

RELIABILITIES = {p.name.lower(): p for p in QoSReliabilityPolicy if p.name != "UNKNOWN"}
"""By the names that QoS overrides have; which there are is a question of the distribution."""


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


def all_reliable(node: Node, topic: str) -> bool | None:
    """Whether every publisher that there is of a topic is reliable; None where there is none.

    Args:
        node: that asks.
        topic: full name, after remapping.
    """
    publishers = node.get_publishers_info_by_topic(topic)
    if not publishers:
        return None
    reliable = QoSReliabilityPolicy.RELIABLE
    return all(publisher.qos_profile.reliability == reliable for publisher in publishers)


def overrides() -> QoSOverridingOptions:
    """Lets ``qos_overrides./TOPIC.publisher.{history,depth,reliability}`` decide.

    The parameters are declared, read only, when the topic is first created; the profile given in
    code is their default.
    """
    return QoSOverridingOptions.with_default_policies()


def subscription_overrides(node: Node, topic: str, profile: QoSProfile) -> QoSOverridingOptions:
    """Lets ``qos_overrides./TOPIC.subscription.{history,depth,reliability}`` decide.

    The first two are rclpy's business. Their read-only parameters keep for good what the first
    subscription was made with; a reliability of that kind would outlive a change of
    ``image_reliability``. So reliability is a parameter of our own here: empty, it leaves the
    profile alone.

    Args:
        node: that declares the parameters.
        topic: relative or full name, before remapping.
        profile: of the subscription; its reliability is changed where the parameter says so.

    Raises:
        ValueError: for a reliability that there is not.
    """
    name = f"qos_overrides.{node.resolve_topic_name(topic)}.subscription.reliability"
    if not node.has_parameter(name):
        text = f"One of {', '.join(RELIABILITIES)}; empty: as the node's own parameters say."
        node.declare_parameter(name, "", ParameterDescriptor(description=text, read_only=True))
    said = str(node.get_parameter(name).value).lower()
    if said:
        if said not in RELIABILITIES:
            raise ValueError(f"{name} must be one of {', '.join(RELIABILITIES)}, not {said!r}")
        profile.reliability = RELIABILITIES[said]
    return QoSOverridingOptions((QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH))
