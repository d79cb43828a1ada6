"""The middleware's environment: Fast DDS with shared memory that holds a whole image.

With its default of 512 KB a full-size image overwrites whatever was sent just before it: odometry
and calibration are lost where they travel best effort. Other middleware ignores all this.
"""

from __future__ import annotations

import os

from depth_prior_ros.share import share_dir

_NEW, _OLD = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
# These know the old name only; later ones warn about it.
_OLD_DISTRIBUTIONS = ("humble", "iron", "jazzy")


def replay_environment() -> dict[str, str]:
    """What a replay and its node need in their environment, beyond what the user has set.

    The profile for large messages, unless there is one; and discovery on this machine only, so
    that no robot on the same network takes the replayed drive for its own (from Iron on).
    """
    environment = {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    if not (os.environ.get(_NEW) or os.environ.get(_OLD)):
        environment |= _large_messages()
    return environment | {name: os.environ[name] for name in environment if name in os.environ}


def use_replay_environment() -> None:
    """Set it for this process; before its first participant is made, or it is too late."""
    os.environ.update(replay_environment())


def use_large_images() -> None:
    """Set the profile for large messages for this process, unless the user has set one."""
    if not (os.environ.get(_NEW) or os.environ.get(_OLD)):
        os.environ.update(_large_messages())


def _large_messages() -> dict[str, str]:
    try:
        profile = share_dir() / "config" / "fastdds_large_images.xml"
    except FileNotFoundError:
        return {}
    name = _OLD if os.environ.get("ROS_DISTRO") in _OLD_DISTRIBUTIONS else _NEW
    return {name: str(profile)} if profile.is_file() else {}
