"""Pages of results as a browser sees them: Debian's chromium, headless."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import results_of
from test_side_by_side import made

from rosbag_tools.reports import pictures
from rosbag_tools.reports.report import report
from rosbag_tools.reports.results import PICTURES, FrameRecord, save
from rosbag_tools.reports.side_by_side import side_by_side

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt install chromium)")

# Behind the page's own script: every picture that it holds is put beside it, so that the page has
# loaded when all are decoded; then the slider is moved and every button pressed.
_PROBE = """
<script>
const uris = new Set();
for (const frame of frames)
  for (const value of [...Object.values(frame), ...(frame.pictures || [])])
    if (typeof value === 'string' && value.startsWith('data:image')) uris.add(value);
const all = [...uris].map(uri => {
  const image = document.createElement('img'); image.src = uri;
  document.body.append(image);
  return image;
});
window.addEventListener('load', () => {
  const seen = {load: performance.now(), captions: [], pictures: all.length,
                broken: all.filter(image => !image.naturalWidth).length};
  const caption = document.getElementById('caption');
  const slider = document.getElementById('slider');
  for (const place of [0, Math.floor(slider.max / 2), +slider.max]) {
    slider.value = place; slider.oninput();
    seen.captions.push(caption.textContent);
  }
  for (const button of document.querySelectorAll('button[data-frame], button[data-show]')) {
    button.click();
    seen.captions.push(button.textContent.trim() + ': ' + caption.textContent);
  }
  const out = document.createElement('pre');
  out.id = 'probe'; out.textContent = JSON.stringify(seen);
  document.body.prepend(out);
});
</script>
"""


def opened(page: Path) -> tuple[dict[str, Any], str]:
    """What the probe saw in a page, and the page's text; nothing may be said on the console."""
    probed = page.with_name(f"probed_{page.name}")
    probed.write_text(page.read_text().replace("</body>", _PROBE + "</body>"))
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--enable-logging=stderr", "--dump-dom"]
    profile = page.parent / "profile"
    done = subprocess.run(
        [*command, f"--user-data-dir={profile}", probed.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    spoken = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not spoken, spoken
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-500:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert seen["broken"] == 0
    return seen, done.stdout


def result(folder: Path, count: int, size: tuple[int, int] = (48, 16), every: int = 1) -> Path:
    """A replay's folder; frame i has the error 0.1 + i / count."""
    frames = [
        FrameRecord(
            i,
            10**18 + i * 10**8,
            speed=5.0,
            latency_ms=20.0,
            model="multi_frame",
            reason="moving",
            abs_rel=0.1 + i / count,
            ratio=1.0,
            pictures=i % every == 0,
        )
        for i in range(count)
    ]
    (folder / PICTURES).mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (4, *size[::-1], 3)).astype(np.uint8)
    data = [pictures.jpeg(picture) for picture in noise]
    for i in range(0, count, every):
        for n, kind in enumerate(("image", "depth", "truth", "error")):
            (folder / PICTURES / f"{i:06d}_{kind}.jpg").write_bytes(data[n])
    found = results_of(frames)
    entry = found.metrics["depth"]["all"] | {"abs_rel": 0.123456, "frames": count}
    found.metrics["depth"]["all"] = entry
    save(folder, found)
    return folder


def test_a_report_works_and_says_what_metrics_json_says(tmp_path: Path) -> None:
    folder = result(tmp_path / "result", 20)
    seen, text = opened(report(folder))
    assert seen["pictures"] == 4  # of each kind one, the same in all frames
    assert [c.split(" · ")[1].split()[-1] for c in seen["captions"][:3]] == ["0", "9", "19"]
    assert "AbsRel 0.100" in seen["captions"][0] and "AbsRel 1.050" in seen["captions"][2]
    best, worst = seen["captions"][3], seen["captions"][6]
    assert best.startswith("frame 0: ") and "AbsRel 0.100" in best
    assert worst.startswith("frame 19: ") and "AbsRel 1.050" in worst
    metrics = json.loads((folder / "metrics.json").read_text())
    shown = text.replace("\n", "")
    assert f"{metrics['depth']['all']['abs_rel']:.3f}" in shown
    assert f"{metrics['frames_out']} / {metrics['frames_in']}" in shown


def test_a_comparison_works(tmp_path: Path) -> None:
    folders = [made(tmp_path / "old"), made(tmp_path / "new", error=0.09, seed=1)]
    page = tmp_path / "page.html"
    verdict = side_by_side(folders, page)[0]
    seen, text = opened(page)
    assert html.escape(verdict, quote=False) in text
    assert len(set(seen["captions"][:3])) == 3
    for said in seen["captions"][3:]:
        button, caption = said.split(": ", 1)
        assert caption.startswith(button)


@pytest.mark.slow
def test_ten_thousand_frames_open_at_once(tmp_path: Path) -> None:
    folders = [result(tmp_path / name, 10_000, (480, 144), every=84) for name in ("a", "b")]
    single, both = report(folders[0]), tmp_path / "both.html"
    side_by_side(folders, both)
    for page in (single, both):
        assert page.stat().st_size < 60_000_000
        # One of three: this machine may have other work.
        assert any(opened(page)[0]["load"] < 3000 for _ in range(3))
