"""A small data set on disk, in the layouts that experiments/ reads."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = 10


def digit_images(count: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3, size, size) uint8 and labels: real digits, 8 x 8, enlarged."""
    digits = load_digits()
    images = (digits.images[:count] * 15).astype(np.uint8).repeat(size // 8, 1).repeat(size // 8, 2)
    return np.repeat(images[:, None], 3, 1), digits.target[:count].astype(np.int64)


def write_folders(folder: Path, train: int = 300, test: int = 100) -> Path:
    """`train/CLASS/NNNN.png` and `test/CLASS/NNNN.png`."""
    images, labels = digit_images(train + test)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / ("train" if number < train else "test") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number:04}.png")
    return folder


def write_cifar_python(folder: Path, rows: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's pickles; returns all training images and labels."""
    images, labels = digit_images(6 * rows, 32)
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name, part, answers in zip(names, np.split(images, 6), np.split(labels, 6), strict=True):
        content = {"data": part.reshape(rows, -1), "labels": answers.tolist(), "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return images[: 5 * rows], labels[: 5 * rows]


def write_cifar_binary(folder: Path, label_bytes: int = 1, rows: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's (one label byte) or CIFAR-100's (two) binary files."""
    if label_bytes == 1:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    else:
        names = ["train.bin", "test.bin"]
    images, labels = digit_images(len(names) * rows, 32)
    folder.mkdir(parents=True)
    for name, part, answers in zip(names, np.split(images, len(names)), np.split(labels, len(names)), strict=True):
        heads = np.zeros((rows, label_bytes), np.uint8)
        heads[:, -1] = answers
        (folder / name).write_bytes(np.hstack([heads, part.reshape(rows, -1)]).tobytes())
    return images[:-rows], labels[:-rows]


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of bytes as Fashion-MNIST's files hold it."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion_mnist(folder: Path, zipped: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST's idx files, gzipped or not."""
    images, labels = digit_images(12, 32)
    images = images[:, 0, :28, :28].copy()
    folder.mkdir(parents=True)
    for split, part in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        for what, array in (("images-idx3", images[part]), ("labels-idx1", labels[part].astype(np.uint8))):
            raw = idx_bytes(array)
            name = f"{split}-{what}-ubyte" + (".gz" if zipped else "")
            (folder / name).write_bytes(gzip.compress(raw) if zipped else raw)
    return images[:8, None], labels[:8]
