"""OpenVINO, imported without its telemetry.

Where its package ``openvino_telemetry`` is there, which pip installs with it, ``import openvino``
alone reports its use over the network and writes to ``~/intel``. Without, it does neither.
"""

from __future__ import annotations

import sys

# Python takes None for a module that cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

__all__ = ["openvino"]
