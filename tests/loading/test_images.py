"""Images of more than 8 bits: scaled by what the file says, or refused in words, and never read as white or black."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from jumpout_export.errors import LoadError
from jumpout_export.loading import load_data, read_image

RAMP = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
TRUTH = torch.from_numpy(RAMP / 65535).float()
EIGHT_BITS = 1 / 255  # what a reader that keeps the upper byte may be off by


def written(path, array=RAMP, **options):
    Image.fromarray(array).save(path, **options)
    return path


def pgm(path, largest: int, array) -> object:
    kind = ">u2" if largest > 255 else "u1"
    path.write_bytes(b"P5 8 8 %d\n" % largest + array.astype(kind).tobytes())
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: written(folder / "a.png"),
        lambda folder: written(folder / "a.tif"),
        lambda folder: pgm(folder / "a.pgm", 65535, RAMP),
        lambda folder: written(folder / "a.tif", (RAMP / 65535).astype(np.float32)),
        lambda folder: written(folder / "b.tif", 65535 - RAMP, tiffinfo={262: 0}),
        lambda folder: written(folder / "c.tif", (RAMP / 65535 * 300 - 20).astype(np.float32), tiffinfo=RANGE),
        lambda folder: written(folder / "d.tif", RAMP.astype(np.int32), tiffinfo={340: (0,), 341: (65535,)}),
    ],
    ids=["png", "tiff", "pgm", "float tiff", "white is zero", "float tiff of a range", "32-bit tiff of a range"],
)
def test_a_grey_image_of_more_bits_is_scaled_by_what_the_file_says(tmp_path, write):
    image = read_image(write(tmp_path))
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, TRUTH.expand(3, 8, 8), rtol=0, atol=1e-6)


RANGE = {340: (-20.0,), 341: (280.0,)}


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: pgm(folder / "a.pgm", 4095, RAMP >> 4),
        lambda folder: pgm(folder / "a.pgm", 255, RAMP >> 8),
        lambda folder: written(folder / "a.png", (RAMP >> 8).astype(np.uint8)),
        lambda folder: written(folder / "a.png", np.stack([(RAMP >> 8).astype(np.uint8)] * 3, -1)),
    ],
    ids=["12-bit pgm", "8-bit pgm", "8-bit png", "rgb png"],
)
def test_images_of_fewer_bits_mean_the_same(tmp_path, write):
    torch.testing.assert_close(read_image(write(tmp_path)), TRUTH.expand(3, 8, 8), rtol=0, atol=EIGHT_BITS)


@pytest.mark.parametrize(
    ("array", "options", "said"),
    [
        (RAMP.astype(np.int32), {}, r"int32 numbers from 0 to 65535 and does not say which is white \(TIFF tags 340"),
        ((RAMP / 257).astype(np.float32), {}, "float32 numbers from 0 to 255, and black would be 0, white 1"),
        ((RAMP / 65535 - 0.5).astype(np.float32), {}, "float32 numbers from -0.5 to 0.5, and black would be 0"),
        (np.full((8, 8), np.nan, np.float32), {}, "float32 numbers from nan to nan"),
        (RAMP.astype(np.float32), {"tiffinfo": RANGE}, "from 0 to 65535, and black would be -20, white 280"),
    ],
    ids=["32 bits", "float to 255", "float below 0", "nan", "beyond the range"],
)
def test_an_image_that_does_not_say_which_number_is_white_is_refused(tmp_path, array, options, said):
    file = written(tmp_path / "a.tif", array, **options)
    with pytest.raises(LoadError, match=said) as caught:
        read_image(file)
    assert str(file) in str(caught.value)


def test_a_folder_of_16_bit_images_gives_batches_that_are_not_all_white(tmp_path):
    (tmp_path / "a").mkdir()
    for index in range(4):
        written(tmp_path / "a" / f"{index}.png")
    images, _ = next(iter(load_data(str(tmp_path), batch_size=4)))
    assert float(images.mean()) == pytest.approx(0.5, abs=1e-4)
    assert float((images >= 1).float().mean()) == pytest.approx(1 / 64)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
def test_broken_images_are_errors_of_one_line_or_images(tmp_path, kind):
    array = (RAMP >> 8).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).convert("RGB").save(buffer, kind)
    whole = buffer.getvalue()
    file, chance, said = tmp_path / "a.tif", random.Random(0), []
    for _ in range(60):
        broken = bytearray(whole[: chance.randrange(1, len(whole) + 1)])
        for _ in range(chance.randrange(4)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        file.write_bytes(broken)
        try:
            assert read_image(file).shape[0] == 3
        except LoadError as error:
            said.append(str(error))
    assert len(said) > 10
    assert [text for text in said if "\n" in text or str(file) not in text] == []
