"""How fast is `depth_bag extract`, of what decoding and encoding alone allow? Does it keep memory?

    python benchmarks/extract.py                         # a made bag of 1242x375
    python benchmarks/extract.py --bag drive.mcap
    python benchmarks/extract.py --memory 20000          # a bag of small JPEGs

A bag without depth is only decoded: what is recorded as JPEG is kept. Decoding and encoding alone
are done on data that is in memory, by as many threads as `extract` has: each JPEG is decoded once,
each depth map decoded and encoded. Both are measured by turns, and the best of each counts.
Memory is the resident size of the process after half of the frames and at the end.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import Frame, StoredRecording, open_recording
from depth_prior_ros.recordings.image_files import decode_depth, decode_image, encode_depth
from rosbag_tools.extract import PNG_COMPRESSION, THREADS, ExtractOptions, extract
from rosbag_tools.make import write_bag

START_NS = 1_700_000_000_000_000_000


def made_recording(count: int, size: tuple[int, int], depth: bool, seed: int) -> StoredRecording:
    """Pictures of blurred noise, with the bytes of a street's; depth at 5 % of the pixels."""
    width, height = size
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (height, 2 * width, 3), dtype=np.uint8)
    wide = cv2.GaussianBlur(noise, (0, 0), 1.5)
    metres = rng.uniform(4, 80, (height, width)).astype(np.float32)
    metres[rng.random((height, width)) > 0.05] = 0
    camera = Camera(0.58 * width, 0.58 * width, width / 2, height / 2, width, height)

    def picture(number: int) -> NDArray[np.uint8]:
        left = 3 * number % width
        return wide[:, left : left + width].copy()

    def frame(number: int) -> Frame:
        return Frame(
            number,
            START_NS + number * 100_000_000,
            camera,
            lambda: picture(number),
            (lambda: metres) if depth else None,
            speed=8.0,
        )

    source = "lidar" if depth else None
    return StoredRecording("made", [frame(i) for i in range(count)], depth_source=source)


def alone(recording: StoredRecording, frames: int) -> float:
    """Seconds of decoding and encoding alone, of data that is in memory."""
    data = []
    for frame in islice(recording.frames, frames):
        assert frame.load_stored is not None, "the images of the bag are no JPEGs"
        depth = frame.depth()
        data.append((frame.load_stored(), None if depth is None else encode_depth(depth)))

    def once(entry: tuple[bytes, bytes | None]) -> None:
        decode_image(entry[0], "image")
        if entry[1] is not None:
            encode_depth(decode_depth(entry[1], "depth"), PNG_COMPRESSION)

    with ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter()
        for _ in pool.map(once, data):
            pass
        return time.perf_counter() - began


def resident_mb() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def memory(folder: Path, frames: int, seed: int) -> None:
    """Print how much memory an extraction of small JPEGs takes in its second half."""
    recording = made_recording(frames, (160, 48), False, seed)
    bag = write_bag(recording, folder / "long.mcap").path
    print(f"{frames} frames of 160x48, {bag.stat().st_size / 1e6:.0f} MB")
    seen: dict[int, float] = {}

    def told(done: int, total: int) -> None:
        if done in (total // 2, total) or done % (total // 10) == 0:
            seen[done] = resident_mb()

    began = time.perf_counter()
    extract(bag, open_recording(bag), folder / "long", ExtractOptions(), told)
    for done, megabytes in seen.items():
        print(f"  after {done:6d} frames {megabytes:7.1f} MB")
    print(f"{frames / (time.perf_counter() - began):.0f} frames/s, hashing and opening included")
    print(f"figure extract_memory_growth_mb {seen[frames] - seen[frames // 2]:.2f}")


def speed(bag: Path, folder: Path, rounds: int) -> None:
    """Print the rates of an extraction, and of decoding and encoding alone."""
    recording = open_recording(bag)
    count = len(recording.frames)
    camera = recording.frames[0].camera
    rates: dict[str, list[float]] = {"extract": [], "decoding and encoding alone": []}
    processor: list[float] = []
    for number in range(rounds):
        out = folder / f"set{number}"
        began, worked = time.perf_counter(), time.process_time()
        extract(bag, recording, out, ExtractOptions())
        processor.append((time.process_time() - worked) / count)
        rates["extract"].append(count / (time.perf_counter() - began))
        rates["decoding and encoding alone"].append(count / alone(recording, count))
        shutil.rmtree(out)
    print(f"{bag.name}: {count} frames of {camera.width}x{camera.height}, {rounds} rounds")
    for name, found in rates.items():
        print(f"  {name:<28} {max(found):7.1f} frames/s (worst {min(found):.1f})")
    print(f"  processor time of extract      {1e3 * min(processor):.1f} ms a frame")
    best = {name: max(found) for name, found in rates.items()}
    print(f"figure extract_share {best['extract'] / best['decoding and encoding alone']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bag", type=Path, help="of JPEGs (default: one is made)")
    parser.add_argument("--frames", type=int, default=200, help="of the made bag")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, metavar="FRAMES", help="look at memory instead")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    print(f"OpenCV {cv2.__version__}, {THREADS} threads")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if parsed.memory:
            memory(folder, parsed.memory, parsed.seed)
            return
        bag = parsed.bag
        if bag is None:
            recording = made_recording(parsed.frames, (1242, 375), True, parsed.seed)
            bag = write_bag(recording, folder / "made.mcap").path
        speed(bag, folder, parsed.rounds)


if __name__ == "__main__":
    main()
