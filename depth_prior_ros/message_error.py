"""The one error of messages that cannot be used: a cause to count by and words for a person."""

from __future__ import annotations


class MessageError(ValueError):
    """A message that cannot be used.

    Attributes:
        cause: stable identifier: of images ``zero_size``, ``odd_size``, ``wrong_step``,
            ``truncated``, ``unknown_encoding`` or ``compressed_broken``; of calibration
            ``bad_intrinsics`` or ``camera_info_size``.
        text: what is wrong with this message, for a person.
    """

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(f"{cause}: {text}")
        self.cause = cause
        self.text = text
