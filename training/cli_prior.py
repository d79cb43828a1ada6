"""The commands of `depth_train` that make, choose, use and show a prior.

As in `training.cli`, only the parsers live at import time.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_prior_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add reference, select, fine-tune, adapt, explain and export."""
    _add_reference(commands)
    _add_select(commands)
    _add_fine_tune(commands)
    _add_adapt(commands)
    _add_explain(commands)
    _add_export(commands)


def _add_reference(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "reference",
        help="extract a reference set by a recipe's teacher",
        description="Extract reference pixels of the recipe's teacher from its training triplets "
        "(RPrDepth). The same command again resumes.",
    )
    add = parser.add_argument
    add("recipe", type=Path, help="YAML file, for example config/training/small_prior.yaml")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="values to set in the recipe")
    add(
        "--out",
        type=Path,
        help="folder of the reference set (default: the stage's, else where depth_train run looks)",
    )
    parser.set_defaults(handler=_reference)


def _reference(arguments: argparse.Namespace) -> int:
    from training.prior.reference_command import reference_command, summary

    found = reference_command(arguments.recipe, arguments.overrides, arguments.out)
    if int(os.environ.get("RANK", "0")) == 0:  # torchrun starts this several times
        print(summary(found))
    return 0


def _add_select(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "select",
        help="choose the reference pixels that a student looks up",
        description="Choose the prior out of a reference set by the attention that a bundle's "
        "student pays on validation images (RPrDepth, attention-guided feature selection), and "
        "write a new bundle with it.",
    )
    parser.set_defaults(handler=_select)


def _select(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _add_fine_tune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "fine-tune",
        help="let a bundle's student settle on its prior",
        description="Train a bundle's student on its prior by the fine_tune stage of a recipe.",
    )
    parser.set_defaults(handler=_fine_tune)


def _fine_tune(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _add_adapt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "adapt",
        help="a prior from your own drive",
        description="Extract a prior from a recording with the bundle's teacher and write a new "
        "bundle; no network weight changes.",
    )
    parser.set_defaults(handler=_adapt)


def _adapt(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "explain",
        help="show which reference pixels were looked up",
        description="For chosen pixels of an image, show which reference pixels the student "
        "looked up; without an image, a report page of the whole prior.",
    )
    parser.set_defaults(handler=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write a bundle's networks as ONNX or OpenVINO",
        description="Write a bundle's networks, the prior inside, as ONNX or OpenVINO files.",
    )
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> int:
    raise NotImplementedError
