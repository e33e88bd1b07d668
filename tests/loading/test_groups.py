"""Groups of samples as the command line names them: by the paths in a folder, or by an array."""

import numpy as np
import pytest
from PIL import Image

from jumpout_export.errors import LoadError
from jumpout_export.loading import load_data, with_groups


@pytest.fixture
def folder(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for clip in range(2):
            for frame in range(3):
                Image.new("RGB", (4, 4), (40 * clip, 60 * frame, 0)).save(tmp_path / kind / f"clip{clip}_{frame}.png")
    return tmp_path


@pytest.mark.parametrize(("pattern", "count"), [(r"^(.*)_\d", 4), (r"clip\d", 2), (r"^(\w+)/clip(\d)", 4)])
def test_a_pattern_names_the_groups_of_a_folder(folder, pattern, count):
    plain = load_data(str(folder), batch_size=5)
    batches = with_groups(load_data(str(folder), batch_size=5), pattern)
    assert len(batches) == 3
    assert batches.shuffled
    keys = [key for batch in batches for key in batch[pattern]]
    assert len(keys) == 12
    assert len(set(keys)) == count
    for one, two in zip(plain, batches, strict=True):
        assert (one.inputs == two["inputs"]).all()
        assert (one.labels == two["labels"]).all()


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("(", "is no regular expression"), ("bird", "matches nothing in (cat|dog)/clip")],
)
def test_a_pattern_that_cannot_name_groups_is_an_error(folder, pattern, text):
    with pytest.raises(LoadError, match=text):
        with_groups(load_data(str(folder)), pattern)


def test_an_array_names_the_groups_of_an_archive(tmp_path):
    file = tmp_path / "data.npz"
    np.savez(file, inputs=np.ones((6, 3, 2, 2)), clip=np.array(list("aabbcc")))
    (batch,) = with_groups(load_data(str(file)), "clip")
    assert batch["clip"] == list("aabbcc")
    with pytest.raises(LoadError, match="must hold an array of that name with 6 values, it holds clip, inputs"):
        with_groups(load_data(str(file)), "scene")


def test_batches_of_a_callable_name_their_own():
    batches = [{"x": np.ones(3), "clip": [1, 2, 3]}]
    assert with_groups(batches, "clip") is batches
