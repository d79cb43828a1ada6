"""Build script of depth_prior_ros: one for pip and for colcon."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from setuptools import find_packages, setup

NAME = "depth_prior_ros"
ROOMS = (NAME, "training", "rosbag_tools")
# Resolved, because colcon --symlink-install runs a link to this file in a folder of its own.
ROOT = Path(__file__).resolve().parent

# Python packages that bring ROS 2 (Kilted) to a machine without a ROS 2 installation.
ROS_WHEELS = [
    "ros-rclpy[fastrtps]==9.1.2",
    "ros-sensor-msgs==5.5.1",
    "ros-nav-msgs==5.5.1",
    "ros-shape-msgs==5.5.1",
    "ros-diagnostic-msgs==5.5.1",
    "ros-std-srvs==5.5.1",
    "ros-visualization-msgs==5.5.1",
]

# `colcon test` chooses pytest because it stands under this name.
TEST = [
    "hypothesis>=6.80",
    # pytest 9 does not start where launch_testing is installed.
    "pytest>=7,<8.4",
    "pytest-timeout>=2.1",
    "pytest-xdist>=3",
]

EXTRAS = {
    "ros": ROS_WHEELS,
    "cpu": ["openvino>=2024.0", "onnx>=1.14", "onnxruntime>=1.15"],
    "render": ["moderngl>=5.8"],
    # `depth_train import trunk` reads a detector in TensorFlow Lite's format.
    "trunk": ["tflite>=2.10"],
    # Depth models of Hugging Face as teachers of a prior.
    "foundation": ["transformers>=4.48"],
    # Recordings on a cluster, and at URLs.
    "cluster": ["fsspec>=2023.1", "ray>=2.9"],
    # k-means as a control of the selection by attention.
    "k-means": ["scikit-learn>=0.23", "threadpoolctl>=2.1"],
    "test": TEST,
    "dev": [
        *TEST,
        "scikit-learn>=0.23",
        "import-linter>=2.1,<3",
        # examples/depth.ipynb is run as a notebook where both are installed.
        "ipykernel",
        "nbclient>=0.7",
        "mypy==2.4.1",
        "pillow",  # benchmarks/loader.py compares with it
        "ruff==0.17.6",
        "types-PyYAML",
    ],
}


def version() -> str:
    """The version, which package.xml alone states."""
    return ET.parse(ROOT / "package.xml").getroot().findtext("version", "")


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


def shared_files(*folders: str) -> list[tuple[str, list[str]]]:
    """Every file below the folders, to be installed under share/ in the same layout."""
    by_folder: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            hidden = any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts)
            if path.is_file() and not hidden:
                relative = path.relative_to(ROOT)
                target = f"share/{NAME}/{relative.parent.as_posix()}"
                by_folder.setdefault(target, []).append(relative.as_posix())
    return list(by_folder.items())


setup(
    name=NAME,
    version=version(),
    description="Metric depth from one moving camera, as a ROS 2 node",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The depth_prior_ros maintainers",
    author_email="maintainers@depth-prior-ros.example",
    python_requires=">=3.10",
    packages=find_packages(include=[name + part for name in ROOMS for part in ("", ".*")]),
    package_data={"": ["py.typed", "templates/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml", "LICENSE", "LICENSE-WEIGHTS", "NOTICE"]),
        *shared_files("launch", "config", "bundles", "drives"),
    ],
    install_requires=requirements(),
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "depth_node = depth_prior_ros.ros.node:main",
            "depth_rviz = depth_prior_ros.ros.open_rviz:main",
            "depth_model_text = depth_prior_ros.ros.model_text:main",
            "depth_train = training.commands.cli:main",
            "depth_bag = rosbag_tools.cli:main",
        ],
    },
)
