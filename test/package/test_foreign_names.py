"""Names that others decide: Nav2's parameters and rosdep's keys, against copies of their sources.

NAV2_SOURCE: a folder with ros-navigation/navigation2. ROSDISTRO_SOURCE: one with ros/rosdistro.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NAV2 = ROOT / "config" / "nav2_obstacles.yaml"
MESSAGES = {"depth_obstacles": "PointCloud2", "depth_scan": "LaserScan"}


def source(variable: str) -> Path:
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"needs {variable}: a folder with that repository")
    return Path(folder)


def words_in(*files: Path) -> set[str]:
    """All strings between quotation marks."""
    return {w for f in files for w in re.findall(r'"\.?([A-Za-z_:0-9]+)"', f.read_text())}


def layers() -> Iterator[dict[str, Any]]:
    content = yaml.safe_load(NAV2.read_text(encoding="utf-8"))
    for costmap in ("local_costmap", "global_costmap"):
        parameters = content[costmap][costmap]["ros__parameters"]
        yield from (v for v in parameters.values() if isinstance(v, dict))


def test_every_source_of_the_layers_is_described() -> None:
    for layer in layers():
        for name in layer["observation_sources"].split():
            described = layer[name]
            assert described["topic"] == f"/{name.replace('_', '/')}"
            assert described["data_type"] == MESSAGES[name]
            assert described["marking"] or described["clearing"]


def test_nav2_has_parameters_and_plugins_of_these_names() -> None:
    nav2 = source("NAV2_SOURCE")
    costmap = nav2 / "nav2_costmap_2d"
    obstacle = costmap / "plugins" / "obstacle_layer.cpp"
    voxel = costmap / "plugins" / "voxel_layer.cpp"
    plugins = words_in(costmap / "costmap_plugins.xml")
    for layer in layers():
        assert layer["plugin"] in plugins
        own = words_in(obstacle, voxel) if "Voxel" in layer["plugin"] else words_in(obstacle)
        for name, value in layer.items():
            if isinstance(value, dict):
                assert set(value) <= words_in(obstacle), name
            elif name != "plugin":
                assert name in own
    known = words_in(nav2 / "nav2_lifecycle_manager" / "src" / "lifecycle_manager.cpp")
    content = yaml.safe_load(NAV2.read_text(encoding="utf-8"))
    assert set(content["lifecycle_manager_depth"]["ros__parameters"]) <= known


def test_every_rosdep_key_has_an_answer_on_ubuntu_24_04() -> None:
    """Keys of system packages, or released packages of Jazzy."""
    distro = source("ROSDISTRO_SOURCE")
    rules: dict[str, Any] = {}
    for name in ("base", "python"):
        rules |= yaml.safe_load((distro / "rosdep" / f"{name}.yaml").read_text(encoding="utf-8"))
    jazzy = yaml.safe_load((distro / "jazzy" / "distribution.yaml").read_text(encoding="utf-8"))
    released = {
        package
        for name, repository in jazzy["repositories"].items()
        for package in repository.get("release", {}).get("packages", [name])
        if "release" in repository
    }
    package = ET.parse(ROOT / "package.xml").getroot()
    keys = [e.text for e in package if e.tag.endswith("depend") and e.text]
    assert len(keys) > 20
    missing = [key for key in keys if key not in released and not resolved(rules.get(key))]
    for key in keys:
        answer = "released in jazzy" if key in released else resolved(rules.get(key))
        print(f"{key}: {answer or 'NO ANSWER'}")
    assert not missing


def resolved(rule: Any) -> str:
    """What Ubuntu 24.04 (noble) installs for a rule of rosdep; empty: nothing."""
    ubuntu = (rule or {}).get("ubuntu", (rule or {}).get("*"))
    if isinstance(ubuntu, dict) and not {"apt", "pip"} & set(ubuntu):
        ubuntu = ubuntu.get("noble", ubuntu.get("*"))
    return "" if not ubuntu else str(ubuntu)
