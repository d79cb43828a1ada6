"""Does a run that is killed again and again end like one that was not?

    python benchmarks/kill_and_resume.py RECIPE [KEY=VALUE ...] --kills 3 --seed 0

Carries a recipe out twice: once unbroken, once with `kill -9` at random steps of every stage, each
time started again with the same command. Then compares, bit for bit: every line of every
metrics.jsonl (but for the seconds), all tensors and the progress of all checkpoints, and the files
of the bundle. An unbroken run that is in --out already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ("last.safetensors",)
# Times and the commit are written there.
NOT_COMPARED = ("bundle.yaml",)


def launch(arguments: list[str], errors: IO[bytes], env: dict[str, str]) -> subprocess.Popen:
    """Start `depth_train` in a process of its own."""
    command = [sys.executable, "-m", "training.commands.cli", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=errors)


@dataclass
class Command:
    """`depth_train run` of a recipe into a folder, to be started as often as needed."""

    recipe: Path
    overrides: list[str]
    out: Path
    process: subprocess.Popen | None = None
    said: list[str] = field(default_factory=list)

    def start(self) -> None:
        overrides = [*self.overrides, "log_every=1"]  # the log tells which step is being done
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        arguments = ["run", str(self.recipe), *overrides, "--out", str(self.out)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = launch(arguments, self._errors, env)

    def end(self) -> None:
        """Let it run to its end; an error is raised with what it said."""
        assert self.process is not None
        if self.process.wait() != 0:
            raise RuntimeError(f"{self.out}: training failed:\n{self._listen()}")
        self._listen()

    def kill_in(self, stage: str, step: int, delay: float) -> int:
        """`kill -9` once this start has logged `step` of `stage`; returns the last step logged."""
        assert self.process is not None
        path, before, size = self.out / stage / "metrics.jsonl", self._number, -1
        while True:
            if self.process.poll() is not None:
                self.end()
                raise RuntimeError(f"{self.out}: the run ended before step {step} of {stage}")
            # Each start rewrites the file: the lines of the start before do not count.
            if _number(path) != before.get(stage) and path.stat().st_size != size:
                size = path.stat().st_size
                if last_step(path) >= step:
                    break
            time.sleep(0.005)
        time.sleep(delay)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._listen()
        return last_step(path)

    def note_files(self, stages: list[str]) -> None:
        """Before a start: which files are there from before."""
        self._number = {s: _number(self.out / s / "metrics.jsonl") for s in stages}

    def _listen(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        self._errors.close()
        self.said.append(text)
        return text


def _number(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def log_lines(path: Path) -> list[dict[str, Any]]:
    """What a stage logged, without the seconds; a line that was cut off is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        line.pop("seconds", None)
        lines.append(line)
    return lines


def last_step(path: Path) -> int:
    return max((line["step"] for line in log_lines(path)), default=0)


def stages_of(run: Path) -> dict[str, int]:
    """The stage folders of a finished run and the steps of each, in order."""
    folders = [f for f in run.iterdir() if (f / CHECKPOINTS[0]).is_file()]
    folders.sort(key=lambda f: (int(f.name.split("_")[0]), f.name))
    return {f.name: last_step(f / "metrics.jsonl") for f in folders}


@dataclass
class Kills:
    """Where the broken run was killed: by stage, the steps done when it happened."""

    done: dict[str, list[int]]


def seconds_per_step(run: Path, stage: str) -> float:
    """The median of a finished stage."""
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    return statistics.median(line["seconds"] for line in map(json.loads, lines) if "loss" in line)


def run_broken(command: Command, whole: Path, kills: int, seed: int) -> Kills:
    """Carry out `whole` once more with `kills` kills in every stage, then let it end."""
    rng, stages = random.Random(seed), stages_of(whole)
    names, done = list(stages), Kills({})
    for stage, steps in stages.items():
        # Room at the end, because the run goes on between the look at the log and the kill.
        room = range(1, max(2, steps - max(2, steps // 20)))
        within = seconds_per_step(whole, stage)  # the kill falls anywhere in the next step
        chosen = sorted(rng.sample(room, min(kills, len(room))))
        done.done[stage] = []
        for step in chosen:
            command.note_files(names)
            command.start()
            at = command.kill_in(stage, step, delay=rng.uniform(0, within))
            if at >= steps:
                raise RuntimeError(
                    f"{stage} had ended when it was killed: too few or too fast steps"
                )
            done.done[stage].append(at)
            print(f"{stage}: killed after step {at} of {steps}", flush=True)
    command.start()
    command.end()
    return done


def _tensors(path: Path) -> tuple[dict[str, Any], str]:
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, (file.metadata() or {}).get("progress", "")


def differences(whole: Path, broken: Path) -> dict[str, list[str]]:
    """What differs between two runs, by stage (and "bundle"); empty lists where nothing does."""
    found: dict[str, list[str]] = {}
    for stage in stages_of(whole):
        a, b = whole / stage, broken / stage
        found[stage] = []
        if log_lines(a / "metrics.jsonl") != log_lines(b / "metrics.jsonl"):
            found[stage].append("metrics.jsonl")
        for name in CHECKPOINTS:
            if (a / name).is_file() or (b / name).is_file():
                found[stage] += _checkpoint_differences(a / name, b / name)
        if (a / "bundle").is_dir():
            found[stage] += _bundle_differences(a / "bundle", b / "bundle")
    found["bundle"] = _bundle_differences(whole / "bundle", broken / "bundle")
    return found


def _bundle_differences(a: Path, b: Path) -> list[str]:
    names = {f.name for bundle in (a, b) for f in bundle.glob("*")} - set(NOT_COMPARED)
    return [name for name in sorted(names) if _bytes(a / name) != _bytes(b / name)]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _checkpoint_differences(a: Path, b: Path) -> list[str]:
    if not (a.is_file() and b.is_file()):
        return [f"{a.name} is in one run only"]
    (first, progress), (second, other) = _tensors(a), _tensors(b)
    wrong = [
        f"{a.name}: {key}"
        for key in first.keys() | second.keys()
        if key not in first or key not in second or first[key].tobytes() != second[key].tobytes()
    ]
    return wrong if progress == other else [*wrong, f"{a.name}: progress"]


def compare(
    recipe: Path, overrides: list[str], out: Path, kills: int = 3, seed: int = 0
) -> tuple[Kills, dict[str, list[str]]]:
    """Run a recipe unbroken and broken below `out`; where it was killed, and what differs."""
    whole = Command(recipe, overrides, out / "whole")
    whole.start()
    whole.end()
    broken = Command(recipe, overrides, out / "broken")
    if (broken.out / "bundle").exists():
        raise RuntimeError(f"{broken.out} is finished; remove it to break it once more")
    done = run_broken(broken, whole.out, kills, seed)
    return done, differences(whole.out, broken.out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--kills", type=int, default=3, help="in every stage (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="decides the steps of the kills")
    parser.add_argument("--out", type=Path, help="folder of both runs (default: a temporary one)")
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        done, wrong = compare(
            arguments.recipe, arguments.overrides, out, arguments.kills, arguments.seed
        )
        report(out, done, wrong)
    equal = not any(wrong.values())
    print(f"figure kill_and_resume_equal {int(equal)}")
    return 0 if equal else 1


def report(out: Path, done: Kills, wrong: dict[str, list[str]]) -> None:
    print(f"\n{'stage':<20} {'steps':>6}  {'killed after step':<20} {'final loss':>14}  differs")
    for stage, steps in stages_of(out / "whole").items():
        losses = [
            v["loss"] for v in log_lines(out / "broken" / stage / "metrics.jsonl") if "loss" in v
        ]
        kills = " ".join(map(str, done.done[stage]))
        print(f"{stage:<20} {steps:>6}  {kills:<20} {losses[-1]:>14.9g}  {_short(wrong[stage])}")
    print(f"{'bundle':<20} {'':>6}  {'':<20} {'':>14}  {_short(wrong['bundle'])}")


def _short(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) + more) or "nothing"


if __name__ == "__main__":
    sys.exit(main())
