"""The prior and the references in a bundle: files, where their pixels come from, do they fit.

`prior.safetensors` holds ``features`` (N, C) and ``inverse_depth`` (N,) in half precision,
optionally ``image`` and ``pixel`` (N,) int32, and as metadata what it belongs to: the teacher's
sha256, its stride, the student's alignment hash, and the list of images. The manifest says the
same; where the two, or the student's own weights, disagree, somebody put together what does not
belong together, and depth looked up in such a prior would be noise (RPrDepth, section 3.2: queries
and keys are trained on one another).

The same of references: pixels of one camera's frames, which its student looks up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.bundle.files import (
    TensorFile,
    compare_shapes,
    copy_file,
    read_verified,
    sha256_of,
    write_tensors,
)
from depth_prior_ros.bundle.manifest import (
    MANIFEST_NAME,
    TEACHER_FOLDER,
    TEACHER_NAME,
    BundleError,
    Manifest,
    PriorSpec,
    ReferencesSpec,
    read_manifest,
    write_manifest,
)

if TYPE_CHECKING:
    from depth_prior_ros.models.episodic_prior import EpisodicPrior, References
    from depth_prior_ros.models.prior_fusion import Prior, PriorFusion


_REMEDY = (
    "select a prior for this student (depth_train select), "
    "or let the student settle on this one (depth_train fine-tune)"
)
_IMAGE_KEYS = ("drive", "frame", "stamp", "stamp_ns")


@dataclass(frozen=True)
class PriorSources:
    """Where the pixels of a prior come from.

    Attributes:
        image: (N,) int32, index into `images`.
        pixel: (N,) int32, row-major in the teacher's map of features.
        images: for each image `drive` (name), `frame` (int, its position in the drive) and, where
            known, `stamp` or `stamp_ns`. Other keys are left out of a bundle.

    Raises:
        ValueError: shapes that differ, an index without an image, an image without a name.
    """

    image: NDArray[np.int32]
    pixel: NDArray[np.int32]
    images: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        for name in ("image", "pixel"):
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise ValueError(f"prior sources: {name} is not a list of whole numbers")
            if values.size and (values.min() < 0 or values.max() > np.iinfo(np.int32).max):
                raise ValueError(f"prior sources: {name} holds {values.min()} to {values.max()}")
            object.__setattr__(self, name, values.astype(np.int32, copy=False))
        if self.image.shape != self.pixel.shape:
            raise ValueError(
                f"prior sources: {len(self.image)} images for {len(self.pixel)} pixels"
            )
        if self.image.size and self.image.max() >= len(self.images):
            raise ValueError(
                f"prior sources: image {self.image.max()}, but only {len(self.images)} are listed"
            )
        for entry in self.images:
            if not (
                isinstance(entry, Mapping)
                and isinstance(entry.get("drive"), str)
                and type(entry.get("frame")) is int
            ):
                raise ValueError(f"prior sources: {entry!r} lacks drive (text) or frame (number)")

    def __len__(self) -> int:
        return len(self.image)

    def compact(self) -> PriorSources:
        """The same with only the images that pixels come from, in the same order."""
        used, image = np.unique(self.image, return_inverse=True)
        return PriorSources(
            image.astype(np.int32).reshape(-1), self.pixel, [self.images[i] for i in used.tolist()]
        )


# -- the file --------------------------------------------------------------------------------------


def write_prior(path: Path, prior: Prior, spec: PriorSpec, sources: PriorSources | None) -> None:
    """Write a prior with what it belongs to; images that no pixel comes from are left out.

    Raises:
        BundleError: values that cannot be stored, sources of another length, a full disk.
    """
    import torch

    state = {"features": prior.features, "inverse_depth": prior.inverse_depth}
    metadata = _belonging(spec)
    if sources is not None:
        if len(sources) != len(prior.inverse_depth):
            raise BundleError(
                path, f"{len(sources)} sources for {len(prior.inverse_depth)} reference pixels"
            )
        sources = sources.compact()
        state["image"] = torch.from_numpy(sources.image)
        state["pixel"] = torch.from_numpy(sources.pixel)
        images = [{k: image[k] for k in _IMAGE_KEYS if k in image} for image in sources.images]
        metadata["images"] = json.dumps(images, separators=(",", ":"))
    write_tensors(path, state, metadata)


def read_prior(file: TensorFile) -> Prior:
    """The reference pixels, float32."""
    from depth_prior_ros.models.prior_fusion import Prior

    return Prior(file.tensors["features"].float(), file.tensors["inverse_depth"].float())


def read_sources(file: TensorFile) -> PriorSources | None:
    """Where the pixels come from; None in a file that does not say. Raises BundleError."""
    if "image" not in file.tensors:
        return None
    image, pixel = (file.tensors[name].numpy() for name in ("image", "pixel"))
    try:
        images = json.loads(file.metadata.get("images", "null"))
        if not isinstance(images, list):
            raise ValueError("its list of images is missing")
        return PriorSources(image, pixel, images)
    except (ValueError, RecursionError) as error:
        raise BundleError(file.path, f"sources cannot be read: {error}") from error


def _belonging(spec: PriorSpec) -> dict[str, str]:
    """What a prior's file says of itself, for a manifest that says `spec`."""
    found: dict[str, str] = {}
    if spec.teacher is not None:
        found |= {"teacher": spec.teacher.sha256, "stride": str(spec.teacher.stride)}
    if spec.alignment is not None:
        found["alignment"] = spec.alignment
    return found


# -- what is refused -------------------------------------------------------------------------------


def verify_prior(file: TensorFile, spec: PriorSpec, fusion: PriorFusion | None) -> None:
    """Check a prior's tensors and values, and that it belongs to the manifest and the student.

    Args:
        file: of the prior.
        spec: what the manifest says.
        fusion: the student's, with its weights; None for a student that has none.

    Raises:
        BundleError: says what does not fit and what to do.
    """
    path, tensors = file.path, file.tensors
    expected = {"features": [spec.pixels, spec.channels], "inverse_depth": [spec.pixels]}
    if set(tensors) & {"image", "pixel"}:
        expected |= {"image": [spec.pixels], "pixel": [spec.pixels]}
    compare_shapes(path, {n: list(t.shape) for n, t in tensors.items()}, expected)
    for name in ("features", "inverse_depth"):
        if not tensors[name].is_floating_point():
            raise BundleError(path, f"{name} is stored as {str(tensors[name].dtype)[6:]}")
    if not tensors["features"].isfinite().all():
        raise BundleError(path, f"features hold NaN or infinite values; {_REMEDY}")
    inverse = tensors["inverse_depth"]
    if not (inverse.isfinite() & (inverse > 0)).all():
        raise BundleError(
            path,
            "inverse_depth holds values that are NaN, infinite, or not positive in half "
            f"precision; {_REMEDY}",
        )
    sources = read_sources(file)
    if sources is not None and spec.teacher is not None:
        last = int(sources.pixel.max())
        if last >= spec.teacher.map_pixels:
            raise BundleError(
                path,
                f"pixel {last} is outside the teacher's map of {spec.teacher.map_pixels} pixels",
            )
    match_prior(file, spec, fusion)


def match_prior(file: TensorFile, spec: PriorSpec, fusion: PriorFusion | None) -> None:
    """Check that a prior's file, the manifest and the student belong together, by header alone.

    Raises:
        BundleError: another teacher, stride, channel width or alignment hash.
    """
    path, found = file.path, dict(file.metadata)
    if "tap" in found:  # as schema 3 says
        found.setdefault("stride", found["tap"])
    if fusion is None:
        raise BundleError(path, "a prior, but the student has no prior fusion to read it")
    width = fusion.config.reference_channels
    if spec.channels != width:
        raise BundleError(
            path,
            f"the prior has {spec.channels} channels, the student's fusion reads {width}; it was "
            f"made by another teacher than the student's: {_REMEDY}",
        )
    teacher = spec.teacher
    if teacher is not None and teacher.channels != spec.channels:
        raise BundleError(
            path,
            f"the prior has {spec.channels} channels, its teacher {teacher.name} gives "
            f"{teacher.channels}: {_REMEDY}",
        )
    expected = _belonging(spec)
    for key, what in (
        ("teacher", "teacher"),
        ("stride", "stride"),
        ("alignment", "alignment hash"),
    ):
        if found.get(key) != expected.get(key):
            raise BundleError(
                path,
                f"another {what} than the manifest's: {_short(found.get(key))}, not "
                f"{_short(expected.get(key))}; this prior is not this student's: {_REMEDY}",
            )
    own = [fusion.alignment_hash(), fusion.alignment_hash(layers_only=True)]
    if spec.alignment is not None and spec.alignment not in own:
        raise BundleError(
            path,
            f"another alignment hash than the student's: {_short(spec.alignment)}, not "
            f"{_short(own[0])}; the layers that read the prior have changed since: {_REMEDY}",
        )


def _short(text: str | None) -> str:
    return "none" if text is None else text if len(text) < 16 else f"{text[:12]}..."


# -- the teacher in the bundle ---------------------------------------------------------------------


def copy_teacher(
    folder: Path, source: Path, manifest: Manifest, spec: PriorSpec | None, found: str | None = None
) -> str:
    """Copy a prior's teacher into a bundle's folder, byte for byte, without its own teacher.

    Args:
        folder: of the bundle that gets it.
        source: the teacher's own bundle, and its ``manifest``.
        spec: of the prior, whose `teacher` it must be.
        found: the sha256 by which a prior knows its teacher; None: only name and size are
            compared.

    Returns:
        The sha256 of its manifest.

    Raises:
        BundleError: another teacher than the prior's; a full disk.
    """
    _check_teacher(folder, manifest, spec)
    assert spec is not None and spec.teacher is not None
    if found is not None and found != spec.teacher.sha256:
        raise BundleError(
            source,
            f"is not the teacher that the prior came from: {_short(found)}, not "
            f"{_short(spec.teacher.sha256)}",
        )
    target = folder / TEACHER_FOLDER
    own = [name for name in manifest.files if name != TEACHER_NAME]
    for name in own:
        copy_file(source / name, target / name)
    copy_file(source / MANIFEST_NAME, target / MANIFEST_NAME)
    if len(own) < len(manifest.files):
        files = {name: manifest.files[name] for name in own}
        write_manifest(target / MANIFEST_NAME, manifest.model_copy(update={"files": files}))
    return sha256_of(target / MANIFEST_NAME)


def verify_teacher(
    folder: Path, expected: str, spec: PriorSpec | None, inside: Path | None
) -> None:
    """Check the hashes of the teacher in a bundle, and that it is the prior's.

    Its architecture is checked when it is opened. Raises BundleError.
    """
    manifest = read_manifest(folder / TEACHER_NAME, expected, inside)
    for name, digest in manifest.files.items():
        read_verified(folder / TEACHER_FOLDER / name, digest, inside)
    _check_teacher(folder, manifest, spec)


def _check_teacher(folder: Path, manifest: Manifest, spec: PriorSpec | None) -> None:
    path = folder / TEACHER_FOLDER
    if spec is None or spec.teacher is None:
        raise BundleError(path, "a teacher, but the manifest names none for the prior")
    expected = ("bundle", spec.teacher.name, spec.teacher.size)
    if expected != (spec.teacher.kind, manifest.name, manifest.input_size):
        raise BundleError(
            path,
            f"is {manifest.name} at {manifest.input_size}, the prior's teacher is "
            f"{spec.teacher.kind} {spec.teacher.name} at {spec.teacher.size}",
        )


# -- references -----------------------------------------------------------------------------------

_ANEW = "take references anew (depth_train adapt)"


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
            raise BundleError(path, f"{name} holds something else than finite numbers; {_ANEW}")
    if not (tensors["inverse_depth"] > 0).all():
        raise BundleError(path, f"inverse_depth holds values that are not positive; {_ANEW}")
    if (tensors["position"].abs() > 1).any():
        raise BundleError(path, f"position lies outside the image; {_ANEW}")
    if episodic is None:
        raise BundleError(path, "references, but the student has nothing to look them up with")
    if spec.count > episodic.config.capacity or spec.channels != episodic.key_channels:
        raise BundleError(
            path,
            f"{spec.count} references of {spec.channels} channels: the student has room for "
            f"{episodic.config.capacity} of {episodic.key_channels}; {_ANEW}",
        )
    if spec.alignment != episodic.alignment_hash():
        raise BundleError(
            path, f"the layers that read these references have changed since; {_ANEW}"
        )
