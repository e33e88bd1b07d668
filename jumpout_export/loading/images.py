"""Reads one image file as numbers between 0 (black) and 1 (white), by what the file says of its range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jumpout_export.errors import LoadError
from jumpout_export.extras import require
from jumpout_export.text import first_line

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# TIFF 6.0: bits per sample, photometric interpretation (0: white is zero), and the range of the samples.
_BITS, _PHOTOMETRIC, _SMALLEST, _LARGEST = 258, 262, 340, 341
_SIXTEEN_BITS = 65535


def require_pillow() -> None:
    """Imports what reads images.

    Raises:
        ImportError: if Pillow is missing; the message names the command that installs it.
    """
    require("PIL.Image", "data", "reading images needs Pillow: ")


def read_image(file: Path) -> Tensor:
    """Returns the image as a (3, H, W) float32 tensor in [0, 1], a grey one three times.

    8 bits per channel are divided by 255, grey ones of 16 bits by 65535, and those of another depth in a TIFF by its
    largest number. Floating-point and signed TIFFs are scaled by the range that the file gives (tags 340 and 341);
    without one, floating-point values have to lie in [0, 1].

    Raises:
        LoadError: if the file is no readable image, or does not say which of its numbers is white.
        ImportError: if Pillow is missing.
    """
    require_pillow()
    from PIL import Image

    if not file.is_file():  # opening a pipe would wait for ever
        raise LoadError(f"image {file} cannot be read: it is no plain file")
    try:
        with Image.open(file) as image:
            if image.mode == "F" or image.mode.startswith("I"):
                grey = _scaled(np.asarray(image), image.mode, image.format or "", getattr(image, "tag_v2", {}), file)
                return torch.from_numpy(grey).expand(3, *grey.shape).contiguous()
            pixels = np.array(image.convert("RGB"))
    except LoadError:
        raise
    except Exception as error:  # what a decoder raises for a broken file is anything from IndexError to struct.error
        raise LoadError(f"image {file} cannot be read: {first_line(error)}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)


def _scaled(values: np.ndarray[Any, Any], mode: str, kind: str, tags: Any, file: Path) -> np.ndarray[Any, Any]:
    """Returns a grey image of more than 8 bits, scaled to [0, 1]."""
    x = values.astype(np.float64)
    low, high = _range(mode, kind, tags)
    found = f"image {file} holds {values.dtype} numbers from {x.min():g} to {x.max():g}"
    if low is None or high is None:
        raise LoadError(
            f"{found} and does not say which is white (TIFF tags 340 and 341, SMinSampleValue and SMaxSampleValue); "
            "save it with 16 bits, or give --data an .npz or package.module:callable"
        )
    if not (np.isfinite(x).all() and low <= x.min() and x.max() <= high):
        raise LoadError(
            f"{found}, and black would be {low:g}, white {high:g}; scale it to [0, 1], or give --data an .npz or "
            "package.module:callable"
        )
    scaled = ((x - low) / (high - low)).astype(np.float32)
    return 1 - scaled if mode.startswith("I;") and tags.get(_PHOTOMETRIC) == 0 else scaled


def _range(mode: str, kind: str, tags: Any) -> tuple[float | None, float | None]:
    """Returns which number is black and which is white, None where nothing says so."""
    smallest, largest = tags.get(_SMALLEST), tags.get(_LARGEST)
    if smallest and largest and largest[0] > smallest[0]:
        return float(smallest[0]), float(largest[0])
    if mode == "F":
        return 0.0, 1.0
    if mode.startswith("I;"):
        bits = tags.get(_BITS)
        return 0.0, float(2 ** bits[0] - 1 if bits else _SIXTEEN_BITS)
    # Older versions of Pillow read 16-bit PNGs so, and all read PGMs so, scaled to 16 bits.
    return (0.0, float(_SIXTEEN_BITS)) if kind in ("PNG", "PPM") else (None, None)
