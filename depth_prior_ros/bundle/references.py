"""References in a bundle: pixels of one camera's frames that its student looks up.

How they are stored and checked, and a new bundle that holds others.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from depth_prior_ros.bundle.files import TensorFile, compare_shapes, write_tensors
from depth_prior_ros.bundle.manifest import BundleError, ReferencesSpec

if TYPE_CHECKING:
    from depth_prior_ros.models.episodic_prior import EpisodicPrior, References

_REMEDY = "take references anew (depth_train adapt)"


def write_references(path: Path, references: References) -> None:
    """Write references, in half precision. Raises BundleError."""
    write_tensors(
        path,
        {
            "features": references.features,
            "position": references.position,
            "inverse_depth": references.inverse_depth,
        },
    )


def read_references(file: TensorFile) -> References:
    """The references, float32."""
    from depth_prior_ros.models.episodic_prior import References

    names = ("features", "position", "inverse_depth")
    return References(*(file.tensors[name].float() for name in names))


def verify_references(
    file: TensorFile, spec: ReferencesSpec, episodic: EpisodicPrior | None
) -> None:
    """Check tensors and values, and that they belong to the manifest and the student.

    Args:
        file: of the references.
        spec: what the manifest says.
        episodic: what reads them, with its weights; None for a student that has none.

    Raises:
        BundleError: says what does not fit and what to do.
    """
    path, tensors = file.path, file.tensors
    expected = {
        "features": [spec.count, spec.channels],
        "position": [spec.count, 2],
        "inverse_depth": [spec.count],
    }
    compare_shapes(path, {n: list(t.shape) for n, t in tensors.items()}, expected)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise BundleError(path, f"{name} holds something else than finite numbers; {_REMEDY}")
    if not (tensors["inverse_depth"] > 0).all():
        raise BundleError(path, f"inverse_depth holds values that are not positive; {_REMEDY}")
    if (tensors["position"].abs() > 1).any():
        raise BundleError(path, f"position lies outside the image; {_REMEDY}")
    if episodic is None:
        raise BundleError(path, "references, but the student has nothing to look them up with")
    if spec.count > episodic.config.capacity or spec.channels != episodic.key_channels:
        raise BundleError(
            path,
            f"{spec.count} references of {spec.channels} channels: the student has room for "
            f"{episodic.config.capacity} of {episodic.key_channels}; {_REMEDY}",
        )
    if spec.alignment != episodic.alignment_hash():
        raise BundleError(
            path, f"the layers that read these references have changed since; {_REMEDY}"
        )
