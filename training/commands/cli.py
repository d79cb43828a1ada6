"""`depth_train`: run recipes, evaluate bundles, show what is in them.

Only the parser lives at import time: `depth_train --help` loads none of the libraries.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.backends import BACKENDS, PRECISIONS
from depth_prior_ros.recording_options import add_recording_options, recording_options
from depth_prior_ros.share import experiment_path, recipe_path, recording_path
from depth_prior_ros.untrusted import printable_lines
from training.commands.prior import add_prior_commands

if TYPE_CHECKING:
    from training.comparison.rows import Listing

# Kept here as plain words, so that --help needs no import; a test compares them.
SET_NAMES = ("kitti_2015", "drives", "synthetic", "kept_out")
MODEL_NAMES = ("both", "single_frame", "multi_frame")
REFERENCES = ("auto", "recorded", "stereo", "multi_frame")
DEPTH_KINDS = ("metric", "scale_invariant", "disparity", "affine_invariant")


def build_parser() -> argparse.ArgumentParser:
    """The command line of `depth_train`."""
    parser = argparse.ArgumentParser(
        prog="depth_train", description="Train, evaluate and inspect depth bundles."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_evaluate(commands)
    _add_compare(commands)
    _add_experiment(commands)
    _add_inspect(commands)
    _add_import(commands)
    _add_adapt(commands)
    _add_tune(commands)
    add_prior_commands(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run",
        help="train by a recipe and write a bundle",
        description="Train by a recipe and write a bundle. The same command again resumes.",
    )
    run.add_argument("recipe", help="name of a shipped recipe (small_start), or a YAML file")
    run.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="values to set in the recipe, for example seed=2 stages.0.steps=100",
    )
    run.add_argument("--out", type=Path, help="folder of the run (default: runs/NAME)")
    run.set_defaults(handler=_run)


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="compare a bundle's depth with ground truth",
        description="Compare a bundle's depth with ground truth, image by image, and print the "
        "mean errors after median scaling and as metres.",
    )
    add = evaluate.add_argument
    add("bundle", nargs="?", default="lite", help="name of a shipped bundle, or its folder")
    add("--data", type=Path, help="folder with the data (default: $DEPTH_PRIOR_DATA)")
    add(
        "--protocol",
        metavar="NAME",
        help="kitti2015: the separate scenes of KITTI 2015; eigen, eigen_improved: the frames of "
        "the Eigen test list in the KITTI raw drives below --data, against single LiDAR sweeps or "
        "the accumulated ones; the name of another data set (make3d, ...): at --data or below; "
        "drive: every frame with depth of one recording (a drive, a bag). Without it: kitti2015, "
        "and drive for each Eigen test drive below --data",
    )
    add(
        "--pose",
        action="store_true",
        help="evaluate ego-motion on the recordings with poses (KITTI odometry's sequences below "
        "--data, or the one there); with --protocol, depth as well",
    )
    add("--model", choices=MODEL_NAMES, default="both", help="models to evaluate (default: both)")
    add(
        "--baselines",
        action="store_true",
        help="also evaluate predictors that do not look at the image",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    add("--pictures", type=Path, metavar="DIR", help="write the best and worst frames to DIR")
    _add_backend(evaluate)
    add("--precision", choices=PRECISIONS, default="f32", help="of the networks (default: f32)")
    add("--no-look-up", action="store_true", help="leave the bundle's references out")
    add_recording_options(evaluate)
    evaluate.set_defaults(handler=_evaluate)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="one table of many bundles: spread over seeds, paired differences",
        description="Evaluate bundles on the same frames of KITTI 2015, the Eigen test drives and "
        "synthetic drives, and write a table with the spread over seeds and the differences "
        "paired by seed, beside predictors that do not look at the image. The same command again "
        "evaluates only what is new.",
    )
    add = compare.add_argument
    add(
        "listing",
        nargs="?",
        type=Path,
        help="YAML file with rows, against, pairs, synthetic, recordings, sets, in place of the "
        "options",
    )
    add(
        "--rows",
        nargs="+",
        default=[],
        metavar="NAME=BUNDLE[@SEED],...",
        help="a row: bundles (or folders of runs), one per seed. NAME S gives the rows 'S' and 'S "
        "multi-frame', S:M names the two, 'S:' and ':M' leave one out",
    )
    add("--against", metavar="NAME", help="row that the others are compared with (default: first)")
    add("--pairs", nargs="+", default=[], metavar="A-B", help="further differences of two rows")
    add(
        "--synthetic",
        nargs="+",
        default=[],
        type=recording_path,
        metavar="BAG",
        help="synthetic drives",
    )
    add(
        "--recordings",
        nargs="+",
        default=[],
        type=recording_path,
        metavar="RECORDING",
        help="recordings of your own with depth (LiDAR, stereo, exact), each a set of its own; "
        "without --sets, they alone",
    )
    add(
        "--sets",
        nargs="+",
        choices=SET_NAMES,
        help="sets to evaluate on (default: all but kept_out)",
    )
    add("--cost", action="store_true", help="also time and size of every row")
    add("--data", type=Path, help="folder with the data (default: $DEPTH_PRIOR_DATA)")
    add(
        "--out",
        type=Path,
        default=Path("runs/comparison"),
        metavar="DIR",
        help="folder of comparison.md, comparison.json and what was evaluated already "
        "(default: runs/comparison)",
    )
    _add_backend(compare)
    compare.set_defaults(handler=_compare)


def _add_experiment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    experiment = commands.add_parser(
        "experiment",
        help="all runs that a table needs, then the table",
        description="Train all runs that an experiment names, several at a time, and compare "
        "them. Runs that are finished are kept, so the same command goes on where it was.",
    )
    add = experiment.add_argument
    add("file", help="name of a shipped experiment (mutual), or a YAML file")
    add("--out", type=Path, help="folder of the runs and the table (default: runs/NAME)")
    add(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time; cores and GPUs are shared out (default: 1)",
    )
    add("--data", type=Path, help="folder with the data (default: $DEPTH_PRIOR_DATA)")
    experiment.set_defaults(handler=_experiment)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="verify a bundle and print what is in it",
        description="Verify a bundle (files, hashes, schema, architecture) and print what a person "
        "wants to know first of it.",
    )
    inspect.add_argument(
        "bundle", nargs="?", default="lite", help="name of a shipped bundle, or its folder"
    )
    inspect.add_argument("--full", action="store_true", help="everything that its manifest says")
    inspect.set_defaults(handler=_inspect)


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    importer = commands.add_parser(
        "import",
        help="make a bundle, or a file of weights, from what others have published",
        description="Make a bundle of a depth network that was made elsewhere, or a file of "
        "weights for a network to begin with.",
    )
    kinds = importer.add_subparsers(dest="what", metavar="WHAT", required=True)
    trunk = kinds.add_parser(
        "trunk",
        help="weights of a MobileNetV2 that config/training/lite.yaml begins with",
        description="Make the file of weights that config/training/lite.yaml begins with. Needs "
        "the library tflite and the unpacked npm package @mediapipe/objectron 0.4.1675468480 "
        "(Apache-2.0).",
    )
    trunk.add_argument("package", type=Path, help="folder of the unpacked package")
    trunk.add_argument("--out", type=Path, default=Path("weights/mobilenet_v2_oidv4.safetensors"))
    trunk.set_defaults(handler=_import_trunk)
    _add_import_network(kinds)


def _add_import_network(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = kinds.add_parser(
        "network",
        help="any depth network, as a bundle (docs/networks.md)",
        description="Make a bundle of a depth network that was made elsewhere. It is taken as it "
        "is; nothing is fetched. What is said of it here stands in the bundle's manifest.",
    )
    add = parser.add_argument
    add(
        "spec",
        metavar="hf:FOLDER|onnx:FILE",
        help="a depth-estimation model of Hugging Face, downloaded before, or an ONNX file",
    )
    add("--out", type=Path, required=True, help="folder of the bundle")
    add(
        "--depth",
        choices=DEPTH_KINDS,
        help="what it returns, where its files do not tell: "
        "metric (depth in metres), scale_invariant (depth up to a factor), "
        "disparity (inverse depth up to a factor), affine_invariant (inverse depth up to a factor "
        "and a shift, as MiDaS and relative Depth Anything models)",
    )
    add("--size", type=_size, metavar="WxH", help="of its input, where it takes any size")
    add("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of pixels in 0 to 1")
    add("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="of pixels in 0 to 1")
    add("--imagenet", action="store_true", help="mean and deviation of ImageNet")
    add("--largest", type=float, default=1.0, metavar="WHITE", help="what white is (default: 1)")
    add("--bgr", action="store_true", help="blue comes first")
    add("--output", metavar="NAME", help="of its depth (default: the first output)")
    add(
        "--fill",
        type=_fill,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="value of a further input",
    )
    add("--metres-per-unit", type=float, metavar="M", help="of what is no metric depth, if known")
    add(
        "--focal",
        type=float,
        nargs=2,
        metavar=("FX", "FY"),
        help="focal lengths of the cameras that it was trained with, pixels of its input; needed "
        "for metric depth",
    )
    add("--max-metres", type=float, default=80.0, help="beyond it depth is infinite (default: 80)")
    add(
        "--multi-frame",
        metavar="BUNDLE",
        help="whose multi-frame and pose networks run beside it; at that bundle's input size",
    )
    add("--licence", help="of its weights")
    add("--name", help="of the bundle (default: the file's)")
    parser.set_defaults(handler=_import_network)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    try:
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 518x518") from None


def _fill(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE") from None


def _add_adapt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "adapt",
        # The bundle first: after --bag it would be taken for one more recording.
        usage="depth_train adapt BUNDLE --bag RECORDING [RECORDING ...] [--out DIR] [options]",
        help="fit a bundle to the camera of your own drive",
        description="Fit what a bundle's student is told of its camera, or the metric factor of a "
        "network that is told nothing, on every second stretch of a drive, evaluate it in metres "
        "on those between, and write a new bundle where it is better; no weight changes. Depth to "
        "fit on is the recording's own (LiDAR, exact), matched with a second camera beside it "
        "(stereo), or the multi-frame network's, with metres by odometry or the camera's height.",
    )
    _add_own_drive(
        parser,
        "folder of the new bundle; page and figures lie beside it, with .html and .json "
        "(default: runs/adapt/NAME_RECORDING)",
        several=True,
    )
    add = parser.add_argument
    add(
        "--references",
        choices=REFERENCES,
        default="auto",
        help="depth to fit on; recorded: the recording's own; stereo: matched with its second "
        "camera; multi_frame: the bundle's, without one that of followed points; auto: the first "
        "of these that there is enough of (default: auto)",
    )
    add(
        "--partner",
        metavar="CAMERA",
        help="folder or image topic of the second camera (default: the one that KITTI's folders, "
        "the calibrations or tf say stands beside)",
    )
    parser.set_defaults(handler=_adapt)


def _add_backend(parser: argparse.ArgumentParser) -> None:
    """What runs the networks, and where."""
    add = parser.add_argument
    add("--backend", choices=("auto", *BACKENDS), default="auto", help="what runs the networks")
    add("--device", default="auto", help="device of the backend (default: auto)")


def _add_own_drive(parser: argparse.ArgumentParser, written: str, *, several: bool = False) -> None:
    """A bundle and a drive of one's own, how it is read, and how its camera is mounted.

    written: what lies at `--out`. several: whether further recordings may follow the first.
    """
    add = parser.add_argument
    add("bundle", help="name of a shipped bundle, or its folder")
    add(
        "--bag",
        type=recording_path,
        nargs="+" if several else None,
        required=True,
        metavar="RECORDING",
        help="bag, drive, image folder or video"
        + (", or several of one camera, mounted the same" if several else ""),
    )
    add("--out", type=Path, metavar="DIR", help=written)
    add(
        "--camera-height",
        type=float,
        metavar="METRES",
        help="of the camera above the road: gives metres in place of odometry",
    )
    add(
        "--camera-pitch-deg",
        type=float,
        default=0.0,
        metavar="DEGREES",
        help="by which the camera looks down, for --camera-height (default: 0)",
    )
    add(
        "--ignore-bottom",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the picture that shows the vehicle itself, for --camera-height (default: 0)",
    )
    _add_backend(parser)
    add_recording_options(parser)


def _add_tune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "tune",
        help="train a bundle further on your own drive, and keep it where it is better",
        description="Train a bundle further on a recording, without labels: the frames beside a "
        "frame, and its stereo partner where there is one, must explain it. A quarter of the "
        "recording, in spans, is held out: one part says how far to go, on the other the bundle is "
        "evaluated before and after. The same command again goes on after a kill.",
    )
    _add_own_drive(
        parser,
        "folder of the recipe, the run, the page and the bundle (default: "
        "runs/tune/NAME_RECORDING)",
    )
    add = parser.add_argument
    add(
        "--minutes",
        type=float,
        default=20.0,
        help="for all of it, by the speed of this machine when it begins (default: 20)",
    )
    add(
        "--test",
        type=recording_path,
        metavar="RECORDING",
        help="a further one that the bundle is evaluated on, before and after",
    )
    add(
        "--mode",
        choices=("auto", "M", "MS"),
        default="auto",
        help="M: frames before and after; MS: the stereo partner, too (default: where there is "
        "one)",
    )
    add("--seed", type=int, default=1, help="decides all that is random (default: 1)")
    parser.set_defaults(handler=_tune)


def _asked(arguments: argparse.Namespace, *others: str) -> dict[str, Any]:
    """What a request is made of: all arguments but `others`."""
    ignored = ("command", "handler", *others)
    return {name: value for name, value in vars(arguments).items() if name not in ignored}


def _tune(arguments: argparse.Namespace) -> int:
    from training.runs.tune import Request, tune_bundle

    outcome = tune_bundle(Request(**_asked(arguments)))
    print(outcome)
    return 0 if outcome.bundle is not None else 1


def _adapt(arguments: argparse.Namespace) -> int:
    from depth_prior_ros.progress import ProgressBar
    from training.runs.adapt import Request, adapt_bundle

    with ProgressBar() as progress:
        bag, *more = arguments.bag
        request = Request(bag=bag, more=more, **_asked(arguments, "bag"))
        outcome = adapt_bundle(request, progress)
    print(outcome)
    return 0 if outcome.bundle is not None else 1


def _import_network(arguments: argparse.Namespace) -> int:
    from depth_prior_ros.bundle import describe
    from training.runs.network_import import IMAGENET, ImportRequest, import_network

    asked = _asked(arguments, "what", "imagenet", "mean", "std", "fill", "focal")
    usual = IMAGENET if arguments.imagenet else (None, None)
    bundle = import_network(
        ImportRequest(
            mean=arguments.mean or usual[0],
            std=arguments.std or usual[1],
            fill=dict(arguments.fill),
            focal=tuple(arguments.focal) if arguments.focal else None,
            **asked,
        )
    )
    print(describe(bundle, full=False), end="")
    return 0


def _import_trunk(arguments: argparse.Namespace) -> int:
    from training.runs.trunk_import import import_trunk

    print(f"trunk: {import_trunk(arguments.package, arguments.out)}")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from training.runs.run import run_recipe

    bundle = run_recipe(recipe_path(arguments.recipe), arguments.overrides, arguments.out)
    if int(os.environ.get("RANK", "0")) == 0:  # torchrun starts this several times
        print(f"bundle: {bundle}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from depth_prior_ros.atomic_files import write_json
    from depth_prior_ros.pipeline.references import useless_no_look_up
    from depth_prior_ros.progress import ProgressBar
    from training.evaluation.evaluation import MODELS, evaluate_bundle
    from training.evaluation.report import as_json, print_report, write_pictures

    models = [model for model in MODELS if arguments.model in ("both", model)]
    read_as = None
    if arguments.protocol == "drive" and arguments.data is not None:
        read_as = recording_options(arguments.data, arguments)
    if line := useless_no_look_up(arguments.bundle, arguments.no_look_up):
        print(line)
    with ProgressBar() as progress:
        report = evaluate_bundle(
            arguments.bundle,
            arguments.data,
            arguments.protocol,
            models=models,
            baselines=arguments.baselines,
            backend=arguments.backend,
            device=arguments.device,
            precision=arguments.precision,
            look_up=not arguments.no_look_up,
            poses=arguments.pose,
            read_as=read_as,
            keep=arguments.pictures is not None,
            progress=progress,
        )
    print_report(report)
    if arguments.json:
        write_json(arguments.json, as_json(report))
    if arguments.pictures:
        for picture in write_pictures(report, arguments.pictures):
            print(f"pictures: {picture}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from training.comparison.rows import Listing, parse_spec, read_listing

    listing = read_listing(arguments.listing) if arguments.listing else Listing()
    listing.specs += [parse_spec(text) for text in arguments.rows]
    listing.against = arguments.against or listing.against
    listing.pairs += arguments.pairs
    listing.synthetic += arguments.synthetic
    listing.recordings += arguments.recordings
    listing.sets = arguments.sets or listing.sets
    listing.cost = arguments.cost or listing.cost
    _table(listing, arguments.out, arguments.data, arguments.backend, arguments.device)
    return 0


def _experiment(arguments: argparse.Namespace) -> int:
    from training.comparison.experiment import run_experiment

    file = experiment_path(arguments.file)
    out = arguments.out or Path("runs") / file.stem
    listing = run_experiment(file, out, arguments.jobs, arguments.data)
    if listing is not None:
        _table(listing, out / file.stem, arguments.data)
    return 0


def _table(
    listing: Listing,
    out: Path,
    data: Path | None,
    backend: str = "auto",
    device: str = "auto",
) -> None:
    """Compare, and print the table."""
    from depth_prior_ros.progress import ProgressBar
    from training.comparison.compare import FIGURES, TABLE, compare

    with ProgressBar() as progress:
        compare(listing, out, data, backend=backend, device=device, progress=progress)
    print((out / TABLE).read_text(encoding="utf-8"), end="")
    print(f"table: {out / TABLE}\nfigures: {out / FIGURES}")


def _inspect(arguments: argparse.Namespace) -> int:
    from depth_prior_ros.bundle import describe, load_bundle

    print(describe(load_bundle(arguments.bundle), arguments.full), end="")
    return 0


def _is_plain(error: Exception) -> bool:
    """Whether the message alone says what to do, so that a traceback would only hide it."""
    from depth_prior_ros.backends.base import BackendError
    from depth_prior_ros.bundle import BundleError
    from depth_prior_ros.pipeline.guard import ModelFailedError
    from depth_prior_ros.recordings import RecordingError
    from training.evaluation.sets import EvaluationError
    from training.loop.checkpoint import CheckpointError
    from training.loop.trainer import TrainingError
    from training.recipes.recipe import RecipeError

    plain = (BackendError, BundleError, RecordingError, RecipeError, EvaluationError, OSError)
    return isinstance(error, (*plain, CheckpointError, TrainingError, ModelFailedError))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `depth_train`; returns the exit status (1: failed, 2: wrong usage)."""
    try:
        arguments = _parse(argv)  # paths are resolved here
        return int(arguments.handler(arguments))
    except KeyboardInterrupt as stop:
        what = str(stop) or "the same command resumes a run"
        print(f"depth_train: interrupted; {what}", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_plain(error):
            raise
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"depth_train: error: {printable_lines(error)}", file=sys.stderr)
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes no overrides behind an option: depth_train run FILE --out DIR seed=2
    takes = hasattr(arguments, "overrides")
    if rest and (not takes or any("=" not in r or r[0] == "-" for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
