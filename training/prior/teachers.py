"""What may teach a prior: any bundle, or a depth model of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from training.config_base import RecipeError


class TeacherError(RecipeError):
    """A teacher that cannot be one; the message says why and what to do."""


@dataclass(frozen=True)
class TeacherIdentity:
    """What a reference set, and the prior chosen from it, was made by.

    Attributes:
        name: the bundle's name, or the model's on Hugging Face.
        kind: "bundle" or "foundation".
        sha256: of everything that decides its outputs: weights, architecture, size, lookup.
        tap: stride of the features at the teacher's input size.
        channels: channels of the features.
        size: (W, H) of the teacher's input.
        licence: of its weights.
    """

    name: str
    kind: str
    sha256: str
    tap: int
    channels: int
    size: tuple[int, int]
    licence: str

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` takes."""
        return asdict(self) | {"size": list(self.size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TeacherIdentity:
        """Build from a mapping; a missing or unknown key is a TypeError."""
        return cls(**{**values, "size": tuple(values["size"])})


class TeacherView(NamedTuple):
    """What a teacher says of the middle frame of triplets.

    Attributes:
        features: (B, C, H / tap, W / tap).
        inverse_depth: (B, 1, H / tap, W / tap), 1 / network units, positive and finite.
        depth: (B, 1, H, W), network units.
        motions: previous_from_current and next_from_current (2, B, 4, 4), network units; None
            where the teacher knows no motion.
    """

    features: Tensor
    inverse_depth: Tensor
    depth: Tensor
    motions: Tensor | None


class RichTeacher(Protocol):
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


def open_teacher(
    spec: str,
    *,
    tap: int | None = None,
    lookup: tuple[int, ...] = (-1, 1),
    device: str = "cpu",
    size: tuple[int, int] | None = None,
) -> RichTeacher:
    """Open a bundle (folder or name) or, as "hf:NAME", a depth model of Hugging Face.

    Args:
        spec: which.
        tap: stride of the features; default: the finest that it has.
        lookup: frames that a bundle's multi-frame network compares with.
        device: where it runs.
        size: (W, H) of the input of a foundation model; default: its own.

    Raises:
        TeacherError: it cannot be opened, or cannot teach.
    """
    raise NotImplementedError
