"""The standard distributions of CIFAR-10, CIFAR-100, Fashion-MNIST, SVHN and STL-10: file names, MD5 sums, layout."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """One distribution.

    Attributes:
        name: of the data set.
        folder: that its archive makes.
        files: names, with their MD5 sums as torchvision has them; None where they are not known.
        classes: how many there are.
        read: returns training images (N, C, H, W) and labels, test images and labels, of the folder given.
    """

    name: str
    folder: str
    files: Mapping[str, str | None]
    classes: int
    read: Callable[[Path], Arrays]


def find(folder: Path) -> tuple[Layout, Path] | None:
    """Returns the distribution in a folder, or one level deeper, and where its files lie; None if there is none."""
    for layout in LAYOUTS:
        for place in (folder, folder / layout.folder):
            if all((place / name).is_file() for name in layout.files):
                return layout, place
    return None


def check(layout: Layout, place: Path) -> None:
    """Raises a ValueError if a file is not the one that was published."""
    for name, expected in layout.files.items():
        if expected is None:
            continue
        with (place / name).open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != expected:
            raise ValueError(
                f"{place / name} is not {layout.name}'s: its MD5 sum is {found}, published is {expected}; "
                "download it again, or pass checksums=False (--no-checksums) for a file of your own"
            )


class _OnlyArrays(pickle.Unpickler):
    """Reads what CIFAR's pickles hold and nothing that could run."""

    # Pickled by Python 2 and an old NumPy; NumPy 2 has moved the module.
    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise ValueError(f"it asks for {module}.{name}, which a CIFAR file does not hold")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_python(place: Path, train: list[str], test: str, labels: str) -> Arrays:
    parts = [_unpickled(place / name, labels) for name in [*train, test]]
    images = [part[0] for part in parts]
    return (
        np.concatenate(images[:-1]),
        np.concatenate([part[1] for part in parts[:-1]]),
        images[-1],
        parts[-1][1],
    )


def _unpickled(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        entry = _OnlyArrays(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        data = np.asarray(entry["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        return data, np.asarray(entry[labels], dtype=np.int64)
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(f"{path} is no CIFAR file: {type(error).__name__}: {error}") from error


def _cifar_binary(place: Path, train: list[str], test: str, label_bytes: int) -> Arrays:
    """One byte per label (CIFAR-100: the coarse one first), then 3072 of the image."""
    parts = []
    for name in [*train, test]:
        raw = np.fromfile(place / name, dtype=np.uint8)
        row = label_bytes + 3072
        if not raw.size or raw.size % row:
            raise ValueError(f"{place / name} must hold rows of {row} bytes, it has {raw.size}")
        rows = raw.reshape(-1, row)
        parts.append((rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].astype(np.int64)))
    images, labels = [part[0] for part in parts], [part[1] for part in parts]
    return np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1].copy(), labels[-1]


def _fashion_mnist(place: Path, suffix: str) -> Arrays:
    train, train_labels = (_idx(place / f"train-{what}-ubyte{suffix}") for what in ("images-idx3", "labels-idx1"))
    test, test_labels = (_idx(place / f"t10k-{what}-ubyte{suffix}") for what in ("images-idx3", "labels-idx1"))
    return train[:, None], train_labels.astype(np.int64), test[:, None], test_labels.astype(np.int64)


def _idx(path: Path) -> np.ndarray:
    """A magic number that ends with the number of axes, the lengths as big-endian words, then the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is no gzip file: {error}") from error
    axes = raw[3] if len(raw) > 4 and raw[:3] == b"\0\0\x08" else 0
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes]) if 0 < axes <= 3 and len(raw) >= 4 + 4 * axes else ()
    if not shape or len(raw) != 4 + 4 * axes + math.prod(shape):
        raise ValueError(f"{path} is no idx file of bytes, or it is cut off")
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


def _svhn(place: Path) -> Arrays:
    """Images lie as (32, 32, 3, N), and the digit 0 has the label 10."""
    from scipy.io import loadmat

    found = []
    for name in ("train_32x32.mat", "test_32x32.mat"):
        try:
            entry = loadmat(place / name)
            images, labels = entry["X"].transpose(3, 2, 0, 1), entry["y"].reshape(-1).astype(np.int64) % 10
        except Exception as error:  # scipy raises several types
            raise ValueError(f"{place / name} is no SVHN file: {type(error).__name__}: {error}") from error
        found += [np.ascontiguousarray(images), labels]
    return found[0], found[1], found[2], found[3]


def _stl10(place: Path) -> Arrays:
    """Images lie by columns, labels start at 1."""
    found = []
    for split in ("train", "test"):
        raw = np.fromfile(place / f"{split}_X.bin", dtype=np.uint8)
        if not raw.size or raw.size % (3 * 96 * 96):
            raise ValueError(f"{place / f'{split}_X.bin'} must hold images of {3 * 96 * 96} bytes, it has {raw.size}")
        images = np.ascontiguousarray(raw.reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2))
        found += [images, np.fromfile(place / f"{split}_y.bin", dtype=np.uint8).astype(np.int64) - 1]
    return found[0], found[1], found[2], found[3]


_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]

LAYOUTS = (
    Layout(
        "CIFAR-10",
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        10,
        lambda place: _cifar_python(place, _BATCHES, "test_batch", "labels"),
    ),
    Layout(
        "CIFAR-100",
        "cifar-100-python",
        {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        100,
        lambda place: _cifar_python(place, ["train"], "test", "fine_labels"),
    ),
    Layout(
        "CIFAR-10",
        "cifar-10-batches-bin",
        dict.fromkeys([*(f"{name}.bin" for name in _BATCHES), "test_batch.bin"]),
        10,
        lambda place: _cifar_binary(place, [f"{name}.bin" for name in _BATCHES], "test_batch.bin", 1),
    ),
    Layout(
        "CIFAR-100",
        "cifar-100-binary",
        {"train.bin": None, "test.bin": None},
        100,
        lambda place: _cifar_binary(place, ["train.bin"], "test.bin", 2),
    ),
    Layout(
        "Fashion-MNIST",
        "FashionMNIST/raw",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        10,
        lambda place: _fashion_mnist(place, ".gz"),
    ),
    Layout(
        "Fashion-MNIST",
        "FashionMNIST/raw",
        {
            "train-images-idx3-ubyte": None,
            "train-labels-idx1-ubyte": None,
            "t10k-images-idx3-ubyte": None,
            "t10k-labels-idx1-ubyte": None,
        },
        10,
        lambda place: _fashion_mnist(place, ""),
    ),
    Layout(
        "SVHN",
        "svhn",
        {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"},
        10,
        _svhn,
    ),
    Layout(
        "STL-10",
        "stl10_binary",
        {
            "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
            "train_y.bin": "5a34089d4802c674881badbb80307741",
            "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
            "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
        },
        10,
        _stl10,
    ),
)
