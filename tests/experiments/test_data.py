"""Reading the data sets of experiments/: every layout gives back what was written, a damaged file is named."""

import pickle

import numpy as np
import pytest
import torch
from support.experiments_data import (
    digit_images,
    idx_bytes,
    write_cifar_binary,
    write_cifar_python,
    write_fashion_mnist,
    write_folders,
)

from experiments.augment import augment
from experiments.datasets import Images, read_images, shrink, take


def test_a_folder_of_class_folders_is_read_whole(tmp_path):
    images = read_images(write_folders(tmp_path, train=60, test=20))
    assert images.train.shape == (60, 3, 16, 16)
    assert images.train.dtype == torch.uint8
    assert images.classes == 10
    written, labels = digit_images(60)
    order = np.argsort(labels, kind="stable")  # classes in turn, files by name
    np.testing.assert_array_equal(images.train.numpy(), written[order])
    np.testing.assert_array_equal(images.train_labels.numpy(), labels[order])


@pytest.mark.parametrize("deeper", [False, True])
def test_cifar_pickles_are_read(tmp_path, deeper):
    place = tmp_path / "data" / "cifar-10-batches-py"
    written, labels = write_cifar_python(place)
    images = read_images(place.parent if deeper else place, checksums=False)
    assert images.name == "CIFAR-10"
    np.testing.assert_array_equal(images.train.numpy(), written)
    np.testing.assert_array_equal(images.train_labels.numpy(), labels)
    assert images.test.shape == (4, 3, 32, 32)


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path):
    write_cifar_python(tmp_path / "cifar")
    with pytest.raises(ValueError, match=r"data_batch_1 is not CIFAR-10's: its MD5 sum is [0-9a-f]{32}, published is"):
        read_images(tmp_path / "cifar")


class Runs:
    def __reduce__(self):
        return print, ("this code ran",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    write_cifar_python(tmp_path / "cifar")
    (tmp_path / "cifar" / "data_batch_3").write_bytes(pickle.dumps({"data": Runs(), "labels": []}))
    with pytest.raises(
        ValueError, match=r"data_batch_3 is no CIFAR file: .*builtins.print, which a CIFAR file does not"
    ):
        read_images(tmp_path / "cifar", checksums=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("label_bytes", "name"), [(1, "CIFAR-10"), (2, "CIFAR-100")])
def test_cifar_binary_files_are_read(tmp_path, label_bytes, name):
    written, labels = write_cifar_binary(tmp_path / "bin", label_bytes)
    images = read_images(tmp_path / "bin")
    assert images.name == name
    np.testing.assert_array_equal(images.train.numpy(), written)
    np.testing.assert_array_equal(images.train_labels.numpy(), labels)


def test_a_cut_off_binary_file_is_named(tmp_path):
    write_cifar_binary(tmp_path / "bin")
    file = tmp_path / "bin" / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2.bin must hold rows of 3073 bytes"):
        read_images(tmp_path / "bin")


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_is_read(tmp_path, zipped):
    written, labels = write_fashion_mnist(tmp_path / "raw", zipped)
    images = read_images(tmp_path / "raw", checksums=False)
    assert images.name == "Fashion-MNIST"
    np.testing.assert_array_equal(images.train.numpy(), written)
    np.testing.assert_array_equal(images.train_labels.numpy(), labels)


@pytest.mark.parametrize(
    "raw", [b"", b"\0\0\x08\x03", idx_bytes(np.zeros((2, 28, 28), np.uint8))[:-1], b"\0\0\x0d\x01"]
)
def test_a_broken_idx_file_is_named(tmp_path, raw):
    write_fashion_mnist(tmp_path / "raw", False)
    (tmp_path / "raw" / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is no idx file"):
        read_images(tmp_path / "raw")


def test_svhn_is_read(tmp_path):
    from scipy.io import savemat

    images, labels = digit_images(6, 32)
    for name, part in (("train", slice(0, 4)), ("test", slice(4, 6))):
        answers = np.where(labels[part] == 0, 10, labels[part])[:, None].astype(np.uint8)
        savemat(tmp_path / f"{name}_32x32.mat", {"X": images[part].transpose(2, 3, 1, 0), "y": answers})
    found = read_images(tmp_path, checksums=False)
    np.testing.assert_array_equal(found.train.numpy(), images[:4])
    np.testing.assert_array_equal(found.train_labels.numpy(), labels[:4])
    (tmp_path / "test_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"test_32x32.mat is no SVHN file"):
        read_images(tmp_path, checksums=False)


def test_stl10_is_read(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)
    for name in ("train", "test"):
        (tmp_path / f"{name}_X.bin").write_bytes(images.transpose(0, 1, 3, 2).tobytes())
        (tmp_path / f"{name}_y.bin").write_bytes(bytes([1, 10, 5]))
    found = read_images(tmp_path, checksums=False)
    np.testing.assert_array_equal(found.train.numpy(), images)
    assert found.test_labels.tolist() == [0, 9, 4]
    (tmp_path / "train_y.bin").write_bytes(bytes([1, 11, 5]))
    with pytest.raises(ValueError, match=r"STL-10: training labels must be in \[0, 10\), found 0 to 10"):
        read_images(tmp_path, checksums=False)


def test_a_folder_without_a_known_data_set_says_what_is_known(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither train/CLASS/\*.jpg .* nor one of CIFAR-10: data_batch_1"):
        read_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder"):
        read_images(tmp_path / "nothing")


def test_a_broken_image_is_named(tmp_path):
    write_folders(tmp_path, 20, 10)
    broken = next((tmp_path / "train" / "3").glob("*.png"))
    broken.write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=rf"{broken.name} is no image that can be read"):
        read_images(tmp_path)


def _ramp(size: int) -> Images:
    pixels = torch.arange(20 * 3 * size * size).reshape(20, 3, size, size).remainder(251).to(torch.uint8)
    labels = torch.arange(20) % 10
    return Images("ramp", pixels, labels, pixels, labels, 10)


def test_shrinking_averages_squares_of_pixels():
    images = _ramp(8)
    small = shrink(images, 4)
    expected = images.train.float().reshape(20, 3, 4, 2, 4, 2).mean((3, 5)).round()
    torch.testing.assert_close(small.train.float(), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="image_size must divide 8, the size of ramp, got 3"):
        shrink(images, 3)


def test_a_part_of_the_images_keeps_their_labels():
    images = _ramp(4)
    part = take(images, 7, None)
    assert len(part.train) == 7
    for image, label in zip(part.train, part.train_labels, strict=True):
        row = next(index for index in range(20) if torch.equal(images.train[index], image))
        assert images.train_labels[row] == label
    with pytest.raises(ValueError, match="ramp has 20 training images, 21 were asked for"):
        take(images, 21, None)


def test_augmented_images_are_shifted_and_mirrored_copies():
    x = torch.randn(400, 2, 16, 24)
    y = augment(x, generator=torch.Generator().manual_seed(1))
    seen = set()
    for image, changed in zip(x, y, strict=True):
        padded = torch.nn.functional.pad(image, (3, 3, 2, 2))
        matches = {
            (down, right, mirrored)
            for down in range(5)
            for right in range(7)
            for mirrored in (False, True)
            for crop in [padded[:, down : down + 16, right : right + 24]]
            if torch.equal(crop.flip(-1) if mirrored else crop, changed)
        }
        assert len(matches) == 1
        seen |= matches
    assert len(seen) > 60  # of 70; each is missed with probability (69/70)^400 = 0.3%
