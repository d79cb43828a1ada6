"""Fast DDS told to use a shared-memory segment that holds a whole image.

With its default of 512 KB a full-size image overwrites whatever was sent just before it: odometry
and calibration are lost where they travel best effort. Other middleware ignores all this.
"""

from __future__ import annotations

import os

from depth_prior_ros.share import share_dir

_NEW, _OLD = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
# These know the old name only; later ones warn about it.
_OLD_DISTRIBUTIONS = ("humble", "iron", "jazzy")


def large_message_environment() -> dict[str, str]:
    """The variable to set; none where somebody has set it, or without the file."""
    if os.environ.get(_NEW) or os.environ.get(_OLD):
        return {}
    try:
        profile = share_dir() / "config" / "fastdds_large_images.xml"
    except FileNotFoundError:
        return {}
    name = _OLD if os.environ.get("ROS_DISTRO") in _OLD_DISTRIBUTIONS else _NEW
    return {name: str(profile)} if profile.is_file() else {}


def use_large_messages() -> None:
    """Set it for this process; before its first participant is made, or it is too late."""
    os.environ.update(large_message_environment())
