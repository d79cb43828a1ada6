"""What may teach a prior, and the names under which kinds of teachers are found.

A new kind is one module of this room: a `FrozenTeacher`, and a function that opens it under
`@teacher`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from depth_prior_ros.bundle.manifest import TeacherIdentity
from depth_prior_ros.registry import Registry
from training.recipes.base import RecipeError


class TeacherError(RecipeError):
    """A teacher that cannot be one; the message says why and what to do."""


class TeacherView(NamedTuple):
    """What a teacher says of the middle frame of triplets.

    Attributes:
        features: (B, C, H / stride, W / stride).
        inverse_depth: (B, 1, H / stride, W / stride), 1 / network units, positive and finite.
        depth: (B, 1, H, W), network units.
        motions: previous_from_current and next_from_current (2, B, 4, 4), network units; None
            where the teacher knows no motion.
    """

    features: Tensor
    inverse_depth: Tensor
    depth: Tensor
    motions: Tensor | None


class FrozenTeacher(Protocol):
    """A frozen network with more to go on than the student: resolution, frames, or size."""

    @property
    def identity(self) -> TeacherIdentity:
        """What it is."""

    def look(
        self,
        images: Tensor,
        K: Tensor,
        poses: Tensor | None = None,
        known: Tensor | None = None,
    ) -> TeacherView:
        """Look at triplets, without gradient.

        Args:
            images: previous, current and next (B, 3, 3, H, W), RGB in [0, 1].
            K: (B, 3, 3), pixels of the images.
            poses: recorded previous_from_current and next_from_current (B, 2, 4, 4), network
                units, used where ``known``.
            known: (B,) boolean.
        """


@dataclass(frozen=True)
class TeacherOptions:
    """How a teacher is opened.

    Attributes:
        stride: of the features; default: 4.
        lookup: frames that a bundle's multi-frame network compares with.
        device: where it runs.
        metres_per_unit: unit of all that goes in and out; default: a bundle's own, metres of a
            metric model. Relative models have no unit.
        size: (W, H) of the pictures that a foundation model is shown; default: its own. A bundle
            has one size.
        precision: "f32", or "bf16" for autocast.
        fetch: a foundation model may be downloaded; otherwise it has to be on this machine.
        metric: whether a foundation model's depth is kept in metres; if not, the median of every
            image's inverse depth becomes 1. Default: where its config says that it is metric.
        features: of a bundle, "encoder" or "decoder"; see `BundleTeacher`.
    """

    stride: int | None = None
    lookup: tuple[int, ...] = (-1, 1)
    device: str = "cpu"
    metres_per_unit: float | None = None
    size: tuple[int, int] | None = None
    precision: str = "f32"
    fetch: bool = False
    metric: bool | None = None
    features: str = "encoder"

    def only(self, *names: str) -> dict[str, Any]:
        """The named ones, as keyword arguments."""
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TeacherKind:
    """A kind of teacher: its prefix in recipes ("" for what has none), and who opens it."""

    prefix: str
    open: Callable[[str, TeacherOptions], FrozenTeacher]


#: By the kind of a `TeacherIdentity`.
TEACHERS: Registry[TeacherKind] = Registry("teacher", __package__)


def teacher(
    kind: str, prefix: str = ""
) -> Callable[[Callable[[str, TeacherOptions], FrozenTeacher]], Any]:
    """Decorator of a function that opens a teacher from what stands behind the prefix."""

    def keep(opener: Callable[[str, TeacherOptions], FrozenTeacher]) -> Any:
        TEACHERS.register(kind)(TeacherKind(prefix, opener))
        return opener

    return keep


def open_teacher(spec: str, **options: Any) -> FrozenTeacher:
    """Open a bundle (folder or name) or, as "hf:NAME" or "hf:FOLDER", a Hugging Face depth model.

    Args:
        spec: which.
        options: see `TeacherOptions`.

    Raises:
        TeacherError: it cannot be opened, or cannot teach.
    """
    if not spec.strip():
        raise TeacherError("no teacher: name a bundle, or hf:NAME for a model of Hugging Face")
    kinds = sorted((kind for _, kind in TEACHERS.items()), key=lambda kind: -len(kind.prefix))
    kind = next(kind for kind in kinds if spec.startswith(kind.prefix))
    return kind.open(spec.removeprefix(kind.prefix), TeacherOptions(**options))
