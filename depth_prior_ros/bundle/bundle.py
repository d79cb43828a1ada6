"""A trained system on disk: a manifest and safetensors; load, save, verify, describe.

A bundle is a folder::

    bundle.yaml               the manifest (see `Manifest`), sealed by a checksum on its last line
    student.safetensors       the single-frame network, with its prior fusion where it has one
    prior.safetensors         features (N, C) and inverse_depth (N,) of the reference pixels, and
                              where they come from (see `bundle_prior`)
    multi_frame.safetensors   the multi-frame network with its PADS map
    pose.safetensors          the pose network
    references.safetensors    what a student with an episodic prior looks up (see `references`)
    network.onnx              instead of all others: a single-frame network that was made elsewhere
    network.safetensors       the same, of Hugging Face
    teacher/                  the bundle that the prior came from

Floating-point tensors are half precision on disk and single precision in memory. All but the
student, or a network in its place, may be absent: then the manifest does not list them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from depth_prior_ros.atomic_files import move_into_place, replacing
from depth_prior_ros.bundle.files import (
    TensorFile,
    read_verified,
    refuse_foreign,
    sha256_of,
    staging,
    write_tensors,
)
from depth_prior_ros.bundle.manifest import (
    BASELINES_NAME,
    FILE_NAMES,
    MANIFEST_NAME,
    PARTS,
    REFERENCES_NAME,
    SCHEMA_VERSION,
    TEACHER_FOLDER,
    TEACHER_NAME,
    BundleError,
    FactorSpec,
    Manifest,
    Part,
    PriorSpec,
    file_name,
    read_manifest,
    validate_manifest,
    write_manifest,
)
from depth_prior_ros.bundle.network import check_network
from depth_prior_ros.bundle.prior import (
    PriorSources,
    copy_teacher,
    match_prior,
    read_prior,
    read_references,
    read_sources,
    verify_prior,
    verify_references,
    verify_teacher,
    write_prior,
)
from depth_prior_ros.untrusted import NETWORK_BYTES, TENSOR_NUMBERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depth_prior_ros.bundle.manifest import Told
    from depth_prior_ros.geometry.camera import Camera
    from depth_prior_ros.models.episodic_prior import EpisodicPrior, References
    from depth_prior_ros.models.mism import AnyMultiFrame
    from depth_prior_ros.models.pose import PoseNet
    from depth_prior_ros.models.prior_fusion import Prior, PriorFusion
    from depth_prior_ros.models.student import Student


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. Networks are built and their weights read on each call.

    Each reading compares the hash again: what was verified is what is built from, whatever
    happened to the files meanwhile.
    """

    path: Path
    manifest: Manifest

    def has(self, part: Part) -> bool:
        """Whether the bundle holds this part."""
        return file_name(part) in self.manifest.files

    @property
    def digest(self) -> str:
        """A hash over the hashes of all files: what to key caches with."""
        joined = json.dumps(sorted(self.manifest.files.items()))
        return hashlib.sha256(joined.encode()).hexdigest()

    def student(self) -> Student:
        """The single-frame network in eval mode, on the CPU, in float32.

        Raises BundleError for a network that was made elsewhere: it is run, nothing else.
        """
        if self.manifest.network is not None:
            raise BundleError(
                self.path,
                f"its network was imported ({self.manifest.network.source}): it can be run, not "
                "trained, adapted, exported or asked for features",
            )
        return self._network("student")

    def network(self) -> bytes:
        """The file of a network that was made elsewhere, verified. Raises BundleError."""
        if self.manifest.network is None:
            raise BundleError(self.path, "this bundle has no imported network")
        path = self.path / self.manifest.network.file
        digest = self.manifest.files[path.name]
        return read_verified(path, digest, _root(self.path), NETWORK_BYTES)

    def foreign_model(self) -> nn.Module:
        """An imported model of Hugging Face, on the CPU, in float32. Raises BundleError."""
        from depth_prior_ros.bundle.hugging_face import NetworkError, build_model

        data, spec = self.network(), self.manifest.network
        assert spec is not None
        path = self.path / spec.file
        try:
            state = {n: t.float() for n, t in TensorFile.of(path, data).tensors.items()}
            return build_model(spec.config, state)
        except NetworkError as error:
            raise BundleError(path, str(error)) from error

    def multi_frame(self) -> AnyMultiFrame:
        """The multi-frame network in eval mode, on the CPU, in float32."""
        return self._network("multi_frame")

    def pose(self) -> PoseNet:
        """The pose network in eval mode, on the CPU, in float32."""
        return self._network("pose")

    def prior(self) -> Prior:
        """The reference pixels, float32."""
        return read_prior(self._file("prior"))

    def prior_sources(self) -> PriorSources | None:
        """Where the reference pixels come from; None where the bundle does not say."""
        return read_sources(self._file("prior"))

    def references(self) -> References | None:
        """What the student looks up, float32; None where the bundle holds no references."""
        if REFERENCES_NAME not in self.manifest.files:
            return None
        return read_references(self.tensor_file(REFERENCES_NAME))

    def references_for(self, camera: Camera, told: Told | None) -> References | None:
        """What a student that is told this looks up for a camera; None: nothing.

        References belong to a camera as it is mounted, so they go with the numbers that the bundle
        has for it: a student that is told others is without them.
        """
        spec = self.manifest.references
        if spec is None or not self.goes_with_references(told) or spec.doubt(camera) is not None:
            return None
        return self.references()

    def goes_with_references(self, told: Told | None) -> bool:
        """Whether what is told leaves the bundle's references in use: all but other numbers."""
        return told == self.manifest.told or isinstance(told, FactorSpec)

    def teacher(self) -> Bundle | None:
        """The bundle that the prior came from, verified; None where it is not in here."""
        if TEACHER_NAME not in self.manifest.files:
            return None
        return _load(self.path / TEACHER_FOLDER, self.manifest.files[TEACHER_NAME])

    def match_prior(self, student: Student) -> None:
        """Check that the prior is this student's. Raises BundleError, which says what to do."""
        if self.manifest.prior is None:
            raise BundleError(self.path / MANIFEST_NAME, "has no `prior`")
        match_prior(self._file("prior"), self.manifest.prior, student.fusion)

    def _network(self, part: Part) -> Any:
        net = build_network(self.manifest, part)
        net.load_state_dict({**_stored(net, kept=False), **self._tensors(part)}, strict=True)
        net.requires_grad_(False)
        return net.eval()

    def _tensors(self, part: Part) -> dict[str, Tensor]:
        tensors = self._file(part).tensors
        return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}

    def _file(self, part: Part) -> TensorFile:
        if not self.has(part):
            raise BundleError(self.path / file_name(part), f"this bundle has no {part}")
        return self.tensor_file(file_name(part))

    def tensor_file(self, name: str) -> TensorFile:
        """A file that the manifest lists, read and verified. Raises BundleError."""
        path = self.path / name
        return TensorFile.of(path, read_verified(path, self.manifest.files[name], _root(self.path)))


def load_bundle(name_or_path: str | Path) -> Bundle:
    """Verify a bundle, by path or by the name of a shipped one, and open it.

    Checked are: schema version, the manifest's keys, types and seal, that every file is there and
    has the recorded sha256, that it is readable, and that the names and shapes of its tensors are
    those of the architecture, and that the prior is the student's. Raises BundleError naming file
    and cause.
    """
    from depth_prior_ros.share import bundle_path

    try:
        path = bundle_path(name_or_path)
    except FileNotFoundError as error:
        raise BundleError(Path(name_or_path), f"missing: {error}") from error
    return _load(path)


def _load(path: Path, expected: str | None = None) -> Bundle:
    """`load_bundle` of a folder; `expected`: sha256 of its manifest."""
    manifest = read_manifest(path / MANIFEST_NAME, expected, _root(path))
    needed = file_name("student") if manifest.network is None else manifest.network.file
    if needed not in manifest.files:
        raise BundleError(path / MANIFEST_NAME, f"lists no {needed}")
    bundle = Bundle(path, manifest)
    _verify_content(bundle)
    return bundle


def _root(path: Path) -> Path | None:
    """The folder that no link of a bundle may lead out of; None for a shipped bundle.

    `colcon build --symlink-install` installs links to the source's files.
    """
    from depth_prior_ros.share import share_dir

    try:
        shipped = path.is_relative_to(share_dir() / "bundles")
    except FileNotFoundError:
        shipped = False
    return None if shipped else path


def save_bundle(
    path: str | Path,
    manifest: Manifest,
    *,
    student: nn.Module,
    prior: Prior | None = None,
    multi_frame: nn.Module | None = None,
    pose: nn.Module | None = None,
    prior_sources: PriorSources | None = None,
    teacher: str | Path | None = None,
    identify: Callable[[Bundle], str] | None = None,
) -> Bundle:
    """Write a bundle; `manifest.files` is replaced by the hashes of what is written.

    Everything is written and verified beside `path` first, then renamed, so that `path` never
    holds half a bundle. An existing bundle is replaced; any other existing folder is refused.

    Args:
        path: the folder.
        manifest: `prior.alignment` is filled in where it is None.
        student, multi_frame, pose: networks.
        prior: reference pixels.
        prior_sources: where they come from.
        teacher: a bundle's folder or name, copied into this one: the prior's teacher.
        identify: gives the sha256 of a bundle as a teacher (`manifest.prior.teacher.sha256`), to
            make sure that `teacher` is the right one.

    Raises:
        BundleError: also where a weight is not finite or does not fit half precision, the prior
            does not fit the student, or the disk is full.
    """
    path = Path(path)
    refuse_foreign(path)
    spec = manifest.prior
    if prior is not None:
        if spec is None:
            raise BundleError(path, "a prior is given, but the manifest has no `prior`")
        spec = aligned(spec, getattr(student, "fusion", None))
    states: dict[Part, Mapping[str, Tensor]] = {"student": student.state_dict()}
    if multi_frame is not None:
        states["multi_frame"] = _stored(multi_frame)
    if pose is not None:
        states["pose"] = pose.state_dict()
    with staging(path) as folder:
        for part, state in states.items():
            write_tensors(folder / file_name(part), state)
        if prior is not None and spec is not None:
            write_prior(folder / file_name("prior"), prior, spec, prior_sources)
        if teacher is not None:
            embed_teacher(folder, teacher, spec, identify)
        return seal_bundle(folder, path, manifest.model_copy(update={"prior": spec}))


def embed_teacher(
    folder: Path,
    path: str | Path,
    spec: PriorSpec | None,
    identify: Callable[[Bundle], str] | None = None,
) -> str:
    """Copy the teacher bundle at ``path`` into the bundle being made in ``folder``.

    ``identify`` gives the sha256 by which a prior knows its teacher; None compares name and size
    only. Returns the sha256 of the teacher's manifest. Raises BundleError.
    """
    teacher = load_bundle(path)
    found = None if identify is None else identify(teacher)
    return copy_teacher(folder, teacher.path, teacher.manifest, spec, found)


def seal_bundle(folder: Path, path: Path, manifest: Manifest) -> Bundle:
    """Write the manifest of the files in `folder`, verify it all and move it to `path`.

    Raises BundleError; then `path` is as it was.
    """
    files = {n: sha256_of(folder / n) for n in FILE_NAMES if (folder / n).is_file()}
    manifest = manifest.model_copy(update={"files": files, "schema_version": SCHEMA_VERSION})
    try:
        write_manifest(folder / MANIFEST_NAME, manifest)
    except OSError as error:
        raise BundleError(folder / MANIFEST_NAME, f"cannot be written: {error}") from error
    load_bundle(folder)
    move_into_place(folder, path)
    return Bundle(path, read_manifest(path / MANIFEST_NAME))


def rewrite_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Change fields of a bundle's manifest (metrics, provenance, ...) and leave the weights.

    Raises BundleError where the result is not a valid bundle or cannot be written; then the
    manifest is as it was.
    """
    data = bundle.manifest.data()
    for name, value in changes.items():
        data[name] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    target = bundle.path / MANIFEST_NAME
    manifest = validate_manifest(target, data)
    if manifest.files != bundle.manifest.files:
        raise BundleError(target, "the hashes of files are not yours to change")
    _verify_content(Bundle(bundle.path, manifest))
    try:
        with replacing(target) as temporary:
            write_manifest(temporary, manifest)
    except OSError as error:
        raise BundleError(target, str(error.strerror)) from error
    return Bundle(bundle.path, manifest)


def build_network(manifest: Manifest, part: Part) -> nn.Module:
    """Build one of the manifest's networks, randomly initialised.

    The global random state is left as it was. Raises BundleError for an architecture that this
    version of the package does not know.
    """
    import torch

    from depth_prior_ros.models.mism import build_multi_frame
    from depth_prior_ros.models.pose import build_pose
    from depth_prior_ros.models.student import build_student

    width, height = manifest.input_size
    architecture = manifest.architecture
    name = Path(MANIFEST_NAME)
    try:
        with torch.random.fork_rng(devices=[]):
            if part == "student":
                return build_student(architecture.student)
            if part == "multi_frame" and architecture.multi_frame is not None:
                values = {"size": [height, width], **architecture.multi_frame}
                if list(values["size"]) != [height, width]:
                    raise ValueError(f"size {values['size']} is not the input size")
                return build_multi_frame(values)
            if part == "pose" and architecture.pose is not None:
                return build_pose(architecture.pose)
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise BundleError(name, f"architecture of {part} cannot be built: {error}") from error
    raise BundleError(name, f"architecture has no entry for {part}")


def describe(bundle: Bundle, full: bool = True) -> str:
    """The bundle in words and figures, for people; not `full`: on one screen."""
    from depth_prior_ros.bundle.text import describe_manifest, summarise_manifest

    sizes = {}
    for name in bundle.manifest.files:
        path = bundle.path / name
        files = path.parent.rglob("*") if name == TEACHER_NAME else [path]
        sizes[name] = sum(file.stat().st_size for file in files if file.is_file())
    if not full:
        return summarise_manifest(bundle.manifest, bundle.path, sizes)
    sources = bundle.prior_sources() if bundle.has("prior") else None
    return describe_manifest(bundle.manifest, bundle.path, sizes, sources)


# -- checks --------------------------------------------------------------------------------------


def aligned(spec: PriorSpec, fusion: PriorFusion | None) -> PriorSpec:
    """The spec with the alignment hash of the fusion that reads the prior, if it has none yet."""
    if spec.alignment is not None or fusion is None:
        return spec
    return spec.model_copy(update={"alignment": fusion.alignment_hash()})


def _verify_content(bundle: Bundle) -> None:
    """Hashes, then tensors: a part at a time, so that one file at most is in memory."""
    manifest = bundle.manifest
    fusion: PriorFusion | None = None
    episodic: EpisodicPrior | None = None
    _check_memory(bundle)
    if manifest.network is not None:
        check_network(bundle.path / manifest.network.file, bundle.network(), manifest.network)
    for part in PARTS:  # the student before the prior that it reads
        if not bundle.has(part):
            continue
        file = bundle._file(part)
        if part != "prior":
            net = _verify_network(bundle, part, file)
            if part == "student":
                fusion, episodic = _reader(file, net, "fusion"), _reader(file, net, "episodic")
        elif manifest.prior is None:
            raise BundleError(bundle.path / MANIFEST_NAME, "lists a prior file but has no `prior`")
        else:
            verify_prior(file, manifest.prior, fusion)
    if manifest.references is not None:
        references = bundle.tensor_file(REFERENCES_NAME)
        verify_references(references, manifest.references, episodic)
    if BASELINES_NAME in manifest.files:
        bundle.tensor_file(BASELINES_NAME)
    if TEACHER_NAME in manifest.files:
        verify_teacher(
            bundle.path, manifest.files[TEACHER_NAME], manifest.prior, _root(bundle.path)
        )


def _check_memory(bundle: Bundle) -> None:
    """Raise BundleError for numbers that, multiplied, ask for more memory than one tensor gets."""
    manifest = bundle.manifest
    pixels = math.prod(manifest.input_size)
    matching = manifest.architecture.multi_frame or {}
    fusion = manifest.architecture.student.get("fusion") or {}
    stride = fusion.get("stride", 16) if isinstance(fusion, Mapping) else 16
    numbers = {"multi_frame": pixels // 16}
    for key in ("hypotheses", "groups"):
        value = matching.get(key, 1)
        numbers["multi_frame"] *= value if isinstance(value, int) else 1
    if manifest.prior is not None and isinstance(stride, int) and stride > 0:
        numbers["prior"] = pixels // stride**2 * manifest.prior.pixels
    for what, found in numbers.items():
        if found > TENSOR_NUMBERS:
            raise BundleError(
                bundle.path / MANIFEST_NAME,
                f"{what} at this input size needs a tensor of {found:,} numbers, "
                f"{TENSOR_NUMBERS:,} are the most",
            )


def _verify_network(bundle: Bundle, part: Part, file: TensorFile) -> nn.Module:
    """The network without weights, if the file's tensors are its own. Raises BundleError."""
    import torch

    try:
        with torch.device("meta"):  # names, shapes and types, but no memory
            net = build_network(bundle.manifest, part)
    except BundleError as error:
        raise BundleError(bundle.path / MANIFEST_NAME, error.cause) from error
    file.check(_stored(net))
    return net


def _reader(file: TensorFile, student: nn.Module, name: str) -> Any:
    """What reads a prior of a student just built, with its weights from the file."""
    reader: nn.Module | None = getattr(student, name, None)
    if reader is not None:
        state = {own: file.tensors[f"{name}.{own}"].float() for own in reader.state_dict()}
        reader.load_state_dict(state, assign=True)
    return reader


def _stored(net: nn.Module, kept: bool = True) -> dict[str, Tensor]:
    """A network's state without what only a training run needs, or (`kept` false) just that."""
    training: tuple[str, ...] = getattr(net, "training_buffers", ())
    return {n: t for n, t in net.state_dict().items() if (n not in training) == kept}
