"""The process of the node, where the command line cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_an_argument_in_another_locale_is_named(locale: str) -> None:
    """Python reads bytes that are no text of the locale as lone surrogates, which ROS refuses."""
    run = [sys.executable, "-m", "depth_prior_ros.ros.node", "--ros-args", "-p"]
    odd = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [*run, "bundle:=/tmp/b\u00fcndel".encode()],
        env={**os.environ, **odd},
        capture_output=True,
        timeout=100,
        check=False,
    )
    said = done.stderr.decode().strip()
    assert done.returncode == 1
    assert "\n" not in said
    assert "bundle:=/tmp/b" in said
    assert "LC_ALL=C.UTF-8" in said
