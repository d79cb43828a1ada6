"""How fast is `depth_bag process`, beside the networks' own time?

    python benchmarks/process.py
    python benchmarks/process.py drive.mcap --outputs npy --outputs npy png bag video
    python benchmarks/process.py DRIVE --as-bag --as-folder --as-video --lockstep

Without a recording: KITTI's drive 0052 below $DEPTH_PRIOR_DATA as it is and as a bag, folder and
video made of it, and the embedded drive, with NPY output; the first also with a bag, PNG, a video
and all of them.

The networks alone: the same frames, decoded before, one after the other, with no other thread at
work; what their backend takes from an image at their size to its answer is summed. That is done
before each run with NPY, so that a machine that becomes slower or faster meanwhile tells less.
Both need a quiet machine. "At work" is the networks' part of the time within the run, where
decoding and encoding beside them slow them down, too. A JPEG that is copied into another form gives
the same depth, a video codes the pictures again. --lockstep replays each form through the node
(ROS 2) and compares.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.recordings import Frame, StoredRecording, open_recording, read_frames
from depth_prior_ros.share import demo_bag
from rosbag_tools.make import write_bag
from rosbag_tools.process import Processed, ProcessOptions, _Run, process
from rosbag_tools.reports.account import Account
from rosbag_tools.work import Workbook


@dataclass
class Form:
    """A recording in one form: where it lies, and how it is read."""

    name: str
    path: Path
    reading: dict[str, Any] = field(default_factory=dict)

    def open(self) -> StoredRecording:
        return open_recording(self.path, **self.reading)


def forms(path: Path, folder: Path, wanted: Collection[str]) -> list[Form]:
    """The recording, and what is made of it: of bag, folder, video."""
    recording = open_recording(path)
    camera = recording.frames[0].camera
    found = [Form("as it is", path)]
    if "bag" in wanted:
        found.append(Form("bag", write_bag(recording, folder / "drive.mcap").path))
    if "folder" in wanted:
        images = folder / "images"
        images.mkdir()
        for frame in recording.frames:
            assert frame.load_stored is not None, "its images are no files"
            (images / f"{frame.index:06d}.jpg").write_bytes(frame.load_stored())
        found.append(Form("folder", images, {"camera": camera}))
    if "video" in wanted:
        file = folder / "drive.avi"
        code = cv2.VideoWriter.fourcc(*"FFV1")
        writer = cv2.VideoWriter(str(file), code, 10, camera.size)
        for frame in recording.frames:
            writer.write(cv2.cvtColor(frame.image(), cv2.COLOR_RGB2BGR))
        writer.release()
        found.append(Form("video", file, {"camera": camera}))
    return found


def depths(out: Path) -> list[NDArray[np.float32]]:
    """What `--npy` wrote."""
    return [np.load(path) for path in sorted((out / "npy").iterdir())]


def largest_difference(one: list[NDArray[Any]], other: list[NDArray[Any]]) -> float:
    """Of the depth that both have, relative; infinite where only one has some."""
    worst = 0.0
    if len(one) != len(other):
        return float("inf")
    for a, b in zip(one, other, strict=True):
        known = np.isfinite(a)
        if (known != np.isfinite(b)).any():
            return float("inf")
        if known.any():
            worst = max(worst, float((np.abs(a[known] - b[known]) / b[known]).max()))
    return worst


def in_lockstep(form: Form, folder: Path, bundle: str) -> list[NDArray[np.float32]]:
    """Depth as the node publishes it in a replay in lockstep."""
    from rosbag_tools.replaying.session import ReplayOptions, replay

    published: dict[int, NDArray[np.float32]] = {}
    answered = Account.answered

    def keep(self: Account, position: int, depth: NDArray[np.float32], *other: Any) -> Any:
        published[position] = depth.copy()
        return answered(self, position, depth, *other)

    Account.answered = keep  # type: ignore[method-assign]
    try:
        replay(form.open(), folder, ReplayOptions(bundle=bundle, forced=False), "benchmark")
    finally:
        Account.answered = answered  # type: ignore[method-assign]
    return [published[position] for position in sorted(published)]


def run(form: Form, out: Path, outputs: tuple[str, ...], parsed: argparse.Namespace) -> Processed:
    """Process a form, without models on their own, which only recordings with truth have."""
    options = ProcessOptions(outputs, parsed.bundle, parsed.backend, forced=False)
    recording = form.open()
    if parsed.frames:
        recording.frames = recording.frames[: parsed.frames]
    if not parsed.truth:
        recording.frames = [_without_truth(frame) for frame in recording.frames]
    return process(form.path, recording, out, options, "benchmarks/process.py")


def networks_alone(form: Form, out: Path, parsed: argparse.Namespace) -> float:
    """Frames a second of the networks, when nothing else is done."""
    from depth_prior_ros.bundle import load_bundle
    from depth_prior_ros.pipeline import DepthPipeline

    recording = form.open()
    recording.frames = recording.frames[: parsed.frames or None]
    bundle = load_bundle(parsed.bundle)
    pipeline = DepthPipeline(bundle, parsed.backend)
    options = ProcessOptions((), parsed.bundle, parsed.backend, forced=False)
    work = Workbook(out / ".work", ("journal",))
    one = _Run(recording, out, options, pipeline, Account(recording, bundle, out), work)
    decoded = list(read_frames(recording))
    for position, image in decoded:
        one._infer(position, image)
    work.close()
    return one.processed.new / one.processed.network_seconds


def _without_truth(frame: Frame) -> Frame:
    return replace(frame, load_depth=None)


def measure(
    forms: list[Form], outputs: list[tuple[str, ...]], folder: Path, parsed: argparse.Namespace
) -> None:
    """Process each form with each of the outputs, and print rates and shares."""
    first: list[NDArray[Any]] = []
    alone = 0.0
    for number, form in enumerate(forms):
        # Other outputs are of interest once: they cost the same in every form.
        for kinds in outputs if number == 0 else outputs[:1]:
            out = folder / f"out{number}_{'_'.join(kinds)}"
            if kinds == ("npy",) or not alone:
                alone = networks_alone(form, folder / f"alone{number}", parsed)
                print(f"{form.name}, networks alone: {alone:.2f} frames/s", flush=True)
            worked = time.process_time()
            found = run(form, out, kinds, parsed)
            worked = (time.process_time() - worked) / found.new
            rate = found.new / found.seconds
            print(
                f"{form.name}, {' '.join(kinds)}: {found.new} frames, {rate:.2f} frames/s, "
                f"{rate / alone:.2f} of the networks alone; they were at work "
                f"{found.network_seconds / found.seconds:.0%} of the time; "
                f"{1e3 * worked:.0f} ms of processor time a frame, start included",
                flush=True,
            )
            if kinds == ("npy",):
                name = form.name.replace(" ", "_")
                print(f"figure process_share_{name} {rate / alone:.3f}", flush=True)
            if "npy" not in kinds:
                continue
            made = depths(out)
            first = first or made
            if number and form.name != "video":
                print(f"  against the first form: {largest_difference(made, first):.1e}")
            if parsed.lockstep and kinds == ("npy",):
                replayed = in_lockstep(form, folder / f"replay{number}", parsed.bundle)
                print(f"  against lockstep: {largest_difference(made, replayed):.1e}")


ALL_OUTPUTS = [("npy",), ("bag",), ("png",), ("video",), ("npy", "png", "bag", "video")]
DRIVE = "kitti_raw/2011_09_26/2011_09_26_drive_0052_sync"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--outputs", nargs="+", action="append", help="default: npy")
    parser.add_argument("--bundle", default="lite")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--frames", type=int, help="only the first ones")
    parser.add_argument("--truth", action="store_true", help="compare with true depth, too")
    for form in ("bag", "folder", "video"):
        parser.add_argument(f"--as-{form}", action="store_true")
    parser.add_argument("--lockstep", action="store_true", help="compare with the node")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if parsed.recording is not None:
            wanted = [name for name in ("bag", "folder", "video") if getattr(parsed, f"as_{name}")]
            outputs = [tuple(kinds) for kinds in parsed.outputs or [["npy"]]]
            measure(forms(parsed.recording, folder, wanted), outputs, folder, parsed)
            return
        drive = Path(os.environ.get("DEPTH_PRIOR_DATA", "")) / DRIVE
        measure(forms(drive, folder, ("bag", "folder", "video")), ALL_OUTPUTS, folder, parsed)
        embedded = Form("embedded", demo_bag())
        (folder / "embedded").mkdir()
        measure([embedded], ALL_OUTPUTS[:1], folder / "embedded", parsed)


if __name__ == "__main__":
    main()
