"""Where launch files, configuration, bundles and the embedded drive lie.

From a checkout (also an editable install) that is the checkout itself; installed, it is
``<prefix>/share/depth_prior_ros``, filled by setup.py's ``data_files`` for pip and colcon alike.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

PACKAGE = "depth_prior_ros"
DEFAULT_BUNDLE = "lite"


def _candidates() -> list[Path]:
    checkout = Path(__file__).resolve().parents[1]
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    prefixes.append(sysconfig.get_path("data"))
    # colcon installs to <prefix>/lib/pythonX.Y/site-packages: walk up to a prefix with our share.
    prefixes += [str(p) for p in Path(__file__).resolve().parents]
    return [checkout, *(Path(p) / "share" / PACKAGE for p in prefixes)]


def share_dir() -> Path:
    """The folder with ``launch``, ``config``, ``bundles`` and ``drives``.

    Raises:
        FileNotFoundError: when the package's data files were not installed.
    """
    for folder in _candidates():
        if (folder / "package.xml").is_file() and (folder / "config").is_dir():
            return folder
    raise FileNotFoundError(
        f"the data files of {PACKAGE} (share/{PACKAGE}) were not found; install the package with "
        "pip or colcon, or run it from a checkout"
    )


def large_images_environment() -> dict[str, str]:
    """The variable that makes Fast DDS read config/fastdds_large_images.xml; empty without it."""
    try:
        profile = share_dir() / "config" / "fastdds_large_images.xml"
    except FileNotFoundError:
        return {}
    # These know the old name of the variable only; later ones warn about it.
    old = os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")
    return {f"FAST{'RTPS' if old else 'DDS'}_DEFAULT_PROFILES_FILE": str(profile)}


def bundle_path(name_or_path: str | Path = DEFAULT_BUNDLE) -> Path:
    """The folder of a bundle, given a path or the name of a shipped one.

    Raises:
        FileNotFoundError: names the shipped bundles when there is no such one.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path.absolute()
    shipped = share_dir() / "bundles"
    if path.name == str(name_or_path) and (shipped / path.name).is_dir():
        return shipped / path.name
    names = sorted(p.name for p in shipped.iterdir() if p.is_dir()) if shipped.is_dir() else []
    raise FileNotFoundError(
        f"no bundle '{name_or_path}': {path.absolute()} is no folder, and none of that name is "
        f"shipped (shipped: {', '.join(names) or 'none'})"
    )


def demo_bag() -> Path:
    """The embedded drive, a bag with exact depth."""
    return share_dir() / "drives" / "street.mcap"
