"""The commands of `depth_train` that make, choose, use and show a prior.

As in `training.commands.cli`, only the parsers live at import time.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from depth_prior_ros.recording_options import add_recording_options
from depth_prior_ros.share import recipe_path, recording_path

# Kept here as plain words, so that --help needs no import; a test compares them.
SELECTION_METHODS = ("attention", "random", "k_means", "all")


def add_prior_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add reference, select, fine-tune, explain and export."""
    _add_reference(commands)
    _add_select(commands)
    _add_fine_tune(commands)
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
    add("recipe", help="name of a shipped recipe (small_prior), or a YAML file")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="values to set in the recipe")
    add(
        "--out",
        type=Path,
        help="folder of the reference set (default: the stage's, else where depth_train run looks)",
    )
    parser.set_defaults(handler=_reference)


def _reference(arguments: argparse.Namespace) -> int:
    from training.runs.run import extract_references

    found = extract_references(recipe_path(arguments.recipe), arguments.overrides, arguments.out)
    if int(os.environ.get("RANK", "0")) == 0:  # torchrun starts this several times
        print(found)
    return 0


def _add_select(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "select",
        help="choose the reference pixels that a student looks up",
        description="Choose the prior out of a reference set, or fewer pixels of the prior that "
        "the bundle has, by the attention that its student pays on validation images (RPrDepth, "
        "attention-guided feature selection), and write a new bundle with it.",
    )
    add = parser.add_argument
    add("bundle", help="name or folder of a bundle; its student was trained on the set")
    add(
        "--reference",
        type=Path,
        metavar="DIR",
        help="the reference set (default: the prior that the bundle has, to make it smaller)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the new bundle")
    add("--keep", type=int, help="reference pixels to keep (default, of a set: 25000)")
    add(
        "--method",
        choices=SELECTION_METHODS,
        default="attention",
        help="attention: those that the student looks at most; random, k_means: as many, for "
        "comparison; all: the whole set (default: attention)",
    )
    add("--images", type=int, default=64, metavar="N", help="validation images (default: 64)")
    add(
        "--images-from",
        type=recording_path,
        metavar="RECORDING",
        help="drive, bag or folder to take the images from (default: what the bundle's recipe "
        "holds out, else what it trains on)",
    )
    add("--data", type=Path, help="data root of the recipe (default: its own, $DEPTH_PRIOR_DATA)")
    add("--seed", type=int, default=1, help="of random and k_means (default: 1)")
    add("--device", default="auto", help="where the student runs (default: auto)")
    add_recording_options(parser)
    parser.set_defaults(handler=_select)


def _select(arguments: argparse.Namespace) -> int:
    from training.prior.selection.command import select_command

    report = select_command(
        arguments.bundle,
        arguments.reference,
        arguments.out,
        keep=arguments.keep,
        method=arguments.method,
        images=arguments.images,
        data=arguments.data,
        images_from=arguments.images_from,
        reading=arguments,
        seed=arguments.seed,
        device=arguments.device,
    )
    print(report)
    return 0


def _add_fine_tune(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "fine-tune",
        help="let a bundle's student settle on its prior",
        description="Train a bundle's student on its prior by the fine_tune stage of a recipe, "
        "after depth_train select. The same command again resumes.",
    )
    add = parser.add_argument
    add("bundle", help="a bundle with a prior: its folder or name")
    add("recipe", help="name or YAML file of a recipe with a stage of kind fine_tune")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="values to set in the recipe")
    add("--out", type=Path, help="folder of the run (default: runs/fine_tune/NAME of the bundle)")
    parser.set_defaults(handler=_fine_tune)


def _fine_tune(arguments: argparse.Namespace) -> int:
    from training.runs.run import fine_tune

    path = fine_tune(
        arguments.bundle, recipe_path(arguments.recipe), arguments.overrides, arguments.out
    )
    print(f"bundle: {path}")
    return 0


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "explain",
        help="show which reference pixels were looked up",
        description="For chosen pixels of an image, show which reference pixels the student "
        "looked up, as one picture; without an image, a page about the whole prior: where its "
        "pixels come from, and how they are used.",
    )
    add = parser.add_argument
    add("bundle", help="a bundle with a prior: its folder or name")
    add("image", nargs="?", type=recording_path, help="JPEG or PNG, or a recording (see --frame)")
    add(
        "--pixels",
        nargs="+",
        type=_pixel,
        default=[],
        metavar="X,Y",
        help="pixels of the image (default: road, ahead, left, right, far)",
    )
    add("--frame", type=int, metavar="N", help="frame of a recording (default: its middle)")
    add(
        "--branch",
        help="pixel_wise (default), hint (the mean of its heads), or one head: hint:0, hint:1, ...",
    )
    add("--top", type=int, metavar="K", help="references to show a pixel (default: 5)")
    add(
        "--data",
        type=Path,
        help="folder in which the prior's recordings are looked for, and without --images-from "
        "evaluation sets (default: $DEPTH_PRIOR_DATA)",
    )
    add("--report", type=Path, metavar="DIR", help="write the page of the whole prior into DIR")
    add("--images", type=int, metavar="N", help="images of the page (default: 20)")
    add(
        "--images-from",
        nargs="+",
        type=recording_path,
        default=[],
        metavar="PATH",
        help="images, folders or recordings for the page (default: KITTI 2015 and Eigen test "
        "drives below the data folder)",
    )
    add(
        "--reference",
        type=Path,
        metavar="DIR",
        help="the set the prior was chosen from, to compare",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="the picture, or without an image the page (default: runs/explain/NAME.png, .html)",
    )
    add_recording_options(parser)
    parser.set_defaults(handler=_explain)


def _pixel(text: str) -> tuple[int, int]:
    try:
        x, y = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no pixel: X,Y in whole numbers") from None
    return x, y


def _explain(arguments: argparse.Namespace) -> int:
    from depth_prior_ros.progress import ProgressBar
    from training.prior.explain.page import explain_prior
    from training.prior.explain.picture import explain_image

    folder, name = Path("runs/explain"), Path(arguments.bundle).resolve().name
    image, page = arguments.image, None
    if arguments.report or image is None:
        page = arguments.report / "prior.html" if arguments.report else arguments.out
        page = page or folder / f"{name}.html"
    _refuse_unused(arguments, has_image=image is not None, has_page=page is not None)
    if image is not None:
        picture = arguments.out or folder / f"{name}_{image.stem}.png"
        words = explain_image(
            arguments.bundle,
            image,
            picture,
            pixels=arguments.pixels,
            branch=arguments.branch,
            data=arguments.data,
            frame=arguments.frame,
            reading=arguments,
            top=5 if arguments.top is None else arguments.top,
        )
        print(f"{words}\npicture: {picture}")
    if page is not None:
        with ProgressBar() as progress:
            explain_prior(
                arguments.bundle,
                page,
                data=arguments.data,
                images=arguments.images_from,
                reading=arguments,
                count=20 if arguments.images is None else arguments.images,
                reference=arguments.reference,
                progress=progress,
            )
        print(f"page: {page}")
    return 0


def _refuse_unused(arguments: argparse.Namespace, has_image: bool, has_page: bool) -> None:
    """Raise ExplainError for an option of the picture or the page where that is not made."""
    from training.prior.explain.lookup import ExplainError

    unused: list[tuple[str, str]] = []
    if not has_image:
        unused += [(name, "give an image") for name in ("pixels", "frame", "branch", "top")]
    if not has_page:
        names = ("images", "images_from", "reference")
        unused += [(name, "give --report DIR for the page") for name in names]
    if not has_image and arguments.report:
        unused.append(("out", "--report says where the page goes"))
    for name, remedy in unused:
        if getattr(arguments, name) not in (None, []):
            option = name.replace("_", "-")
            raise ExplainError(f"--{option} has no effect here: {remedy}, or leave it out")


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export",
        help="write a bundle's networks as ONNX or OpenVINO",
        description="Write a bundle's networks, the prior inside the student, as ONNX or OpenVINO "
        "files, and compare them with PyTorch on a random and on a street image.",
    )
    add = parser.add_argument
    add("bundle", nargs="?", default="lite", help="name of a shipped bundle, or its folder")
    add("--to", choices=("onnx", "openvino"), required=True, help="format of the files")
    add("--out", type=Path, metavar="DIR", help="folder of the files (default: NAME_FORMAT)")
    add(
        "--tolerance",
        type=float,
        default=1e-3,
        help="largest difference from PyTorch, over the largest value of an output (default: 1e-3)",
    )
    add(
        "--no-look-up",
        action="store_true",
        help="leave the bundle's references out of the student: they are of one camera",
    )
    parser.set_defaults(handler=_export)


def _export(arguments: argparse.Namespace) -> int:
    from depth_prior_ros.progress import ProgressBar
    from training.runs.export import Exported, export_bundle

    def report(exported: Exported) -> None:
        for d in exported.differences:
            print(
                f"{exported.file:<18} {d.output:<18} {d.on:<7} largest difference "
                f"{d.absolute:.1e}, {d.relative:.1e} of the largest value",
                flush=True,
            )

    with ProgressBar() as progress:
        progress("exporting")
        out = export_bundle(
            arguments.bundle,
            arguments.to,
            arguments.out,
            arguments.tolerance,
            report,
            look_up=not arguments.no_look_up,
        )
    print(f"export: {out}")
    return 0
