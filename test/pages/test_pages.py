"""The kit of pages: what is escaped, what a chart carries with it, the colours' order."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from depth_prior_ros.pages import charts, colours, page


class Words(HTMLParser):
    """The text of a page, and that all its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "one.html"
    path.write_text(
        '{% extends "page.html" %}{% from "parts.html" import cards, scale, definitions %}'
        "{% block content %}{{ cards([(name, name)]) }}{{ definitions({name: name}) }}"
        '{{ scale(name, "red", [name]) }}{% endblock %}'
    )
    return path


@settings(max_examples=30, deadline=None)
@given(name=st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=30))
def test_what_is_filled_in_stays_text(template: Path, name: str) -> None:
    text = page.render(template, title=name, subtitle=name, name=name)
    words = "".join(Words(text).words)
    assert name in words
    assert text.count("<") == page.render(template, title="", subtitle="", name="").count("<")


def test_control_characters_are_told_in_letters(template: Path) -> None:
    text = page.render(template, title="a\x1f", subtitle="", name="")
    assert r"<title>a\x1f</title>" in text


def test_a_file_name_that_is_no_utf_8_can_be_written(template: Path) -> None:
    text = page.render(template, title="a\udcff", subtitle="", name="")
    assert r"<title>a\udcff</title>" in text and text.encode()


def test_a_name_that_is_not_given_is_an_error(template: Path) -> None:
    with pytest.raises(UndefinedError, match="name"):
        page.render(template, title="", subtitle="")


def test_a_picture_travels_in_its_uri() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = base64.b64decode(page.png_uri(picture).removeprefix("data:image/png;base64,"))
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(back[..., ::-1], picture)


def chart(words: str) -> str:
    figure = charts.new_figure(300, 120)
    axes = charts.new_axes(figure, 20, 20, 280, 100)
    axes.plot([0, 1], [1, 2], label=charts.plain(words))
    axes.set_title(charts.plain(words))
    charts.legend(axes)
    return charts.svg(figure)


def test_a_chart_refers_to_nothing_outside_and_is_the_same_again() -> None:
    found = chart("speed")
    assert found.startswith('<svg viewBox="0 0 300 120" role="img">')
    assert not re.search(r"https?:|xmlns|<metadata|url\((?!#)", found)
    assert found == chart("speed")
    ids = re.findall(r'\bid="([^"]*)"', found)
    assert all(f"#{one}" in found for one in ids)  # those alone that it refers to itself


@pytest.mark.parametrize("words", ["$x_1$", "$\\frac{", "a $ b", "<b>&", "日本 \x07", "\ud800"])
def test_words_of_a_chart_are_neither_formula_nor_element(words: str) -> None:
    shown = words.encode("utf-8", "replace").decode()
    assert shown in "".join(Words(chart(words)).words)


def test_colours_follow_depth() -> None:
    depth = np.array([2.0, 80.0, 500.0, np.inf, np.nan, 0.0])
    near, far, beyond, infinite, unknown, none = colours.colour_depth(depth, 2.0, 80.0).tolist()
    assert near[0] > near[2] and far[2] > far[0]  # near is red, far is blue
    assert far == beyond and tuple(infinite) == colours.BEYOND
    assert tuple(unknown) == tuple(none) == colours.UNKNOWN
    assert colours.colour_depth(np.array(2.0), 2.0, 80.0).tolist() == near
    bright = colours.colour_heat(np.array([np.nan, 0.0, 0.3, 0.6, 1.0, 7.0])).sum(-1, dtype=int)
    assert bright[0] == bright[1] and (np.diff(bright[1:5]) > 0).all() and bright[4] == bright[5]
    assert colours.depth_gradient(2.0, 80.0).startswith(f"linear-gradient(90deg,#{near[0]:02x}")
