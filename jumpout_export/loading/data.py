"""Reads batches as the command line names them: arrays, folders of images, random numbers, a callable."""

from __future__ import annotations

import copy
import itertools
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jumpout_export.errors import LoadError
from jumpout_export.loading.images import IMAGE_SUFFIXES, read_image
from jumpout_export.loading.network import call_named
from jumpout_export.model.batches import Batch
from jumpout_export.text import first_line, some_of

_MAX_ARRAY_BYTES = 64 << 30


def load_data(spec: str, batch_size: int = 128, seed: int = 0) -> Any:
    """Returns a re-iterable of batches.

    Args:
        spec: a folder of class sub-folders with images (RGB, scaled to [0, 1], (N, 3, H, W), shuffled once with `seed`
            so that a part of it holds all classes); an `.npz` with `inputs` and optionally `labels`; or
            `package.module:callable`, which returns batches itself, a generator that never ends among them.
        batch_size: samples per batch; a callable decides for itself.
        seed: of the shuffle.

    Raises:
        LoadError: if it is none of these, cannot be read or is empty.
    """
    path = Path(spec)
    if path.is_dir():
        return ImageFolder(path, batch_size, seed)
    if path.suffix == ".npz":
        return ArrayFile(path, batch_size)
    if ":" in spec:
        batches = call_named(spec, "--data")
        return Remembered(batches) if iter(batches) is batches else batches
    raise LoadError(
        f"--data {spec}: there is no such folder; give a folder of class sub-folders with images, an .npz file with "
        "`inputs`, or package.module:callable"
    )


def share_of(batches: Any, rank: int, size: int) -> Any:
    """Returns one of `size` parts of what `load_data` returned; together they hold every sample once.

    A folder or an `.npz` is split by samples, which reads no more than its own; batches of a callable are dealt out one
    by one, so every process has to make the same ones.
    """
    if size == 1:
        return batches
    if isinstance(batches, ArrayFile | ImageFolder):
        return batches.part(rank, size)
    return EveryNth(batches, rank, size)


@dataclass(frozen=True)
class EveryNth:
    """Every `size`-th batch, from number `rank` on."""

    batches: Any
    rank: int
    size: int

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.batches, self.rank, None, self.size)


class Remembered:
    """The batches of a one-shot iterator, for several passes: those asked for are kept, no others are made."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._source = batches
        self._kept: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for index in itertools.count():
            if index == len(self._kept):
                try:
                    self._kept.append(next(self._source))
                except StopIteration:
                    return
            yield self._kept[index]


class Labelled(NamedTuple):
    """A batch that says which of its entries is what, so that no input of a network is taken for another."""

    inputs: Tensor
    labels: Tensor


class ArrayFile:
    """Batches of an `.npz` file with `inputs` (N, ...) and optionally `labels` (N,); no object arrays."""

    def __init__(self, path: Path, batch_size: int) -> None:
        arrays = _read_arrays(path)
        if "inputs" not in arrays:
            raise LoadError(f"--data {path} must hold an array `inputs`, it holds {some_of(sorted(arrays))}")
        inputs, labels = arrays["inputs"], arrays.get("labels")
        if inputs.ndim < 1 or not len(inputs):
            raise LoadError(f"--data {path}: `inputs` is empty, shape {inputs.shape}")
        if labels is not None and labels.shape != inputs.shape[:1]:
            raise LoadError(f"--data {path}: `labels` must have shape {inputs.shape[:1]}, got {labels.shape}")
        self.inputs = _tensor(inputs, path)
        if labels is not None and not np.issubdtype(labels.dtype, np.integer):
            raise LoadError(f"--data {path}: `labels` must be integers, got {labels.dtype}")
        self.labels = None if labels is None else _tensor(labels, path).long()
        self.batch_size = batch_size
        self._path = path

    def entry(self, name: str) -> list[Any]:
        """Returns what another array of the file holds, one value for each sample.

        Raises:
            LoadError: if there is no such array, or it has another length.
        """
        arrays = _read_arrays(self._path)
        if name not in arrays or arrays[name].shape[:1] != arrays["inputs"].shape[:1]:
            raise LoadError(
                f"--groups {name}: {self._path} must hold an array of that name with {len(arrays['inputs'])} values, "
                f"it holds {some_of(sorted(arrays))}"
            )
        values: list[Any] = arrays[name].tolist()
        return values

    def part(self, rank: int, size: int) -> ArrayFile:
        """Returns every `size`-th sample, from number `rank` on."""
        own = copy.copy(self)
        own.inputs = self.inputs[rank::size]
        own.labels = None if self.labels is None else self.labels[rank::size]
        return own

    def __len__(self) -> int:
        return math.ceil(len(self.inputs) / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self.inputs[part] if self.labels is None else Labelled(self.inputs[part], self.labels[part])


class ImageFolder:
    """Batches of the images in a folder of class sub-folders, read when they are needed.

    Attributes:
        classes: names of the sub-folders, sorted; the label is the index.
        files: the image files in the order they are read, and their labels.
        shuffled: the first of them are drawn at random from all.
    """

    shuffled = True

    def __init__(self, root: Path, batch_size: int, seed: int) -> None:
        self.classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((root / name).iterdir())
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not files:
            raise LoadError(
                f"--data {root} holds no images; expected {root}/<class>/<image> and one of {', '.join(IMAGE_SUFFIXES)}"
            )
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
        self.files = [files[index] for index in order]
        self.batch_size = batch_size

    def part(self, rank: int, size: int) -> ImageFolder:
        """Returns every `size`-th image, from number `rank` on."""
        own = copy.copy(self)
        own.files = self.files[rank::size]
        return own

    def __len__(self) -> int:
        return math.ceil(len(self.files) / self.batch_size)

    def __iter__(self) -> Iterator[Labelled]:
        for start in range(0, len(self.files), self.batch_size):
            part = self.files[start : start + self.batch_size]
            images = [read_image(file) for file, _ in part]
            for (file, _), image in zip(part, images, strict=True):
                if image.shape != images[0].shape:
                    raise LoadError(
                        f"image {file} is {tuple(image.shape[1:])} pixels and {part[0][0]} is "
                        f"{tuple(images[0].shape[1:])}; all must have one size: resize them, or give --data "
                        "package.module:callable"
                    )
            yield Labelled(torch.stack(images), torch.tensor([label for _, label in part]))


def random_batches(shapes: list[str], seed: int, count: int = 2) -> list[Batch | dict[str, Tensor]]:
    """Returns `count` batches of standard normal inputs for shapes such as `1,3,32,32` or `name:1,3,32,32`.

    Raises:
        LoadError: if a shape is not made of positive integers, or only some of several have names.
    """
    generator = torch.Generator().manual_seed(seed)
    named = [shape.rpartition(":") for shape in shapes]
    if len({bool(name) for name, _, _ in named}) > 1:
        raise LoadError(f"--input-shape: give all shapes a name or none, got {', '.join(shapes)}")
    names, sizes = [name for name, _, _ in named], [_shape(text) for _, _, text in named]
    drawn = [[torch.randn(size, generator=generator) for size in sizes] for _ in range(count)]
    # All of them are inputs, by position too: nothing here is a label.
    return [dict(zip(names, one, strict=True)) if names[0] else Batch(tuple(one), {}) for one in drawn]


def _shape(text: str) -> tuple[int, ...]:
    try:
        size = tuple(int(part) for part in text.split(","))
    except ValueError:
        size = (0,)
    if min(size) < 1:
        raise LoadError(f"--input-shape must be positive integers such as 1,3,32,32, got {text!r}")
    return size


def _read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not path.is_file():
        raise LoadError(f"--data {path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_ARRAY_BYTES:
            raise LoadError(f"--data {path} unpacks to {size >> 30} GiB; at most {_MAX_ARRAY_BYTES >> 30} are read")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except LoadError:
        raise
    except Exception as error:  # what zipfile and NumPy raise for a broken archive: zlib.error, struct.error, KeyError
        raise LoadError(f"--data {path} cannot be read as plain arrays: {first_line(error)}") from error


def _tensor(array: np.ndarray[Any, Any], path: Path) -> Tensor:
    native = array.dtype.newbyteorder("=")  # torch knows no other order; the numbers stay the same
    try:
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=native))
    except TypeError as error:
        raise LoadError(f"--data {path}: arrays must be numbers, got {array.dtype}") from error
    return tensor.float() if tensor.dtype == torch.float64 else tensor
