"""docs/library.md and the notebook do what they say: their code runs, in order."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_prior_ros.recordings import open_recording
from depth_prior_ros.share import demo_bag

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "library.md"
NOTEBOOK = ROOT / "examples" / "depth.ipynb"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_examples_are_short() -> None:
    lines = [[line for line in e.splitlines() if line.strip()] for e in examples()]
    assert len(lines) >= 7
    assert max(map(len, lines)) <= 5


@pytest.mark.slow
def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image = open_recording(demo_bag()).frames[20].image()
    cv2.imwrite("street.jpg", image[..., ::-1])
    (tmp_path / "drive.mcap").symlink_to(demo_bag())
    names: dict[str, object] = {}
    for example in examples():
        exec(example, names)
    said = capsys.readouterr().out
    assert "(128, 416) " in said and "multi_frame moving" in said
    shown = cv2.imread("depth.png")
    assert shown.shape == (128, 416, 3)
    blue, _, red = np.split(shown.astype(int), 3, axis=2)
    assert red[-10:].mean() > 2 * blue[-10:].mean()  # the road before the camera is near


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kernel of Jupyter where there is one; else its cells, one after the other."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    if all(map(importlib.util.find_spec, ("nbclient", "nbformat", "ipykernel"))):
        import nbformat
        from nbclient import NotebookClient

        monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
        run = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(run, timeout=200, kernel_name="python3").execute()
        said = " ".join(o.get("text", "") for c in run.cells for o in c.get("outputs", []))
    else:
        cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
        assert all(not cell.get("outputs") for cell in cells)
        names: dict[str, object] = {"print": lambda *words: said_words.extend(words)}
        said_words: list[object] = []
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
        said = " ".join(map(str, said_words))
    absrel = re.search(r"AbsRel after scaling ([\d.]+)", said)
    assert absrel is not None and float(absrel[1]) < 0.3
