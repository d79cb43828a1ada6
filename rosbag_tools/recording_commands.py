"""Commands of `depth_bag` that go through whole recordings: what their arguments may be.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from depth_prior_ros.backends import BACKENDS, PRECISIONS
from depth_prior_ros.recording_options import add_recording_options, recording_options
from rosbag_tools.remote import Place, below, local_copies, name_of, place, recording_place

if TYPE_CHECKING:
    from depth_prior_ros.recordings import StoredRecording
    from rosbag_tools.extract import Extracted
    from rosbag_tools.process import Processed

Commands = argparse._SubParsersAction

_OUTPUTS = {
    "npy": "float32 metres, a file a frame (default)",
    "png": "16-bit PNG in millimetres, a file a frame",
    "kitti-png": "16-bit PNG in metres x 256 as KITTI has it, a file a frame",
    "ply": "coloured points, a file a frame",
    "bag": "depth.mcap: the input's topics beside depth, confidence, model and scale",
    "video": "depth.mp4: image beside coloured depth, model and scale written in",
}


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


def add_process(commands: Commands[argparse.ArgumentParser]) -> None:
    """`depth_bag process`."""
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
    add_network(parser)
    parser.set_defaults(run=_process)


@dataclass(frozen=True)
class _Job:
    """A recording to open, and what to do with it; goes to other processes."""

    source: Place
    out: Place
    reading: argparse.Namespace
    options: Any
    command: str

    def open(self, path: Path) -> StoredRecording:
        """The recording, of which `path` is the source or its local copy, read as options say."""
        from depth_prior_ros.recordings import open_recording

        return open_recording(path, **recording_options(path, self.reading))


def _process(parsed: argparse.Namespace) -> None:
    from depth_prior_ros.recordings import RecordingError
    from rosbag_tools.console import show, show_skipped
    from rosbag_tools.process import ProcessOptions
    from rosbag_tools.reports.account import command_line
    from rosbag_tools.reports.results import METRICS, REPORT

    outputs = tuple(n for n in _OUTPUTS if getattr(parsed, n.replace("-", "_"))) or ("npy",)
    options = ProcessOptions(
        outputs,
        parsed.bundle,
        parsed.backend,
        parsed.device,
        parsed.force_model or "",
        forced=not parsed.no_forced,
        precision=parsed.precision,
    )
    command = command_line(parsed.arguments)
    places = _places(parsed.recordings, parsed.out)
    jobs = [
        _Job(path, out, parsed, options, command)
        for path, out in zip(parsed.recordings, places, strict=True)
    ]
    failed = []
    for outcome in _run(process_job, jobs, parsed):
        found: Processed | None = outcome.result
        if found is None:
            failed.append(f"{outcome.name}: {outcome.error}" if len(jobs) > 1 else outcome.error)
            continue
        if found.finished_before:
            show(f"{found.out}: finished before, nothing to do")
            continue
        show(_rate(found), *(str(below(found.out, name)) for name in (REPORT, METRICS)))
        show_skipped(found.skipped)
    if failed:
        raise RecordingError("\n".join(failed))


def process_job(job: _Job, told: Any) -> Processed:
    """Open a job's recording and make its depth."""
    from rosbag_tools.process import MANIFEST, process

    with local_copies(job.source, job.out, MANIFEST) as (source, out):
        found = process(source, job.open(source), out, job.options, job.command, told)
    return replace(found, out=job.out)


def _rate(found: Processed) -> str:
    if not found.new:
        return f"{found.out}: depth of {found.frames} frames was there"
    rate = found.new / max(found.seconds, 1e-9)
    alone = found.new / max(found.network_seconds, 1e-9)
    before = found.frames - found.new
    rest = f", {before} were there" if before else ""
    return (
        f"{found.out}: depth of {found.new} frames{rest}; {rate:.1f} frames/s, the networks' part "
        f"of it {alone:.1f} frames/s"
    )


def add_extract(commands: Commands[argparse.ArgumentParser]) -> None:
    """`depth_bag extract`."""
    parser = commands.add_parser(
        "extract",
        help="a data set of files out of recordings, which training reads",
        description="Images, calibration, stamps, speeds, poses and depth of recordings as files, "
        "each recording in a folder of its own. A run that was killed goes on where it was when "
        "the command is given again; what is finished is left as it is.",
    )
    _add_recordings(parser)
    parser.add_argument(
        "--out", type=place, required=True, help="path or URL; each recording gets a folder in it"
    )
    parser.add_argument(
        "--format",
        choices=("jpeg", "png"),
        default="jpeg",
        help="of images: jpeg keeps recorded JPEGs and PNGs byte by byte; png is lossless, decoded "
        "and rectified (default: jpeg)",
    )
    parser.add_argument(
        "--quality",
        type=quality,
        default=95,
        help="of JPEGs that have to be made (default: 95)",
    )
    parser.add_argument(
        "--rectified",
        action="store_true",
        help="rectified images in any case, for tools that know no distortion",
    )
    parser.add_argument("--stride", type=count, default=1, metavar="N", help="every N-th frame")
    parser.add_argument("--stereo", action="store_true", help="with the partner of a stereo pair")
    parser.add_argument(
        "--partner",
        default="",
        metavar="CAMERA",
        help="topic or folder of the partner (default: found by its calibration)",
    )
    parser.add_argument(
        "--stereo-depth",
        action="store_true",
        help="depth matched with the partner (semi-global matching, left-right checked), in place "
        "of recorded depth",
    )
    parser.set_defaults(run=_extract)


def _extract(parsed: argparse.Namespace) -> None:
    from depth_prior_ros.recordings import RecordingError
    from rosbag_tools.console import show, show_skipped
    from rosbag_tools.extract import ExtractOptions

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
    places = _places(parsed.recordings, parsed.out, alone=False)
    jobs = [
        _Job(path, out, parsed, options, "")
        for path, out in zip(parsed.recordings, places, strict=True)
    ]
    failed = []
    for outcome in _run(extract_job, jobs, parsed):
        found: Extracted | None = outcome.result
        if found is None:
            failed.append(f"{outcome.name}: {outcome.error}" if len(jobs) > 1 else outcome.error)
            continue
        if found.finished_before:
            show(f"{found.out}: {found.frames} frames, finished before, nothing to do")
            continue
        show(
            f"{found.out}: {found.frames} frames, {found.depths} with depth; the vehicle stands in "
            f"{found.static}"
        )
        show_skipped(found.skipped)
    if failed:
        raise RecordingError("\n".join(failed))


def extract_job(job: _Job, told: Any) -> Extracted:
    """Open a job's recording and write its data set."""
    from rosbag_tools.extract import MANIFEST, extract

    with local_copies(job.source, job.out, MANIFEST) as (source, out):
        found = extract(source, job.open(source), out, job.options, told)
    return replace(found, out=job.out)


def add_report(commands: Commands[argparse.ArgumentParser]) -> None:
    """`depth_bag report`."""
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


def add_check(commands: Commands[argparse.ArgumentParser]) -> None:
    """`depth_bag check`."""
    parser = commands.add_parser(
        "check",
        help="a result against a baseline, for CI",
        description="Exit code 0: as good as the baseline, 1: worse, 2: not comparable.",
    )
    parser.add_argument("folder", type=Path, metavar="RESULT", help="of a replay or process")
    parser.add_argument("--against", type=Path, required=True, metavar="BASELINE.json")
    parser.add_argument(
        "--tolerance",
        type=_tolerances,
        metavar="NAME=AMOUNT,...",
        help="how much worse a figure may be, as a share (2%%) or an amount "
        "(default: abs_rel=2%%,metric_abs_rel=2%%,flicker=5%%, as far as the baseline has them)",
    )
    parser.add_argument(
        "--accept", action="store_true", help="write the result's figures as the baseline"
    )
    parser.set_defaults(run=_check)


def _tolerances(text: str) -> dict[str, tuple[float, bool]]:
    from rosbag_tools.reports.check import parse_tolerances

    try:
        return parse_tolerances(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _check(parsed: argparse.Namespace) -> int:
    import sys

    from depth_prior_ros.recordings import RecordingError
    from depth_prior_ros.untrusted import printable_lines
    from rosbag_tools.console import show
    from rosbag_tools.reports.check import NOT_COMPARABLE, accept, check

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


# -- shared ---------------------------------------------------------------------------------------


def _add_recordings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recordings",
        type=recording_place,
        nargs="+",
        metavar="RECORDING",
        help="bags, videos, folders of images, of KITTI or another data set; paths or URLs",
    )
    parser.add_argument(
        "--jobs",
        type=count,
        help="recordings at a time (default: one for every two processors)",
    )
    parser.add_argument(
        "--ray",
        metavar="auto|ADDRESS",
        help="on a cluster of Ray instead; recordings and results have to be where all of it "
        "reaches them",
    )
    add_recording_options(parser)


def add_network(parser: argparse.ArgumentParser) -> None:
    """Which bundle, what runs it, and which models are evaluated."""
    parser.add_argument("--bundle", default="lite", help="name or path (default: lite)")
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", *BACKENDS),
        help="what runs the networks (default: auto)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="f32", help="of the networks (default: f32)"
    )
    parser.add_argument(
        "--force-model", choices=("single_frame", "multi_frame"), help="force a model"
    )
    parser.add_argument(
        "--no-forced",
        action="store_true",
        help="evaluate only the depth that comes out, not each model on its own",
    )


def _places(recordings: Sequence[Place], out: Place, alone: bool = True) -> list[Place]:
    """Where the results go: folders by the names; `out` itself for one recording, where alone."""
    if alone and len(recordings) == 1:
        return [out]
    names: list[str] = []
    for where in recordings:
        name = name_of(where)
        if name in names:
            above = where.rstrip("/").rpartition("/")[0] if isinstance(where, str) else where
            parent = above if isinstance(above, str) else above.resolve().parent
            name = f"{PurePosixPath(parent).name}_{name}"
        while name in names:
            name = f"{name}_2"
        names.append(name)
    return [below(out, name) for name in names]


def _run(do: Any, jobs: list[_Job], parsed: argparse.Namespace) -> list[Any]:
    from rosbag_tools.cli import is_expected
    from rosbag_tools.units import Unit, run_on_ray, run_units, usual_jobs

    units = [Unit(str(job.out).rstrip("/").rpartition("/")[2], job) for job in jobs]
    if parsed.ray:
        return run_on_ray(do, units, parsed.ray, is_expected, parsed.jobs)
    return run_units(do, units, parsed.jobs or usual_jobs(len(jobs)), is_expected)
