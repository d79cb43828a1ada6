"""``docs/parameters.md``, written from the declarations.

Run ``python -m depth_prior_ros.ros.describe > docs/parameters.md`` after changing one; a test says
when that was forgotten.
"""

from __future__ import annotations

import json

from depth_prior_ros.ros import parameters_depth as depth
from depth_prior_ros.ros import parameters_node as node
from depth_prior_ros.ros.declaration import Applies, Declaration

SECTIONS: tuple[tuple[str, tuple[Declaration, ...]], ...] = (
    ("Model and how it is run", depth.MODEL),
    ("Camera", depth.CAMERA),
    ("Metres", depth.SCALE),
    ("Motion", depth.MOTION),
    ("Mount of the camera", depth.MOUNT),
    ("Input", node.INPUT),
    ("Output", node.OUTPUT),
    ("Operation", node.OPERATION),
)

_HEADER = """\
# Parameters of the depth node

Written from the declarations by `python -m depth_prior_ros.ros.describe`; a test keeps the two
equal. `config/depth.yaml` has the same as a parameter file, and `ros2 param describe /depth_node
NAME` says it on a running node. Values are validated together: what does not fit together is
refused with a reason, at the start as well as at run time. Numbers that are not counts need a point
(`40.0`).

| changes | |
|---|---|
| frame | at any time; taken up between two frames |
| reload | at any time; taken up when the node is configured or by the service `~/reload_bundle` |
| activate | while the node is not active |
| read only | at the start only |
"""

_FOOTER = """\
## Common to all nodes

`use_sim_time` takes the time from `/clock`. The QoS of every topic can be overridden at the start,
under the topic's full name: `qos_overrides./camera/image_raw.subscription.reliability: reliable` or
`qos_overrides./depth/image_rect.publisher.depth: 5`; `history`, `depth` and `reliability` can be
set. A subscription's `reliability` goes before `image_reliability` and `odom_reliability`; it is
empty where nothing was set. `ros2 param list /depth_node` shows them all.
"""

_APPLIES: dict[Applies, str] = {
    "frame": "frame",
    "reload": "reload",
    "activate": "activate",
    "start": "read only",
}
_TYPES = {bool: "bool", int: "int", float: "double", str: "string"}


def type_name(default: object) -> str:
    """The parameter type as ROS calls it: ``double``, ``double[]``, ..."""
    if isinstance(default, (list, tuple)):
        return f"{_TYPES[type(default[0])]}[]"
    return _TYPES[type(default)]


def render() -> str:
    """The page's text: one table for each group of parameters."""
    tables = []
    for title, declarations in SECTIONS:
        rows = [
            f"## {title}",
            "",
            "| parameter | type | default | range | changes | |",
            "|---|---|---|---|---|---|",
            *map(_row, declarations),
            "",
        ]
        tables.append("\n".join(rows))
    return "\n".join([_HEADER, *tables, _FOOTER])


def _row(declaration: Declaration) -> str:
    default = declaration.default
    shown = json.dumps(list(default) if isinstance(default, tuple) else default)
    cells = (
        f"`{declaration.name}`",
        type_name(default),
        f"`{shown}`",
        _range(declaration),
        _APPLIES[declaration.applies],
        declaration.text.replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |"


def _range(declaration: Declaration) -> str:
    if declaration.choices:
        return ", ".join(f"`{choice}`" if choice else "empty" for choice in declaration.choices)
    if declaration.low is not None and declaration.high is not None:
        return f"{declaration.low:g} to {declaration.high:g}"
    return ""


if __name__ == "__main__":
    print(render(), end="")
