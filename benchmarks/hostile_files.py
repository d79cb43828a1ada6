"""Mutated files of every kind that the package reads: does any crash, hang, or fill the memory?

    python benchmarks/hostile_files.py --cases 200 --seed 1 --minutes 5

Bundles, bags (mcap, db3, ROS 1), images, recipes and checkpoints are made small and whole, changed
at random, and read in a forked child each. Counted are children that die of a signal, raise what
is no plain error, say more than one line, take more than 30 s, or more than 2 GiB of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

SECONDS = 30.0
MEMORY = 2 << 30
_NUMBERS = (b"0", b"-1", b"1e999", b".nan", b".inf", b"9" * 30, b"[]", b"{}", b"~", b"*a", b"&a x")


@dataclass(frozen=True)
class Kind:
    """A kind of file: where the whole one is, which of its files are changed, how it is read.

    read: raises one of `plain` for what it refuses.
    """

    name: str
    whole: Path
    read: Callable[[Path], object]
    plain: tuple[type[Exception], ...]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Bytes or pieces changed, cut, doubled; numbers of text replaced."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        size = len(changed)
        place = chance.randrange(size) if size else 0
        how = chance.randrange(6)
        if how == 0 and size:
            changed[place] ^= 1 << chance.randrange(8)
        elif how == 1:
            width = chance.choice((1, 2, 4, 8))
            changed[place : place + width] = chance.choice((b"\x00", b"\xff", b"\x7f")) * width
        elif how == 2:
            del changed[place:]
        elif how == 3:
            changed[place:place] = changed[place : place + chance.randrange(1, 200)]
        elif how == 4:
            end = place + chance.randrange(1, 100)
            del changed[place:end]
        else:
            end = changed.find(b"\n", place)
            start = changed.rfind(b": ", 0, end) + 2
            if 2 <= start < end:
                changed[start:end] = chance.choice(_NUMBERS)
            else:
                changed[place : place + 4] = chance.randbytes(4)
    return bytes(changed)


def mutated(kind: Kind, folder: Path, chance: random.Random) -> Path:
    """A changed copy; a bundle is sealed again, as who makes it knows how to."""
    copy = folder / kind.whole.name
    if not kind.whole.is_dir():
        copy.write_bytes(mutate(kind.whole.read_bytes(), chance))
        return copy
    shutil.copytree(kind.whole, copy)
    files = sorted(p for p in copy.rglob("*") if p.is_file())
    target = chance.choice(files)
    if kind.name != "bundle":
        target.write_bytes(mutate(target.read_bytes(), chance))
        return copy
    manifest = copy / "bundle.yaml"
    body = manifest.read_bytes().rpartition(b"sha256: ")[0]
    if target == manifest or chance.random() < 0.5:
        body = mutate(body, chance)
    else:
        old = hashlib.sha256(target.read_bytes()).hexdigest().encode()
        target.write_bytes(mutate(target.read_bytes(), chance))
        body = body.replace(old, hashlib.sha256(target.read_bytes()).hexdigest().encode())
    manifest.write_bytes(body + b"sha256: " + hashlib.sha256(body).hexdigest().encode() + b"\n")
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
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, MEMORY))
    try:
        kind.read(path)
    except kind.plain as error:
        return 1 if all(line.isprintable() for line in str(error).split("\n")) else 3
    except BaseException:
        traceback.print_exc()
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
    from depth_prior_ros.recordings.image_files import read_depth, read_image
    from training.loop.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
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
    net = torch.nn.Linear(4, 3)
    save_checkpoint(
        folder / "c.safetensors", {"n": net}, torch.optim.SGD(net.parameters(), 0.1), {"step": 1}
    )
    bags = _write_bags(folder)

    def look(path: Path) -> None:
        describe(load_bundle(path)).encode()

    def frames(path: Path) -> None:
        for frame in list(open_recording(path).frames)[:2]:
            frame.image()

    def checkpoint(path: Path) -> None:
        load_checkpoint(path, {"n": torch.nn.Linear(4, 3)})

    bag_errors = (RecordingError, CorruptFrameError)
    return [
        Kind("bundle", folder / "bundle", look, (BundleError,)),
        *(Kind(name, path, frames, bag_errors) for name, path in bags.items()),
        Kind("image_png", folder / "i.png", read_image, (CorruptFrameError,)),
        Kind("image_jpg", folder / "i.jpg", read_image, (CorruptFrameError,)),
        Kind("image_depth", folder / "d.png", read_depth, (CorruptFrameError,)),
        Kind("recipe", folder / "r.yaml", load_recipe, (RecipeError,)),
        Kind("checkpoint", folder / "c.safetensors", checkpoint, (CheckpointError,)),
    ]


def _write_bags(folder: Path) -> dict[str, Path]:
    """The first messages of the embedded drive in each format."""
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
    for name, plugin in (("mcap", StoragePlugin.MCAP), ("db3", StoragePlugin.SQLITE3)):
        with Writer(folder / name, version=8, storage_plugin=plugin) as writer:
            known: dict[str, Any] = {}
            for topic, kind, stamp, message in messages:
                if topic not in known:
                    known[topic] = writer.add_connection(topic, kind, typestore=two)
                writer.write(known[topic], stamp, two.serialize_cdr(message, kind))
    shutil.move(folder / "mcap" / "mcap.mcap", folder / "b.mcap")
    with Writer1(folder / "b.bag") as writer1:
        known1: dict[str, Any] = {}
        for topic, kind, stamp, message in messages:
            if topic not in known1:
                known1[topic] = writer1.add_connection(topic, kind, typestore=one)
            if hasattr(message, "header"):
                message.header.seq = 0
            for new, old in (("d", "D"), ("k", "K"), ("r", "R"), ("p", "P")):
                if hasattr(message, new):
                    setattr(message, old, getattr(message, new))
            writer1.write(known1[topic], stamp, one.serialize_ros1(message, kind))
    return {"mcap": folder / "b.mcap", "db3": folder / "db3", "bag": folder / "b.bag"}


def run(cases: int, seed: int, minutes: float, only: list[str] | None = None) -> Counter[str]:
    """Counts by "KIND OUTCOME"; what went wrong is printed with its seed."""
    counts: Counter[str] = Counter()
    spent = time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        found = [kind for kind in kinds(whole) if only is None or kind.name in only]
        for kind in found:
            if outcome(kind, kind.whole) != "accepted":
                raise SystemExit(f"the whole {kind.name} is not read")
        for number in range(cases):
            used = time.process_time() + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            if used - spent > 60 * minutes:
                print(f"stopped after {number} cases of each kind: {minutes:g} CPU minutes")
                break
            for kind in found:
                folder = Path(place) / "case"
                folder.mkdir()
                path = mutated(kind, folder, random.Random(f"{seed} {kind.name} {number}"))
                what = outcome(kind, path)
                counts[f"{kind.name} {what}"] += 1
                if what not in ("accepted", "refused"):
                    print(f"{kind.name}: {what} (--seed {seed}, case {number})")
                shutil.rmtree(folder)
    return counts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2.0, help="CPU minutes in all")
    parser.add_argument("--kinds", nargs="*", help="only these")
    arguments = parser.parse_args()
    counts = run(arguments.cases, arguments.seed, arguments.minutes, arguments.kinds)
    print(f"seed {arguments.seed}")
    for name in sorted(counts):
        print(f"figure {name.replace(' ', '_')} {counts[name]}")
    for what in ("crash", "traceback", "several lines", "hang", "memory"):
        total = sum(n for name, n in counts.items() if name.endswith(f" {what}"))
        print(f"figure {what.replace(' ', '_')} {total}")


if __name__ == "__main__":
    main()
