"""A bundle's networks, compiled by a backend and ready to run."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.backends import (
    Backend,
    BackendError,
    Compiled,
    Precision,
    backend_options,
    make_backend,
)
from depth_prior_ros.backends.choice import Option, reason_of
from depth_prior_ros.bundle import Bundle, BundleError
from depth_prior_ros.pipeline.sharing import NetworkPool, Turns

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from depth_prior_ros.models.alignment import Alignment
    from depth_prior_ros.models.episodic_prior import EpisodicPrior, References

Native = Any
Features = tuple[Native, ...]

_log = logging.getLogger(__name__)


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


class MultiFrameTensors(NamedTuple):
    """What the multi-frame network says, units of the networks' world.

    depth (1, 1, H, W), blended with the single-frame depth as the network has it; its confidence,
    of the same size, in [0, 1]; parallax (1, 1, H / 4, W / 4) in pixels of the input; matched
    (1, 1, H, W), depth by matching alone.
    """

    depth: Native
    confidence: Native
    parallax: Native
    matched: Native


class Networks:
    """Four compiled networks with the pose conventions of the project.

    Native tensors in and out, so that features can stay on the device; poses as (4, 4) float64.
    threads: for what PyTorch computes beside another backend; None: as many as it uses anyway.
    fell_back: whether a backend that should have run them could not.
    aligns: whether the bundle wants motion refined against single-frame depth.
    parallax: pixels from which matching is trusted (`MultiFrameNet`), 0: always. The argument of
    that name stands for the bundle's own.
    look_up: whether references of the bundle are looked up; false: no look-up is compiled.
    turns: held by whoever uses them, where several cameras share them.
    Raises BackendError where the backend cannot compile a network, ValueError for a parallax that
    cannot be.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        threads: int | None = None,
        parallax: float | None = None,
        look_up: bool = True,
    ) -> None:
        from depth_prior_ros.models.export import FeatureRunner, MultiFrameRunner, PoseRunner
        from depth_prior_ros.models.matching import check_parallax
        from depth_prior_ros.models.mism import MultiFrameNet

        self.backend = backend
        self.threads = threads
        self.turns = Turns()
        self._compiled_by: Networks | None = None
        self.fell_back = False
        width, height = bundle.manifest.input_size
        image = np.zeros((1, 3, height, width), dtype=np.float32)
        self._code: tuple[Native, ...] = ()
        # What is looked up; what was set; and none at all.
        self._references: tuple[Native, ...] = ()
        self._given_references: tuple[Native, ...] = ()
        self._no_references: tuple[Native, ...] = ()
        # The last frames that were aligned, their intrinsics and what was computed of them.
        self._alignment: tuple[tuple[Native, ...], NDArray[np.float64], Alignment] | None = None
        self._look_up: EpisodicPrior | None = None
        self.takes_code = False
        if bundle.manifest.network is not None:
            self._student = imported_network(bundle, backend, self._few_threads)
        else:
            self._student = self._compile_student(bundle, image, look_up)
        self._features: Compiled | None = None
        self.aligns = bundle.manifest.architecture.align_motion
        self.parallax = 0.0
        if not (bundle.has("multi_frame") and bundle.has("pose")):
            return
        multi = bundle.multi_frame()
        if isinstance(multi, MultiFrameNet):
            if parallax is not None:
                multi.parallax = check_parallax(parallax)
            self.parallax = multi.parallax
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

    def for_another_camera(self) -> Networks:
        """The same networks, compiled and in memory once, told of another camera.

        What they are told (`tell_camera`, `set_references`) is each camera's own. One camera at a
        time: hold `turns`.
        """
        other = copy.copy(self)
        other._compiled_by = self._compiled_by or self  # which lives as long as any of them
        return other

    def _compile_student(
        self, bundle: Bundle, image: NDArray[np.float32], look_up: bool
    ) -> Compiled:
        """The bundle's student, and what it is told beside an image (1, 3, H, W)."""
        from depth_prior_ros.models.export import StudentRunner

        backend, depth = self.backend, bundle.manifest.depth
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
        if look_up and bundle.manifest.references is not None:  # else it would only cost time
            self._look_up = student_net.episodic
        if self._look_up is not None:
            self._no_references = self._projected(self._look_up, None)
        self.takes_code = student_net.camera_code is not None
        if self.takes_code:
            spec = bundle.manifest.camera_code
            self.tell_camera(spec.numbers if spec is not None else (0.0,) * 5)
        self.set_references(bundle.references() if look_up else None)
        told = (np.zeros((1, 5), np.float32),) if self.takes_code else ()
        looked_up = [backend.to_numpy(given) for given in self._references]
        return backend.compile(student, (image, *told, *looked_up))

    @property
    def has_multi_frame(self) -> bool:
        """Whether there are a multi-frame and a pose network."""
        return self._features is not None

    def try_out(self, size: tuple[int, int]) -> None:
        """Run the single-frame network once, on a grey image of (width, height).

        Raises BackendError: a network that compiles need not run.
        """
        width, height = size
        try:
            image = np.full((1, 3, height, width), 0.5, dtype=np.float32)
            self.backend.to_numpy(self.single(self.backend.to_native(image))[0])
        except Exception as error:  # each library has errors of its own
            raise BackendError(
                f"{self.backend.name} on {self.backend.device} does not run the single-frame "
                f"network: {type(error).__name__}: {error}"
            ) from error

    def single(self, image: Native) -> tuple[Native, Native]:
        """Image (1, 3, H, W) to inverse depth in 1/units and confidence, both (1, 1, H, W)."""
        inverse, confidence = self._student(image, *self._code, *self._references)
        return inverse, confidence

    def tell_camera(self, numbers: Sequence[float]) -> None:
        """What the student is told of its camera from the next image on; nothing is compiled.

        Raises ValueError for a student that takes no such numbers.
        """
        if not self.takes_code:
            raise ValueError("this bundle's student is not told its camera")
        code = np.asarray(numbers, np.float32).reshape(1, 5)
        self._code = (self.backend.to_native(code),)

    @property
    def takes_references(self) -> bool:
        """Whether references are looked up: of a bundle that came with some."""
        return self._look_up is not None

    def set_references(self, references: References | None) -> None:
        """What the student looks up from the next image on, or nothing; nothing is compiled.

        `use_references` leaves it out and takes it up again. Raises ValueError for a bundle that
        came without, or references that do not fit its student.
        """
        if self._look_up is None:
            if references is not None:
                raise ValueError(
                    "this bundle came without references, or with look_up false, so its networks "
                    "look nothing up: load one that holds some (`depth_train adapt` writes it)"
                )
            return
        self._given_references = (
            self._no_references
            if references is None
            else self._projected(self._look_up, references)
        )
        self.use_references(True)

    def use_references(self, used: bool) -> None:
        """Whether what was set is looked up from the next image on; it is not projected again."""
        self._references = self._given_references if used else self._no_references

    def _projected(
        self, look_up: EpisodicPrior, references: References | None
    ) -> tuple[Native, ...]:
        import torch

        with torch.inference_mode(), self._few_threads():
            found = look_up.project([references])
            return tuple(self.backend.to_native(part.numpy()) for part in found)

    def features(self, image: Native) -> Features:
        """What the multi-frame network keeps of an image: matching and context features."""
        assert self._features is not None
        return self._features(image)

    def pose(self, previous: Native, current: Native) -> NDArray[np.float64]:
        """`current_from_previous` (4, 4), network units; the frames in temporal order."""
        (matrix,) = self._pose(previous, current)
        return self.backend.to_numpy(matrix)[0].astype(np.float64)

    def refine(
        self,
        previous: Native,
        current: Native,
        previous_from_current: NDArray[np.float64],
        K: NDArray[np.float64],
        single_inverse: Native,
        *,
        length_only: bool = False,
    ) -> NDArray[np.float64]:
        """The motion (4, 4) refined against single-frame depth, or its length alone; see `aligns`.

        Images (1, 3, H, W), K (3, 3) at the input size, inverse depth in 1/units.
        """
        from depth_prior_ros.geometry.warping import Pose

        with self._few_threads():
            alignment = self._aligned(current, previous, single_inverse, K)
            start = Pose(_tensor_of(previous_from_current, current))
            refined = alignment.refine(start, length_only=length_only)
        return refined.matrix[0].double().cpu().numpy()

    def photometric_costs(
        self,
        previous: Native,
        current: Native,
        previous_from_current: Sequence[NDArray[np.float64]],
        K: NDArray[np.float64],
        single_inverse: Native,
    ) -> list[float]:
        """How badly the previous image, warped by single-frame depth and each of several motions,
        fits the current one.

        The robust mean that `refine` lowers; inf where too little of the frames overlaps.
        """
        from depth_prior_ros.geometry.warping import Pose

        with self._few_threads():
            alignment = self._aligned(current, previous, single_inverse, K)
            motions = [Pose(_tensor_of(matrix, current)) for matrix in previous_from_current]
            return [float(cost) for cost in alignment.costs(motions)[:, 0].cpu()]

    def _aligned(
        self, current: Native, previous: Native, single_inverse: Native, K: NDArray[np.float64]
    ) -> Alignment:
        """Of these frames; a frame asks about several motions, and its pyramid serves them all."""
        from depth_prior_ros.models.alignment import Alignment

        asked = current, previous, single_inverse
        if self._alignment is not None:
            known, matrix, alignment = self._alignment
            if all(a is b for a, b in zip(asked, known, strict=True)) and np.array_equal(K, matrix):
                return alignment
        depth = 1.0 / _tensor(single_inverse)
        alignment = Alignment(_tensor(current), _tensor(previous), depth, _tensor_of(K, current))
        self._alignment = asked, K, alignment
        return alignment

    @contextmanager
    def _few_threads(self) -> Iterator[None]:
        """PyTorch beside another backend keeps to that one's number of threads."""
        import torch

        if self.threads is None or self.backend.name == "torch":
            yield
            return
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def multi(
        self,
        current: Features,
        previous: Features,
        previous_from_current: NDArray[np.float64],
        K: NDArray[np.float64],
        single_inverse: Native,
    ) -> MultiFrameTensors:
        """What the network says of two frames. K (3, 3) in pixels of the input."""
        native = self.backend.to_native
        single_depth = 1.0 / single_inverse  # numpy or torch alike; inverse depth is never zero
        depth, confidence, parallax, matched = self._multi(
            current[0],
            current[1],
            previous[0],
            native(previous_from_current.astype(np.float32)[np.newaxis]),
            native(K.astype(np.float32)[np.newaxis]),
            single_depth,
        )
        return MultiFrameTensors(depth, confidence, parallax, matched)


def imported_network(
    bundle: Bundle, backend: Backend, few_threads: Callable[[], AbstractContextManager[None]]
) -> Compiled:
    """The network that a bundle has from elsewhere, between native tensors as a student is.

    few_threads: around what PyTorch computes beside the backend. Raises BackendError, BundleError.
    """
    from depth_prior_ros.models.imported import ImportedRunner, Preparation, Reading

    spec = bundle.manifest.network
    assert spec is not None
    prepare = Preparation(spec.size, spec.mean, spec.std, spec.largest, spec.order == "bgr")
    read = Reading(spec.depth, bundle.manifest.input_size)
    if spec.format == "onnx":
        return _onnx_network(bundle, backend, few_threads, prepare, read)
    width, height = bundle.manifest.input_size
    image = np.zeros((1, 3, height, width), dtype=np.float32)
    return backend.compile(ImportedRunner(prepare, bundle.foreign_model(), read), (image,))


def _onnx_network(
    bundle: Bundle,
    backend: Backend,
    few_threads: Callable[[], AbstractContextManager[None]],
    prepare: nn.Module,
    read: nn.Module,
) -> Compiled:
    """An ONNX file, run by the backend as it is, with PyTorch before and after."""
    import torch

    from depth_prior_ros.bundle.network import fill_shape, read_graph

    spec = bundle.manifest.network
    assert spec is not None
    data, path = bundle.network(), bundle.path / spec.file
    graph = read_graph(path, data)
    given = {
        name: backend.to_native(np.full(fill_shape(path, graph, name), value, np.float32))
        for name, value in spec.fill.items()
    }
    place = list(graph.outputs).index(spec.output)
    run = backend.compile_onnx(data)

    def single(image: Native) -> tuple[Native, ...]:
        with torch.inference_mode(), few_threads():
            tensor = _tensor(image)
            shown = _beside(image, prepare.to(tensor.device)(tensor))
            answer = run(*(given.get(name, shown) for name in graph.inputs))[place]
            return tuple(_beside(image, found) for found in read(_tensor(answer)))

    return single


def _tensor(native: Native) -> Any:
    """A backend's tensor as PyTorch's, on the same device."""
    import torch

    if isinstance(native, torch.Tensor):
        return native
    return torch.from_numpy(np.require(native, dtype=np.float32, requirements="W"))


def _beside(native: Native, tensor: Any) -> Native:
    """PyTorch's tensor as the backend of another native one has them."""
    return tensor if isinstance(native, type(tensor)) else tensor.numpy()


def _tensor_of(matrix: NDArray[np.float64], beside: Native) -> Any:
    """A matrix (r, c) as a batch of one, single precision, on another tensor's device."""
    import torch

    return torch.from_numpy(matrix[np.newaxis]).float().to(_tensor(beside).device)


def compile_networks(
    bundle: Bundle,
    backend: str = "auto",
    device: str = "auto",
    *,
    threads: int = 1,
    precision: Precision = "f32",
    fallback: bool = False,
    parallax: float | None = None,
    look_up: bool = True,
    pool: NetworkPool | None = None,
) -> tuple[Networks, str]:
    """The bundle's networks on the first backend that runs them, and why that one.

    Which ones are tried, `backend_options` says. A backend that cannot be made, does not compile
    the networks or fails on a first image is named in the reason, and `Networks.fell_back` is
    true, unless it was optional.
    parallax, look_up: see `Networks`. pool: shared with others that ask it for the same.
    Raises BackendError: that of the first backend, where none is left.
    """
    if pool is not None:
        how = {
            "threads": threads,
            "precision": precision,
            "fallback": fallback,
            "parallax": parallax,
            "look_up": look_up,
        }
        return pool.networks(
            (bundle.digest, backend, device, *how.values()),
            lambda: compile_networks(bundle, backend, device, **how),  # type: ignore[arg-type]
        )
    failed: list[tuple[Option, BackendError]] = []
    network = bundle.manifest.network
    onnx = network is not None and network.format == "onnx"
    for option in backend_options(
        backend, device, precision=precision, fallback=fallback, onnx=onnx
    ):
        try:
            made = make_backend(
                option.name, option.device, threads=threads, precision=option.precision
            )
            networks = Networks(bundle, made, threads, parallax, look_up)
            networks.try_out(bundle.manifest.input_size)
        except BackendError as error:
            failed.append((option, error))
            _log.warning("%s cannot be used: %s", option, error)
            continue
        networks.fell_back = not all(before.optional for before, _ in failed)
        return networks, reason_of(option, [str(error) for _, error in failed])
    raise next(error for option, error in failed if not option.optional)
