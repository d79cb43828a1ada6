"""The thread that infers, with a pipeline that does what real ones do on bad days."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: source a ROS 2 installation or use extra `ros`")

from ros_helpers import FRAME, STEP, camera_info_for, image_message, stamp_of, wait_until
from std_msgs.msg import Header

from depth_prior_ros.ros.diagnostics import Statistics
from depth_prior_ros.ros.inputs import Inputs
from depth_prior_ros.ros.parameters import Settings
from depth_prior_ros.ros.worker import FrameWorker

SIZE = (48, 32)
SETTINGS = Settings()


class Failing:
    """A pipeline without memory, on a device that is in a bad state."""

    def __init__(self, error: Exception, further: Exception | None) -> None:
        self.previous_stamp_ns = None
        self.networks = SimpleNamespace(backend=SimpleNamespace(free_memory=self._free))
        self._error, self._further = error, further

    def process(self, *arguments: Any, **options: Any) -> Any:
        raise self._error

    def _free(self) -> None:
        if self._further is not None:
            raise self._further


@contextlib.contextmanager
def working(pipeline: Any) -> Iterator[tuple[Inputs, list[tuple[str, str]]]]:
    """A worker's inputs, and causes and texts of the frames that it refused."""
    refused: list[tuple[str, str]] = []
    inputs = Inputs(lambda: None)
    inputs.put_camera_info(camera_info_for(*SIZE))
    keeper: Any = SimpleNamespace(begin=lambda pipeline, camera: None)
    adapter: Any = SimpleNamespace(meet=lambda *_: None, take_up=lambda *_: None)
    outputs: Any = SimpleNamespace(wanted=frozenset)
    worker = FrameWorker(
        inputs,
        pipeline,
        outputs,
        Statistics(),
        SETTINGS,
        "/image",
        lambda cause, text: refused.append((cause, text)),
        lambda *_: None,
        keeper,
        adapter,
    )
    worker.start()
    try:
        yield inputs, refused
    finally:
        assert worker.stop()


@pytest.mark.parametrize(
    ("further", "cause", "words"),
    [
        (None, "memory", "out of memory"),
        (RuntimeError("CUDA error: an illegal memory access"), "internal", "illegal memory access"),
    ],
)
def test_a_device_in_a_bad_state_costs_frames_and_not_the_thread(further, cause, words):
    pipeline = Failing(MemoryError("out of memory: tried to allocate 1 GiB"), further)
    with working(pipeline) as (inputs, refused):
        for number in range(1, 4):
            header = Header(frame_id=FRAME, stamp=stamp_of(number * STEP))
            inputs.put_image(image_message(np.zeros((*SIZE[::-1], 3), np.uint8), header))
            wait_until(lambda n=number: len(refused) == n, "the frame to be refused", 20.0)
    assert [found for found, _ in refused] == [cause] * 3
    assert all("out of memory" in text and words in text for _, text in refused)
