"""What may teach a prior, and the names under which kinds of teachers are found.

A new kind is one module of this room: a `FrozenTeacher`, and a function that opens it under
`@teacher`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

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
class TeacherKind:
    """A kind of teacher: its prefix in recipes ("" for what has none), and who opens it."""

    prefix: str
    open: Callable[..., FrozenTeacher]


_Opener = TypeVar("_Opener", bound=Callable[..., FrozenTeacher])

#: By the kind of a `TeacherIdentity`.
TEACHERS: Registry[TeacherKind] = Registry("teacher", __package__)


def teacher(kind: str, prefix: str = "") -> Callable[[_Opener], _Opener]:
    """Decorator of a function that opens a teacher from what stands behind the prefix.

    It is given the options of `open_teacher`, and leaves out what its kind has not.
    """

    def keep(opener: _Opener) -> _Opener:
        TEACHERS.register(kind)(TeacherKind(prefix, opener))
        return opener

    return keep


def open_teacher(spec: str, **options: Any) -> FrozenTeacher:
    """Open a bundle (folder or name) or, as "hf:NAME" or "hf:FOLDER", a Hugging Face depth model.

    Args:
        spec: which.
        options: of `BundleTeacher` and `FoundationTeacher`. size: (W, H) of the pictures that a
            foundation model is shown; a bundle has one size. fetch: a foundation model may be
            downloaded; otherwise it has to be on this machine.

    Raises:
        TeacherError: it cannot be opened, or cannot teach.
    """
    if not spec.strip():
        raise TeacherError("no teacher: name a bundle, or hf:NAME for a model of Hugging Face")
    kinds = sorted((kind for _, kind in TEACHERS.items()), key=lambda kind: -len(kind.prefix))
    kind = next(kind for kind in kinds if spec.startswith(kind.prefix))
    return kind.open(spec.removeprefix(kind.prefix), **options)
