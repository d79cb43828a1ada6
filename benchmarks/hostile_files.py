"""Mutated files of every kind that the package reads: does any crash, hang, or fill the memory?

    python benchmarks/hostile_files.py --cases 200 --seed 1 --minutes 5
    python benchmarks/hostile_files.py --full --state hostile.json  # goes on where it was stopped

Bundles, bags (mcap, db3, ROS 1), images, recipes, checkpoints, calibrations and scale files are
made small and whole, changed at random, and read in a forked child each. Half of the changes are
those of somebody who knows the format: hashes, checksums and lengths fit again. Counted are
children that die of a signal, raise what is no plain error, say more than one line or letters that
are not printable, take more than 30 s, or more than 2 GiB of memory.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

SECONDS = 30.0
MEMORY = 2 << 30
FULL = {
    **dict.fromkeys(("bundle", "mcap", "db3", "bag"), 2000),
    **dict.fromkeys(("image_png", "image_jpg", "image_depth"), 334),
    **dict.fromkeys(("recipe", "checkpoint", "calibration", "scale"), 500),
}
_SAVED_EVERY = 50
_NUMBERS = (b"0", b"-1", b"1e999", b".nan", b".inf", b"9" * 30, b"[]", b"{}", b"~", b"*a", b"&a x")
_WORDS = (b"\x1b[2J", b"\xe2\x80\xae", b"<b>", b"\x00", b"\xff", b"\n", b"9" * 400, b"../..")
Change = Callable[[Path, random.Random], Path]


@dataclass(frozen=True)
class Kind:
    """A kind of file: where the whole one is, and how it is read.

    read: raises one of `plain` for what it refuses.
    change: writes a changed one into a folder, by somebody who knows the format; None: as any file.
    """

    name: str
    whole: Path
    read: Callable[[Path], object]
    plain: tuple[type[Exception], ...]
    change: Change | None = None


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Bytes or pieces changed, cut, doubled; numbers of text replaced."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        size = len(changed)
        place = chance.randrange(size) if size else 0
        how = chance.randrange(7)
        if how == 0 and size:
            changed[place] ^= 1 << chance.randrange(8)
        elif how == 1:
            width = chance.choice((1, 2, 4, 8))
            changed[place : place + width] = chance.choice((b"\x00", b"\xff", b"\x7f")) * width
        elif how == 2 and chance.random() < 0.3:
            del changed[place:]
        elif how == 3:
            changed[place:place] = changed[place : place + chance.randrange(1, 200)]
        elif how == 4:
            end = place + chance.randrange(1, 100)
            del changed[place:end]
        elif how == 5:
            changed[place:place] = chance.choice(_WORDS)
        else:
            end = changed.find(b"\n", place)
            start = changed.rfind(b": ", 0, end) + 2
            if 2 <= start < end:
                changed[start:end] = chance.choice(_NUMBERS)
            else:
                changed[place : place + 4] = chance.randbytes(4)
    return bytes(changed)


def mutated(kind: Kind, folder: Path, chance: random.Random) -> Path:
    """A changed copy, in `folder`."""
    if kind.change is not None and chance.random() < 0.5:
        return kind.change(folder, chance)
    copy = folder / kind.whole.name
    if not kind.whole.is_dir():
        copy.write_bytes(mutate(kind.whole.read_bytes(), chance))
        return copy
    shutil.copytree(kind.whole, copy)
    target = chance.choice(sorted(p for p in copy.rglob("*") if p.is_file()))
    target.write_bytes(mutate(target.read_bytes(), chance))
    return copy


def outcome(kind: Kind, path: Path) -> str:
    """Read it in a child: "accepted", "refused", or what went wrong."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        os._exit(_in_child(kind, path))
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - start > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return "hang"
        time.sleep(0.002)
    if usage.ru_maxrss * 1024 > MEMORY:
        return "memory"
    if os.WIFSIGNALED(status):
        return "crash"
    codes = {0: "accepted", 1: "refused", 2: "traceback", 3: "several lines"}
    return codes.get(os.WEXITSTATUS(status), "crash")


def _in_child(kind: Kind, path: Path) -> int:
    # What decoders of C print would hide what is found.
    said = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, MEMORY))
    try:
        kind.read(path)
    except kind.plain as error:
        return 1 if str(error).isprintable() else 3
    except BaseException:
        os.write(said, traceback.format_exc().encode(errors="replace"))
        return 2
    return 0


def kinds(folder: Path) -> list[Kind]:
    """Whole files of every kind, made in `folder`, and their readers."""
    import cv2
    import numpy as np
    import torch
    from helpers import make_tiny_bundle

    from depth_prior_ros.bundle import BundleError, describe, load_bundle
    from depth_prior_ros.recordings import CorruptFrameError, RecordingError, open_recording
    from depth_prior_ros.recordings.folder import read_intrinsics
    from depth_prior_ros.recordings.image_files import read_depth, read_image
    from depth_prior_ros.scale import ScaleFileError, load_scale, save_scale
    from training.loop.checkpoint import CheckpointError, load_checkpoint
    from training.recipes.files import load_recipe
    from training.recipes.recipe import RecipeError

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    make_tiny_bundle(folder / "bundle")
    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    cv2.imwrite(str(folder / "i.png"), picture)
    cv2.imwrite(str(folder / "i.jpg"), picture)
    cv2.imwrite(str(folder / "d.png"), picture[..., 0].astype(np.uint16))
    shutil.copy(ROOT / "config" / "training" / "first.yaml", folder / "r.yaml")
    (folder / "k.yaml").write_text(_CALIBRATION)
    measured = {"mode": "odometry", "state": "measured", "metres_per_unit": 9.0}
    stored = {**measured, "spread": 0.1, "samples": 5}
    save_scale(folder / "s.yaml", stored, bundle="b", camera=None)
    _write_checkpoint(folder / "c.safetensors", None)

    def look(path: Path) -> None:
        describe(load_bundle(path)).encode()

    def frames(path: Path) -> None:
        for frame in list(open_recording(path).frames)[:2]:
            frame.image()

    def checkpoint(path: Path) -> None:
        load_checkpoint(path, {"n": torch.nn.Linear(4, 3)})

    def calibration(path: Path) -> None:
        read_intrinsics(path, (640, 192))

    def scale(path: Path) -> None:
        load_scale(path, bundle="b", camera=None)

    bag_errors = (RecordingError, CorruptFrameError)
    damaged = (CorruptFrameError,)
    return [
        Kind("bundle", folder / "bundle", look, (BundleError,), _resealed(folder / "bundle")),
        *(Kind(name, path, frames, bag_errors, bag) for name, path, bag in _bags(folder)),
        Kind("image_png", folder / "i.png", read_image, damaged, _rechecked(folder / "i.png")),
        Kind("image_jpg", folder / "i.jpg", read_image, damaged),
        Kind("image_depth", folder / "d.png", read_depth, damaged, _rechecked(folder / "d.png")),
        Kind("recipe", folder / "r.yaml", load_recipe, (RecipeError,)),
        Kind("checkpoint", folder / "c.safetensors", checkpoint, (CheckpointError,), _checkpoint),
        Kind("calibration", folder / "k.yaml", calibration, (RecordingError,)),
        Kind("scale", folder / "s.yaml", scale, (ScaleFileError,)),
    ]


_CALIBRATION = """image_width: 640
image_height: 192
camera_name: front
camera_matrix: {rows: 3, cols: 3, data: [371.8, 0, 314.1, 0, 369.4, 88.5, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.3, 0.1, 0, 0, 0]}
rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}
projection_matrix: {rows: 3, cols: 4, data: [371.8, 0, 314.1, 0, 0, 369.4, 88.5, 0, 0, 0, 1, 0]}
"""


def _resealed(whole: Path) -> Change:
    """A bundle whose hashes fit what was changed."""

    def change(folder: Path, chance: random.Random) -> Path:
        copy = folder / whole.name
        shutil.copytree(whole, copy)
        target = chance.choice(sorted(p for p in copy.rglob("*") if p.is_file()))
        manifest = copy / "bundle.yaml"
        body = manifest.read_bytes().rpartition(b"sha256: ")[0]
        if target == manifest:
            body = mutate(body, chance)
        else:
            old = hashlib.sha256(target.read_bytes()).hexdigest().encode()
            target.write_bytes(mutate(target.read_bytes(), chance))
            body = body.replace(old, hashlib.sha256(target.read_bytes()).hexdigest().encode())
        manifest.write_bytes(body + b"sha256: " + hashlib.sha256(body).hexdigest().encode() + b"\n")
        return copy

    return change


def _rechecked(whole: Path) -> Change:
    """A PNG of which one chunk was changed; its length and checksum fit."""

    def change(folder: Path, chance: random.Random) -> Path:
        data, place, chunks = whole.read_bytes(), 8, []
        while place < len(data):
            (size,) = struct.unpack_from(">I", data, place)
            chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
            place += 12 + size
        number = chance.randrange(len(chunks) - 1)
        name, body = chunks[number]
        if name == b"IDAT" and chance.random() < 0.7:
            body = zlib.compress(mutate(zlib.decompress(body), chance))
        else:
            body = mutate(body, chance)
        chunks[number] = (name, body)
        written = data[:8] + b"".join(
            struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b))
            for n, b in chunks
        )
        (folder / whole.name).write_bytes(written)
        return folder / whole.name

    return change


def _checkpoint(folder: Path, chance: random.Random) -> Path:
    _write_checkpoint(folder / "c.safetensors", chance)
    return folder / "c.safetensors"


def _write_checkpoint(path: Path, chance: random.Random | None) -> None:
    """A checkpoint with the right hash, of whatever numbers, shapes, names and progress."""
    import torch
    from safetensors.torch import save_file

    from training.loop import checkpoint

    net = torch.nn.Linear(4, 3)
    tensors = checkpoint.network_tensors({"n": net})
    progress = json.dumps({"step": 1})
    if chance is not None:
        name = chance.choice(sorted(tensors))
        tensor = tensors.pop(name)
        kinds = (torch.float64, torch.bool, torch.complex64, torch.int8, torch.bfloat16)
        odd = (
            lambda: tensor * chance.choice((float("nan"), float("inf"), 1e38)),
            lambda: tensor.to(chance.choice(kinds)),
            lambda: tensor.reshape(-1)[: chance.randrange(3)],
            lambda: tensor[None],
            lambda: tensor,
        )
        if chance.random() < 0.3:
            name = mutate(name.encode(), chance).decode(errors="ignore")
        tensors[name] = chance.choice(odd)().contiguous()
        if chance.random() < 0.5:
            progress = mutate(progress.encode(), chance).decode(errors="ignore")
    about = {"progress": progress, "sha256": checkpoint._digest(tensors, progress)}
    save_file(tensors, str(path), about)


def _bags(folder: Path) -> list[tuple[str, Path, Change]]:
    """The first messages of the embedded drive in each format, and how to write changed ones."""
    from rosbags.highlevel import AnyReader
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    two, one = get_typestore(Stores.ROS2_HUMBLE), get_typestore(Stores.ROS1_NOETIC)
    seen: Counter[str] = Counter()
    messages = []
    with AnyReader([ROOT / "drives" / "street.mcap"], default_typestore=two) as reader:
        for connection, stamp, raw in reader.messages():
            seen[connection.topic] += 1
            if seen[connection.topic] <= 3 and "camera" in connection.topic:
                message = reader.deserialize(raw, connection.msgtype)
                messages.append((connection.topic, connection.msgtype, stamp, message))

    def ros1(message: Any, kind: str) -> bytes:
        if hasattr(message, "header"):
            message.header.seq = 0
        for new, old in (("d", "D"), ("k", "K"), ("r", "R"), ("p", "P")):
            if hasattr(message, new):
                setattr(message, old, getattr(message, new))
        return bytes(one.serialize_ros1(message, kind))

    Rows = list[tuple[str, str, int, bytes]]
    of_two = [(t, k, stamp, bytes(two.serialize_cdr(m, k))) for t, k, stamp, m in messages]
    of_one = [(t, k, stamp, ros1(m, k)) for t, k, stamp, m in messages]

    def write_db3(place: Path, rows: Rows) -> Path:
        return _write_bag(
            Writer(place / "db3", version=8, storage_plugin=StoragePlugin.SQLITE3),
            two,
            rows,
            place / "db3",
        )

    def write_mcap(place: Path, rows: Rows) -> Path:
        _write_bag(
            Writer(place / "mcap", version=8, storage_plugin=StoragePlugin.MCAP), two, rows, place
        )
        shutil.move(place / "mcap" / "mcap.mcap", place / "b.mcap")
        return place / "b.mcap"

    def write_bag(place: Path, rows: Rows) -> Path:
        return _write_bag(Writer1(place / "b.bag"), one, rows, place / "b.bag")

    def changed(write: Callable[[Path, Rows], Path], rows: Rows) -> Change:
        def change(place: Path, chance: random.Random) -> Path:
            new = list(rows)
            for _ in range(chance.choice((1, 1, 3))):
                at = chance.randrange(len(new))
                topic, kind, stamp, raw = new[at]
                if chance.random() < 0.1:
                    topic += chance.choice(_WORDS).decode(errors="ignore")
                # Most of an image is pixels; what is before them matters.
                cut = chance.choice((60, 200, len(raw)))
                new[at] = (topic, kind, stamp, mutate(raw[:cut], chance) + raw[cut:])
            return write(place, new)

        return change

    formats = (("mcap", write_mcap, of_two), ("db3", write_db3, of_two), ("bag", write_bag, of_one))
    return [(name, write(folder, rows), changed(write, rows)) for name, write, rows in formats]


def _write_bag(
    writer: Any, store: Any, rows: list[tuple[str, str, int, bytes]], path: Path
) -> Path:
    known: dict[str, Any] = {}
    with writer:
        for topic, kind, stamp, raw in rows:
            if topic not in known:
                known[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(known[topic], stamp, raw)
    return path


class Tally:
    """What became of how many cases of each kind; kept in a file, so that a run goes on."""

    def __init__(self, seed: int, file: Path | None) -> None:
        self.file = file
        self.next: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._seed = seed
        if file is not None and file.exists():
            kept = json.loads(file.read_text())
            if kept["seed"] != seed:
                raise SystemExit(f"{file}: of seed {kept['seed']}")
            self.next.update(kept["next"])
            self.counts.update(kept["counts"])
            self.seconds = kept["seconds"]
        self._begin = _processor_seconds() - self.seconds

    def save(self) -> None:
        """Write the file."""
        self.seconds = _processor_seconds() - self._begin
        if self.file is not None:
            kept = {"seed": self._seed, "seconds": self.seconds, "next": self.next}
            self.file.write_text(json.dumps({**kept, "counts": self.counts}))


def _processor_seconds() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def run(
    cases: dict[str, int], seed: int, minutes: float, file: Path | None = None
) -> tuple[Counter[str], float]:
    """Counts by "KIND OUTCOME", and processor seconds; what went wrong is printed with its seed."""
    tally = Tally(seed, file)
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        found = [kind for kind in kinds(whole) if kind.name in cases]
        for kind in found:
            if outcome(kind, kind.whole) != "accepted":
                raise SystemExit(f"the whole {kind.name} is not read")
        gc.freeze()  # children share the memory of what is there
        for kind in found:
            for number in range(tally.next[kind.name], cases[kind.name]):
                _one_case(kind, Path(place) / "case", number, seed, tally)
                if tally.next[kind.name] % _SAVED_EVERY == 0:
                    tally.save()
                    if tally.seconds > 60 * minutes:
                        print(f"stopped in {kind.name}: {minutes:g} CPU minutes are over")
                        return tally.counts, tally.seconds
        tally.save()
    return tally.counts, tally.seconds


def _one_case(kind: Kind, folder: Path, number: int, seed: int, tally: Tally) -> None:
    folder.mkdir()
    path = mutated(kind, folder, random.Random(f"{seed} {kind.name} {number}"))
    what = outcome(kind, path)
    tally.counts[f"{kind.name} {what}"] += 1
    tally.next[kind.name] = number + 1
    if what not in ("accepted", "refused"):
        print(f"{kind.name}: {what} (--seed {seed}, case {number})", flush=True)
    shutil.rmtree(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=20, help="of each kind")
    full = ", ".join(f"{kind} {count}" for kind, count in FULL.items())
    parser.add_argument("--full", action="store_true", help=f"so many cases: {full}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=40.0, help="CPU minutes in all")
    parser.add_argument("--kinds", nargs="*", choices=FULL, default=list(FULL), help="only these")
    parser.add_argument("--state", type=Path, help="file that keeps the counts, to go on")
    parser.add_argument("--case", type=int, help="this one case of one kind alone")
    arguments = parser.parse_args()
    if arguments.case is not None:
        with tempfile.TemporaryDirectory() as place:
            (whole := Path(place) / "whole").mkdir()
            (folder := Path(place) / "case").mkdir()
            kind = next(kind for kind in kinds(whole) if kind.name == arguments.kinds[0])
            chance = random.Random(f"{arguments.seed} {kind.name} {arguments.case}")
            print(outcome(kind, mutated(kind, folder, chance)))
        return
    cases = {kind: FULL[kind] if arguments.full else arguments.cases for kind in arguments.kinds}
    counts, seconds = run(cases, arguments.seed, arguments.minutes, arguments.state)
    print(f"seed {arguments.seed}, {seconds / 60:.1f} CPU minutes")
    for name in sorted(counts):
        print(f"figure {name.replace(' ', '_')} {counts[name]}")
    for what in ("crash", "traceback", "several lines", "hang", "memory"):
        total = sum(n for name, n in counts.items() if name.endswith(f" {what}"))
        print(f"figure {what.replace(' ', '_')} {total}")


if __name__ == "__main__":
    main()
