"""The thread that turns camera images into depth, one at a time, always the newest.

The executor's thread only stores; everything that takes longer than a microsecond happens here, so
that parameters and services are answered while a frame is being inferred.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from depth_prior_ros.images.calibration import rectification_wanted
from depth_prior_ros.motion.gate import Motion
from depth_prior_ros.pipeline.framing import InvalidFrameError
from depth_prior_ros.pipeline.guard import ModelFailedError, is_out_of_memory, release_references
from depth_prior_ros.ros.diagnostics import Statistics
from depth_prior_ros.ros.inputs import ImageArrival, Inputs
from depth_prior_ros.ros.messages import (
    CameraModels,
    ImageArray,
    MessageError,
    camera_info,
    image_size,
    image_to_rgb,
)
from depth_prior_ros.ros.mounting import Mounting, MountSight, mount_of, road_of
from depth_prior_ros.ros.parameters import Settings

if TYPE_CHECKING:
    from depth_prior_ros.geometry.camera import Camera
    from depth_prior_ros.pipeline import DepthPipeline, DepthResult
    from depth_prior_ros.ros.adapting import Adapter
    from depth_prior_ros.ros.loading import ScaleKeeper
    from depth_prior_ros.ros.outputs.publishers import Outputs

INTERNAL = "internal"
"""Cause under which an unexpected error of a frame is counted."""

MEMORY = "memory"
"""Cause of a frame for whose single-frame network there was no memory."""

Apply = Callable[["DepthPipeline", Settings, Settings | None], None]


@dataclass(frozen=True)
class Frame:
    """A frame that was published: what a snapshot is made of.

    header: of the camera's image. image: (H, W, 3) uint8 RGB, rectified. info: camera_info of the
    depth image. camera: of the image.
    """

    header: Any
    image: ImageArray
    camera: Camera
    info: Any
    result: DepthResult


class FrameWorker:
    """Takes images from the inputs, runs the pipeline and hands results to the outputs.

    Args:
        inputs: where images, calibration and motion come from; closed by :meth:`stop`.
        pipeline: makes the depth.
        outputs: where it goes.
        statistics: counts what happened to every frame.
        settings: to begin with; the pipeline has them already.
        image_topic: fully resolved; its name may say that images are rectified.
        refuse: called in this thread with cause and text for every frame that failed.
        apply: called between two frames with the pipeline, new settings and those it has.
        keeper: told of the first camera.
        adapter: likewise; asked between two frames what to tell the student.
        mounting: where the camera sits, from tf; None: as the parameters say.

    Attributes:
        model_error: what went wrong with the multi-frame network last, in words.
        doubts: what is remarkable of the camera's calibration, in words.
    """

    def __init__(
        self,
        inputs: Inputs,
        pipeline: DepthPipeline,
        outputs: Outputs,
        statistics: Statistics,
        settings: Settings,
        image_topic: str,
        refuse: Callable[[str, str], None],
        apply: Apply,
        keeper: ScaleKeeper,
        adapter: Adapter,
        mounting: Mounting | None = None,
    ) -> None:
        self._inputs = inputs
        self._pipeline = pipeline
        self._outputs = outputs
        self._statistics = statistics
        self._settings = settings
        self._image_topic = image_topic
        self._refuse = refuse
        self._apply = apply
        self._keeper = keeper
        self._adapter = adapter
        self._mounting = mounting
        self._models = CameraModels()
        self._camera: Camera | None = None
        self._newest: Frame | None = None
        self._pending = threading.Lock()
        self._new_settings: Settings | None = None
        self._new_pipeline: tuple[DepthPipeline, Settings] | None = None
        self.model_error = ""
        self.doubts: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="depth_worker", daemon=True)

    @property
    def newest(self) -> Frame | None:
        """The frame that was published last; None before the first."""
        return self._newest

    @property
    def settings(self) -> Settings:
        """Those that the newest pipeline has; newer ones may be waiting for the next frame."""
        with self._pending:
            return self._new_pipeline[1] if self._new_pipeline else self._settings

    @property
    def camera(self) -> Camera | None:
        """Of the rectified images; None before the first frame."""
        return self._camera

    def start(self) -> None:
        """Begin to take images."""
        self._thread.start()

    def stop(self, timeout: float = 30.0) -> bool:
        """Finish the frame in hand, without publishing it, and end; False on a time-out."""
        self._stopping.set()
        self._inputs.close()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def reconfigure(self, settings: Settings) -> None:
        """Use other settings from the next frame on."""
        with self._pending:
            self._new_settings = settings

    def replace(self, pipeline: DepthPipeline, settings: Settings) -> None:
        """Use another pipeline, which has these settings, from the next frame on."""
        with self._pending:
            self._new_pipeline = pipeline, settings

    def _run(self) -> None:
        while not self._stopping.is_set():
            arrival = self._inputs.take_image()
            if arrival is None:
                return
            try:
                self._take_up_changes()
                self._handle(arrival)
            except MessageError as error:
                self._refuse(error.cause, error.text)
            except InvalidFrameError as error:
                self._refuse(f"frame_{error.cause}", str(error))
            except ModelFailedError as error:
                self._refuse("model_failed", str(error))
            except Exception as error:  # one frame's trouble must not end the node
                if not self._stopping.is_set():
                    self._survive(error)

    def _survive(self, error: Exception) -> None:
        cause, text = INTERNAL, f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            cause = MEMORY
            release_references(error)
            # A device in a bad state fails here, too; without this thread there is no depth ever.
            try:
                self._pipeline.networks.backend.free_memory()
            except Exception as further:
                cause, text = INTERNAL, f"{text}; then {type(further).__name__}: {further}"
        self._refuse(cause, text)

    def _take_up_changes(self) -> None:
        with self._pending:
            pipeline, self._new_pipeline = self._new_pipeline, None
            settings, self._new_settings = self._new_settings, None
        if pipeline is not None:
            self._pipeline, self._settings = pipeline
            if self._camera is not None:
                self._adapter.meet(self._pipeline, self._camera, self._settings)
                self._keeper.begin(self._pipeline, self._camera)
        if settings is not None:
            before, self._settings = self._settings, settings
            self._apply(self._pipeline, settings, before)
            self._outputs.reconfigure(settings)
        self._adapter.take_up(self._pipeline, self._settings)

    def _handle(self, arrival: ImageArrival) -> None:
        message, settings = arrival.message, self._settings
        width, height = image_size(message)
        calibration = self._inputs.calibration(
            width, height, settings.sync_wait, settings.fov_guess_deg
        )
        rectify = rectification_wanted(settings.rectify, self._image_topic)
        camera, rectifier = self._models.of(calibration, width, height, rectify)
        if camera is not self._camera:
            self._camera = camera
            rectified = rectifier is not None
            self.doubts = calibration.doubts(width, height, self._image_topic, rectified)
            if self._inputs.guessed:
                self.doubts.append(
                    f"the camera is not calibrated: {settings.fov_guess_deg:g} degrees of "
                    "field of view are a guess (fov_guess_deg), and so are the metres"
                )
            self._adapter.meet(self._pipeline, camera, settings)
            self._keeper.begin(self._pipeline, camera)
        mount = self._look_up_mount(message.header.frame_id, arrival.stamp)
        motion = self._motion(arrival.stamp, message.header.frame_id, mount)
        taken = time.monotonic()
        image = image_to_rgb(message)
        outside = None
        if rectifier is not None:
            image, outside = rectifier.apply(image), rectifier.outside
        decoded = time.monotonic()
        result = self._pipeline.process(
            image,
            arrival.stamp,
            motion,
            camera,
            confidence="confidence" in self._outputs.wanted(),
            outside=outside,
        )
        inferred = time.monotonic()
        self.model_error = result.error or self.model_error
        if self._stopping.is_set():
            return
        depth_height, depth_width = result.depth.shape
        region = result.region
        of_depth = calibration.of_depth(
            (width, height),
            (depth_width, depth_height),
            (region.x, region.y, region.width, region.height),
        )
        depth_info = camera_info(of_depth, message.header)
        self._outputs.publish(message.header, depth_info, result, mount)
        published = time.monotonic()
        self._newest = Frame(message.header, image, camera, depth_info, result)
        self._statistics.inferred(
            {
                "total": 1e3 * (published - arrival.arrived),
                "wait": 1e3 * (taken - arrival.arrived),
                "decode": 1e3 * (decoded - taken),
                "infer": 1e3 * (inferred - decoded),
                "publish": 1e3 * (published - inferred),
            }
        )

    def _look_up_mount(self, frame: str, stamp: int) -> MountSight | None:
        """Where the camera sits at a stamp, and the scale told of it; None without tf."""
        if self._mounting is None:
            return None
        self._mounting.settings = self._settings
        mount = self._mounting.at(frame, stamp)
        road, height = road_of(self._settings, mount)
        self._pipeline.scale.mount(height or None, road)
        return mount

    def _motion(self, stamp: int, frame: str, sight: MountSight | None) -> Motion | None:
        s = self._settings
        if s.motion_source == "image":
            return None
        previous = self._pipeline.previous_stamp_ns
        mount = before = mount_of(s, sight)
        if self._mounting is not None and previous is not None:
            mounts = self._mounting.mounts_of_way(frame, previous, sight)
            if mounts is None:
                previous = None
            else:
                mount, before = mounts
        return self._inputs.motion_at(
            stamp, s.odometry_max_age, s.sync_wait, previous, mount, before
        )
