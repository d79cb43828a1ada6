"""`depth_train adapt`: fit a bundle to the camera of a drive, and keep it where that is better.

The mechanism is the node's, `depth_prior_ros.adaptation`; here the drive is a recording.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from depth_prior_ros.atomic_files import write_json, write_text
from depth_prior_ros.bundle import Bundle, CameraCodeSpec, FactorSpec, load_bundle
from depth_prior_ros.bundle.files import refuse_foreign
from depth_prior_ros.pages import colours, page
from depth_prior_ros.progress import Progress, quiet
from depth_prior_ros.recording_options import recording_options
from depth_prior_ros.recordings import (
    Recording,
    RecordingError,
    StoredRecording,
    open_recording,
)
from depth_prior_ros.recordings.stereo import open_pairs
from depth_prior_ros.recordings.stereo_depth import with_stereo_depth
from depth_prior_ros.scale import RoadSettings, same_view
from training.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from depth_prior_ros.adaptation.adapt import Adapted
    from depth_prior_ros.adaptation.keyframes import Keyframe
    from depth_prior_ros.evaluation.evaluate import FrameResult
    from depth_prior_ros.geometry.camera import Camera
    from depth_prior_ros.pipeline import DepthPipeline

DepthSource = Literal["auto", "recorded", "stereo", "multi_frame"]
REFERENCES: tuple[DepthSource, ...] = ("auto", "recorded", "stereo", "multi_frame")

_TEMPLATE = Path(__file__).parent / "templates" / "adapt.html"
_ROWS = (
    ("AbsRel", "abs_rel"),
    ("RMSE", "rmse"),
    ("within 1.25", "d1"),
    ("true / predicted", "ratio"),
)
_PICTURED = 4
_NEAR, _FAR = 2.0, 80.0


@dataclass(frozen=True)
class OwnDrive:
    """A bundle and a drive of one's own, as `adapt` and `tune` are asked for them.

    Attributes:
        bundle: name or folder.
        bag: any recording.
        out: folder of what is written.
        camera_height: metres above the road: gives metres in place of odometry.
        camera_pitch_deg: by which the camera looks down, for `camera_height`.
        ignore_bottom: share of the picture that shows the vehicle, for `camera_height`.
        backend, device: what runs a bundle's networks.
        image_topic, camera_info_topic, odom_topic, depth_topic, rectify, intrinsics: how the
            recording is read, as `recording_options` has it.
    """

    bundle: str | Path
    bag: Path
    out: Path | None = None
    camera_height: float | None = None
    camera_pitch_deg: float = 0.0
    ignore_bottom: float = 0.0
    backend: str = "auto"
    device: str = "auto"
    image_topic: str | None = None
    camera_info_topic: str | None = None
    odom_topic: str | None = None
    depth_topic: str | None = None
    rectify: Literal["auto", "always", "never"] = "auto"
    intrinsics: str | None = None


@dataclass(frozen=True)
class Request(OwnDrive):
    """What is asked for.

    Page and figures lie beside `out`, the folder of the new bundle, with .html and .json.

    Attributes:
        references: `recorded`: the recording's own depth (LiDAR, exact); `stereo`: matched with
            the second camera of the recording; `multi_frame`: the bundle's multi-frame network,
            without one followed points; `auto`: the first of these that there is enough of.
        partner: folder or image topic of the second camera, where it cannot be found.
        more: further recordings of the same camera, mounted and read the same.
    """

    references: DepthSource = "auto"
    partner: str | None = None
    more: Sequence[Path] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of it: errors before and after, and the bundle, where it is better."""

    adapted: Adapted
    bundle: Bundle | None
    page: Path
    figures: Path

    def __str__(self) -> str:
        found = self.adapted
        before, after = found.metric_before, found.metric_after
        rows = [
            f"{name:<18} {getattr(before, key):8.3f} {getattr(after, key):8.3f}"
            for name, key in _ROWS
        ]
        if found.looked_up:
            rows.append(f"with references    {found.metric_looked_up.abs_rel:8.3f} AbsRel")
        words = {"told": "what was fitted", "references": "references of the keyframes"}
        kept = (
            f"kept: {words[found.kept]}; bundle: {self.bundle.path}"
            if self.bundle is not None and found.kept is not None
            else "not better, so the bundle stays as it was and none is written"
        )
        return "\n".join(
            [
                found.told.source,
                f"{'in metres':<18} {'before':>8} {'after':>8}",
                *rows,
                str(found.told),
                f"page: {self.page}",
                kept,
            ]
        )


def adapt_bundle(
    request: Request, progress: Progress = quiet, recording: StoredRecording | None = None
) -> Outcome:
    """Fit a bundle to a recording's camera, evaluate it between, write it where it is better.

    recording: what of the bag is fitted and evaluated on; None: all.

    Raises:
        BundleError, RecordingError: one of them cannot be opened, or ``out`` not be written.
        TrainingError: affine-invariant depth, too few keyframes, no metres.
    """
    from depth_prior_ros.adaptation.adapt import STRETCHES, adapt, check_bundle
    from depth_prior_ros.adaptation.keyframes import AdaptationError
    from depth_prior_ros.pipeline import DepthPipeline

    _check(request)
    bundle = load_bundle(request.bundle)
    if recording is None:
        recording = open_recording(request.bag, **recording_options(request.bag, request))
    others = [open_recording(bag, **recording_options(bag, request)) for bag in request.more]
    out = request.out or Path("runs/adapt") / f"{bundle.manifest.name}_{recording.name}"
    refuse_foreign(out)
    try:
        check_bundle(bundle)
        opened = cache(lambda: DepthPipeline(bundle, request.backend, request.device))
        keyframes, camera, source = _keyframes(request, bundle, opened, recording, progress)
        sources = [(recording.name, source)]
        for bag, other in zip(request.more, others, strict=True):
            again = replace(request, bag=bag)
            try:
                found_there, theirs, source = _keyframes(again, bundle, opened, other, progress)
            except AdaptationError as error:
                raise TrainingError(f"{other.name}: {error}") from error
            if not same_view(camera, theirs):
                raise AdaptationError(f"{other.name} is of another camera: adapt to each alone")
            keyframes = keyframes + found_there
            sources.append((other.name, source))
        networks = None if bundle.manifest.takes_code else opened().networks
        count = max(STRETCHES, 2 * (1 + len(others)))
        found = adapt(
            bundle,
            keyframes,
            camera,
            joined_sources(sources),
            networks=networks,
            count=count,
            progress=progress,
        )
    except AdaptationError as error:
        raise TrainingError(f"{recording.name}: {error}") from error
    figures = _figures(found, bundle, recording, request)
    written = None
    if found.by_references:
        written = with_references(bundle, out, found, {"adapt": figures})
    elif found.kept == "told":
        from depth_prior_ros.bundle.derive import tell_camera

        written = tell_camera(
            bundle, out, found.told, metrics={"adapt": figures}, keep_references=False
        )
    place = out.with_name(f"{out.name}.html")
    write_json(place.with_suffix(".json"), figures)
    write_text(place, _page(found, bundle, recording))
    return Outcome(found, written, place, place.with_suffix(".json"))


def joined_sources(sources: Sequence[tuple[str, str]]) -> str:
    """Where keyframes of several recordings are from, in one line.

    sources: of each the name, and the name and the words.
    """
    words = {source.removeprefix(f"{name}, ") for name, source in sources}
    if len(words) > 1:
        return "; ".join(source for _, source in sources)
    times = Counter(name for name, _ in sources)
    names = (name if n == 1 else f"{name} ({n} recordings)" for name, n in times.items())
    return ", ".join([*names, *words])


def with_references(bundle: Bundle, out: Path, found: Adapted, metrics: dict[str, Any]) -> Bundle:
    """Write a bundle with the references that `adapt` took. Raises BundleError."""
    from depth_prior_ros.bundle import ReferencesSpec
    from depth_prior_ros.bundle.derive import replace_references

    assert found.references is not None
    spec = ReferencesSpec(  # the last three are filled in
        camera=found.told.camera,
        source=found.told.source,
        count=1,
        channels=1,
        alignment="0" * 64,
    )
    return replace_references(bundle, out, found.references, spec, metrics=metrics)


def _check(request: Request) -> None:
    """Numbers that make no sense are told before anything is opened."""
    height = request.camera_height
    if height is not None and not 0 < height <= 20:
        raise TrainingError(f"camera-height {height:g}: metres above the road, at most 20")
    if not abs(request.camera_pitch_deg) <= 30:
        raise TrainingError(f"camera-pitch-deg {request.camera_pitch_deg:g}: within 30 degrees")
    if not 0 <= request.ignore_bottom <= 0.45:
        raise TrainingError(f"ignore-bottom {request.ignore_bottom:g}: from 0 to 0.45")


def _keyframes(
    request: Request,
    bundle: Bundle,
    opened: Callable[[], DepthPipeline],
    recording: StoredRecording,
    progress: Progress,
) -> tuple[list[Keyframe], Camera, str]:
    """Keyframes in metres, their camera, and where their depth is from, in words."""
    from depth_prior_ros.adaptation.adapt import LEAST
    from depth_prior_ros.adaptation.drives import (
        knows_metres,
        matched_keyframes,
        measured_keyframes,
    )
    from depth_prior_ros.adaptation.keyframes import AdaptationError, in_metres

    name = recording.name
    if not recording.frames:
        raise TrainingError(f"{name}: no frame can be used")
    camera, trained = recording.frames[0].camera, bundle.manifest.camera
    if request.references in ("auto", "recorded"):
        found = measured_keyframes(recording, trained, progress=progress)
        if len(found) >= LEAST or request.references == "recorded":
            return found, camera, f"{name}, recorded depth ({recording.depth_source})"
    why = ""
    if request.references in ("auto", "stereo"):
        try:
            pair, words = _stereo(request, recording)
            found = measured_keyframes(pair, trained, progress=progress)
            if len(found) >= LEAST or request.references == "stereo":
                return found, pair.frames[0].camera, f"{name}, stereo depth of {words}"
        except RecordingError as error:
            if request.references == "stereo" or request.partner is not None:
                raise
            why = f" ({error})"
    height, matches = request.camera_height, bundle.has("multi_frame")
    if not matches and not knows_metres(recording.frames):
        raise AdaptationError(
            f"{bundle.path} has no multi-frame network, and the recording no depth{why}; points "
            "that are followed give some by odometry or a speed, of which it has none. By the "
            "camera's height scale.mode camera_height finds the factor while it drives"
        )
    if height is None and not knows_metres(recording.frames):
        raise AdaptationError(
            "nothing says how far the vehicle went: metres need odometry or a speed in the "
            "recording, depth, the camera's height above the road (--camera-height), or a second "
            f"camera beside it{why}"
        )
    if not recording.consecutive:
        raise AdaptationError("separate scenes; multi-frame depth needs frames that follow others")
    road = RoadSettings(
        pitch=math.radians(request.camera_pitch_deg), ignore_bottom=request.ignore_bottom
    )
    matched = matched_keyframes(
        recording, opened(), None if height is None else road, progress=progress
    )
    if not matches:
        return in_metres(matched), camera, f"{name}, followed points, metres by odometry"
    words = "odometry" if height is None else f"the camera's height of {height:g} m"
    source = f"{name}, own multi-frame depth, metres by {words}"
    return in_metres(matched, height), camera, source


def _stereo(request: Request, recording: StoredRecording) -> tuple[StoredRecording, str]:
    """The frames of a recording with depth by its second camera, and which that is, in words.

    Raises:
        RecordingError: there is none, or the pair is not what its calibration says.
    """
    pairs = open_pairs(request.bag, recording, request.partner, rectify=request.rectify)
    found = with_stereo_depth(pairs)
    if pairs.recording is not recording:  # both cameras were read anew, and so as a whole
        asked = {frame.stamp_ns for frame in recording.frames}
        frames = [frame for frame in found.frames if frame.stamp_ns in asked]
        found = replace(found, frames=frames)
    return found, str(pairs)


def _figures(
    found: Adapted, bundle: Bundle, recording: Recording, request: Request
) -> dict[str, Any]:
    """What adapt.json and the manifest say."""
    told = found.told
    return {
        "recording": {
            "name": recording.name,
            "path": str(request.bag),
            "more": [str(bag) for bag in request.more],
            "frames": len(recording.frames),
        },
        "bundle": {"name": bundle.manifest.name, "digest": bundle.digest},
        "source": told.source,
        "numbers": list(told.numbers) if isinstance(told, CameraCodeSpec) else None,
        "metres_per_unit": told.metres_per_unit if isinstance(told, FactorSpec) else None,
        "fitted": found.fitted,
        "evaluated": len(found.evaluated),
        "better": found.better,
        "before": asdict(found.metric_before),
        "after": asdict(found.metric_after),
        "kept": found.kept,
        "by_references": found.by_references,
        "with_references": asdict(found.metric_looked_up) if found.looked_up else None,
    }


def _page(found: Adapted, bundle: Bundle, recording: Recording) -> str:
    before, after = found.metric_before, found.metric_best
    figures = [
        (f"{before.abs_rel:.3f}", "AbsRel in metres before"),
        (f"{found.metric_after.abs_rel:.3f}", "with what was fitted"),
        (str(found.fitted), "keyframes fitted on"),
        (str(len(found.evaluated)), "keyframes kept out, not fitted on"),
    ]
    if found.looked_up:
        figures.insert(2, (f"{found.metric_looked_up.abs_rel:.3f}", "with references"))
    count = len(found.evaluated)
    places = np.linspace(0, count - 1, min(_PICTURED, count)).astype(int)
    rows = [
        (words, f"{getattr(before, key):.3f}", f"{getattr(after, key):.3f}") for words, key in _ROWS
    ]
    return page.render(
        _TEMPLATE,
        title=f"{bundle.manifest.name}, adapted to {recording.name}",
        subtitle=found.told.source,
        figures=figures,
        kept=found.kept,
        rows=rows,
        pictures=[
            _pictures(found.evaluated[i], found.before[i], found.best[i]) for i in map(int, places)
        ],
        scale=(colours.depth_gradient(_NEAR, _FAR), (f"{_NEAR:g} m", f"{_FAR:g} m")),
        told=str(found.told),
        factor=isinstance(found.told, FactorSpec),
    )


def _pictures(frame: Keyframe, before: FrameResult, after: FrameResult) -> list[tuple[str, str]]:
    """URI and words of a keyframe: image, reference, depth before and after."""
    size = (frame.pixels.shape[1], frame.pixels.shape[0])
    reference = cv2.resize(frame.depth, size, interpolation=cv2.INTER_NEAREST)
    return [
        (page.png_uri(frame.pixels), "image"),
        (_coloured(reference), "reference"),
        (_coloured(before.depth), f"before: AbsRel {before.metric.abs_rel:.3f}"),
        (_coloured(after.depth), f"after: AbsRel {after.metric.abs_rel:.3f}"),
    ]


def _coloured(depth: NDArray[Any]) -> str:
    return page.png_uri(colours.colour_depth(depth, _NEAR, _FAR))
