"""A new bundle out of another: another prior (`select`), another camera (`adapt`), other
references, other weights of the student (`tune`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.bundle.bundle import Bundle, aligned, embed_teacher, seal_bundle
from depth_prior_ros.bundle.files import (
    copy_file,
    refuse_foreign,
    staging,
    write_tensors,
)
from depth_prior_ros.bundle.manifest import (
    BASELINES_NAME,
    MANIFEST_NAME,
    REFERENCES_NAME,
    TEACHER_FOLDER,
    TEACHER_NAME,
    BundleError,
    CameraSpec,
    DepthSpec,
    Manifest,
    PriorSpec,
    Provenance,
    ReferencesSpec,
    Told,
    file_name,
    validate_manifest,
)
from depth_prior_ros.bundle.prior import PriorSources, write_prior, write_references

if TYPE_CHECKING:
    from torch import nn

    from depth_prior_ros.models.episodic_prior import References
    from depth_prior_ros.models.prior_fusion import Prior

_NETWORKS = tuple(file_name(part) for part in ("student", "multi_frame", "pose"))


def tell_camera(
    bundle: Bundle,
    out: str | Path,
    told: Told,
    *,
    metrics: Mapping[str, Any] | None = None,
    keep_references: bool = True,
) -> Bundle:
    """Write a bundle with all of another, fitted to a camera.

    What was measured before does not travel: metrics, and the mean of the student's own depth.

    Args:
        bundle: where all else comes from.
        out: folder of the new bundle; an existing bundle is replaced, it may be `bundle` itself.
        told: the student's numbers or the factor, their camera, and where they are from.
        metrics: of the new bundle; default: none.
        keep_references: whether the references travel: they are of a camera, as well.

    Raises:
        BundleError: a foreign folder, a full disk.
        ValueError: numbers for a student that is not told its camera, a factor for one that is.
    """
    out = Path(out)
    refuse_foreign(out)
    data = bundle.manifest.with_told(told).data()
    data["metrics"], left = dict(metrics or {}), {BASELINES_NAME, TEACHER_NAME}
    if not keep_references:
        data["references"] = None
        data["files"].pop(REFERENCES_NAME, None)
        left.add(REFERENCES_NAME)
    provenance = data["provenance"]
    note = f"adapted to its camera, no weight changed: {told.source}"
    provenance["note"] = "; ".join(filter(None, (provenance["note"], note)))
    manifest = validate_manifest(out / MANIFEST_NAME, data)
    with staging(out) as folder:
        for file in set(bundle.manifest.files) - left:
            copy_file(bundle.path / file, folder / file)
        _copy_baselines(bundle, folder)
        if TEACHER_NAME in bundle.manifest.files:
            embed_teacher(folder, bundle.path / TEACHER_FOLDER, bundle.manifest.prior)
        return seal_bundle(folder, out, manifest)


def replace_student(
    bundle: Bundle,
    out: str | Path,
    *,
    student: nn.Module,
    pose: nn.Module | None,
    camera: CameraSpec,
    depth: DepthSpec,
    provenance: Provenance,
    name: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle with other weights of the student and the pose network, and all else as it is.

    What belonged to the old weights does not travel: what was fitted to a camera, the references
    that the student looks up, metrics, and the mean of its own depth.

    Args:
        bundle: where the multi-frame network, the prior and its teacher come from.
        out: folder of the new bundle; an existing bundle is replaced.
        student: built as the bundle's.
        pose: built as the bundle's; None where it has none.
        camera: that the student takes every image for now.
        depth: its unit now.
        provenance: of the new bundle.
        name: of the new bundle; default: as before.
        metrics: of the new bundle; default: none.

    Raises:
        BundleError: networks of another form, weights that are not finite, a foreign folder, a
            full disk.
    """
    out = Path(out)
    refuse_foreign(out)
    old = bundle.manifest
    prior = old.prior
    if prior is not None:
        own = getattr(student, "fusion", None)
        prior = aligned(prior.model_copy(update={"alignment": None}), own)
    update = {
        "name": name or old.name,
        "training_camera": camera,
        "depth": depth.model_copy(update={"factor_camera": None}),
        "provenance": provenance,
        "metrics": dict(metrics or {}),
        "prior": prior,
        "references": None,
        "camera_code": None,
    }
    states = {"student": student.state_dict()}
    if pose is not None:
        states["pose"] = pose.state_dict()
    with staging(out) as folder:
        for part, state in states.items():
            write_tensors(folder / file_name(part), state)  # type: ignore[arg-type]
        if prior is not None:
            path = folder / file_name("prior")
            write_prior(path, bundle.prior(), prior, bundle.prior_sources())
        if file_name("multi_frame") in old.files:
            copy_file(bundle.path / file_name("multi_frame"), folder / file_name("multi_frame"))
        _copy_baselines(bundle, folder)
        if TEACHER_NAME in old.files:
            embed_teacher(folder, bundle.path / TEACHER_FOLDER, prior)
        return seal_bundle(folder, out, old.model_copy(update=update))


def replace_prior(
    bundle: Bundle,
    out: str | Path,
    prior: Prior,
    spec: PriorSpec,
    sources: PriorSources | None = None,
    *,
    note: str,
    name: str | None = None,
    data_sources: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    licence: str | None = None,
    teacher: str | Path | None = None,
    identify: Callable[[Bundle], str] | None = None,
) -> Bundle:
    """Write a bundle with the networks of another, byte for byte, and a new prior.

    Everything is written and verified beside `out` first. What was measured with the old prior
    does not travel: metrics, and the mean of the student's own depth.

    Args:
        bundle: where the networks, and the teacher in it, come from.
        out: folder of the new bundle; an existing bundle is replaced, it may be `bundle` itself.
        prior: reference pixels.
        spec: what they are; `alignment` is filled in. Its teacher must be that of the present
            prior, where the bundle names it.
        sources: where the pixels come from.
        note: what was done; added to the note of the provenance.
        name: of the new bundle; default: as before.
        data_sources: added to those of the provenance.
        metrics: of the new bundle; default: none.
        licence: of the new bundle, where the prior's is stricter; default: as before.
        teacher: a bundle to put inside instead of the one that is there, if any.
        identify: see `save_bundle`.

    Raises:
        BundleError: a prior that the student cannot read, or of another teacher; a full disk.
    """
    out = Path(out)
    refuse_foreign(out)
    spec = aligned(spec, bundle.student().fusion)
    _check_teacher(bundle, spec)
    manifest = _manifest(bundle, out, spec, note, name, data_sources, metrics, licence)
    with staging(out) as folder:
        for file in (*_NETWORKS, REFERENCES_NAME):
            if file in bundle.manifest.files:
                copy_file(bundle.path / file, folder / file)
        write_prior(folder / file_name("prior"), prior, spec, sources)
        _copy_baselines(bundle, folder)
        inside = teacher
        if inside is None and TEACHER_NAME in bundle.manifest.files:
            inside = bundle.path / TEACHER_FOLDER
        if inside is not None:
            embed_teacher(folder, inside, spec, identify)
        return seal_bundle(folder, out, manifest)


def replace_references(
    bundle: Bundle,
    out: str | Path,
    references: References | None,
    spec: ReferencesSpec | None,
    **changes: Any,
) -> Bundle:
    """Write a bundle with everything of another and new references, or none.

    Args:
        bundle: where all files come from, byte for byte.
        out: folder of the new bundle; an existing bundle is replaced, it may be `bundle` itself.
        references: what the student looks up; None: nothing.
        spec: what they are; `alignment`, `count` and `channels` are filled in.
        changes: further fields of the manifest. What was measured without these references does
            not travel: without `metrics` there are none.

    Raises:
        BundleError: a student that looks nothing up, references that do not fit it, a full disk.
    """
    out = Path(out)
    refuse_foreign(out)
    look_up = bundle.student().episodic
    if look_up is None and references is not None:
        raise BundleError(bundle.path, "this student looks no references up (networks.episodic)")
    if references is not None and spec is not None and look_up is not None:
        filled = {
            "alignment": look_up.alignment_hash(),
            "count": len(references),
            "channels": references.features.shape[1],
        }
        spec = spec.model_copy(update=filled)
    update = {"references": spec, "metrics": {}, **changes}
    with staging(out) as folder:
        for file in set(bundle.manifest.files) - {REFERENCES_NAME, TEACHER_NAME}:
            copy_file(bundle.path / file, folder / file)
        if references is not None:
            write_references(folder / REFERENCES_NAME, references)
        if TEACHER_NAME in bundle.manifest.files:
            embed_teacher(folder, bundle.path / TEACHER_FOLDER, bundle.manifest.prior)
        return seal_bundle(folder, out, bundle.manifest.model_copy(update=update))


def _check_teacher(bundle: Bundle, spec: PriorSpec) -> None:
    """The student was trained on one teacher's features; another's mean something else."""
    old = None if bundle.manifest.prior is None else bundle.manifest.prior.teacher
    if old is None:
        return
    new = spec.teacher
    if new is None or (new.sha256, new.stride) != (old.sha256, old.stride):
        what = "an unknown teacher" if new is None else f"{new.name} at stride {new.stride}"
        digest = "" if new is None else f" ({new.sha256[:12]}...)"
        raise BundleError(
            bundle.path / MANIFEST_NAME,
            f"the student reads features of {old.name} at stride {old.stride} "
            f"({old.sha256[:12]}...), the new prior is of {what}{digest}: make the reference set "
            "with that teacher, or train the student's fusion on the new one first",
        )


def _manifest(
    bundle: Bundle,
    out: Path,
    spec: PriorSpec,
    note: str,
    name: str | None,
    data_sources: Sequence[str],
    metrics: Mapping[str, Any] | None,
    licence: str | None,
) -> Manifest:
    data = bundle.manifest.data()
    data["name"] = name or data["name"]
    data["licence"] = licence or data["licence"]
    data["metrics"] = dict(metrics or {})
    data["prior"] = spec.model_dump(mode="json")
    provenance = data["provenance"]
    provenance["note"] = "; ".join(filter(None, (provenance["note"], note)))
    provenance["data_sources"] += [s for s in data_sources if s not in provenance["data_sources"]]
    return validate_manifest(out / MANIFEST_NAME, data)


def _copy_baselines(bundle: Bundle, folder: Path) -> None:
    """The maps that do not depend on the student, hence not on its prior."""
    from depth_prior_ros.bundle.baselines import OWN_MEAN

    if BASELINES_NAME not in bundle.manifest.files:
        return
    tensors = bundle.tensor_file(BASELINES_NAME).tensors
    kept = {n: t for n, t in tensors.items() if n != OWN_MEAN}
    if kept:
        write_tensors(folder / BASELINES_NAME, kept)
