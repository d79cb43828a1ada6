"""What the commands' arguments may be; argparse shows the errors."""

from __future__ import annotations

import argparse


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def quality(text: str) -> int:
    """A JPEG quality, 1 to 100."""
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 1 and 100")
    return value


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text} is no size such as 640x192")
    return int(width), int(height)


def intrinsics(text: str) -> tuple[float, float, float, float]:
    """FX,FY,CX,CY in pixels."""
    try:
        fx, fy, cx, cy = (float(value) for value in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not FX,FY,CX,CY") from error
    return fx, fy, cx, cy
