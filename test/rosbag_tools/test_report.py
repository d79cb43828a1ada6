"""report.html out of saved results, however little they hold; colours and charts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depth_prior_ros.evaluation.metrics import summary
from depth_prior_ros.recordings import RecordingError
from rosbag_tools.reports import pictures
from rosbag_tools.reports import report as module
from rosbag_tools.reports.report import render, report, runs_of, timeline
from rosbag_tools.reports.results import (
    FrameRecord,
    Results,
    latency_percentiles,
    load,
    save,
    switches,
)

VOID = {"meta", "img", "input", "br"}


class Balance(HTMLParser):
    """Checks that every element is closed, and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = [v or "" for k, v in attrs if k in ("src", "href")]
        self.references += [uri for uri in found if not uri.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = [v or "" for k, v in attrs if k in ("src", "href")]
        self.references += [uri for uri in found if not uri.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def results_of(frames: list[FrameRecord], name: str = "drive") -> Results:
    metrics: dict[str, Any] = {
        "frames_in": len(frames),
        "frames_out": sum(f.latency_ms is not None for f in frames),
        "dropped": sum(f.latency_ms is None for f in frames),
        "switches": switches(frames),
        "latency_ms": latency_percentiles(frames),
        "depth": {key: summary([]) for key in ("all", "single_frame", "multi_frame")},
        "protocol": None,
        "absolute": summary([]),
        "baselines": {},
        "models": {},
        "mode": "lockstep",
        "skipped": [name],
    }
    run: dict[str, Any] = {
        "command": f"depth_bag replay {name}",
        "recording": name,
        "notes": [name],
        "bundle": {
            "name": name,
            "licence": name,
            "data_sources": [name],
            "metres_per_unit_source": name,
            "digest": "0123",
        },
        "node": {"message": name},
        "versions": {"python": "3"},
    }
    return Results(metrics, frames, run)


def check(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


maybe = st.none() | st.floats(0, 100)
models = st.none() | st.sampled_from(["single_frame", "multi_frame"])


@pytest.mark.slow
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    frames=st.lists(st.tuples(maybe, maybe, models, maybe, st.integers(0, 10**9)), max_size=12),
    name=st.text(max_size=20),
)
def test_any_results_give_a_sound_page(
    tmp_path: Path, frames: list[tuple[Any, ...]], name: str
) -> None:
    records, stamp = [], 10**18
    for index, (speed, latency, model, error, step) in enumerate(frames):
        stamp += step
        reason = "moving" if model else None
        records.append(FrameRecord(index, stamp, speed, latency, model, reason, error))
    page = render(tmp_path, results_of(records, name))
    assert check(page).references == []


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "@FRAMES@</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"
    frames = [FrameRecord(0, 5, 1.0, 9.0, evil, evil, 0.1, 1.0, pictures=True)]
    (tmp_path / "pictures").mkdir()
    for kind in ("image", "depth"):
        picture = pictures.jpeg(np.zeros((4, 8, 3), np.uint8))
        (tmp_path / "pictures" / f"000000_{kind}.jpg").write_bytes(picture)
    page = render(tmp_path, results_of(frames, evil))
    assert "<img src=x" not in page
    assert page.count("<script") == 2
    check(page)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    return [place, *(leaf for key, part in inner for leaf in leaves(part, (*place, key)))]


def drawn_once(draw: Callable[..., str]) -> Callable[..., str]:
    """The same chart of the same figures is not drawn again."""
    known: dict[str, str] = {}

    def chart(*figures: Any) -> str:
        key = repr(figures)
        if key not in known:
            known[key] = draw(*figures)
        return known[key]

    return chart


CHARTS = {name: drawn_once(getattr(module, name)) for name in ("timeline", "histogram")}


@pytest.mark.parametrize("strange", ["<script>alert(1)</script>\x1b[2J", [1], 1e300, None])
def test_figures_that_no_replay_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strange: Any
) -> None:
    """Of any kind in any place: a page in which they are words, or one line."""
    for name, chart in CHARTS.items():
        monkeypatch.setattr(module, name, chart)
    save(tmp_path, results_of([FrameRecord(0, 5, 1.0, 9.0, "multi_frame", "moving", 0.1)]))
    whole = json.loads((tmp_path / "metrics.json").read_text())
    for place in leaves(whole)[1:]:
        metrics = json.loads(json.dumps(whole))
        last = metrics
        for key in place[:-1]:
            last = last[key]
        last[place[-1]] = strange
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
        try:
            text = report(tmp_path).read_text()
        except RecordingError as error:
            assert str(tmp_path) in str(error)
        else:
            assert "<script>alert" not in text
            assert "\x1b" not in text


def test_frames_travel_in_the_page(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    frames = []
    for index in range(3):
        for kind in ("image", "depth"):
            path = tmp_path / "pictures" / f"{index:06d}_{kind}.jpg"
            path.write_bytes(pictures.jpeg(np.full((4, 8, 3), 80 * index, np.uint8)))
        frames.append(FrameRecord(index, index * 10**8, 2.0, 5.0, "multi_frame", "moving", 0.1))
        frames[-1].pictures = True
    page = render(tmp_path, results_of(frames))
    found = re.search(r'id="frames">(.*?)</script>', page, re.DOTALL)
    assert found
    data = json.loads(found.group(1))
    assert [entry["index"] for entry in data] == [0, 1, 2]
    assert all(entry["image"].startswith("data:image/jpeg;base64,") for entry in data)
    assert "truth" not in data[0]


def test_page_stays_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PICTURE_BUDGET", 5000)
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    frames = []
    for index in range(20):
        (tmp_path / "pictures" / f"{index:06d}_image.jpg").write_bytes(pictures.jpeg(noise))
        frames.append(FrameRecord(index, index, None, 5.0, pictures=True))
    page = render(tmp_path, results_of(frames))
    assert 1 <= page.count("data:image") < 10


def test_saved_results_are_read_back(tmp_path: Path) -> None:
    results = results_of([FrameRecord(3, 10**18, 1.5, 2.5, "multi_frame", "moving")])
    save(tmp_path, results)
    assert load(tmp_path) == results


@pytest.mark.parametrize("damage", ["missing", "not json", "schema", "field"])
def test_damaged_results_are_refused(tmp_path: Path, damage: str) -> None:
    save(tmp_path, results_of([FrameRecord(0, 1, None)]))
    file = tmp_path / "frames.json"
    content = json.loads(file.read_text())
    if damage == "missing":
        file.unlink()
    elif damage == "not json":
        file.write_text("{")
    elif damage == "schema":
        file.write_text(json.dumps(content | {"schema": 99}))
    else:
        content["frames"][0]["colour"] = "blue"
        file.write_text(json.dumps(content))
    with pytest.raises(RecordingError, match=re.escape(str(tmp_path))):
        report(tmp_path)


def test_depth_colours() -> None:
    depth = np.array([[3.0, 80.0, 500.0, np.inf, np.nan, 0.0]])
    near, far, beyond, infinite, nan, zero = pictures.colour_depth(depth)[0].astype(int)
    assert near[0] > near[2]  # near is red
    assert far[2] > far[0]  # far is blue
    assert np.array_equal(far, beyond)
    assert infinite.max() < 40
    assert np.array_equal(nan, zero)


def test_error_is_relative_and_only_where_there_is_truth() -> None:
    truth = np.array([[10.0, 20.0, 0.0, 200.0]])
    error = pictures.relative_error(np.array([[5.5, 10.0, 3.0, 3.0]]), truth, 2.0)
    assert error[0, 0] == pytest.approx(0.1)
    assert error[0, 1] == 0
    assert np.isnan(error[0, 2:]).all()


def test_sparse_truth_is_not_lost_in_small_pictures() -> None:
    truth = np.zeros((375, 1242), np.float32)
    truth[200, 600] = 12.0
    picture = pictures.colour_truth(truth, (512, 155))
    background = picture[0, 0]
    assert (picture != background).any(-1).sum() == 4


def test_metrics_never_hold_what_json_cannot(tmp_path: Path) -> None:
    results = results_of([])
    results.metrics["absolute"]["abs_rel"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path, results)
    assert list(tmp_path.iterdir()) == []


def test_timeline_marks_runs_of_the_same_model() -> None:
    frames = [
        FrameRecord(i, i * 10**8, 1.0, 5.0, "multi_frame" if i < 20 else "single_frame", "moving")
        for i in range(40)
    ]
    assert [(run.start, run.end, run.label) for run in runs_of(frames)] == [
        (0.0, 2.0, "multi-frame · moving"),
        (2.0, 3.9, "single-frame · moving"),
    ]
    drawn = timeline(frames)
    check(drawn)
    assert "multi-frame · moving" in drawn and "single-frame · moving" in drawn


def test_names_are_no_formulas() -> None:
    evil = "$\\frac{$ <b> $x$ \x07"
    frames = [FrameRecord(i, i * 10**9, 1.0, 5.0, "multi_frame", evil) for i in range(4)]
    drawn = timeline(frames)
    assert "$\\frac{$ &lt;b&gt; $x$" in drawn
    assert drawn == timeline(frames)
