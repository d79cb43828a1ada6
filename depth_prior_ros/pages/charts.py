"""Charts of a page: drawn by matplotlib, embedded as SVG whose words stay words."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING

from depth_prior_ros.pages.colours import DIM, LINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "depth_prior_ros",  # the same chart gives the same bytes
}


def new_figure(width: int, height: int) -> Figure:
    """An empty figure of a size in pixels of the page."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
    FigureCanvasSVG(figure)
    return figure


def new_axes(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Axes without frame and marks, with faint lines at its ticks; edges in pixels from the top."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    box = left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height
    axes = figure.add_axes(box, facecolor="none")
    axes.spines[:].set_visible(False)
    axes.minorticks_off()
    axes.tick_params(left=False, bottom=False, labelcolor=DIM, labelsize=11, pad=4)
    axes.grid(color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    return axes


def legend(axes: Axes, columns: int = 6) -> None:
    """Names of what the axes show, above them on the left."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncol=columns,
            frameon=False,
            labelcolor=DIM,
            fontsize=11,
            borderaxespad=0.2,
            handlelength=1.2,
            columnspacing=1.4,
        )


def plain(words: str) -> str:
    """Words from outside as matplotlib shows them letter by letter: a dollar begins no formula."""
    return words.encode("utf-8", "replace").decode().replace("$", r"\$")


def svg(figure: Figure) -> str:
    """The figure as an SVG element; a template fills it in as ``{{ chart|safe }}``."""
    import matplotlib

    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that matplotlib's font lacks: the browser has them.
        warnings.filterwarnings("ignore", message=".*Glyph")
        figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # several charts of a page have the same
    return text.replace("xlink:href", "href").replace("base64,\n", "base64,")
