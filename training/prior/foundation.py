"""Depth models of Hugging Face as teachers of a prior (extra `foundation`)."""

from __future__ import annotations

from training.prior.teachers import RichTeacher, TeacherError


def open_foundation_teacher(
    name: str,
    *,
    tap: int | None = None,
    device: str = "cpu",
    metres_per_unit: float | None = None,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    fetch: bool = False,
    metric: bool = False,
) -> RichTeacher:
    """Open a depth-estimation model by name or folder.

    Raises:
        TeacherError: it cannot be opened, or cannot teach.
    """
    raise TeacherError(f"teacher hf:{name}: models of Hugging Face are not supported yet")
