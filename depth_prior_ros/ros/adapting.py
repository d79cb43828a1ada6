"""`~/adapt`: the running node fits its student to its camera, on what it has just seen.

The pipeline shows every matched frame to a bounded memory of keyframes. The service starts a thread
of low priority that fits and evaluates (`depth_prior_ros.adaptation`); what is better is told to
the pipeline between two frames. The lifecycle: deactivating cancels a fit under way, and what was
fitted but not yet told waits for the next frame; keyframes and what was fitted stay until the node
is cleaned up, the outcome in words until it ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.adaptation.keyframes import (
    AdaptationError,
    DriveMemory,
    Keyframe,
    in_metres,
)
from depth_prior_ros.ros.services import RefusedError
from depth_prior_ros.scale import same_view
from depth_prior_ros.share import home_path

if TYPE_CHECKING:
    from depth_prior_ros.bundle import Told
    from depth_prior_ros.geometry.camera import Camera
    from depth_prior_ros.pipeline import DepthPipeline
    from depth_prior_ros.ros.parameters import Settings

_PATIENCE = 30.0  # seconds to wait for a thread that was told to end

KEPT_BESIDE = ".adapted.yaml"
"""Added to the name of scale.file where adapt.file is empty."""


@dataclass
class _Fit:
    """One adaptation under way."""

    pipeline: DepthPipeline
    keyframes: list[Keyframe]
    camera: Camera
    source: str
    metres_per_unit: float
    file: Path | None
    niceness: int
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    progress: str = "starting"

    def tell(self, what: str, done: int = 0, total: int = 0, note: str = "") -> None:
        """A `Progress`."""
        del note
        self.progress = f"{what}, {done} of {total}" if total else what


@dataclass(frozen=True)
class _Found:
    """What is to be told to the pipeline of a bundle."""

    digest: str
    told: Told


class Adapter:
    """Keyframes, the fit and its outcome; one for the life of a node.

    Args:
        get_logger: of the node.
    """

    def __init__(self, get_logger: Callable[[], Any]) -> None:
        self._get_logger = get_logger
        self._lock = threading.Lock()
        self._memory: DriveMemory | None = None
        self._remembers = ""  # digest of the bundle that the memory's frames were shown to
        self._unable = "the node is not configured"
        self._file: Path | None = None
        self._metres_per_unit = 1.0
        self._fit: _Fit | None = None
        self._pending: _Found | None = None
        self._using: _Found | None = None
        self._camera: Camera | None = None
        self._outcome = ""

    # -- the executor's thread -----------------------------------------------------------------

    def watch(self, pipeline: DepthPipeline, settings: Settings) -> None:
        """Keep keyframes of what a pipeline sees from now on."""
        self._unable = _unable(pipeline, settings)
        self._file = _file(settings)
        depth = pipeline.bundle.manifest.depth
        self._metres_per_unit = settings.scale_metres_per_unit or depth.metres_per_unit
        if self._unable:
            self._memory, pipeline.witness = None, None
            return
        road = None
        if settings.scale_camera_height > 0:
            road = settings.road
        digest, seconds = pipeline.bundle.digest, settings.adapt_seconds
        memory = self._memory
        same = memory is not None and (digest, road) == (self._remembers, memory.road)
        if memory is None or not same:
            memory = DriveMemory(seconds, pipeline.networks.parallax, road)
        memory.seconds = seconds
        self._memory, self._remembers = memory, digest
        pipeline.witness = memory.saw

    def begin(self, pipeline: DepthPipeline, camera: Camera | None, settings: Settings) -> str:
        """Start a fit on the keyframes of the last minutes; what the service answers.

        Raises RefusedError, which says why not.
        """
        fit = self._fit
        if fit is not None:
            raise RefusedError(f"an adaptation is under way: {fit.progress}")
        memory = self._memory
        if self._unable or memory is None:
            raise RefusedError(self._unable)
        if camera is None:
            raise RefusedError("there is no frame yet")
        if settings.scale_metres_per_unit and not pipeline.networks.takes_code:
            raise RefusedError(
                "scale.metres_per_unit gives the factor, which is all that can be fitted of "
                f"{pipeline.bundle.path}: set it to 0"
            )
        try:
            keyframes, words = _known(memory, settings, pipeline.networks.has_multi_frame)
        except RefusedError as error:
            paused = pipeline.guard.detail
            if paused is None:
                raise
            why = f"{error} (multi-frame depth, which gives keyframes, is paused: {paused})"
            raise RefusedError(why) from error
        fit = _Fit(
            pipeline,
            keyframes,
            camera,
            f"the last {_span(keyframes)} of driving, {words}",
            self._metres_per_unit,
            self._file,
            settings.adapt_niceness,
        )
        fit.thread = threading.Thread(
            target=self._run, args=(fit,), name="depth_adapt", daemon=True
        )
        self._fit = fit
        fit.thread.start()
        return (
            f"fitting on {len(keyframes)} keyframes ({words}); the outcome will be in the log "
            "and in the diagnostics (adapt.outcome)"
        )

    def cancel(self, why: str) -> None:
        """End a fit under way; nothing of it is kept."""
        fit = self._fit
        if fit is None or fit.thread is None:
            return
        fit.stop.set()
        fit.thread.join(_PATIENCE)
        self._end(fit, f"cancelled: {why}")

    def forget(self, why: str) -> None:
        """Cancel, and forget keyframes, what was fitted and camera: the pipeline goes."""
        self.cancel(why)
        with self._lock:
            self._pending = self._using = None
        self._memory = self._camera = None
        self._unable = "the node is not configured"

    def status(self) -> dict[str, str]:
        """Keys and values for the diagnostics."""
        fit, memory, using = self._fit, self._memory, self._using
        state = "running" if fit is not None else "off" if memory is None else "idle"
        return {
            "adapt.state": state,
            "adapt.keyframes": "" if memory is None else str(len(memory)),
            "adapt.progress": fit.progress if fit is not None else "",
            "adapt.outcome": self._outcome,
            "adapt.told": using.told.source if using is not None else "",
        }

    # -- the worker's thread -------------------------------------------------------------------

    def meet(self, pipeline: DepthPipeline, camera: Camera, settings: Settings) -> None:
        """With the first frame, and with another camera or pipeline: tell what belongs to both."""
        before, self._camera = self._camera, camera
        if before is not None and not same_view(before, camera) and self._memory is not None:
            self._memory.clear()
        digest, using = pipeline.bundle.digest, self._using
        if using is not None and not _fits(using, digest, camera):
            self._get_logger().info("another camera or bundle: what was adapted is left out")
            using = None
        if using is None:
            using = self._stored(pipeline, camera)
        with self._lock:
            self._using = using
        told = pipeline.bundle.manifest.told if using is None else using.told
        if pipeline.told != told:
            self._tell(pipeline, told, settings)

    def take_up(self, pipeline: DepthPipeline, settings: Settings) -> None:
        """Between two frames: tell the pipeline what was found, if anything was."""
        if self._pending is None or self._camera is None:
            return
        with self._lock:
            found, self._pending = self._pending, None
        if found is None:
            return
        if not _fits(found, pipeline.bundle.digest, self._camera):
            self._outcome = "dropped: camera or bundle changed meanwhile"
            self._get_logger().warning(f"~/adapt: {self._outcome}")
            return
        self._tell(pipeline, found.told, settings)
        if pipeline.networks.takes_code:
            pipeline.scale.reset()  # what was measured was of other numbers
        self._using = found
        self._get_logger().info("~/adapt: in use, from this frame on")

    def _tell(self, pipeline: DepthPipeline, told: Told | None, settings: Settings) -> None:
        """Numbers to the student; a factor to the scale, for which measured ones stay."""
        from depth_prior_ros.ros.loading import scale_of

        before = pipeline.scale
        pipeline.tell_camera(told)
        if pipeline.networks.takes_code:
            return
        pipeline.scale = before
        try:
            pipeline.scale = scale_of(settings, pipeline.bundle, told)
        except ValueError as error:  # the mode was chosen for the factor that is left out now
            self._get_logger().warning(f"the factor stays as it is: {error}")
            return
        if before.status.state in ("measured", "held"):
            with contextlib.suppress(ValueError):  # beyond scale.limit
                pipeline.scale.restore(before.store())

    def _stored(self, pipeline: DepthPipeline, camera: Camera) -> _Found | None:
        """What an earlier run was adapted to, where that is this camera."""
        if self._file is None:
            return None
        from depth_prior_ros.adaptation.files import load_adaptation

        digest = pipeline.bundle.digest
        try:
            told = load_adaptation(
                self._file, bundle=digest, camera=camera, metres_per_unit=self._metres_per_unit
            )
        except FileNotFoundError:
            return None
        except AdaptationError as error:
            self._get_logger().warning(f"stored adaptation not taken up: {error}")
            return None
        self._get_logger().info(f"adaptation taken up from {self._file}: {told.source}")
        return _Found(digest, told)

    # -- the fit's own thread ------------------------------------------------------------------

    def _run(self, fit: _Fit) -> None:
        outcome = "failed"
        try:
            # Of this thread alone, on Linux; frames go before.
            with contextlib.suppress(OSError, AttributeError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), fit.niceness)
            with _one_thread():
                outcome = self._fitted(fit)
        except Exception as error:
            from depth_prior_ros.adaptation.camera_code import StoppedError

            if not isinstance(error, StoppedError):
                outcome = f"failed: {type(error).__name__}: {error}"
                self._get_logger().warning(f"~/adapt: {outcome}")
        finally:
            if not fit.stop.is_set():
                self._end(fit, outcome)

    def _fitted(self, fit: _Fit) -> str:
        """Fit, evaluate, and hand on what is better; the outcome in words."""
        from depth_prior_ros.adaptation.adapt import adapt

        found = adapt(
            fit.pipeline.bundle,
            fit.keyframes,
            fit.camera,
            fit.source,
            networks=fit.pipeline.networks,
            told=fit.pipeline.told,
            metres_per_unit=fit.metres_per_unit,
            try_references=False,
            progress=fit.tell,
            stop=fit.stop.is_set,
        )
        if not found.better:
            outcome = f"not better, so all stays as it was: {found.text}"
            self._get_logger().warning(f"~/adapt: {outcome}")
            return outcome
        with self._lock:  # cancelled before all of this, or not at all
            if fit.stop.is_set():
                return ""
            outcome = (
                f"better, and kept: {found.told}; {found.text}; {self._store(fit, found.told)}"
            )
            self._pending = _Found(fit.pipeline.bundle.digest, found.told)
            self._fit, self._outcome = None, outcome
        self._get_logger().info(f"~/adapt: {outcome}")
        return outcome

    def _store(self, fit: _Fit, told: Told) -> str:
        if fit.file is None:
            return "not stored for the next run, as adapt.file is empty"
        from depth_prior_ros.adaptation.files import save_adaptation

        try:
            digest = fit.pipeline.bundle.digest
            save_adaptation(fit.file, told, bundle=digest, metres_per_unit=fit.metres_per_unit)
        except OSError as error:
            self._get_logger().warning(f"adaptation not stored: {error}")
            return f"not stored for the next run: {error}"
        return f"stored in {fit.file}"

    def _end(self, fit: _Fit, outcome: str) -> None:
        with self._lock:
            if self._fit is fit:
                self._fit, self._outcome = None, outcome


@contextlib.contextmanager
def _one_thread() -> Any:
    """PyTorch keeps to this thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fits(found: _Found, digest: str, camera: Camera) -> bool:
    """Whether what was fitted belongs to a bundle and a camera."""
    fitted = found.told.camera.camera()
    return found.digest == digest and same_view(fitted, camera) and not found.told.doubt(camera)


def _unable(pipeline: DepthPipeline, settings: Settings) -> str:
    """Why a pipeline cannot be adapted; empty where it can."""
    if not settings.adapt_seconds:
        return "adapt.seconds is 0, so no keyframes are kept"
    from depth_prior_ros.adaptation.adapt import check_bundle

    try:
        check_bundle(pipeline.bundle)
    except AdaptationError as error:
        return str(error)
    return ""


def _file(settings: Settings) -> Path | None:
    """Where what was fitted is kept; None: nowhere."""
    path = settings.adapt_file
    if not path and settings.scale_file:
        path = f"{settings.scale_file}{KEPT_BESIDE}"
    if not path:
        return None
    found = Path(path)
    with contextlib.suppress(FileNotFoundError):  # a home that does not exist: said when it is used
        found = home_path(path)
    return found.absolute()


def _known(memory: DriveMemory, settings: Settings, matches: bool) -> tuple[list[Keyframe], str]:
    """Keyframes in metres, and how they came by them. Raises RefusedError.

    matches: whether there is a multi-frame network.
    """
    from depth_prior_ros.adaptation.adapt import LEAST

    kept = memory.keyframes()
    height = settings.scale_camera_height or None
    travelled = any(frame.metres is not None for frame in kept)
    if not matches or (settings.scale_mode != "camera_height" and travelled):
        height = None
    words = "odometry" if height is None else f"the camera's height of {height:g} m"
    words = f"{'own multi-frame depth' if matches else 'followed points'}, metres by {words}"
    try:
        known = in_metres(kept, height)
    except AdaptationError as error:
        more = (
            ""
            if matches
            else (
                "; without a multi-frame network followed points give depth, by odometry or a speed"
            )
        )
        raise RefusedError(f"{error}{more}") from error
    if len(known) < LEAST:
        raise RefusedError(
            f"{len(known)} keyframes with depth in metres, and {LEAST} are needed: drive on"
        )
    return known, words


def _span(keyframes: list[Keyframe]) -> str:
    seconds = (keyframes[-1].stamp_ns - keyframes[0].stamp_ns) * 1e-9
    return f"{seconds:.0f} s"
