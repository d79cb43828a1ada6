"""A bundle's networks, compiled by a backend and ready to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.backends import Backend, BackendError, Compiled, choose_backend, make_backend
from depth_prior_ros.backends.base import Precision
from depth_prior_ros.bundle import Bundle, BundleError

Native = Any
Features = tuple[Native, ...]


class Stopwatch:
    """Milliseconds by name, and their total; `synchronize` waits for what runs elsewhere."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.timings: dict[str, float] = {}
        self._synchronize = synchronize
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block; blocks of one name add up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            elapsed = (time.perf_counter() - start) * 1e3
            self.timings[name] = self.timings.get(name, 0.0) + elapsed

    def stop(self) -> dict[str, float]:
        """All times, with `total` since the stopwatch was made."""
        self.timings["total"] = (time.perf_counter() - self._start) * 1e3
        return self.timings


class Networks:
    """Four compiled networks with the pose conventions of the project.

    Native tensors in and out, so that features can stay on the device; poses as (4, 4) float64.
    Raises BackendError where the backend cannot compile a network.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        from depth_prior_ros.models.export import (
            FeatureRunner,
            MultiFrameRunner,
            PoseRunner,
            StudentRunner,
        )

        self.backend = backend
        depth = bundle.manifest.depth
        width, height = bundle.manifest.input_size
        image = np.zeros((1, 3, height, width), dtype=np.float32)
        prior = bundle.prior() if bundle.has("prior") else None
        student_net = bundle.student()
        if student_net.fusion is not None and prior is None:
            raise BundleError(
                bundle.path,
                "the student has a prior fusion, but there is no prior: choose one (depth_train "
                "select)",
            )
        if prior is not None:
            bundle.match_prior(student_net)
        student = StudentRunner(
            student_net, prior, min_depth=depth.min_units, max_depth=depth.max_units
        )
        self._student = backend.compile(student, (image,))
        self._features: Compiled | None = None
        self._aligns = bundle.manifest.architecture.align_motion
        if not (bundle.has("multi_frame") and bundle.has("pose")):
            return
        multi = bundle.multi_frame()
        matching, context = (
            np.zeros((1, *shape), dtype=np.float32) for shape in multi.feature_shapes()
        )
        eye = np.eye(4, dtype=np.float32)[np.newaxis]
        K = bundle.manifest.camera.matrix().astype(np.float32)[np.newaxis]
        depth_example = np.full((1, 1, height, width), 10.0, dtype=np.float32)
        self._features = backend.compile(FeatureRunner(multi), (image,))
        self._pose = backend.compile(PoseRunner(bundle.pose()), (image, image))
        self._multi = backend.compile(
            MultiFrameRunner(multi), (matching, context, matching, eye, K, depth_example)
        )

    @property
    def has_multi_frame(self) -> bool:
        """Whether there are a multi-frame and a pose network."""
        return self._features is not None

    def single(self, image: Native) -> tuple[Native, Native]:
        """Image (1, 3, H, W) to inverse depth in 1/units and confidence, both (1, 1, H, W)."""
        inverse, confidence = self._student(image)
        return inverse, confidence

    def features(self, image: Native) -> Features:
        """What the multi-frame network keeps of an image: matching and context features."""
        assert self._features is not None
        return self._features(image)

    def pose(self, previous: Native, current: Native) -> NDArray[np.float64]:
        """`current_from_previous` (4, 4), network units; the frames in temporal order."""
        (matrix,) = self._pose(previous, current)
        return self.backend.to_numpy(matrix)[0].astype(np.float64)

    def align(
        self,
        previous: Native,
        current: Native,
        current_from_previous: NDArray[np.float64],
        K: NDArray[np.float64],
        single_inverse: Native,
    ) -> NDArray[np.float64]:
        """The motion (4, 4) refined against single-frame depth, if the bundle asks for it.

        Images (1, 3, H, W), K (3, 3) at the input size, inverse depth in 1/units.
        """
        if not self._aligns or not np.isfinite(current_from_previous).all():
            return current_from_previous
        import torch

        from depth_prior_ros.geometry import Pose
        from depth_prior_ros.models.alignment import align_motion

        image = _tensor(current)
        matrix = torch.from_numpy(inverse_pose(current_from_previous)[np.newaxis]).float()
        intrinsics = torch.from_numpy(K[np.newaxis]).float()
        refined = align_motion(
            image,
            _tensor(previous),
            1.0 / _tensor(single_inverse),
            intrinsics.to(image.device),
            Pose(matrix.to(image.device)),
        )
        return inverse_pose(refined.matrix[0].double().cpu().numpy())

    def multi(
        self,
        current: Features,
        previous: Features,
        previous_from_current: NDArray[np.float64],
        K: NDArray[np.float64],
        single_inverse: Native,
    ) -> tuple[Native, Native]:
        """Depth in units and confidence; K (3, 3) at the input size."""
        native = self.backend.to_native
        single_depth = 1.0 / single_inverse  # numpy or torch alike; inverse depth is never zero
        depth, confidence = self._multi(
            current[0],
            current[1],
            previous[0],
            native(previous_from_current.astype(np.float32)[np.newaxis]),
            native(K.astype(np.float32)[np.newaxis]),
            single_depth,
        )
        return depth, confidence


def _tensor(native: Native) -> Any:
    """A backend's tensor as PyTorch's, on the same device."""
    import torch

    if isinstance(native, torch.Tensor):
        return native
    return torch.from_numpy(np.require(native, dtype=np.float32, requirements="W"))


def compile_networks(
    bundle: Bundle,
    backend: str = "auto",
    device: str = "auto",
    *,
    threads: int = 1,
    precision: Precision = "f32",
) -> tuple[Networks, str]:
    """The bundle's networks on the chosen backend, and why that one.

    Where `auto` chose a backend that fails to compile, PyTorch on the CPU takes its place and the
    reason says so. Raises BackendError for a backend chosen by name.
    """
    chosen, why = choose_backend(backend, device, threads=threads, precision=precision)
    try:
        return Networks(bundle, chosen), why
    except BackendError as error:
        if backend != "auto" or chosen.name == "torch":
            raise
        fallback = make_backend("torch", "cpu", threads=threads)
        return Networks(bundle, fallback), f"{chosen.name} failed: {error}"


def inverse_pose(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a rigid transform (4, 4)."""
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse
