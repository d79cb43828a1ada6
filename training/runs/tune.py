"""`depth_train tune`: a bundle goes on learning on a recording, and is kept where that is better.

A chain of what is there: a recipe is derived (`config/training/base/tune.yaml`) and run on most
spans of the recording, without labels; a held-out part chooses how far to go; `adapt` fits what the
student is told of its camera; on another held-out part the bundle is evaluated before and after.

The unit of depth must not float away: it is fitted before training to stereo baselines, poses or
speeds, which then hold it, or else is made the bundle's own again afterwards.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from depth_prior_ros import strict_yaml
from depth_prior_ros.atomic_files import write_text
from depth_prior_ros.bundle import Bundle, CameraSpec, Provenance, load_bundle
from depth_prior_ros.bundle.derive import replace_references, replace_student
from depth_prior_ros.bundle.files import refuse_foreign
from depth_prior_ros.evaluation.evaluate import evaluate
from depth_prior_ros.evaluation.frames import read_evaluation_frames
from depth_prior_ros.evaluation.predictors import NetworkPredictor
from depth_prior_ros.evaluation.protocols import protocol_for
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.pipeline.framing import fit_region
from depth_prior_ros.progress import Progress, ProgressBar
from depth_prior_ros.recording_options import recording_options
from depth_prior_ros.recordings import StoredRecording, open_recording
from depth_prior_ros.scale import RoadSettings, focal_ratio
from depth_prior_ros.share import share_dir
from training.data.drives import network_camera, open_drive, open_partner
from training.data.frames import Window
from training.data.triplets import TripletSource, load_triplets
from training.errors import TrainingError
from training.evaluation.sets import frames_with_depth
from training.loop.weight_average import mix_weights
from training.recipes.base import RecipeError
from training.recipes.data import Drive, Intrinsics, Mode, Part, Topics
from training.recipes.files import load_recipe, read_values
from training.recipes.recipe import Recipe
from training.runs import adapt
from training.runs.metric_scale import fit_by_camera_height, fit_on_frames
from training.runs.output import git_hash
from training.runs.run import Run
from training.runs.tune_result import LEAST, Measured, TuneResult, measure, write_result
from training.stages.system import System
from training.stages.validation import validation_error

if TYPE_CHECKING:
    from training.stages.base import TrainingConfig

#: How far from the old weights to the trained ones; what is left out is chosen by held-out frames.
SHARES = (0.0, 0.5, 1.0)

_RECIPE = Path("config/training/base/tune.yaml")
_FRAMES = 32  # of which whole spans can be held out
_FITTED = 24  # frames by which the unit is fitted
_LEAST_TRAVEL = 0.1  # metres between two frames, below which a speed tells no unit
_TRAINED = 0.8  # of the minutes; reading, choosing, adapting and evaluating take the others
_VELOCITY = 0.05  # weight of the recorded speed, as PackNet's


@dataclass(frozen=True)
class Request(adapt.OwnDrive):
    """What is asked for; `bag` is a recording of frames that follow each other.

    Attributes:
        minutes: for all of it, by the speed of this machine when it begins.
        test: a further recording that the bundle is evaluated on before and after; nothing is
            chosen by it.
        mode: `M`: frames before and after explain a frame; `MS`: its stereo partner, too; `auto`:
            the latter where the recording has one.
        seed: decides all that is random.
    """

    minutes: float = 20.0
    test: Path | None = None
    mode: Literal["auto", "M", "MS"] = "auto"
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of it: the bundle, where it is better; the page; all figures."""

    bundle: Bundle | None
    page: Path
    result: TuneResult

    def __str__(self) -> str:
        where = "not better, so the bundle stays as it was and none is written"
        if self.bundle is not None:
            where = f"bundle: {self.bundle.path}"
        return f"{self.result.text()}\npage: {self.page}\n{where}"


@dataclass
class _Tuning:
    """One tuning at work.

    seen: the camera at the network's input. unit: metres per unit of the bundle as it is, in
    pictures of that camera. said: what is worth telling, in words.
    """

    request: Request
    bundle: Bundle
    out: Path
    drive: Drive
    recording: StoredRecording
    mode: Mode
    seen: Camera
    unit: float
    progress: Progress
    said: list[str] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return self.bundle.manifest.input_size

    def part(self, part: Part) -> Drive:
        return self.drive.model_copy(update={"part": part})

    def triplets(self, part: Part, unit: float) -> TripletSource:
        return load_triplets(Path(), [self.part(part)], self.size, unit, mode=self.mode)


def tune_bundle(request: Request) -> Outcome:
    """Train a bundle on a recording, and write it where held-out spans say that it is better.

    The same command again goes on where it was.

    Raises:
        BundleError, RecordingError, RecipeError: one of them cannot be opened, or the recording
            serves for no training.
        TrainingError: training cannot go on.
    """
    with ProgressBar() as progress:  # training has its own
        tuning = _open(request, progress)
        run = _run(tuning)
    old = run.recipe.stages[0].prepare(run, run.initial_system(), 0)  # type: ignore[attr-defined]
    system = run.train()
    with ProgressBar() as progress:
        tuning.progress = progress
        return _finish(tuning, run, old, system)


def _finish(tuning: _Tuning, run: Run, old: System, system: System) -> Outcome:
    """What comes behind training: the figures and, where it is better, the bundle."""
    unit = run.recipe.metres_per_unit
    _choose(tuning, system, old, unit)
    if not _known(tuning.recording, tuning.mode):
        unit = _unit_afterwards(tuning, run, old, system)
    final = _adapt(tuning, _write(tuning, run, system, unit))
    unseen = tuning.triplets("evaluation", unit)
    camera = tuning.recording.frames[0].camera
    measured = [
        Measured.of(bundle, networks, replace(unseen, metres_per_unit=factor), tuning.mode, camera)
        for bundle, networks, factor in (
            (tuning.bundle, old, tuning.unit),
            (final, system, unit),
        )
    ]
    result = _evaluate(tuning, final, measured)
    page = write_result(tuning.out, result)
    kept = None
    if result.better:
        kept = replace_references(
            final,
            tuning.out / "bundle",
            final.references(),
            final.manifest.references,
            metrics={"tune": result.figures()},
        )
    else:  # of the same training with another mounting told
        shutil.rmtree(tuning.out / "bundle", ignore_errors=True)
    return Outcome(kept, page, result)


def _open(request: Request, progress: Progress) -> _Tuning:
    if not 0.1 <= request.minutes <= 10_000:
        raise TrainingError(f"minutes {request.minutes:g}: from 0.1 to 10000")
    bundle = load_bundle(request.bundle)
    drive = make_drive(request)
    recording = open_drive(Path(), drive)
    if not recording.consecutive or len(recording.frames) < _FRAMES:
        raise TrainingError(
            f"{recording.name}: {len(recording.frames)} frames; {_FRAMES} that follow each other "
            "are needed to train on most of them and evaluate on the others"
        )
    trained = bundle.manifest.camera
    drive = drive.model_copy(update={"crop": _crop(recording, trained)})
    seen = network_camera(recording, Window(bundle.manifest.input_size, drive.crop))
    unit = bundle.manifest.depth.metres_per_unit
    unit *= focal_ratio(seen.fx, seen.fy, trained.fx, trained.fy)
    out = request.out or Path("runs/tune") / f"{bundle.manifest.name}_{recording.name}"
    mode, words = _mode(request, drive, recording)
    refuse_foreign(out / "bundle")
    return _Tuning(request, bundle, out, drive, recording, mode, seen, unit, progress, [words])


def make_drive(request: Request) -> Drive:
    """The recording as a recipe has it. Raises RecipeError, RecordingError."""
    topics = {
        name: getattr(request, f"{name}_topic")
        for name in ("image", "camera_info", "odom", "depth")
    }
    return Drive(
        path=str(Path(request.bag).absolute()),
        topics=Topics(**topics),
        intrinsics=_intrinsics(request),
        rectify=request.rectify,
    )


def _intrinsics(request: Request) -> Intrinsics | None:
    """`--intrinsics` as a recipe has them, which know no lens. Raises RecipeError."""
    if request.intrinsics is None:
        return None
    camera = open_recording(request.bag, **recording_options(request.bag, request)).frames[0]
    if camera.lens is not None:
        raise RecipeError(
            f"{request.intrinsics} has a lens, which a recipe cannot give a recording; make a data "
            "set of it first (depth_bag extract --intrinsics FILE), and tune on that"
        )
    seen = camera.camera
    return Intrinsics(fx=seen.fx, fy=seen.fy, cx=seen.cx, cy=seen.cy, size=seen.size)


def _crop(recording: StoredRecording, trained: Camera) -> tuple[float, float, float, float]:
    """What a vehicle cuts off so that its images have the network's form, in shares."""
    width, height = recording.frames[0].camera.size
    region = fit_region(width, height, trained.width / trained.height)
    return (
        region.x / width,
        region.y / height,
        1 - (region.x + region.width) / width,
        1 - (region.y + region.height) / height,
    )


def _mode(request: Request, drive: Drive, recording: StoredRecording) -> tuple[Mode, str]:
    """What explains a frame, and why, in words."""
    if request.mode == "M":
        return "M", "frames before and after explain a frame"
    try:
        pairs = open_partner(Path(), drive, recording)
    except RecipeError:
        if request.mode == "MS":
            raise
        return "M", "frames before and after explain a frame; there is no stereo partner"
    return "MS", f"frames before and after and the stereo partner explain a frame: {pairs}"


def _known(recording: StoredRecording, mode: Mode) -> str:
    """What tells metres while it is trained: stereo, poses, speeds; empty: nothing does."""
    if mode != "M":
        return "stereo"
    frames = recording.frames
    if sum(frame.pose is not None for frame in frames) > len(frames) / 2:
        return "poses"
    return "speeds" if sum(f.speed is not None for f in frames) > len(frames) / 2 else ""


def _run(tuning: _Tuning) -> Run:
    """The run of the derived recipe, whose unit and number of steps are found when it is new."""
    path = tuning.out / "tune.yaml"
    values = _values(tuning)
    if path.is_file():
        kept = read_values(path)
        values["metres_per_unit"] = kept.get("metres_per_unit")
        values["stages"][0]["steps"] = kept["stages"][0].get("steps")
        values["output"]["provenance"] = kept["output"]["provenance"]
        if Recipe.model_validate(values) != Recipe.model_validate(kept):
            raise RecipeError(
                f"{tuning.out} holds a tuning of another bundle or recording, or with other "
                "options (see tune.yaml there); give --out another folder, or remove that one"
            )
        recipe = load_recipe(path)
        tuning.said += [recipe.output.provenance[-1], _length(recipe)]
        return Run(recipe, tuning.out / "run")
    first = Run(Recipe.model_validate(values), tuning.out / "run")
    found = first.data()
    config: TrainingConfig = first.recipe.stages[0]  # type: ignore[assignment]
    system = config.prepare(first, first.initial_system(), 0)
    unit, words = _unit(tuning, system, found.training)
    tuning.progress("timing a step")
    seconds = first.seconds_per_step()
    steps = max(1, round(tuning.request.minutes * 60 * _TRAINED / seconds))
    values["metres_per_unit"] = unit
    values["stages"][0]["steps"] = steps
    values["output"]["provenance"].append(words)
    text = "# Derived by `depth_train tune`; `depth_train run` takes it, too.\n"
    write_text(path, text + strict_yaml.dump(values))
    recipe = load_recipe(path)
    about = f"about {steps * seconds / 60:.1f} minutes at {seconds:.2f} s a step"
    first.console.print(
        "; ".join([*tuning.said, _length(recipe), about]), markup=False, highlight=False
    )
    tuning.said.append(_length(recipe))
    return replace(first, recipe=recipe, loaded=_in_unit(first, unit))


def _length(recipe: Recipe) -> str:
    return f"{recipe.stages[0].steps} steps"  # type: ignore[attr-defined]


def _in_unit(run: Run, unit: float) -> Any:
    """What a run has read, in another unit."""
    found = run.data()
    return found._replace(training=replace(found.training, metres_per_unit=unit))


def _values(tuning: _Tuning) -> dict[str, Any]:
    """The keys of the derived recipe."""
    manifest, request = tuning.bundle.manifest, tuning.request
    built = manifest.architecture
    multi = dict(built.multi_frame or {})
    names = ("kind", "hypotheses", "range_mode", "delta_init", "delta_mode", "parallax")
    values: dict[str, Any] = read_values(share_dir() / _RECIPE)
    stage = dict(values["stages"][0])
    stage["steps"] = 1
    if _known(tuning.recording, tuning.mode) == "speeds":
        stage["velocity_weight"] = _VELOCITY
    drive = tuning.part("training").model_dump(mode="json", exclude_defaults=True)
    episodic = built.student.get("episodic")
    return values | {
        "seed": request.seed,
        "size": list(manifest.input_size),
        "metres_per_unit": tuning.unit,
        "start": str(request.bundle),
        "start_networks": ["student", "pose", "multi_frame"],
        "networks": {
            "trunk": built.student["trunk"],
            "decoder": built.student["decoder"],
            "camera_code": bool(built.student.get("camera_code")),
            "pose": (built.pose or {}).get("variant", "small"),
            "multi_frame": {name: multi[name] for name in names if name in multi}
            | {"align_motion": built.align_motion},
            **({"episodic": dict(episodic)} if episodic else {}),
        },
        "data": values["data"] | {"mode": tuning.mode, "drives": [drive]},
        "stages": [stage],
        "output": {
            "name": f"{manifest.name}_{tuning.recording.name}"[:64],
            "licence": manifest.licence,
            "provenance": [*manifest.provenance.data_sources, f"{tuning.recording.name} (tuned)"],
        },
    }


def _unit(tuning: _Tuning, system: System, training: TripletSource) -> tuple[float, str]:
    """Metres per unit to train in, and what says so, in words."""
    known, before = _known(tuning.recording, tuning.mode), tuning.unit
    sequence = training.sequences[0]
    tuning.progress("fitting the unit")
    try:
        if known == "speeds":
            factor = _by_travel(system, training)
        elif known:
            factor, _ = fit_on_frames(system, sequence, before, "tune", _FITTED)
        else:
            words = "nothing tells metres while training: the unit is set afterwards"
            tuning.said.append(words)
            return before, words
    except RecipeError as error:
        tuning.said.append(f"the unit stays the bundle's: {error}")
        return before, tuning.said[-1]
    by = {"stereo": "stereo baselines", "poses": "poses", "speeds": "speeds"}[known]
    words = f"unit by {by}: {factor:.2f} m, with the bundle's factor {before:.2f} m"
    tuning.said.append(words)
    return factor, words


@torch.no_grad()
def _by_travel(system: System, training: TripletSource) -> float:
    """Metres driven over units that the pose network says, the median. Raises RecipeError."""
    for network in system.networks.values():
        network.eval()
    ratios = []
    for drive, triplet in training.index[:: max(1, len(training) // _FITTED)]:
        batch = training.triplet(drive, triplet).to(system.device)
        units = system.neighbour_motions(batch.images)[0, 0, :3, 3].norm()
        metres = float(batch.travel[0, 0])
        if metres >= _LEAST_TRAVEL and units > 0:
            ratios.append(metres / float(units))
    if not ratios:
        raise RecipeError("the recorded speeds say that the vehicle stands")
    return float(np.median(ratios))


def _choose(tuning: _Tuning, system: System, old: System, unit: float) -> None:
    """Go back towards the old weights where frames that nobody trained on say so."""
    triplets = tuning.triplets("choosing", unit)
    pairs = [(getattr(system, name), getattr(old, name)) for name in ("student", "pose")]
    states = [
        ({k: v.clone() for k, v in new.state_dict().items()}, before.state_dict())
        for new, before in pairs
    ]

    def go(share: float) -> None:
        for (network, _), (new, before) in zip(pairs, states, strict=True):
            network.load_state_dict(new)
            mix_weights(network, before, 1 - share)
            network.eval()

    errors = {}
    for share in SHARES:
        tuning.progress("choosing how far to go")
        go(share)
        torch.manual_seed(0)
        errors[share] = validation_error(system, triplets, tuning.mode)
    best = min(errors, key=lambda share: errors[share])
    go(best)
    words = ", ".join(f"{share:.0%}: {error:.4f}" for share, error in errors.items())
    tuning.said.append(f"{best:.0%} of the way is taken, by photometric error ({words})")


def _unit_afterwards(tuning: _Tuning, run: Run, old: System, system: System) -> float:
    """Metres per unit where nothing told them in training: by true depth of the training spans, by
    the camera's height, or such that their depth has the unit of the bundle again."""
    unit = run.recipe.metres_per_unit
    part = open_drive(Path(), tuning.part("training"))
    known = frames_with_depth(part)
    protocol = protocol_for(part)
    if len(known) >= LEAST and protocol is not None:
        student = NetworkPredictor(system.student, system.device, system.prior, unit)
        positions = known[:: max(1, len(known) // _FITTED)]
        frames = read_evaluation_frames(part, protocol, tuning.size, positions)
        ratio = float(np.median([f.errors.ratio for f in evaluate(student, frames, protocol)]))
        tuning.said.append(
            f"unit by true depth of {len(positions)} training frames: {ratio - 1:+.1%}"
        )
        return unit * ratio
    request = tuning.request
    height = request.camera_height
    if height is not None:
        road = RoadSettings(
            pitch=math.radians(request.camera_pitch_deg), ignore_bottom=request.ignore_bottom
        )
        drives = [(tuning.drive, part)]
        try:
            found, _ = fit_by_camera_height(system, drives, tuning.size, height, road)
        except RecipeError as error:
            tuning.said.append(f"no unit by the camera's height: {error}")
        else:
            tuning.said.append(f"unit by {height:g} m from camera to road: {found:.2f} m")
            return found
    return unit * _drift(tuning, run.data().training, system, old)


@torch.no_grad()
def _drift(tuning: _Tuning, training: TripletSource, system: System, old: System) -> float:
    """The unit after training over the one before, by the depth of the training frames."""
    ratios = []
    for drive, triplet in training.index[:: max(1, len(training) // _FITTED)]:
        now = training.triplet(drive, triplet).images[:, 1].to(system.device)
        ratio = old.single_depth(now) / system.single_depth(now)
        ratios.append(float(ratio.median()))
    factor = float(np.median(ratios))
    tuning.said.append(f"training moved the unit by {factor - 1:+.1%}, which its factor undoes")
    return factor


def _write(tuning: _Tuning, run: Run, system: System, unit: float) -> Bundle:
    old, recipe = tuning.bundle.manifest, run.recipe
    *sources, words = recipe.output.provenance
    if not _known(tuning.recording, tuning.mode):
        words = tuning.said[-1]
    note = f"tuned on {tuning.recording.name}: {'; '.join(tuning.said[1:])}"
    return replace_student(
        tuning.bundle,
        tuning.out / "tuned",
        student=system.student,
        pose=system.pose if tuning.bundle.has("pose") else None,
        camera=CameraSpec.of(tuning.seen),
        depth=old.depth.model_copy(
            update={"metres_per_unit": unit, "metres_per_unit_source": words}
        ),
        provenance=Provenance(
            data_sources=sources,
            recipe=recipe.model_dump(mode="json"),
            seed=recipe.seed,
            git=git_hash(),
            steps={"0_tune": recipe.stages[0].steps},  # type: ignore[attr-defined]
            note="; ".join(filter(None, (old.provenance.note, note))),
        ),
        name=recipe.output.name,
    )


def _adapt(tuning: _Tuning, tuned: Bundle) -> Bundle:
    """The tuned bundle, told its camera where that is better on stretches of the training part."""
    asked = {one.name: getattr(tuning.request, one.name) for one in fields(adapt.OwnDrive)}
    asked |= {"bundle": tuned.path, "out": tuning.out / "adapted"}
    part = open_drive(Path(), tuning.part("training"))
    try:
        found = adapt.adapt_bundle(adapt.Request(**asked), tuning.progress, part)
    except TrainingError as error:
        tuning.said.append(f"not adapted: {error}")
        return tuned
    tuning.said.append(f"adapt: {found.adapted.text}")
    return tuned if found.bundle is None else found.bundle


def _evaluate(tuning: _Tuning, final: Bundle, measured: Sequence[Measured]) -> TuneResult:
    places = {"held-out span": open_drive(Path(), tuning.part("evaluation"))}
    if tuning.request.test is not None:
        path = str(Path(tuning.request.test).absolute())
        other = open_drive(Path(), tuning.drive.model_copy(update={"path": path}))
        places[f"test: {other.name}"] = other
    rows = []
    for bundle in (tuning.bundle, final):
        rows.append(
            measure(bundle, places, tuning.request.backend, tuning.request.device, tuning.progress)
        )
    return TuneResult(
        f"{tuning.bundle.manifest.name}, tuned on {tuning.recording.name}",
        tuple(tuning.said),
        (measured[0], measured[1]),
        (rows[0], rows[1]),
    )
