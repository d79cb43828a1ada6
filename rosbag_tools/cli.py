"""`depth_bag`: bags in; bags and reports out. Heavy imports wait until a command needs them.

What the commands' arguments may be; argparse shows the errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depth_prior_ros.recording_options import (
    add_recording_options,
    intrinsics,
    intrinsics_option,
    recording_options,
)
from depth_prior_ros.share import recording_path
from depth_prior_ros.untrusted import printable
from rosbag_tools.recording_commands import (
    add_check,
    add_extract,
    add_network,
    add_process,
    add_report,
    count,
    quality,
)

if TYPE_CHECKING:
    from depth_prior_ros.recordings import StoredRecording
    from rosbag_tools.replaying.session import ReplayOptions


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
    add_process(commands)
    add_extract(commands)
    _add_replay(commands)
    _add_play(commands)
    add_report(commands)
    add_check(commands)
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


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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


def _add_make(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("make", help="a bag out of a KITTI drive or a folder of images")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--kitti-raw", type=Path, metavar="DRIVE", help="a ..._sync folder")
    source.add_argument("--kitti-odometry", type=Path, metavar="SEQUENCE", help="sequences/NN")
    source.add_argument(
        "--images", type=Path, metavar="PATH", help="a folder of images, or a video"
    )
    parser.add_argument("--out", type=Path, required=True, help="BAG.mcap, or a new bag folder")
    parser.add_argument(
        "--intrinsics",
        type=intrinsics,
        metavar="FX,FY,CX,CY|FILE",
        help="with --images: the camera, in pixels of these images, or a YAML file (also of ROS's "
        "camera_calibration)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        help="with --images: Hz (default: by names that are times, the video's own, or 10)",
    )
    parser.add_argument(
        "--quality", type=quality, default=95, help="of JPEGs that have to be made (default: 95)"
    )
    parser.add_argument(
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


def _add_render(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("render", help="a bag of a synthetic drive with exact depth")
    parser.add_argument("--out", type=Path, required=True, help="BAG.mcap, or a new bag folder")
    parser.add_argument(
        "--seed",
        type=int,
        default=8,
        help="another seed, another street (default: the embedded drive's)",
    )
    parser.add_argument("--frames", type=count, default=80, help="how many, at 10 Hz (default: 80)")
    parser.add_argument(
        "--size", type=size, default=(640, 192), metavar="WxH", help="default: 640x192"
    )
    parser.add_argument("--quality", type=quality, default=90, help="of the JPEGs (default: 90)")
    parser.add_argument(
        "--street",
        default="embedded",
        choices=("embedded", "town", "residential", "avenue", "country", "motorway", "lane"),
        help="the embedded drive's, or a random one of a kind (default: embedded)",
    )
    parser.add_argument(
        "--traffic",
        default="mixed",
        choices=("mixed", "dense"),
        help="dense: cars and lorries a few metres ahead, at walking pace (default: mixed)",
    )
    parser.add_argument("--no-stop", action="store_true", help="the car never stands still")
    parser.add_argument(
        "--moving", action="store_true", help="also masks of what moves by itself (larger bag)"
    )
    parser.add_argument(
        "--stereo",
        type=float,
        default=0.0,
        metavar="M",
        help="with a second camera M metres to the right, e.g. 0.54 as KITTI's",
    )
    parser.add_argument(
        "--camera-height", type=positive, metavar="M", help="of the camera above the road"
    )
    parser.add_argument(
        "--camera-pitch-deg",
        type=float,
        default=0.0,
        metavar="DEGREES",
        help="by which the camera looks down (default: 0)",
    )
    parser.set_defaults(run=_render)


def _render(parsed: argparse.Namespace) -> None:
    from rosbag_tools.make import render

    render(
        parsed.out,
        parsed.seed,
        parsed.frames,
        parsed.size,
        parsed.quality,
        street=parsed.street,
        traffic=parsed.traffic,
        stop=not parsed.no_stop,
        moving=parsed.moving,
        stereo=parsed.stereo,
        camera_height=parsed.camera_height,
        camera_pitch_deg=parsed.camera_pitch_deg,
    )


# -- replay, play, report, demo -----------------------------------------------------------------


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "replay", help="play a recording to the real node; metrics.json and report.html come out"
    )
    _add_recording(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    _add_node_options(parser)
    parser.set_defaults(run=_replay)


def _replay(parsed: argparse.Namespace) -> None:
    from rosbag_tools.replaying.demo import show_results
    from rosbag_tools.replaying.session import replay
    from rosbag_tools.reports.account import command_line

    results = replay(_open(parsed), parsed.out, _options(parsed), command_line(parsed.arguments))
    show_results(results, parsed.out)


def _add_play(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "play",
        help="publish a recording in real time, for nodes that run already",
        epilog="Remap topics as for any node: --ros-args -r /camera/image_raw:=/front/image_raw",
    )
    _add_recording(parser)
    parser.add_argument(
        "--rate", type=positive, default=1.0, metavar="X", help="X times real time (default: 1)"
    )
    parser.add_argument("--loop", action="store_true", help="begin again after the last frame")
    parser.add_argument("--clock", action="store_true", help="publish the stamps on /clock")
    parser.add_argument(
        "--wait",
        type=positive,
        default=0.0,
        metavar="S",
        help="S seconds for a listener to come",
    )
    parser.add_argument(
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


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="replay the embedded drive")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)"
    )
    _add_node_options(parser)
    parser.set_defaults(run=_demo)


def _demo(parsed: argparse.Namespace) -> None:
    from rosbag_tools.replaying.demo import demo
    from rosbag_tools.reports.account import command_line

    demo(parsed.out, _options(parsed), command_line(parsed.arguments))


# -- shared options -----------------------------------------------------------------------------


def _add_recording(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recording",
        type=recording_path,
        metavar="RECORDING",
        help="a bag, a video, a folder of images or of KITTI; street: the embedded drive",
    )
    add_recording_options(parser)


def _add_node_options(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
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
        answer_timeout=parsed.timeout,
        domain_id=parsed.domain_id,
    )


def _open(parsed: argparse.Namespace) -> StoredRecording:
    from depth_prior_ros.progress import ProgressBar
    from depth_prior_ros.recordings import open_recording

    with ProgressBar() as progress:
        progress(f"reading {parsed.recording.name}")
        return open_recording(parsed.recording, **recording_options(parsed.recording, parsed))


if __name__ == "__main__":
    sys.exit(main())
