"""Absolute paths in the texts of an ONNX file, which tell whoever gets it about the machine that wrote it."""

from __future__ import annotations

import re

# /a/b and deeper, not preceded by a word, a URL's colon or another slash; C:\ and \\host\share; file: URLs.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w:/.\-+])/(?:[^\s/:\"'<>|*?]+/)+[^\s/:\"'<>|*?,;]+|\b[A-Za-z]:[\\/][^\s\"'<>|*?]+|\\\\[\w.$-]+\\[^\s\"'<>|*?]*|\bfile:/\S*"
)


def without_folders(text: str) -> str:
    """Returns the text with every absolute path cut to its file name."""
    return ABSOLUTE_PATH.sub(lambda match: re.split(r"[\\/]", match[0])[-1], text)
