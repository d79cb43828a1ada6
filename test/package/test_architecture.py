"""The arrows between the packages, and that faces start without heavy imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("depth_prior_ros", "training", "rosbag_tools")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = ("torch", "openvino", "onnxruntime", "rosbags", "moderngl", "matplotlib")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a checkout of this project."""
    code = "from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", code, "--config", str(folder / "pyproject.toml"), "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_arrows() -> None:
    pytest.importorskip("importlinter", reason="needs import-linter: pip install -e '.[dev]'")
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("depth_prior_ros/motion/gate.py", "import training.commands.cli"),
        ("depth_prior_ros/motion/gate.py", "import depth_prior_ros.pipeline"),
        ("depth_prior_ros/pipeline/pipeline.py", "import rclpy"),
        ("depth_prior_ros/models/pose.py", "import cv2"),
        ("depth_prior_ros/new_room.py", ""),
        ("training/commands/cli.py", "import rosbag_tools.cli"),
        ("training/commands/cli.py", "import rosbags"),
        ("rosbag_tools/cli.py", "import sensor_msgs.msg"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, module: str, line: str) -> None:
    pytest.importorskip("importlinter", reason="needs import-linter: pip install -e '.[dev]'")
    for source in SOURCES:
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    assert lint_imports(tmp_path).returncode == 1


def test_no_import_leads_back() -> None:
    """Nor one inside a function; what is imported for annotations alone does not count."""
    grimp = pytest.importorskip("grimp", reason="comes with import-linter: pip install -e '.[dev]'")
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    imported = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imported).prepare()  # names the circle where there is one
    first, second = "training.errors", "training.commands.cli"
    imported[first] = imported[first] | {second}
    with pytest.raises(CycleError, match="cycle"):
        TopologicalSorter(imported).prepare()


@pytest.mark.parametrize(
    "module", ["training.commands.cli", "rosbag_tools.cli", "depth_prior_ros.ros.node"]
)
def test_faces_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_no_room_is_called_utils() -> None:
    names = {"utils", "util", "helpers", "common", "misc"}
    assert not [str(path) for path in SOURCES if names & set(path.with_suffix("").parts)]


def test_every_public_name_says_what_it_is() -> None:
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert not missing
