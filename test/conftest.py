"""What all tests share: which ones run where, and peace from other ROS 2 nodes."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import depth_prior_ros  # noqa: F401 - before a test loads OpenCV, whose limit it sets

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Bundle
    from depth_prior_ros.pipeline import DepthPipeline

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    # A robot, or a second test run, on the same network must not hear these tests, nor they it.
    domain = os.environ.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 90)))
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # gw0, gw1, ...: nor one worker another
        os.environ["ROS_DOMAIN_ID"] = str(int(domain) + 1 + int(worker[2:]))
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # Threads of a pool wait for each other in loops: with as many processes as cores, or more, that
    # takes many times the work.
    for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(pool, "1")
    if importlib.util.find_spec("hypothesis"):
        from hypothesis import settings

        # How long an example takes says nothing on a machine that is busy with others. CI tries the
        # same examples every time: what it says is of the change, not of the draw.
        settings.register_profile("patient", deadline=None, derandomize="CI" in os.environ)
        settings.load_profile("patient")


def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA device, and there is none"


def _no_data() -> str | None:
    folder = os.environ.get("DEPTH_PRIOR_DATA")
    if not folder:
        return "needs real data: set DEPTH_PRIOR_DATA to their folder (CONTRIBUTING.md)"
    return None if Path(folder).is_dir() else f"DEPTH_PRIOR_DATA={folder} is not a folder"


def _no_launch() -> str | None:
    if shutil.which("ros2") is None:
        return "needs the ros2 command line of a ROS 2 installation, which is not on the PATH"
    if importlib.util.find_spec("launch_ros") is None and "AMENT_PREFIX_PATH" not in os.environ:
        return "needs launch_ros: source a ROS 2 installation"
    return None


# What a test module imports whose tests start a node of its own, or would.
_STARTS_NODES = ("NodeProcess", "node_and_peer")
_NEEDS = {"gpu": _no_gpu, "data": _no_data, "launch": _no_launch}


@pytest.hookimpl(tryfirst=True)  # before what `-m` deselects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot or need not run here, each with its reason."""
    reasons: dict[str, str | None] = {
        name: check()
        for name, check in _NEEDS.items()
        if any(item.get_closest_marker(name) for item in items)
    }
    reasons["slow"] = None if config.getoption("--slow") else "slow: run with --slow"
    for item in items:
        if any(hasattr(getattr(item, "module", None), name) for name in _STARTS_NODES):
            item.add_marker("node")
    for item in items:
        for name, reason in reasons.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
    _longest_first(items)


def _longest_first(items: list[pytest.Item]) -> None:
    """Files that take long begin first: side by side, the last to end decides (a rough guess)."""
    seconds: dict[Path, float] = {}
    for item in items:
        skipped = item.get_closest_marker("skip")
        own = 20.0 if item.get_closest_marker("slow") else 3.0 if "ros" in item.path.parts else 0.3
        seconds[item.path] = seconds.get(item.path, 0.0) + (0.0 if skipped else own)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data; for tests marked ``data``."""
    return Path(os.environ["DEPTH_PRIOR_DATA"])


# -- a pipeline of tiny networks ---------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Tiny random networks, the trunk the tests' own; modules that need others have a `bundle`."""
    from helpers import make_tiny_bundle
    from tiny_trunk import TINY_TRUNK

    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", trunk=TINY_TRUNK)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder, for nodes; who alters a bundle copies it first."""
    from helpers import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture(scope="module")
def shared(bundle: Bundle) -> DepthPipeline:
    """One pipeline for a whole module: making it takes longer than a frame."""
    from depth_prior_ros.pipeline import DepthPipeline

    return DepthPipeline(bundle, "torch", "cpu")


@pytest.fixture
def pipeline(shared: DepthPipeline) -> Iterator[DepthPipeline]:
    """The shared pipeline, as new."""
    from pipeline_scenes import restart

    restart(shared)
    yield shared
    restart(shared)
