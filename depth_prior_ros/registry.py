"""Names for exchangeable parts: a trunk, a backend, a stage stands once, where it is written.

    TRUNKS: Registry[Callable[[], Trunk]] = Registry("trunk", "depth_prior_ros.models")

    @TRUNKS.register("resnet18")  # in any module of depth_prior_ros/models/
    def resnet18() -> ResNet18: ...

    TRUNKS["resnet18"]()

The modules of a room are imported when the registry is first asked for something that it has not
got, so that a new file is found without a list of files, and nothing heavy is imported before.
Where names are shown on a command line, the room's modules import their libraries inside functions.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_Registered = TypeVar("_Registered")


class UnknownNameError(ValueError):
    """A name that nothing is registered under; the message has the nearest and all names."""


class Registry(Generic[T]):
    """Name -> object.

    Args:
        kind: what is registered, for messages: "trunk".
        room: package whose modules, those of its subpackages left out, register what they hold.
    """

    def __init__(self, kind: str, room: str) -> None:
        self.kind = kind
        self._room = room
        self._found: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[_Registered], _Registered]:
        """Decorator (or `register(name)(thing)`). Raises ValueError where the name is taken."""

        def keep(thing: _Registered) -> _Registered:
            if name in self._found:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._found[name] = thing  # type: ignore[assignment]
            return thing

        return keep

    def __getitem__(self, name: str) -> T:
        """What is registered. Raises UnknownNameError."""
        return self._found[self.checked(name)]

    def __contains__(self, name: object) -> bool:
        return name in self._found or name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._load()
        return tuple(sorted(self._found))

    def items(self) -> list[tuple[str, T]]:
        """All names with what they stand for, sorted by name."""
        return [(name, self._found[name]) for name in self.names()]

    def checked(self, name: str) -> str:
        """The name, if it is known: a validator of settings. Raises UnknownNameError."""
        if name not in self:
            close = difflib.get_close_matches(str(name), self._found, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}: {hint}choose one of {', '.join(self.names())}"
            )
        return name

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # a module of the room may ask while it is imported
        try:
            package = importlib.import_module(self._room)
            for module in pkgutil.iter_modules(package.__path__, f"{self._room}."):
                if not module.ispkg:
                    importlib.import_module(module.name)
        except BaseException:
            self._loaded = False
            raise
