"""Services that take their time, answered without holding up anything else.

The executor has one thread. A service callback that loads networks in it would stop parameters,
diagnostics and images for seconds; so the work runs in a thread of its own, and the callback is a
coroutine that waits for it.

A frame on disk, for whoever wants to look at it later or report a fault.

One folder per snapshot, which appears complete or not at all:

    image.png        the camera's image, rectified
    depth.npy        float32 metres, NaN unknown, +Inf beyond the range
    depth.png        16 bits, metres x 256, 0 where depth is not finite (KITTI's format)
    points.ply       the cloud in the camera's optical frame, with colours
    parameters.yaml  the node's parameters, as a parameter file
    snapshot.json    stamp, cameras, model and reason, scale, bundle, backend
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from std_srvs.srv import SetBool, Trigger

from depth_prior_ros import strict_yaml
from depth_prior_ros.atomic_files import staging_folder
from depth_prior_ros.geometry.points import encode_ply
from depth_prior_ros.pages.page import encode_png
from depth_prior_ros.recordings.image_files import encode_depth
from depth_prior_ros.ros.worker import Frame
from depth_prior_ros.untrusted import printable


def save_snapshot(
    folder: Path, frame: Frame, parameters: Mapping[str, Any], state: Mapping[str, str]
) -> Path:
    """Write one snapshot into ``folder``, which is made where it is missing.

    Args:
        folder: of all snapshots.
        frame: what is saved.
        parameters: values by name.
        state: what else there is to say about the node, in words.

    Returns:
        The folder of this snapshot, named after the image's stamp.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    with staging_folder(folder / "snapshot") as partial:
        _write(partial, frame, parameters, state)
        return _publish(partial, folder, frame)


def _publish(partial: Path, folder: Path, frame: Frame) -> Path:
    stamp = frame.header.stamp
    name = f"{stamp.sec}_{stamp.nanosec:09d}"
    for number in range(1, 10_000):
        target = folder / (name if number == 1 else f"{name}_{number}")
        if target.exists():
            continue
        return partial.rename(target)
    raise OSError(f"{folder} has thousands of snapshots of {name}")


def _write(
    folder: Path, frame: Frame, parameters: Mapping[str, Any], state: Mapping[str, str]
) -> None:
    depth = frame.result.depth
    (folder / "image.png").write_bytes(encode_png(frame.image))
    np.save(folder / "depth.npy", depth)
    (folder / "depth.png").write_bytes(encode_depth(depth))
    (folder / "points.ply").write_bytes(_points(frame))
    values = {"/**": {"ros__parameters": dict(parameters)}}
    (folder / "parameters.yaml").write_text(strict_yaml.dump(values), encoding="utf-8")
    (folder / "snapshot.json").write_text(
        json.dumps(_facts(frame, state), indent=2) + "\n", encoding="utf-8"
    )


def _facts(frame: Frame, state: Mapping[str, str]) -> dict[str, Any]:
    result, header = frame.result, frame.header
    return {
        "stamp": {"sec": header.stamp.sec, "nanosec": header.stamp.nanosec},
        "frame_id": header.frame_id,
        "image_camera": asdict(frame.camera),
        "depth_camera": asdict(result.camera),
        "depth_region": asdict(result.region),
        "model": result.model,
        "reason": result.reason,
        "timings_ms": {name: round(value, 3) for name, value in result.timings.items()},
        "scale": None if result.scale is None else asdict(result.scale),
        "node": dict(state),
    }


def _points(frame: Frame) -> bytes:
    result, name = frame.result, printable(frame.header.frame_id, 200)
    return encode_ply(result.depth, result.camera, result.rgb, frame=name)


T = TypeVar("T")

Action = Callable[[], Awaitable[str]]
Switch = Callable[[bool], Awaitable[str]]


class RefusedError(Exception):
    """A service cannot do now what it is asked for; the text says why."""


class _Turn:
    """Awaited, it gives the executor back for one round."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Background:
    """Runs work in threads while coroutines of the executor wait for it.

    Args:
        node: whose executor is woken when work is done.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._threads: list[threading.Thread] = []
        # Its own group: guard conditions are not to wait for callbacks of other groups.
        self._guard = node.create_guard_condition(lambda: None, ReentrantCallbackGroup())

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which runs in another thread; raises what it raises."""
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def finish() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()
                with contextlib.suppress(Exception):  # the node has gone meanwhile
                    self._guard.trigger()

        thread = threading.Thread(target=finish, name="depth_service", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()
        while not done.is_set():
            # rclpy looks at waiting coroutines whenever anything happens; the guard makes sure
            # that something does.
            await _Turn()
        if errors:
            raise errors[0]
        return results[0]

    def join(self, timeout: float = 30.0) -> None:
        """Wait for work under way: the process must not end below a library that is loading."""
        for thread in self._threads:
            thread.join(timeout)


class Services:
    """``std_srvs/Trigger`` and ``SetBool`` services: success and words from a coroutine.

    Args:
        node: on which they are made.
        actions: by name; what they return is the answer's message, an exception is a failure. A
            service that is still busy refuses the next call.
        switches: the same for services that are told true or false.
    """

    def __init__(
        self,
        node: LifecycleNode,
        actions: Mapping[str, Action],
        switches: Mapping[str, Switch] | None = None,
    ) -> None:
        self._node = node
        # Reentrant: in the node's own group a waiting coroutine would hold up everything.
        group = ReentrantCallbackGroup()
        for name, action in actions.items():
            answering = self._answering(name, action, lambda request: ())
            node.create_service(Trigger, name, answering, callback_group=group)
        for name, switch in (switches or {}).items():
            answering = self._answering(name, switch, lambda request: (bool(request.data),))
            node.create_service(SetBool, name, answering, callback_group=group)

    def _answering(
        self,
        name: str,
        action: Callable[..., Awaitable[str]],
        told: Callable[[Any], tuple[Any, ...]],
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        busy = threading.Lock()

        async def answer(request: Any, response: Any) -> Any:
            if not busy.acquire(blocking=False):
                response.success, response.message = False, "still busy with an earlier call"
                return response
            try:
                response.message = await action(*told(request))
                response.success = True
            except RefusedError as error:
                response.success, response.message = False, str(error)
            except Exception as error:
                response.success = False
                response.message = f"{type(error).__name__}: {error}"
            finally:
                busy.release()
            log = self._node.get_logger()
            if response.success:
                log.info(f"{name}: {response.message}")
            else:
                log.warning(f"{name}: {response.message}")
            return response

        return answer
