"""Pages out of jinja2 templates: names from outside are escaped wherever they are filled in."""

from __future__ import annotations

import base64
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_prior_ros.untrusted import printable

if TYPE_CHECKING:
    from jinja2 import Environment

# What a page does not show but a terminal or reader may act on: control characters, those that turn
# the direction of writing, and the bytes of file names that are not UTF-8.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_TEMPLATES = Path(__file__).parent / "templates"


def render(template: Path, **values: Any) -> str:
    """Fill in a template; it may extend ``page.html`` and import ``parts.html`` of this folder.

    Args:
        template: the file.
        values: what it names. All is escaped where the template does not say ``|safe``.

    Raises:
        jinja2.UndefinedError: the template names something that is not given.
    """
    text = _environment(template.parent).get_template(template.name).render(**values)
    return _INVISIBLE.sub(lambda found: printable(found[0]), text)


@functools.cache
def _environment(folder: Path) -> Environment:
    """What keeps a folder's templates: to compile them takes longer than to fill them in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def png_uri(picture: NDArray[np.uint8]) -> str:
    """An RGB picture (H, W, 3) as a URI that the page carries in itself."""
    return data_uri(encode_png(picture), "image/png")


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """An RGB picture (H, W, 3) as a file's bytes; `atomic_files.write_bytes` writes them."""
    return bytes(cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1])


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    """A file's bytes as a URI that the page carries in itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
