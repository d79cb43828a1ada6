"""``config/depth.yaml`` and ``docs/parameters.md``, written from the declarations.

``python -m depth_prior_ros.ros.parameters.documents`` (or ``make parameters``) in a checkout
rewrites both after a declaration was changed; a test says when that was forgotten.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from depth_prior_ros.atomic_files import write_text
from depth_prior_ros.ros.parameters.declaration import Applies, Declaration
from depth_prior_ros.ros.parameters.settings import PARAMETERS

_COMMAND = "python -m depth_prior_ros.ros.parameters.documents"

_FILE_HEADER = f"""\
# Every parameter of depth_node with its default. Copy this file, change what you need, and start
#   ros2 launch depth_prior_ros depth.launch.py params_file:=/path/to/your.yaml
# Written from the declarations in depth_prior_ros/ros/parameters/settings.py by
#   {_COMMAND}
/**:
  ros__parameters:
"""

_PAGE_HEADER = f"""\
# Parameters of the depth node

Written from the declarations by `{_COMMAND}`; a test
keeps them equal. `config/depth.yaml` has the same as a parameter file,
`ros2 param describe /depth_node NAME` says it on a running node, and every parameter is an argument
of `depth.launch.py` (`max_gap:=0.3`). Values are validated together: what does not fit together is
refused with a reason, at the start as well as at run time. An integer is taken for a double.

| changes | |
|---|---|
| frame | at any time; taken up between two frames |
| reload | at any time; taken up when the node is configured or by the service `~/reload_bundle` |
| activate | while the node is not active |
| read only | at the start only |
"""

_PAGE_FOOTER = """\

## Common to all nodes

`use_sim_time` takes the time from `/clock`. The QoS of every topic can be overridden at the start,
under the topic's full name: `qos_overrides./camera/image_raw.subscription.reliability: reliable` or
`qos_overrides./depth/image_rect.publisher.depth: 5`; `history`, `depth` and `reliability` can be
set. A subscription's `reliability` goes before `image_reliability` and `odom_reliability`; it is
empty where nothing was set. `ros2 param list /depth_node` shows them all.
"""

_TABLE = """\
| parameter | type | default | range | unit | changes | |
|---|---|---|---|---|---|---|"""

_APPLIES: dict[Applies, str] = {
    "frame": "frame",
    "reload": "reload",
    "activate": "activate",
    "start": "read only",
}
_TYPES = {bool: "bool", int: "int", float: "double", str: "string"}


def parameter_file() -> str:
    """The text of config/depth.yaml: every parameter, its default, and what it does."""
    blocks: list[str] = []
    group = ""
    for declared in PARAMETERS:
        prefix, _, name = declared.name.rpartition(".")
        heading = f"    {prefix}:\n" if prefix and prefix != group else ""
        group = prefix
        blocks.append(heading + _entry(declared, name, "      " if prefix else "    "))
    return _FILE_HEADER + "\n".join(blocks)


def page() -> str:
    """The text of docs/parameters.md: one table for each section."""
    lines = [_PAGE_HEADER.rstrip("\n")]
    for declared in PARAMETERS:
        if declared.section:
            lines += ["", f"## {declared.section}", "", _TABLE]
        lines.append(_row(declared))
    return "\n".join([*lines, _PAGE_FOOTER])


def write(root: Path) -> None:
    """Rewrite both files below ``root``, a checkout."""
    for name, text in (("config/depth.yaml", parameter_file()), ("docs/parameters.md", page())):
        write_text(root / name, text)


def _entry(declared: Declaration, name: str, indent: str) -> str:
    text = declared.description
    if declared.limits is not None:
        text += f" From {declared.limits[0]:g} to {declared.limits[1]:g}."
    comment = textwrap.fill(text, 98, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    # JSON is YAML for what parameters can be: strings quoted, floats with a point, true and false.
    return f"{comment}\n{indent}{name}: {json.dumps(declared.default)}\n"


def _row(declared: Declaration) -> str:
    cells = (
        f"`{declared.name}`",
        _TYPES[declared.kind],
        f"`{json.dumps(declared.default)}`",
        _range(declared),
        declared.unit,
        _APPLIES[declared.applies],
        declared.text.replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |"


def _range(declared: Declaration) -> str:
    if declared.choices:
        return ", ".join(f"`{choice}`" if choice else "empty" for choice in declared.choices)
    return "{:g} to {:g}".format(*declared.limits) if declared.limits is not None else ""


if __name__ == "__main__":
    write(Path(__file__).resolve().parents[3])
