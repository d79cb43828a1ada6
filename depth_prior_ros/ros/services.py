"""Services that take their time, answered without holding up anything else.

The executor has one thread. A service callback that loads networks in it would stop parameters,
diagnostics and images for seconds; so the work runs in a thread of its own, and the callback is a
coroutine that waits for it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, TypeVar

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from std_srvs.srv import Trigger

T = TypeVar("T")

Action = Callable[[], Awaitable[str]]


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
    """``std_srvs/Trigger`` services: success and words from a coroutine.

    Args:
        node: on which they are made.
        actions: by name; what they return is the answer's message, an exception is a failure. A
            service that is still busy refuses the next call.
    """

    def __init__(self, node: LifecycleNode, actions: Mapping[str, Action]) -> None:
        self._node = node
        # Reentrant: in the node's own group a waiting coroutine would hold up everything.
        group = ReentrantCallbackGroup()
        for name, action in actions.items():
            node.create_service(Trigger, name, self._answering(name, action), callback_group=group)

    def _answering(self, name: str, action: Action) -> Callable[[Any, Any], Awaitable[Any]]:
        busy = threading.Lock()

        async def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            if not busy.acquire(blocking=False):
                response.success, response.message = False, "still busy with an earlier call"
                return response
            try:
                response.message = await action()
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
