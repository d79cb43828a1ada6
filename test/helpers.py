"""What several tests share: a tiny random bundle, textures that move."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.backends import BACKENDS, choice
from depth_prior_ros.bundle import (
    Architecture,
    Bundle,
    CameraSpec,
    DepthSpec,
    Manifest,
    PriorSpec,
    Provenance,
    build_network,
    save_bundle,
)

if TYPE_CHECKING:
    from depth_prior_ros.models.imported import DepthKind

TINY_SIZE = (96, 32)
METRES_PER_UNIT = 20.0


def tiny_manifest(size: tuple[int, int] = TINY_SIZE, trunk: str = "hrnet_w18_small") -> Manifest:
    """W18-small with a light decoder and a prior of 16 pixels, at `size` (width, height)."""
    width, height = size
    return Manifest(
        name="tiny",
        architecture=Architecture(
            student={
                "trunk": trunk,
                "decoder": "light",
                "fusion": {"stride": 16, "reference_channels": 32, "width": 64, "heads": 4},
            },
            # So small an image has little parallax.
            multi_frame={"hypotheses": 16, "groups": 16, "parallax": 0.2},
            pose={"variant": "small"},
        ),
        input_size=size,
        training_camera=CameraSpec(
            fx=0.58 * width,
            fy=1.92 * height,
            cx=0.5 * width,
            cy=0.5 * height,
            width=width,
            height=height,
        ),
        depth=DepthSpec(metres_per_unit=METRES_PER_UNIT, metres_per_unit_source="made up"),
        licence="Apache-2.0",
        provenance=Provenance(data_sources=["random numbers"], seed=0),
        prior=PriorSpec(pixels=16, channels=32, note="random numbers, for tests"),
    )


TOLD = (1.0, -0.5, 0.3, 0.8, -0.4)
"""A camera for `make_told_bundle`."""


def make_told_bundle(
    path: Path, size: tuple[int, int] = TINY_SIZE, trunk: str = "mobilenet_v2"
) -> Bundle:
    """Write a bundle of small random networks whose student is told its camera, and hears it."""
    import torch

    manifest = tiny_manifest(size)
    student = {"trunk": trunk, "decoder": "convex", "camera_code": True, "far_bias": -2.0}
    architecture = manifest.architecture.model_copy(update={"student": student})
    manifest = manifest.model_copy(update={"architecture": architecture, "prior": None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets: dict[str, Any] = {
            part: build_network(manifest, part)  # type: ignore[arg-type]
            for part in ("student", "multi_frame", "pose")
        }
        for layer in nets["student"].camera_code.added.values():
            torch.nn.init.normal_(layer.weight, 0, 30)
    return save_bundle(path, manifest, **nets)


def make_tiny_bundle(
    path: Path,
    size: tuple[int, int] = TINY_SIZE,
    seed: int = 0,
    trunk: str = "hrnet_w18_small",
) -> Bundle:
    """Write a bundle of small random networks to `path`; the depths are nonsense, but legal.

    The pose network always answers about 0.05 units (1 m) straight ahead, so that a vehicle whose
    odometry says up to 100 m/s at 10 Hz gets multi-frame depth.

    A new folder gets copies of what was saved once: a test of saving calls `save_bundle`.
    """
    import torch

    path = Path(path)
    if path.exists():  # saving knows what may be replaced
        nets, prior = _tiny_networks(size, seed, trunk)
        torch.manual_seed(seed)  # what a test draws next does not depend on the tests before it
        return save_bundle(path, tiny_manifest(size, trunk), prior=prior, **nets)
    manifest, files = _tiny_files(size, seed, trunk)
    torch.manual_seed(seed)
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return Bundle(path, manifest.model_copy(deep=True))


@functools.cache
def _tiny_files(size: tuple[int, int], seed: int, trunk: str) -> tuple[Manifest, dict[str, bytes]]:
    """What saving such a bundle writes and answers; saved, and verified, once."""
    nets, prior = _tiny_networks(size, seed, trunk)
    with tempfile.TemporaryDirectory() as folder:
        saved = save_bundle(Path(folder) / "tiny", tiny_manifest(size, trunk), prior=prior, **nets)
        return saved.manifest, {f.name: f.read_bytes() for f in saved.path.iterdir()}


@functools.cache
def _tiny_networks(size: tuple[int, int], seed: int, trunk: str) -> tuple[dict[str, Any], Any]:
    """Networks by part, and the prior; made once: many tests write the same bundle."""
    import torch

    from depth_prior_ros.models.prior_fusion import Prior

    manifest = tiny_manifest(size, trunk)
    nets: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for offset, part in enumerate(("student", "multi_frame", "pose")):
            torch.manual_seed(seed + offset)
            nets[part] = build_network(manifest, part)  # type: ignore[arg-type]
        pose_head = nets["pose"].decoder
        with torch.no_grad():
            pose_head.weight.mul_(0.01)
            pose_head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -5.0]))
            nets["multi_frame"].delta.uniform_(0.2, 0.6)
        prior = Prior(features=torch.randn(16, 32), inverse_depth=torch.rand(16) + 0.05)
    return nets, prior


@contextmanager
def exporting_once(files: dict[Any, bytes]) -> Iterator[None]:
    """Backends read the file of one export, by the kind of network and how many inputs it has: of
    one bundle alone."""
    from unittest.mock import patch

    from depth_prior_ros.backends import onnx_backend

    export = onnx_backend.export_onnx

    def kept(module: Any, example_inputs: Any, path: Path) -> None:
        kind = type(module), len(example_inputs)
        if kind not in files:
            export(module, example_inputs, path)
            files[kind] = path.read_bytes()
        path.write_bytes(files[kind])

    with patch.object(onnx_backend, "export_onnx", kept):
        yield


def cpu_backends() -> list[str]:
    """The names of all backends that run on a CPU."""
    return [name for name, backend in BACKENDS.items() if "cpu" in backend.devices]


def need_packages_of(backend: str) -> None:
    """Skip the test where a package that the backend declares is not installed."""
    import pytest

    for package in BACKENDS[backend].packages:
        pytest.importorskip(package, reason=f"{backend} needs {package}: the extra `cpu` has it")


def register_alone(patch: Any, *names: str, **others: type) -> None:
    """Let these of the backends, and others of a test's own, be the only ones to choose from."""
    found = {name: BACKENDS[name] for name in names} | others
    patch.setattr(choice, "BACKENDS", dict(sorted(found.items())))


UNITS = 3.0
"""By which depth is larger in the unit of `import_student`'s scale-invariant networks."""


def import_student(
    bundle: Bundle, folder: Path, depth: DepthKind, metres_per_unit: float | None = None
) -> Bundle:
    """The student of a bundle as ONNX, imported below a folder; of affine-invariant inverse depth
    its own, of scale-invariant depth `UNITS` times its own."""
    import torch
    from torch import Tensor, nn

    from depth_prior_ros.backends.onnx_backend import export_onnx
    from depth_prior_ros.models.export import StudentRunner
    from training.runs.network_import import ImportRequest, import_network

    limits, camera = bundle.manifest.depth, bundle.manifest.camera
    prior = bundle.prior() if bundle.has("prior") else None
    runner = StudentRunner(bundle.student(), prior, limits.min_units, limits.max_units)

    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.runner = runner

        def forward(self, image: Tensor) -> Tensor:
            inverse: Tensor = self.runner(image)[0]
            return UNITS / inverse if depth == "scale_invariant" else inverse

    example = torch.zeros(1, 3, camera.height, camera.width).numpy()
    export_onnx(Answer(), (example,), folder / "student.onnx", ["image"], ["depth"])
    request = ImportRequest(
        f"onnx:{folder / 'student.onnx'}",
        folder / depth,
        depth,
        metres_per_unit=metres_per_unit,
        focal=(camera.fx, camera.fy),
    )
    return import_network(request)


def texture(
    width: int = 192, height: int = 64, seed: int = 0, margin: int = 64
) -> NDArray[np.uint8]:
    """A smooth random RGB picture, `margin` pixels wider on every side than width x height."""
    import cv2

    noise = np.random.default_rng(seed).integers(
        0, 256, ((height + 2 * margin) // 4, (width + 2 * margin) // 4, 3), dtype=np.uint8
    )
    size = (width + 2 * margin, height + 2 * margin)
    return cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)


def shifted(
    picture: NDArray[np.uint8], x: float, y: float = 0.0, margin: int = 64
) -> NDArray[np.uint8]:
    """The inner part of `texture`'s picture, moved by (x, y) pixels."""
    import cv2

    height, width = picture.shape[0] - 2 * margin, picture.shape[1] - 2 * margin
    move = np.array([[1.0, 0.0, x - margin], [0.0, 1.0, y - margin]])
    return cv2.warpAffine(picture, move, (width, height), flags=cv2.INTER_LINEAR)
