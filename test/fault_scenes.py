"""A real node, a camera process and somebody who only listens, for tests of faults."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camera_process import CameraProcess, Film
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from ros_helpers import NodeProcess, Peer, nanoseconds_of, wait_until
from sensor_msgs.msg import Image

PATIENCE = 240.0
"""Seconds to wait for anything; a busy machine takes many of them to start a process."""

EASY: dict[str, Any] = {
    "backend": "torch",
    "diagnostics_period": 0.1,
    "sync_wait": 1.0,
    # A machine with other things to do must not pass for one that is too slow for the camera.
    "max_gap": 10.0,
    "odometry_max_age": 10.0,
    "time_budget": 0.0,
    "failure_pause": 5,
}


class Witness(Peer):
    """A peer that sends nothing: all publishers that the node hears of are the camera's."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace, publishes=False)

    def count(self, key: str) -> int:
        """A number of the diagnostics; 0 where it is not there."""
        return int(self.status().get(key) or 0)

    def stamps(self) -> list[int]:
        """Of all depth images so far, by arrival."""
        return [nanoseconds_of(message.header.stamp) for message in self.depth]


@dataclass
class Scene:
    """A node in a namespace of its own, its witness, and cameras on demand."""

    process: NodeProcess
    witness: Witness
    namespace: str
    cameras: list[CameraProcess] = field(default_factory=list)

    def camera(self, depth: int = 5, **film: Any) -> CameraProcess:
        """A camera that films that, resting or new; `depth` of its queues, if it is new."""
        self.rest()
        resting = [camera for camera in self.cameras if camera.alive]
        if resting:
            resting[0].film(**vars(Film(**film)))
            return resting[0]
        self.cameras.append(CameraProcess(self.namespace, depth=depth, **film))
        return self.cameras[-1]

    def rest(self) -> None:
        """No camera films."""
        for camera in self.cameras:
            if camera.alive:
                camera.film(rate=0)

    def until(self, condition: Any, what: str) -> Any:
        """The first true value of `condition`; fails with what the node said."""
        try:
            return wait_until(lambda: not self.process.alive or condition(), what, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from error
        finally:
            assert self.process.alive, f"the node did not live on:\n{self.process.output}"

    def told(self) -> str:
        """For messages of failure."""
        status = "\n".join(f"{k}: {v}" for k, v in self.witness.status().items())
        return f"{status}\n{self.witness.models}\n{self.process.output}"

    def depth_goes_on(self, camera: CameraProcess, frames: int = 3) -> list[Image]:
        """Wait for depth of images that are sent from now on."""
        since, before = camera.sent()["stamp"], len(self.witness.depth)

        def newer() -> list[Image]:
            arrived = self.witness.depth[before:]
            return [m for m in arrived if nanoseconds_of(m.header.stamp) > since]

        self.until(lambda: len(newer()) >= frames, f"{frames} depth images after {since}")
        return newer()

    def model_becomes(self, model: str, since: int = 0) -> None:
        """Wait until the active model was that one, at any time after the first `since`."""
        self.until(lambda: model in self.witness.models[since:], f"the active model {model!r}")

    def begin_again(self) -> None:
        """Down to unconfigured and up again: what the node has seen is forgotten, the camera's
        calibration as well; what it counted is not."""
        for transition in (
            Transition.TRANSITION_DEACTIVATE,
            Transition.TRANSITION_CLEANUP,
            Transition.TRANSITION_CONFIGURE,
            Transition.TRANSITION_ACTIVATE,
        ):
            request = ChangeState.Request(transition=Transition(id=transition))
            answer = self.witness.call(ChangeState, "depth_node/change_state", request, PATIENCE)
            assert answer.success, self.told()
        self.witness.models.clear()


@contextlib.contextmanager
def scene(
    bundle: Path,
    *arguments: str,
    namespace: str = "",
    code: str | None = None,
    **parameters: Any,
) -> Iterator[Scene]:
    """A node that has become active; `arguments` and `parameters` as of :class:`NodeProcess`."""
    namespace = namespace or new_namespace()
    values = {**EASY, "bundle": bundle, **parameters}
    with (
        NodeProcess(*arguments, namespace=namespace, code=code, **values) as process,
        Witness(namespace) as witness,
    ):
        made = Scene(process, witness, namespace)
        try:
            made.until(lambda: witness.status().get("state") == "active", "an active node")
            yield made
            assert process.alive, process.output
        finally:
            for camera in made.cameras:
                camera.kill()


def new_namespace() -> str:
    """One that nobody else uses."""
    return f"/fault_{uuid.uuid4().hex[:12]}"
