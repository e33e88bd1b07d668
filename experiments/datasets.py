"""Image data sets as they lie on disk, whole in memory: 50,000 images of CIFAR-10 are 150 MB.

python -m experiments.datasets FOLDER                  says what is there
python -m experiments.datasets FOLDER --download NAME  CIFAR10, CIFAR100, FashionMNIST, SVHN or STL10, by torchvision
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from experiments import formats

SUFFIXES = (".jpg", ".jpeg", ".png")
NAMES = ("CIFAR10", "CIFAR100", "FashionMNIST", "SVHN", "STL10")


@dataclass(frozen=True)
class Images:
    """Training and test images.

    Attributes:
        name: of the data set.
        train: (N, C, H, W), uint8.
        train_labels: (N,), int64, in [0, classes).
        test: (N, C, H, W), uint8.
        test_labels: (N,), int64.
        classes: how many there are.
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def read_images(folder: Path, *, checksums: bool = True) -> Images:
    """Returns the data set that lies in a folder.

    A folder with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, or one of the standard distributions: CIFAR-10 and
    CIFAR-100 (python or binary), Fashion-MNIST (idx, gzipped or not), SVHN (.mat), STL-10 (binary), also one level
    deeper under the name their archives give them.

    Args:
        folder: where it lies.
        checksums: compare the files with the distributions' MD5 sums, where those are known; without it a file is read
            whatever it holds. Pickled files are read without running anything in them in any case.

    Raises:
        FileNotFoundError: if there is no such folder, or nothing known in it.
        ValueError: if a file is damaged or not what its name says.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return _read_folders(folder)
    found = formats.find(folder)
    if found is None:
        known = "; ".join(f"{layout.name}: {', '.join(layout.files)}" for layout in formats.LAYOUTS)
        raise FileNotFoundError(
            f"{folder} holds no data set that is known: neither train/CLASS/*.jpg and test/CLASS/*.jpg "
            f"nor one of {known}"
        )
    layout, place = found
    if checksums:
        formats.check(layout, place)
    train, train_labels, test, test_labels = (torch.from_numpy(array) for array in layout.read(place))
    return _checked(Images(layout.name, train, train_labels, test, test_labels, layout.classes))


def shrink(images: Images, size: int) -> Images:
    """Returns the images averaged down to `size` x `size`; their own size must be a multiple of it.

    Raises:
        ValueError: if it is not.
    """
    own = images.train.shape[-1]
    if size < 1 or own % size:
        raise ValueError(f"image_size must divide {own}, the size of {images.name}, got {size}")
    if size == own:
        return images
    return replace(images, train=_shrunk(images.train, own // size), test=_shrunk(images.test, own // size))


def take(images: Images, train: int | None, test: int | None) -> Images:
    """Returns the first images of a fixed shuffle, so that each class keeps its share; None takes all.

    Raises:
        ValueError: if there are fewer.
    """
    for what, wanted, there in (("training", train, len(images.train)), ("test", test, len(images.test))):
        if wanted is not None and not 0 < wanted <= there:
            raise ValueError(f"{images.name} has {there} {what} images, {wanted} were asked for")
    generator = torch.Generator().manual_seed(0)
    a = torch.randperm(len(images.train), generator=generator)[:train]
    b = torch.randperm(len(images.test), generator=generator)[:test]
    return replace(
        images,
        train=images.train[a],
        train_labels=images.train_labels[a],
        test=images.test[b],
        test_labels=images.test_labels[b],
    )


def _shrunk(images: Tensor, factor: int) -> Tensor:
    parts = [avg_pool2d(part.float(), factor).round().to(torch.uint8) for part in images.split(4096)]
    return torch.cat(parts)


def _read_folders(folder: Path) -> Images:
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    if not classes:
        raise ValueError(f"{folder / 'train'} has no class folders")
    with ThreadPoolExecutor() as pool:
        parts = [_read_split(folder / split, classes, pool) for split in ("train", "test")]
    return _checked(Images(folder.name, *parts[0], *parts[1], len(classes)))


def _read_split(folder: Path, classes: list[str], pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
    unknown = sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(classes))
    if unknown:
        raise ValueError(f"{folder} has class folders that train does not have: {', '.join(unknown)}")
    files = [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise ValueError(f"{folder} has no images of {', '.join(SUFFIXES)} in class folders")
    arrays = list(pool.map(_decode, [path for path, _ in files]))
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1:
        raise ValueError(f"{folder}: all images must have one size, found {sorted(sizes)[:3]}")
    return torch.from_numpy(np.stack(arrays)), torch.tensor([number for _, number in files])


def _decode(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # PIL raises a dozen types for a broken file
        raise ValueError(f"{path} is no image that can be read: {error}") from error


def _checked(images: Images) -> Images:
    for what, data, labels in (
        ("training", images.train, images.train_labels),
        ("test", images.test, images.test_labels),
    ):
        if len(data) != len(labels) or not len(data):
            raise ValueError(f"{images.name}: {len(data)} {what} images and {len(labels)} labels")
        if int(labels.min()) < 0 or int(labels.max()) >= images.classes:
            raise ValueError(
                f"{images.name}: {what} labels must be in [0, {images.classes}), found {int(labels.min())} "
                f"to {int(labels.max())}"
            )
    return images


def _download(folder: Path, name: str) -> None:
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # beside another torch it fails with a RuntimeError
        raise SystemExit(f"--download needs torchvision, which does not import here: {error}") from error
    splits = (
        ({"split": "train"}, {"split": "test"}) if name in {"SVHN", "STL10"} else ({"train": True}, {"train": False})
    )
    for split in splits:
        getattr(datasets, name)(folder, download=True, **split)


def main() -> None:
    """Prints what a folder holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--download", choices=NAMES, help="let torchvision download it to FOLDER first")
    arguments = parser.parse_args()
    if arguments.download:
        _download(arguments.folder, arguments.download)
    try:
        images = read_images(arguments.folder)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(
        f"{images.name}: {len(images.train)} training and {len(images.test)} test images, "
        f"{tuple(images.train.shape[1:])}, {images.classes} classes"
    )


if __name__ == "__main__":
    main()
