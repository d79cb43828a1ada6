"""Where launch files, configuration, bundles and the embedded drive lie.

From a checkout (also an editable install) that is the checkout itself; installed, it is
``<prefix>/share/depth_prior_ros``, filled by setup.py's ``data_files`` for pip and colcon alike.
"""

from __future__ import annotations

import difflib
import os
import sysconfig
from pathlib import Path

PACKAGE = "depth_prior_ros"
DEFAULT_BUNDLE = "lite"
RECIPES = "config/training"


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


def home_path(path: str | Path) -> Path:
    """A path whose `~` is resolved.

    Raises:
        FileNotFoundError: there is no such home, as in a container without an entry for its user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{path}: there is no such home folder; give an absolute path"
        ) from error


def cache_dir(name: str) -> Path:
    """Where the user keeps what can be made again; it need not be there yet.

    Raises:
        FileNotFoundError: as `home_path`.
    """
    return home_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / PACKAGE / name


def bundle_path(name_or_path: str | Path = DEFAULT_BUNDLE) -> Path:
    """The folder of a bundle, given a path or the name of a shipped one.

    Raises:
        FileNotFoundError: names the shipped bundles when there is no such one.
    """
    path = home_path(name_or_path)
    if path.is_dir():
        return path.absolute()
    shipped = share_dir() / "bundles"
    if path.name == str(name_or_path) and (shipped / path.name).is_dir():
        return shipped / path.name
    raise FileNotFoundError(
        f"no bundle '{name_or_path}': {path.absolute()} is no folder, and none of that name is "
        f"shipped (shipped: {_folders(shipped)})"
    )


def recipe_path(name_or_path: str | Path, folder: str = RECIPES) -> Path:
    """The file of a recipe, given a path, the name of a shipped one, or its path in the share.

    Args:
        name_or_path: `small_start`, `config/training/small_start.yaml`, or a file of one's own.
        folder: below the share, where those of that kind lie.

    Raises:
        FileNotFoundError: names the most similar shipped ones when there is no such file.
    """
    path = home_path(name_or_path)
    found = path.absolute() if path.is_file() else _shipped(path, folder, ".yaml")
    if found is not None:
        return found
    names = [p.stem for p in (share_dir() / folder).glob("*.yaml")]
    close = difflib.get_close_matches(path.stem, names, 3) or sorted(names)
    raise FileNotFoundError(
        f"no recipe '{name_or_path}': {path.absolute()} is no file, and none of that name is "
        f"shipped in {share_dir() / folder} ({', '.join(close)})"
    )


def experiment_path(name_or_path: str | Path) -> Path:
    """The file of an experiment; as :func:`recipe_path`."""
    return recipe_path(name_or_path, f"{RECIPES}/experiments")


def recording_path(name_or_path: str | Path) -> Path:
    """Where a recording lies, given a path or the name of an embedded drive (`street`).

    What is in neither place is returned as it is: whoever opens it says what is wrong.
    """
    path = home_path(name_or_path)
    if path.exists():
        return path
    try:
        return _shipped(path, "drives", ".mcap") or path
    except FileNotFoundError:
        return path


def _shipped(path: Path, folder: str, suffix: str) -> Path | None:
    """A shipped file, by its name with or without suffix, or by its path in the share."""
    if path.is_absolute() or ".." in path.parts:
        return None
    share = share_dir()
    tried = [share / path] if path.parts[0] == Path(folder).parts[0] else []
    if len(path.parts) == 1:
        tried += [share / folder / path, share / folder / f"{path.name}{suffix}"]
    return next((file for file in tried if file.is_file()), None)


def _folders(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    return ", ".join(names) or "none"


def demo_bag() -> Path:
    """The embedded drive, a bag with exact depth."""
    return share_dir() / "drives" / "street.mcap"
