"""Many bundles in one table: what is evaluated, paired, kept, and what counts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import make_tiny_bundle
from kitti_files import TEST_DRIVE, TRAINING_DRIVE, write_drive, write_frame
from tiny_trunk import TINY_TRUNK

from depth_prior_ros.bundle import Bundle, rewrite_manifest
from depth_prior_ros.geometry.camera import Camera
from depth_prior_ros.recordings import StoredRecording
from depth_prior_ros.recordings.base import Frame
from rosbag_tools.make import write_bag
from training.commands import cli
from training.comparison import compare as comparison
from training.comparison.compare import (
    CACHE,
    FIGURES,
    TABLE,
    compare,
    evaluate_frames,
    find_sets,
    prepare,
)
from training.comparison.rows import (
    Listing,
    open_rows,
    parse_spec,
    read_listing,
    resolve_pair,
)
from training.comparison.table import SetResults, cost_table, markdown, measure_cost, set_json
from training.evaluation.baselines import CONSTANT, COUNTED, SET_MEAN
from training.evaluation.evaluation import evaluate_bundle
from training.evaluation.sets import EvaluationError

SIZE = (192, 64)
TORCH = {"backend": "torch", "device": "cpu"}


def street(count: int = 5, stop_after: int = 3) -> StoredRecording:
    """A drive in memory with exact depth; a box on the left moves by itself; it stops at last."""
    camera = Camera(111.0, 123.0, 96.0, 30.0, *SIZE)
    moving = np.zeros(SIZE[::-1], bool)
    moving[20:50, 10:60] = True

    def frame(number: int) -> Frame:
        depth = np.repeat(np.linspace(60, 3, SIZE[1], dtype=np.float32)[:, None], SIZE[0], 1)
        depth[moving] = 6.0 + number
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
        return Frame(
            index=number,
            stamp_ns=1_700_000_000_000_000_000 + number * 100_000_000,
            camera=camera,
            load_image=lambda: cv2.blur(pixels, (9, 9)),
            load_depth=lambda: depth,
            load_moving=lambda: moving,
            speed=5.0 if number < stop_after else 0.0,
        )

    return StoredRecording("street", [frame(i) for i in range(count)], depth_source="exact")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Two seeds of two recipes; the second one's are copies of the first one's, exchanged."""
    root = tmp_path_factory.mktemp("bundles")
    made = [make_tiny_bundle(root / f"b{i}", seed=i, trunk=TINY_TRUNK) for i in range(2)]
    for i in (2, 3):
        copied = shutil.copytree(made[i - 2].path, root / f"b{i}")
        made.append(Bundle(Path(copied), made[i - 2].manifest))
    seeds = [7, 8, 8, 7]
    provenance = [
        b.manifest.provenance.model_dump() | {"seed": s} for b, s in zip(made, seeds, strict=True)
    ]
    return [rewrite_manifest(b, provenance=p) for b, p in zip(made, provenance, strict=True)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of drive 0052, three training frames, two scenes, one rendered bag."""
    root = tmp_path_factory.mktemp("data")
    write_drive(root, TEST_DRIVE, range(4))
    write_drive(root, TRAINING_DRIVE, range(3))
    for number in (2, 7):
        write_frame(root / "kitti_2015", number, None, name="{:06d}")
        depth = np.repeat(np.linspace(50, 4, 125)[:, None] * 256, 414, 1).astype(np.uint16)
        (root / "kitti_2015" / "depth_stereo").mkdir(exist_ok=True)
        cv2.imwrite(str(root / "kitti_2015" / "depth_stereo" / f"{number:06d}.png"), depth)
    write_bag(street(9, stop_after=3), root / "street.mcap", moving=True)
    return root


def row_texts(bundles: list[Bundle]) -> list[str]:
    a, b, c, d = (bundle.path for bundle in bundles)
    return [f"S:M={a},{b}", f"S'={c},{d}"]


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_are_named_after_their_models(bundles: list[Bundle]):
    rows, notes = open_rows([parse_spec(text) for text in row_texts(bundles)])
    assert [(row.name, row.model) for row in rows] == [
        ("S", "single_frame"),
        ("M", "multi_frame"),
        ("S'", "single_frame"),
        ("S' multi-frame", "multi_frame"),
    ]
    # Paired by the seed in the bundle, not by the place in the list.
    assert rows[2].bundles["7"].path == bundles[3].path
    assert notes == ["paired by the seeds in the bundles"]


def test_seeds_can_be_stated_or_follow_the_place(bundles: list[Bundle]):
    a, b = (bundle.path for bundle in bundles[:2])
    (row,), notes = open_rows([parse_spec(f"S:={a}@3,{b}@1")])
    assert list(row.bundles) == ["3", "1"] and notes == ["paired by the seeds stated"]
    (row,), notes = open_rows([parse_spec(f":M={bundles[1].path},{bundles[2].path}")])
    assert list(row.bundles) == ["1", "2"] and "place" in notes[0]
    assert (row.name, row.model) == ("M", "multi_frame")
    with pytest.raises(EvaluationError, match="a seed is there twice"):
        open_rows([parse_spec(f"S={a}@3,{b}@3")])


def test_a_runs_folder_stands_for_its_bundle(tmp_path: Path):
    made = make_tiny_bundle(tmp_path / "run" / "bundle", trunk=TINY_TRUNK)
    rows, _ = open_rows([parse_spec(f"S={tmp_path / 'run'}")])
    assert rows[0].bundles["0"].path == made.path


@pytest.mark.parametrize("text", ["S", "S=", "=a", ":=a", "S= , "])
def test_what_is_no_row_is_refused(text: str):
    with pytest.raises(EvaluationError, match="row"):
        parse_spec(text)


def test_two_rows_of_one_name_are_refused(bundles: list[Bundle]):
    specs = [parse_spec(f"S:={bundles[0].path}"), parse_spec(f"S:={bundles[1].path}")]
    with pytest.raises(EvaluationError, match="two rows are called 'S'"):
        open_rows(specs)
    with pytest.raises(EvaluationError, match="no rows to compare"):
        open_rows([])


def test_pairs_of_rows_whose_names_hold_a_minus():
    names = ["S", "S multi-frame", "S'"]
    assert resolve_pair("S' - S", names) == ("S'", "S")
    assert resolve_pair("S multi-frame-S'", names) == ("S multi-frame", "S'")
    with pytest.raises(EvaluationError, match="no pair A-B of the rows S, S multi-frame, S'"):
        resolve_pair("M-S", names)


def test_a_listing_in_yaml(tmp_path: Path):
    file = tmp_path / "rows.yaml"
    file.write_text(
        "rows:\n  'S:M': [a, b]\n  \"S'\": {1: c, 2: d}\n  T: e\nagainst: S\n"
        'pairs: ["S\'-M"]\nsynthetic: [x.mcap]\nsets: [synthetic]\n'
    )
    listing = read_listing(file)
    assert listing.specs[0] == parse_spec("S:M=a,b")
    assert listing.specs[1] == parse_spec("S'=c@1,d@2")
    assert listing.specs[2] == parse_spec("T=e")
    assert (listing.against, listing.pairs, listing.sets) == ("S", ["S'-M"], ["synthetic"])
    assert listing.synthetic == [Path("x.mcap")]
    for text, cause in (
        ("rows: [a]", "'rows' with"),
        ("rows: {S: [a]}\nrow: 1", "'row' is unknown"),
    ):
        file.write_text(text)
        with pytest.raises(EvaluationError, match=cause):
            read_listing(file)


# --- figures --------------------------------------------------------------------------------------


def frame(abs_rel: float, moves: bool = True, **parts: float) -> dict:
    errors = {"abs_rel": abs_rel, "sq_rel": 2 * abs_rel, "rmse": 3.0, "d1": 1 - abs_rel}
    entry = {**errors, "moves": moves}
    if parts:
        entry["parts"] = {n: {**errors, "abs_rel": value} for n, value in parts.items()}
    return entry


def by_frame(*frames: dict) -> dict:
    return {("drive", i): one for i, one in enumerate(frames)}


def test_means_spread_and_paired_differences_by_hand():
    rows = {
        "S": {"1": by_frame(frame(0.2), frame(0.4)), "2": by_frame(frame(0.1), frame(0.5))},
        "M": {"2": by_frame(frame(0.1), frame(0.3)), "1": by_frame(frame(0.1), frame(0.3))},
        "T": {"1": by_frame(frame(0.2), frame(0.6)), "2": by_frame(frame(0.1), frame(0.3))},
    }
    baselines = {"row": {"1": by_frame(frame(0.31), frame(0.31))}}
    results = SetResults("drive", rows, baselines)
    (view,) = set_json(results, "S", [("M", "S"), ("T", "S")])["views"].values()
    assert view["rows"]["S"]["abs_rel"]["mean"] == pytest.approx(0.3)
    assert view["rows"]["S"]["abs_rel"]["std"] == pytest.approx(0)
    assert view["rows"]["T"]["abs_rel"]["std"] == pytest.approx(0.2 / 2**0.5)
    m, t = view["differences"]
    assert (m["row"], m["against"], m["pairs"]) == ("M", "S", 2)
    assert m["abs_rel"]["mean"] == pytest.approx(-0.1) and m["abs_rel"]["better"] == 2
    assert m["d1"]["mean"] == pytest.approx(0.1) and m["d1"]["better"] == 2
    assert m["rmse"]["better"] == 0  # equal is not better
    assert t["abs_rel"]["seeds"] == pytest.approx({"1": 0.1, "2": -0.1})
    assert t["abs_rel"]["better"] == 1
    assert view["verdict"]["counts"] and view["verdict"]["seeds_below"] == 2
    baselines["row"]["1"] = by_frame(frame(0.29), frame(0.29))
    (view,) = set_json(results, "S", [])["views"].values()
    assert not view["verdict"]["counts"] and view["verdict"]["best_baseline"] == "row"


def test_only_frames_that_every_row_has_are_compared():
    rows = {
        "S": {"1": by_frame(frame(0.2), frame(0.9))},
        "M": {"1": {("drive", 0): frame(0.1)}},
    }
    found = set_json(SetResults("drive", rows, {}), "S", [("M", "S")])
    assert found["frames"] == 1 and found["notes"] == ["1 frames left out: not every row has them"]
    assert found["views"]["all"]["rows"]["S"]["abs_rel"]["mean"] == pytest.approx(0.2)


def test_views_of_a_set():
    frames = by_frame(
        frame(0.1, True, static=0.05),
        frame(0.2, True, moving=0.5, static=0.1),
        frame(0.6, False, moving=0.7, static=0.3),
    )
    views = set_json(SetResults("drive", {"S": {"1": frames}}, {}), "S", [])["views"]
    means = {n: (v["frames"], v["rows"]["S"]["abs_rel"]["mean"]) for n, v in views.items()}
    assert means["all"] == (3, pytest.approx(0.3))
    assert means["vehicle moves"] == (2, pytest.approx(0.15))
    assert means["moving pixels"] == (2, pytest.approx(0.6))
    assert means["static pixels"] == (3, pytest.approx(0.15))
    assert "std" in views["all"]["rows"]["S"]["abs_rel"]
    assert views["all"]["rows"]["S"]["abs_rel"]["std"] is None
    standing = {k: {**f, "moves": True} for k, f in by_frame(frame(0.1)).items()}
    views = set_json(SetResults("drive", {"S": {"1": standing}}, {}), "S", [])["views"]
    assert set(views) == {"all"}


def test_the_table_says_what_counts():
    rows = {
        "S": {"1": by_frame(frame(0.25)), "2": by_frame(frame(0.15))},
        "M": {"1": by_frame(frame(0.15)), "2": by_frame(frame(0.2))},
    }
    baselines = {"lidar_row": {"1": by_frame(frame(0.21)), "2": by_frame(frame(0.21))}}
    one = set_json(SetResults("drive", rows, baselines, ["a note"]), "S", [("M", "S")])
    text = markdown({"notes": ["paired"], "sets": {"drive": one}})
    assert "## drive (1 frames)" in text
    assert "| S | 2 | 0.200 ± 0.071 |" in text
    assert "| *lidar row* | 2 | 0.210 ± 0.000 |" in text
    assert "| M − S | -0.025 ± 0.106 | 1 of 2 |" in text
    assert "This set **counts**" in text and "in 1 of 2 seeds" in text
    assert "- a note" in text and "- paired" in text
    baselines["lidar_row"] = {"1": by_frame(frame(0.1))}
    one = set_json(SetResults("drive", rows, baselines), "S", [])
    assert "**does not count**" in markdown({"notes": [], "sets": {"drive": one}})


# --- evaluating
# --------------------------------------------------------------------------------------


def test_figures_are_those_of_evaluate(root: Path, bundles: list[Bundle]):
    """Evaluated at the network's size from memory, and frame by frame from the files."""
    from depth_prior_ros.pipeline import DepthPipeline

    pipeline = DepthPipeline(bundles[0], "torch", "cpu")
    slow = {one.name: one for one in evaluate_bundle(bundles[0], root, **TORCH).sets}
    for group, chosen in find_sets(root, [], ["kitti_2015", "drives"]):
        prepared = prepare(group, chosen, bundles[0].manifest.input_size)
        models = ["single_frame", "multi_frame"] if prepared.consecutive else ["single_frame"]
        for model in models:
            quick = evaluate_frames(pipeline, prepared, model)["frames"]
            expected = slow[chosen.name].rows[model]
            assert len(quick) == len(expected)
            for one, other in zip(quick, expected, strict=True):
                assert one["index"] == chosen.recording.frames[other.position].index
                for name in comparison.ERRORS:
                    assert one[name] == pytest.approx(getattr(other.errors, name), rel=1e-5)


def test_a_bag_knows_what_moves_and_when_the_vehicle_does(root: Path, bundles: list[Bundle]):
    ((group, chosen),) = find_sets(root, [root / "street.mcap"], ["synthetic"])
    prepared = prepare(group, chosen, bundles[0].manifest.input_size)
    assert prepared.protocol.name == "synthetic" and len(prepared.frames) == 9
    assert prepared.frames[0].truth is None  # no predecessor
    assert prepared.frames[1].moving is not None and prepared.frames[1].moving.mean() > 0.1
    # The gate waits 0.3 s before it believes that the vehicle stands.
    assert sorted(prepared.moving) == list(range(6))
    same = prepare(
        group,
        find_sets(root, [root / "street.mcap"], ["synthetic"])[0][1],
        bundles[0].manifest.input_size,
    )
    assert same.fingerprint == prepared.fingerprint
    other = replace(prepared.frames[2], moving=None)
    frames = (*prepared.frames[:2], other, *prepared.frames[3:])
    assert (
        comparison._fingerprint(prepared.protocol, frames, prepared.moving) != prepared.fingerprint
    )


def test_evaluate_tells_moving_from_static_pixels(root: Path, bundles: list[Bundle]):
    from training.evaluation.report import as_json

    report = evaluate_bundle(
        bundles[0], root / "street.mcap", "drive", backend="torch", device="cpu"
    )
    content = as_json(report)
    assert content["data_sets"]["street"]["protocol"]["name"] == "synthetic"
    parts = content["depth"]["multi_frame"]["parts"]
    assert set(parts) == {"0-10", "10-20", "20-40", "40-80", "moving", "static"}
    assert parts["moving"]["frames"] == 8 and parts["moving"]["abs_rel"] > 0
    whole = content["depth"]["multi_frame"]["abs_rel"]
    low, high = sorted((parts["moving"]["abs_rel"], parts["static"]["abs_rel"]))
    assert low < whole < high


@pytest.mark.slow
def test_one_command_makes_the_table_and_resumes(
    root: Path, bundles: list[Bundle], tmp_path: Path, monkeypatch, capsys
):
    out = tmp_path / "out"
    command = ["compare", "--rows", *row_texts(bundles), "--pairs", "S' multi-frame-M"]
    command += ["--synthetic", str(root / "street.mcap"), "--data", str(root), "--out", str(out)]
    command += ["--backend", "torch", "--device", "cpu"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert (out / TABLE).read_text() in shown and str(out / FIGURES) in shown
    content = json.loads((out / FIGURES).read_text())
    assert set(content["sets"]) == {"kitti_2015", "drive_0052", "synthetic"}
    assert content["reference"] == "S" and content["rows"]["M"]["model"] == "multi_frame"
    scenes = content["sets"]["kitti_2015"]["views"]["all"]
    assert set(scenes["rows"]) == {"S", "S'"} and scenes["frames"] == 2
    drive = content["sets"]["drive_0052"]["views"]["all"]
    assert set(drive["rows"]) == {"S", "M", "S'", "S' multi-frame"} and drive["frames"] == 3
    assert [(d["row"], d["against"]) for d in drive["differences"]] == [
        ("M", "S"),
        ("S'", "S"),
        ("S' multi-frame", "S"),
        ("S' multi-frame", "M"),
    ]
    for one in (scenes, drive):
        assert set(one["baselines"]) == {*COUNTED, CONSTANT, SET_MEAN}
        assert set(one["verdict"]) >= {"counts", "best_baseline", "seeds_below"}
    views = content["sets"]["synthetic"]["views"]
    assert set(views) == {"all", "vehicle moves", "moving pixels", "static pixels"}
    assert views["all"]["frames"] == 8 and views["vehicle moves"]["frames"] == 5
    # Again: nothing is run, the same comes out; a set that changed is evaluated anew.
    first = (out / FIGURES).read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr("training.comparison.compare.evaluate_frames", refuse)
    monkeypatch.setattr("training.comparison.compare.evaluate_map", refuse)
    assert cli.main(command) == 0
    assert (out / FIGURES).read_bytes() == first
    kept = sorted((out / CACHE).iterdir())
    assert not list(out.rglob(".*.partial"))
    kept[0].write_text("{")  # half a file from elsewhere
    with pytest.raises(AssertionError, match="evaluated again"):
        cli.main(command)


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on(
    root: Path, bundles: list[Bundle], tmp_path: Path, monkeypatch
):
    evaluated: list[str] = []
    real = comparison.evaluate_frames

    def counting(pipeline, one, model, *rest):
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        evaluated.append(f"{pipeline.bundle.path.name} {one.name} {model}")
        return real(pipeline, one, model, *rest)

    monkeypatch.setattr(comparison, "evaluate_frames", counting)
    listing = Listing([parse_spec(text) for text in row_texts(bundles)[:1]])
    listing.sets = ["kitti_2015", "drives"]
    with pytest.raises(KeyboardInterrupt):
        compare(listing, tmp_path, root, **TORCH)
    before = list(evaluated)
    evaluated[:] = []
    monkeypatch.setattr(
        comparison, "evaluate_frames", lambda *a: evaluated.append(a[1].name) or real(*a)
    )
    compare(listing, tmp_path, root, **TORCH)
    # Two bundles: scenes once, the drive twice each; what was whole is not repeated.
    assert len(before) == 3 and len(evaluated) == 3


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--against", "X"], "no row 'X' to compare with"),
        (["--pairs", "A-B"], "no pair A-B of the rows"),
        (["--sets", "synthetic", "--synthetic", "DRIVE"], "its depth is not exact"),
        (["--synthetic", "absent.mcap"], "absent.mcap"),
    ],
)
def test_mistakes_are_plain_errors(
    root: Path, bundles: list[Bundle], tmp_path: Path, capsys, options: list[str], cause: str
):
    drive = str(root / "kitti_raw" / "2011_09_26" / TEST_DRIVE)
    options = [drive if option == "DRIVE" else option for option in options]
    command = ["compare", "--rows", f"S={bundles[0].path}", "--data", str(root), *options]
    assert cli.main([*command, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("depth_train: error:") and cause in error


def test_a_set_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(EvaluationError, match="no kitti_2015 there"):
        find_sets(tmp_path, [])
    with pytest.raises(EvaluationError, match="unknown set 'mars'"):
        find_sets(tmp_path, [], ["mars"])


def test_set_names_of_the_command_line():
    assert (*comparison.SETS, comparison.KEPT_OUT) == cli.SET_NAMES


def test_what_is_kept_belongs_to_the_way_a_bundle_is_run(bundles: list[Bundle]):
    manifest = bundles[0].manifest
    aligned = manifest.architecture.model_copy(update={"align_motion": True})
    other = Bundle(bundles[0].path, manifest.model_copy(update={"architecture": aligned}))
    keys = {
        comparison._bundle_key(bundles[0], "torch", "cpu"),
        comparison._bundle_key(bundles[0], "openvino", "cpu"),
        comparison._bundle_key(other, "torch", "cpu"),
    }
    assert len(keys) == 3


def test_cost_of_every_row(bundles: list[Bundle], tmp_path: Path):
    rows, _ = open_rows([parse_spec(text) for text in row_texts(bundles)[:1]])
    cost = measure_cost(rows, "torch", "cpu", rounds=2)
    single, multi = (cost["rows"][row.name] for row in rows[:2])
    assert single["milliseconds"] > 0 and cost["rows"][rows[0].name]["ratio"] == 1.0
    assert (
        multi["parameters"]
        > single["parameters"]
        == sum(p.numel() for p in bundles[0].student().parameters())
    )
    assert single["references"] == 16
    student = (bundles[0].path / "student.safetensors").stat().st_size
    prior = (bundles[0].path / "prior.safetensors").stat().st_size
    assert single["megabytes"] == pytest.approx((student + prior) / 1e6)
    text = "\n".join(cost_table(cost))
    assert f"| {rows[0].name} | " in text and "torch" in text


def test_recordings_with_lidar_of_ones_own_are_truth(
    root: Path,
    bundles: list[Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """As by `evaluate --protocol drive`, and without a data folder."""
    from training.evaluation.evaluation import evaluate_bundle

    monkeypatch.delenv("DEPTH_PRIOR_DATA", raising=False)
    drive = root / "kitti_raw" / "2011_09_26" / TEST_DRIVE
    name = "2011_09_26_drive_0777_sync"  # no test drive of anybody's list
    own = tmp_path / "2011_09_26" / name
    shutil.copytree(drive, own)
    command = ["compare", "--rows", f"S={bundles[0].path}", "--recordings", str(own)]
    assert cli.main([*command, "--backend", "torch", "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / comparison.FIGURES).read_text())
    assert list(content["sets"]) == [name]
    found = content["sets"][name]["views"]["all"]["rows"]["S"]
    expected = evaluate_bundle(bundles[0], own, "drive", **TORCH).sets[0].rows["single_frame"]
    mean = np.mean([frame.errors.abs_rel for frame in expected])
    assert found["abs_rel"]["mean"] == pytest.approx(mean, rel=1e-6)
    shutil.rmtree(own / "proj_depth")
    assert cli.main([*command, "--out", str(tmp_path / "none")]) == 1
    assert "no frame has true depth" in capsys.readouterr().err
