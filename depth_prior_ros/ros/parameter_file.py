"""``config/depth.yaml``, written from the declarations.

Run ``python -m depth_prior_ros.ros.parameter_file > config/depth.yaml`` after changing one; a test
says when that was forgotten.
"""

from __future__ import annotations

import json
import textwrap

from depth_prior_ros.ros.parameters import PARAMETERS, Declaration

_HEADER = """\
# Every parameter of depth_node with its default. Copy this file, change what you need, and start
#   ros2 launch depth_prior_ros depth.launch.py params_file:=/path/to/your.yaml
# Written from depth_prior_ros/ros/parameters.py; a test keeps the two equal.
/**:
  ros__parameters:
"""


def render() -> str:
    """The parameter file's text: every parameter, its default, and what it does as a comment."""
    blocks: list[str] = []
    group = ""
    for declaration in PARAMETERS:
        prefix, dot, name = declaration.name.rpartition(".")
        if prefix != group:
            group = prefix
            heading = f"    {prefix}:\n" if prefix else ""
        else:
            heading = ""
        blocks.append(heading + _entry(declaration, name, "      " if dot else "    "))
    return _HEADER + "\n".join(blocks)


def _entry(declaration: Declaration, name: str, indent: str) -> str:
    text = declaration.description
    if declaration.low is not None and declaration.high is not None:
        text += f" From {declaration.low:g} to {declaration.high:g}."
    comment = textwrap.fill(text, 98, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    # JSON is YAML for what parameters can be: strings quoted, floats with a point, true and false.
    return f"{comment}\n{indent}{name}: {json.dumps(declaration.default)}\n"


if __name__ == "__main__":
    print(render(), end="")
