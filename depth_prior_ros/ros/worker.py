"""The thread that turns camera images into depth, one at a time, always the newest.

The executor's thread only stores; everything that takes longer than a microsecond happens here, so
that parameters and services are answered while a frame is being inferred.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from depth_prior_ros.framing import InvalidFrameError
from depth_prior_ros.motion import Motion
from depth_prior_ros.ros.diagnostics import Statistics
from depth_prior_ros.ros.inputs import ImageArrival, Inputs
from depth_prior_ros.ros.messages import (
    MessageError,
    camera_from_info,
    image_to_rgb,
    scaled_camera_info,
)
from depth_prior_ros.ros.parameters import Settings

if TYPE_CHECKING:
    from depth_prior_ros.pipeline import DepthPipeline, DepthResult

INTERNAL = "internal"
"""Cause under which an unexpected error of a frame is counted."""


class FrameWorker:
    """Takes images from the inputs, runs the pipeline and hands results to ``publish``.

    Args:
        inputs: where images, calibration and speed come from; closed by :meth:`stop`.
        pipeline: anything with ``process`` as :class:`~depth_prior_ros.pipeline.DepthPipeline`.
        statistics: counts what happened to every frame.
        publish: called in this thread with the image's header, the depth image's camera_info and
            the result.
        refuse: called in this thread with cause and text for every frame that failed.
        apply: called between two frames with the pipeline and new settings.
    """

    def __init__(
        self,
        inputs: Inputs,
        pipeline: DepthPipeline,
        statistics: Statistics,
        settings: Settings,
        publish: Callable[[Any, Any, DepthResult], None],
        refuse: Callable[[str, str], None],
        apply: Callable[[DepthPipeline, Settings], None],
    ) -> None:
        self._inputs = inputs
        self._pipeline = pipeline
        self._statistics = statistics
        self._settings = settings
        self._pending: Settings | None = None
        self._publish = publish
        self._refuse = refuse
        self._apply = apply
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="depth_worker", daemon=True)

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
        self._pending = settings

    def _run(self) -> None:
        while not self._stopping.is_set():
            arrival = self._inputs.take_image()
            if arrival is None:
                return
            try:
                self._take_up_settings()
                self._handle(arrival)
            except MessageError as error:
                self._refuse(error.cause, error.text)
            except InvalidFrameError as error:
                self._refuse(f"frame_{error.cause}", str(error))
            except Exception as error:  # one frame's trouble must not end the node
                if not self._stopping.is_set():
                    self._refuse(INTERNAL, f"{type(error).__name__}: {error}")

    def _take_up_settings(self) -> None:
        settings, self._pending = self._pending, None
        if settings is not None:
            self._settings = settings
            self._apply(self._pipeline, settings)

    def _handle(self, arrival: ImageArrival) -> None:
        message, settings = arrival.message, self._settings
        width, height = int(message.width), int(message.height)
        info = self._inputs.camera_info(width, height, settings.sync_wait)
        camera = camera_from_info(info, width, height)
        speed = self._inputs.speed_at(arrival.stamp, settings.odometry_max_age, settings.sync_wait)
        motion = None if speed is None else Motion(speed, "odometry")
        taken = time.monotonic()
        image = image_to_rgb(message)
        decoded = time.monotonic()
        result = self._pipeline.process(image, arrival.stamp, motion, camera)
        inferred = time.monotonic()
        if self._stopping.is_set():
            return
        depth_height, depth_width = result.depth.shape
        region = result.region
        depth_info = scaled_camera_info(
            info,
            (width, height),
            (depth_width, depth_height),
            (region.x, region.y, region.width, region.height),
        )
        self._publish(message.header, depth_info, result)
        published = time.monotonic()
        self._statistics.inferred(
            {
                "total": 1e3 * (published - arrival.arrived),
                "wait": 1e3 * (taken - arrival.arrived),
                "decode": 1e3 * (decoded - taken),
                "infer": 1e3 * (inferred - decoded),
                "publish": 1e3 * (published - inferred),
            }
        )
