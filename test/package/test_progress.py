"""How far long work has got: on a terminal, and in a log file."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from depth_prior_ros import progress
from depth_prior_ros.progress import ProgressBar, duration


def wait_for(output: io.StringIO, words: str) -> None:
    limit = time.monotonic() + 10
    while words not in output.getvalue():
        assert time.monotonic() < limit, output.getvalue()
        time.sleep(0.01)


def test_a_log_file_is_spoken_to_while_a_step_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_BETWEEN_LINES", 0.02)
    output = io.StringIO()
    with ProgressBar(Console(file=output, width=200)) as bar:
        bar("compiling")
        wait_for(output, "compiling\ncompiling\n")
        bar("street [1]", 0, 40)
        bar("street [1]", 4, 40, "2.0 GFLOP/s")
        wait_for(output, "street [1] 4 of 40, 2.0 GFLOP/s, roughly 0:0")


def test_a_short_work_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar() as bar:
        bar("frames", 1, 2)
        bar("frames", 2, 2)
    assert capsys.readouterr().err == ""


def test_the_ends_are_lines_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 40.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    output = io.StringIO()
    bar = ProgressBar(Console(file=output, width=200), ends=True)
    bar._console = Console(file=output, width=200)  # without the thread that looks at the clock
    bar("step", 5, 10)
    for done in range(6, 11):
        bar("step", done, 10)
    assert output.getvalue() == ("step 6 of 10, roughly 0:40 left\nstep 10 of 10, 0:00 left\n")


def test_an_estimate_after_a_while_is_not_called_rough(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    bar = ProgressBar()
    bar("step", 5, 20)
    assert bar._left(10, 20) == "3:20 left"


def test_a_terminal_gets_a_bar() -> None:
    output = io.StringIO()
    with ProgressBar(Console(file=output, force_terminal=True, width=80), ends=True) as bar:
        bar("frames", 0, 10)
        bar("frames", 10, 10, "loss 0.1")
    assert "10/10" in output.getvalue() and "loss 0.1" in output.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "0:05"), (245, "4:05"), (3723, "1:02:03")])
def test_time_left(seconds: float, text: str) -> None:
    assert duration(seconds) == text
