"""Results beside each other, and a result against a baseline."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from depth_prior_ros.evaluation.metrics import summary
from rosbag_tools.cli import main
from rosbag_tools.reports import pictures
from rosbag_tools.reports.results import PICTURES, FrameRecord, Results, latency_percentiles, save
from rosbag_tools.reports.side_by_side import difference, pair_frames, rows, verdict


def correlated(generator: np.random.Generator, n: int, r: float = 0.8) -> np.ndarray:
    """An autoregressive process of mean 0 and variance 1."""
    values = np.empty(n)
    values[0] = generator.normal()
    for i in range(1, n):
        values[i] = r * values[i - 1] + np.sqrt(1 - r * r) * generator.normal()
    return values


def test_the_intervals_cover_the_truth() -> None:
    covered = 0
    generator = np.random.default_rng(1)
    for trial in range(100):
        drive = correlated(generator, 400)  # what both results have in common
        first = 0.1 + 0.03 * drive + 0.01 * correlated(generator, 400)
        second = 0.102 + 0.03 * drive + 0.01 * correlated(generator, 400)
        found = difference(first, second, seed=trial)
        assert found.low is not None and found.high is not None
        assert found.low < found.value < found.high
        covered += found.low <= 0.002 <= found.high
    assert covered >= 90


def test_blocks_of_alike_frames_are_not_counted_as_many() -> None:
    generator = np.random.default_rng(2)
    noise = generator.normal(size=400)
    zero = np.zeros(400)
    alone, alike = difference(zero, noise), difference(zero, np.repeat(noise[:40], 10))
    assert alike.high - alike.low > 2 * (alone.high - alone.low)


def made(
    folder: Path, error: float = 0.1, seed: int = 0, frames: int = 120, start: int = 10**18
) -> Path:
    """A result whose frames err by `error`, with pictures of some."""
    generator = np.random.default_rng(seed)
    shared = 1 + 0.2 * correlated(np.random.default_rng(9), frames)
    records = []
    for i in range(frames):
        value = float(error * shared[i] * (1 + 0.02 * generator.normal()))
        records.append(
            FrameRecord(
                i,
                start + i * 10**8,
                speed=5.0 if i < frames // 2 else 0.0,
                latency_ms=float(20 + generator.random()),
                model="multi_frame" if i < frames // 2 else "single_frame",
                reason="moving",
                abs_rel=value,
                ratio=1.0,
                pictures=i % 40 == 0,
                flicker=0.01 if i else None,
                metric_abs_rel=2 * value,
                parts={"0-10": value},
            )
        )
    (folder / PICTURES).mkdir(parents=True)
    for i in range(0, frames, 40):
        for kind in ("image", "depth"):
            picture = np.full((8, 16, 3), i, np.uint8)
            (folder / PICTURES / f"{i:06d}_{kind}.jpg").write_bytes(pictures.jpeg(picture))
    empty = summary([])
    mean = float(np.mean([r.abs_rel for r in records]))
    metrics = {
        "frames_in": frames,
        "frames_out": frames,
        "dropped": 0,
        "switches": [],
        "latency_ms": latency_percentiles(records),
        "depth": {
            "all": {**empty, "abs_rel": mean, "d1": 1 - mean, "frames": frames, "flicker": 0.01},
            "single_frame": empty,
            "multi_frame": empty,
        },
        "protocol": {"name": "synthetic"},
        "absolute": {**empty, "abs_rel": 2 * mean},
        "mode": "offline",
    }
    bundle = {"name": "<b>bundle</b>", "digest": "0123"}
    run = {"recording": "drive", "command": "depth_bag process", "bundle": bundle}
    save(folder, Results(metrics, records, run))
    return folder


def test_a_page_says_which_is_better_and_carries_everything_in_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, same = (
        made(tmp_path / "old"),
        made(tmp_path / "new", error=0.09, seed=1),
        made(tmp_path / "as_good", seed=2),
    )
    out = tmp_path / "page.html"
    assert main(["report", str(one), str(two), str(same), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "new is better than old" in said
    assert "No difference between as_good and old" in said
    page = out.read_text()
    assert "new is better than old" in page
    assert page.count("data:image/jpeg;base64,") == 3 * 4  # frames of an image and three depths
    assert "http" not in page
    assert "<b>bundle" not in page
    for words in ("true depth 0-10 m", "multi-frame", "standing", "95th percentile"):
        assert words in page


def test_the_same_result_is_the_same_and_another_recording_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rosbag_tools.reports.results import load

    one = load(made(tmp_path / "one"))
    found = rows(pair_frames(one, one))
    assert "give the same depth" in verdict(found, "a", "b")
    assert {row.found.value for row in found} == {0.0}
    other = made(tmp_path / "other", start=2 * 10**18)
    assert main(["report", str(tmp_path / "one"), str(other), "--out", str(tmp_path / "p")]) == 1
    assert "not the same recording" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_check_passes_on_the_same_fails_on_worse_and_refuses_another_recording(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, baseline = made(tmp_path / "good"), tmp_path / "baseline.json"
    against = ["--against", str(baseline)]
    assert main(["check", str(good), *against]) == 2  # there is none yet
    assert main(["check", str(good), *against, "--accept"]) == 0
    assert json.loads(baseline.read_text())["recording"] == "drive"
    assert main(["check", str(good), *against]) == 0
    worse = made(tmp_path / "worse", error=0.105)
    capsys.readouterr()
    assert main(["check", str(worse), *against, "--tolerance", "abs_rel=2%"]) == 1
    assert "+5.00%" in capsys.readouterr().out
    assert main(["check", str(worse), *against, "--tolerance", "abs_rel=6%,dropped=0"]) == 0
    assert main(["check", str(worse), *against, "--tolerance", "d1=0.1%"]) == 1  # larger is better
    other = made(tmp_path / "other", start=2 * 10**18)
    assert main(["check", str(other), *against]) == 2
    assert "another recording" in capsys.readouterr().err
    assert main(["check", str(good), *against, "--tolerance", "nonsense=1%"]) == 2
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(good), *against, "--tolerance", "abs_rel"])
    assert stopped.value.code == 2


def test_records_of_an_older_result_are_read(tmp_path: Path) -> None:
    from rosbag_tools.reports.results import load

    folder = made(tmp_path / "old")
    saved = json.loads((folder / "frames.json").read_text())
    for frame in saved["frames"]:
        for name in ("flicker", "metric_abs_rel", "parts"):
            del frame[name]
    (folder / "frames.json").write_text(json.dumps(saved))
    assert asdict(load(folder).frames[0])["flicker"] is None
