"""`depth_bag`: bags in; bags and reports out. Heavy imports wait until a command needs them.

What the commands' arguments may be; argparse shows the errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_prior_ros.backends import BACKENDS, PRECISIONS
from depth_prior_ros.recording_options import (
    add_recording_options,
    intrinsics,
    intrinsics_camera,
    intrinsics_option,
    recording_options,
)
from depth_prior_ros.share import recording_path
from depth_prior_ros.untrusted import printable, printable_lines
from rosbag_tools.remote import place, recording_place

if TYPE_CHECKING:
    from depth_prior_ros.recordings import StoredRecording
    from rosbag_tools.replaying.session import ReplayOptions


Commands = argparse._SubParsersAction

_OUTPUTS = {
    "npy": "float32 metres, a file a frame (default)",
    "png": "16-bit PNG in millimetres, a file a frame",
    "kitti-png": "16-bit PNG in metres x 256 as KITTI has it, a file a frame",
    "ply": "coloured points, a file a frame",
    "bag": "depth.mcap: the input's topics beside depth, confidence, model and scale",
    "video": "depth.mp4: image beside coloured depth, model and scale written in",
}


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text} is no size such as 640x192")
    return int(width), int(height)


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def quality(text: str) -> int:
    """A JPEG quality, 1 to 100."""
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 1 and 100")
    return value


_EPILOG = "`depth_bag COMMAND --help` explains a command."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for what went wrong, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own, ros = _split(arguments)
    given = argparse.Namespace(arguments=own, ros_arguments=ros)
    try:
        parsed = build_parser().parse_args(own, given)  # paths are resolved here
        command: Callable[[argparse.Namespace], int | None] = parsed.run
        return command(parsed) or 0
    except KeyboardInterrupt:
        print("depth_bag: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if not is_expected(error):
            raise
        print(f"depth_bag: {printable(error)}", file=sys.stderr)
        return 1


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Own arguments, and those for ROS, which begin with ``--ros-args`` as for every node."""
    cut = arguments.index("--ros-args") if "--ros-args" in arguments else len(arguments)
    return arguments[:cut], arguments[cut:]


def build_parser() -> argparse.ArgumentParser:
    """The command line with all its commands."""
    parser = argparse.ArgumentParser(
        prog="depth_bag",
        description="Make, look at and replay recordings through the depth node.",
        epilog=_EPILOG,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_info(commands)
    _add_make(commands)
    _add_render(commands)
    _add_process(commands)
    _add_extract(commands)
    _add_replay(commands)
    _add_play(commands)
    _add_report(commands)
    _add_check(commands)
    _add_demo(commands)
    return parser


def is_expected(error: Exception) -> bool:
    """Whether an error is one whose message says all there is to say."""
    if isinstance(error, OSError):
        return True
    from depth_prior_ros.backends import BackendError
    from depth_prior_ros.bundle import BundleError
    from depth_prior_ros.geometry.camera import InvalidCameraError
    from depth_prior_ros.recordings import RecordingError

    return isinstance(error, (RecordingError, BundleError, BackendError, InvalidCameraError))


# -- info ---------------------------------------------------------------------------------------


def _add_info(commands: Commands) -> None:
    parser = commands.add_parser("info", help="what is in a bag or another recording")
    _add_recording(parser)
    parser.add_argument(
        "--full", action="store_true", help="all topics, notes and what had to be left out"
    )
    parser.set_defaults(run=_info)


def _info(parsed: argparse.Namespace) -> None:
    from rosbag_tools.info import info

    info(parsed.recording, _open(parsed), parsed.full)


# -- make ---------------------------------------------------------------------------------------


def _add_make(commands: Commands) -> None:
    parser = commands.add_parser("make", help="a bag out of a KITTI drive or a folder of images")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--kitti-raw", type=Path, metavar="DRIVE", help="a ..._sync folder")
    source.add_argument("--kitti-odometry", type=Path, metavar="SEQUENCE", help="sequences/NN")
    source.add_argument(
        "--images", type=Path, metavar="PATH", help="a folder of images, or a video"
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="BAG.mcap, or a new bag folder")
    add(
        "--intrinsics",
        type=intrinsics,
        metavar="FX,FY,CX,CY|FILE",
        help="with --images: the camera, in pixels of these images, or a YAML file (also of ROS's "
        "camera_calibration)",
    )
    add(
        "--rate",
        type=float,
        help="with --images: Hz (default: by names that are times, the video's own, or 10)",
    )
    add("--quality", type=quality, default=95, help="of JPEGs that have to be made (default: 95)")
    add(
        "--stereo",
        action="store_true",
        help="with the other camera of the stereo pair, as KITTI's calibration has it",
    )
    parser.set_defaults(run=_make)


def _make(parsed: argparse.Namespace) -> None:
    from rosbag_tools.make import Partner, make

    recording, partner = _make_source(parsed), None
    if parsed.stereo:
        from depth_prior_ros.recordings.stereo import open_pairs

        path = parsed.kitti_raw or parsed.kitti_odometry or parsed.images
        pairs = open_pairs(path, recording)
        down = -float(pairs.partner_from_camera[1, 3])
        partner = Partner(pairs.by_stamp(), pairs.baseline, down)
    make(recording, parsed.out, parsed.quality, partner=partner)


def _make_source(parsed: argparse.Namespace) -> StoredRecording:
    if parsed.kitti_raw:
        from depth_prior_ros.recordings.kitti import open_kitti_raw

        return open_kitti_raw(parsed.kitti_raw)
    if parsed.kitti_odometry:
        from depth_prior_ros.recordings.kitti import open_kitti_odometry

        return open_kitti_odometry(parsed.kitti_odometry)
    from depth_prior_ros.recordings.folder import open_image_folder

    camera = intrinsics_option(parsed.images, parsed.intrinsics)
    return open_image_folder(parsed.images, rate=parsed.rate, **camera)


# -- render -------------------------------------------------------------------------------------


def _add_render(commands: Commands) -> None:
    parser = commands.add_parser("render", help="a bag of a synthetic drive with exact depth")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="BAG.mcap, or a new bag folder")
    add(
        "--seed",
        type=int,
        default=8,
        help="another seed, another street (default: the embedded drive's)",
    )
    add("--frames", type=count, default=80, help="how many, at 10 Hz (default: 80)")
    add("--size", type=size, metavar="WxH", help="default: 640x192, or that of a calibration")
    add("--quality", type=quality, default=90, help="of the JPEGs (default: 90)")
    add(
        "--street",
        default="embedded",
        choices=("embedded", "town", "residential", "avenue", "country", "motorway", "lane"),
        help="the embedded drive's, or a random one of a kind (default: embedded)",
    )
    add(
        "--traffic",
        default="mixed",
        choices=("mixed", "dense"),
        help="dense: cars and lorries a few metres ahead, at walking pace (default: mixed)",
    )
    add("--no-stop", action="store_true", help="the car never stands still")
    add("--moving", action="store_true", help="also masks of what moves by itself (larger bag)")
    add(
        "--stereo",
        type=float,
        default=0.0,
        metavar="M",
        help="with a second camera M metres to the right, e.g. 0.54 as KITTI's",
    )
    add(
        "--intrinsics",
        type=intrinsics,
        metavar="FX,FY,CX,CY|FILE",
        help="of the camera, in pixels of --size, or a YAML file (also of ROS's "
        "camera_calibration: its rectified camera); default: KITTI's",
    )
    add("--camera-height", type=positive, metavar="M", help="of the camera above the road")
    add(
        "--camera-pitch-deg",
        type=float,
        default=0.0,
        metavar="DEGREES",
        help="by which the camera looks down (default: 0)",
    )
    parser.set_defaults(run=_render)


def _render(parsed: argparse.Namespace) -> None:
    from rosbag_tools.make import render

    view = None
    if parsed.intrinsics is not None:
        view = intrinsics_camera(parsed.intrinsics, parsed.size)
    render(
        parsed.out,
        parsed.quality,
        seed=parsed.seed,
        frames=parsed.frames,
        size=parsed.size or (640, 192),
        view=view,
        street=parsed.street,
        traffic=parsed.traffic,
        stop=not parsed.no_stop,
        moving=parsed.moving,
        stereo=parsed.stereo,
        camera_height=parsed.camera_height,
        camera_pitch_deg=parsed.camera_pitch_deg,
    )


# -- process, extract ------------------------------------------------------------------------------


def _add_process(commands: Commands) -> None:
    parser = commands.add_parser(
        "process",
        help="depth of whole recordings, offline, without ROS",
        description="Depth of every frame of a recording, the same as a replay in lockstep gives. "
        "A run that was killed goes on where it was when the command is given again.",
    )
    _add_recordings(parser)
    parser.add_argument(
        "--out",
        type=place,
        required=True,
        help="folder (or URL) for the results; of several recordings each gets a folder in it",
    )
    for name, words in _OUTPUTS.items():
        parser.add_argument(f"--{name}", action="store_true", help=words)
    _add_network(parser)
    parser.set_defaults(run=_process)


def _process(parsed: argparse.Namespace) -> None:
    from rosbag_tools.process import ProcessOptions
    from rosbag_tools.reports.account import command_line
    from rosbag_tools.units import process_job

    _tell_useless_options(parsed)
    outputs = tuple(n for n in _OUTPUTS if getattr(parsed, n.replace("-", "_"))) or ("npy",)
    options = ProcessOptions(
        outputs,
        parsed.bundle,
        parsed.backend,
        parsed.device,
        parsed.force_model or "",
        forced=not parsed.no_forced,
        precision=parsed.precision,
        look_up=not parsed.no_look_up,
    )
    _do_recordings(process_job, parsed, options, command_line(parsed.arguments))


def _add_extract(commands: Commands) -> None:
    parser = commands.add_parser(
        "extract",
        help="a data set of files out of recordings, which training reads",
        description="Images, calibration, stamps, speeds, poses and depth of recordings as files, "
        "each recording in a folder of its own. A run that was killed goes on where it was when "
        "the command is given again; what is finished is left as it is.",
    )
    _add_recordings(parser)
    add = parser.add_argument
    add("--out", type=place, required=True, help="path or URL; each recording gets a folder in it")
    add(
        "--format",
        choices=("jpeg", "png"),
        default="jpeg",
        help="of images: jpeg keeps recorded JPEGs and PNGs byte by byte; png is lossless, decoded "
        "and rectified (default: jpeg)",
    )
    add("--quality", type=quality, default=95, help="of JPEGs that have to be made (default: 95)")
    add(
        "--rectified",
        action="store_true",
        help="rectified images in any case, for tools that know no distortion",
    )
    add("--stride", type=count, default=1, metavar="N", help="every N-th frame")
    add("--stereo", action="store_true", help="with the partner of a stereo pair")
    add(
        "--partner",
        default="",
        metavar="CAMERA",
        help="topic or folder of the partner (default: found by its calibration)",
    )
    add(
        "--stereo-depth",
        action="store_true",
        help="depth matched with the partner (semi-global matching, left-right checked), in place "
        "of recorded depth",
    )
    parser.set_defaults(run=_extract)


def _extract(parsed: argparse.Namespace) -> None:
    from rosbag_tools.extract import ExtractOptions
    from rosbag_tools.units import extract_job

    reading = {
        name: getattr(parsed, name) and str(getattr(parsed, name))
        for name in ("image_topic", "camera_info_topic", "odom_topic", "depth_topic", "rectify")
    }
    reading["intrinsics"] = parsed.intrinsics
    options = ExtractOptions(
        parsed.format,
        parsed.quality,
        parsed.rectified,
        parsed.stride,
        parsed.stereo or (bool(parsed.partner) and not parsed.stereo_depth),
        parsed.partner,
        reading,
        parsed.stereo_depth,
    )
    _do_recordings(extract_job, parsed, options, alone=False)


# -- replay, play, demo, report, check ------------------------------------------------------------


def _add_replay(commands: Commands) -> None:
    parser = commands.add_parser(
        "replay", help="play a recording to the real node; metrics.json and report.html come out"
    )
    _add_recording(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    _add_node_options(parser)
    parser.set_defaults(run=_replay)


def _replay(parsed: argparse.Namespace) -> None:
    from rosbag_tools.replaying.session import replay, show_results
    from rosbag_tools.reports.account import command_line

    _tell_useless_options(parsed)
    results = replay(_open(parsed), parsed.out, _options(parsed), command_line(parsed.arguments))
    show_results(results, parsed.out)


def _add_play(commands: Commands) -> None:
    parser = commands.add_parser(
        "play",
        help="publish a recording in real time, for nodes that run already",
        epilog="Remap topics as for any node: --ros-args -r /camera/image_raw:=/front/image_raw",
    )
    _add_recording(parser)
    add = parser.add_argument
    add("--rate", type=positive, default=1.0, metavar="X", help="X times real time (default: 1)")
    add("--loop", action="store_true", help="begin again after the last frame")
    add("--clock", action="store_true", help="publish the stamps on /clock")
    add("--wait", type=positive, default=0.0, metavar="S", help="S seconds for a listener to come")
    add(
        "--frame-id",
        default="camera_optical_frame",
        metavar="FRAME",
        help="optical frame of the camera (default: camera_optical_frame)",
    )
    parser.set_defaults(run=_play)


def _play(parsed: argparse.Namespace) -> None:
    from rosbag_tools.replaying.session import check_rclpy

    check_rclpy()
    from rosbag_tools.replaying.play import PlayOptions, play

    options = PlayOptions(parsed.rate, parsed.loop, parsed.clock, parsed.wait, parsed.frame_id)
    play(_open(parsed), options, parsed.ros_arguments)


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser("demo", help="replay the embedded drive")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)"
    )
    _add_node_options(parser)
    parser.set_defaults(run=_demo)


def _demo(parsed: argparse.Namespace) -> None:
    from rosbag_tools.replaying.session import demo
    from rosbag_tools.reports.account import command_line

    _tell_useless_options(parsed)
    demo(parsed.out, _options(parsed), command_line(parsed.arguments))


def _add_report(commands: Commands) -> None:
    parser = commands.add_parser(
        "report",
        help="make report.html of a result again, or compare several results",
        description="One result: its report.html again. Two or more of one recording: a page that "
        "compares the others with the first, and a verdict.",
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="RESULT", help="the --out of a replay or process"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("comparison.html"),
        metavar="PAGE",
        help="of several results (default: comparison.html)",
    )
    parser.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> None:
    if len(parsed.folders) == 1:
        from rosbag_tools.reports.report import report

        print(report(parsed.folders[0]))
        return
    from rosbag_tools.console import show
    from rosbag_tools.reports.side_by_side import side_by_side

    show(*side_by_side(parsed.folders, parsed.out), str(parsed.out))


def _add_check(commands: Commands) -> None:
    parser = commands.add_parser(
        "check",
        help="a result against a baseline, for CI",
        description="Exit code 0: as good as the baseline, 1: worse, 2: not comparable.",
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="RESULT", help="of a replay or process")
    add("--against", type=Path, required=True, metavar="BASELINE.json")
    add(
        "--tolerance",
        type=_tolerances,
        metavar="NAME=AMOUNT,...",
        help="how much worse a figure may be, as a share (2%%) or an amount "
        "(default: abs_rel=2%%,metric_abs_rel=2%%,flicker=5%%, as far as the baseline has them)",
    )
    add("--accept", action="store_true", help="write the result's figures as the baseline")
    parser.set_defaults(run=_check)


def _tolerances(text: str) -> dict[str, tuple[float, bool]]:
    from rosbag_tools.reports.side_by_side import parse_tolerances

    try:
        return parse_tolerances(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _check(parsed: argparse.Namespace) -> int:
    from depth_prior_ros.recordings import RecordingError
    from rosbag_tools.console import show
    from rosbag_tools.reports.side_by_side import NOT_COMPARABLE, accept, check

    try:
        if parsed.accept:
            accept(parsed.folder, parsed.against)
            show(f"{parsed.against}: the baseline is now {parsed.folder}")
            return 0
        code, rows = check(parsed.folder, parsed.against, parsed.tolerance)
    except RecordingError as error:
        print(f"depth_bag: {printable_lines(error)}", file=sys.stderr)
        return NOT_COMPARABLE
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("figure", "baseline", "now", "change", "allowed", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right")
    for row in rows:
        table.add_row(*row)
    show(table)
    return code


# -- shared options -----------------------------------------------------------------------------


def _add_recording(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recording",
        type=recording_path,
        metavar="RECORDING",
        help="a bag, a video, a folder of images or of KITTI; street: the embedded drive",
    )
    add_recording_options(parser)


def _add_recordings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "recordings",
        type=recording_place,
        nargs="+",
        metavar="RECORDING",
        help="bags, videos, folders of images, of KITTI or another data set; paths or URLs",
    )
    add("--jobs", type=count, help="recordings at a time (default: one for every two processors)")
    add(
        "--ray",
        metavar="auto|ADDRESS",
        help="on a cluster of Ray instead; recordings and results have to be where all of it "
        "reaches them",
    )
    add_recording_options(parser)


def _add_network(parser: argparse.ArgumentParser) -> None:
    """Which bundle, what runs it, and which models are evaluated."""
    add = parser.add_argument
    add("--bundle", default="lite", help="name or path (default: lite)")
    add(
        "--backend",
        default="auto",
        choices=("auto", *BACKENDS),
        help="what runs the networks (default: auto)",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--precision", choices=PRECISIONS, default="f32", help="of the networks (default: f32)")
    add("--force-model", choices=("single_frame", "multi_frame"), help="force a model")
    add("--no-look-up", action="store_true", help="leave the bundle's references out")
    add(
        "--no-forced",
        action="store_true",
        help="evaluate only the depth that comes out, not each model on its own",
    )


def _tell_useless_options(parsed: argparse.Namespace) -> None:
    """What of `_add_network` changes nothing for the bundle."""
    from depth_prior_ros.pipeline.references import useless_no_look_up
    from rosbag_tools.console import show

    if line := useless_no_look_up(parsed.bundle, parsed.no_look_up):
        show(line)


def _add_node_options(parser: argparse.ArgumentParser) -> None:
    _add_network(parser)
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--lockstep",
        action="store_true",
        help="wait for each answer, so that results are reproducible (default)",
    )
    pace.add_argument(
        "--rate", type=positive, metavar="X", help="X times real time, counting drops"
    )
    parser.add_argument(
        "--timeout", type=positive, default=20.0, help="seconds to wait for an answer"
    )
    parser.add_argument("--domain-id", type=int, help="ROS domain (default: a random one)")


def _options(parsed: argparse.Namespace) -> ReplayOptions:
    from rosbag_tools.replaying.session import ReplayOptions

    return ReplayOptions(
        bundle=parsed.bundle,
        rate=parsed.rate,
        backend=parsed.backend,
        device=parsed.device,
        precision=parsed.precision,
        force_model=parsed.force_model or "",
        forced=not parsed.no_forced,
        look_up=not parsed.no_look_up,
        answer_timeout=parsed.timeout,
        domain_id=parsed.domain_id,
    )


def _open(parsed: argparse.Namespace) -> StoredRecording:
    from depth_prior_ros.progress import ProgressBar
    from depth_prior_ros.recordings import open_recording

    with ProgressBar() as progress:
        progress(f"reading {parsed.recording.name}")
        return open_recording(parsed.recording, **recording_options(parsed.recording, parsed))


def _do_recordings(
    do: Any, parsed: argparse.Namespace, options: Any, command: str = "", alone: bool = True
) -> None:
    """Do every recording that was asked for, several at a time, and say what came of each.

    alone: a single one's results go to `--out` itself, not to a folder in it. Raises RecordingError
    where one failed; the others are done.
    """
    from depth_prior_ros.recordings import RecordingError
    from rosbag_tools.console import show, show_skipped
    from rosbag_tools.units import Job, Unit, places, run_on_ray, run_units, usual_jobs

    outs = places(parsed.recordings, parsed.out, alone)
    # Goes to other processes, which need not know the command.
    reading = argparse.Namespace(**{k: v for k, v in vars(parsed).items() if k != "run"})
    jobs = [
        Job(path, out, reading, options, command)
        for path, out in zip(parsed.recordings, outs, strict=True)
    ]
    units = [Unit(str(job.out).rstrip("/").rpartition("/")[2], job) for job in jobs]
    if parsed.ray:
        outcomes = run_on_ray(do, units, parsed.ray, is_expected, parsed.jobs)
    else:
        outcomes = run_units(do, units, parsed.jobs or usual_jobs(len(jobs)), is_expected)
    failed = []
    for outcome in outcomes:
        if outcome.result is None:
            failed.append(f"{outcome.name}: {outcome.error}" if len(jobs) > 1 else outcome.error)
            continue
        show(*outcome.result.lines())
        show_skipped(outcome.result.skipped)
    if failed:
        raise RecordingError("\n".join(failed))


if __name__ == "__main__":
    sys.exit(main())
