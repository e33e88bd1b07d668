"""Models, weights and data as the command line names them, and what is wrong with them."""

import itertools
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.errors import LoadError
from jumpout_export.loading import load_data, load_model, load_weights, random_batches
from jumpout_export.model.batches import split_batch

FACTORIES = """
import torch
from torch import nn

def model(): return nn.Linear(3, 2)
def number(): return 3
def fails(): raise RuntimeError("no luck")
def batches(): return [torch.ones(2, 3)]
def generator(): return (torch.ones(2, 3) for _ in range(3))
def endless():
    while True:
        yield torch.ones(2, 3)
value = 5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "factories_of_test.py").write_text(FACTORIES)
    (tmp_path / "broken_of_test.py").write_text("import nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_factory_makes_the_model(folder):
    assert isinstance(load_model("factories_of_test:model"), nn.Linear)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "factories_of_test",
            "MODEL must be package.module:callable, or file.pt2 where the command takes one, got 'factories_of_test'",
        ),
        ("factories_of_test:", "MODEL must be package.module:callable"),
        ("missing_of_test:model", "importing missing_of_test raised ModuleNotFoundError"),
        ("broken_of_test:model", "importing broken_of_test raised ModuleNotFoundError: No module named 'nothing_of"),
        ("factories_of_test:other", "other does not exist in factories_of_test"),
        ("factories_of_test:value", "value is not callable in factories_of_test"),
        ("factories_of_test:number", "must return a torch.nn.Module, got int"),
        ("factories_of_test:fails", "MODEL factories_of_test:fails raised RuntimeError: no luck"),
    ],
)
def test_a_wrong_model_is_named(folder, spec, message):
    with pytest.raises(LoadError, match=message):
        load_model(spec)


WRITERS = {
    "w.safetensors": lambda state, path: save_file(state, path),
    "w.pt": torch.save,
    "container.pt": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "ddp.pth": lambda state, path: torch.save({f"module.{name}": value for name, value in state.items()}, path),
    "compiled.pt": lambda state, path: torch.save({f"_orig_mod.{name}": value for name, value in state.items()}, path),
}


@pytest.mark.parametrize(("name", "write"), WRITERS.items())
def test_weights_load_from_every_kind_of_file(tmp_path, name, write):
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    write(source.state_dict(), tmp_path / name)
    load_weights(target, tmp_path / name)
    assert torch.equal(source.weight, target.weight)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def bad_weights(path, kind):
    state = nn.Linear(3, 2).state_dict()
    if kind == "missing name":
        del state["bias"]
    elif kind == "extra name":
        state["more"] = torch.ones(1)
    elif kind == "shape":
        state["weight"] = torch.ones(4, 4)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
        return
    elif kind == "evil pt":
        torch.save({"a": Evil()}, path)
        return
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
        return
    elif kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:200])
        return
    torch.save(state, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing name", "do not fit the model; missing: bias"),
        ("extra name", "not in the model: more"),
        ("shape", r"shapes differ: weight is \(4, 4\) there and \(2, 3\) in the model"),
        ("pickle", "cannot be read as tensors only"),
        ("evil pt", "cannot be read as tensors only"),
        ("no tensors", "hold no state dict"),
        ("truncated", "cannot be read as tensors only"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_executed(tmp_path, capsys, kind, message):
    bad_weights(tmp_path / "w.pt", kind)
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(LoadError, match=message):
        load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.weight, before)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "message"), [("no.pt", "there is no such file"), ("w.bin", "must end in")])
def test_a_file_that_cannot_be_weights_is_named(tmp_path, name, message):
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(LoadError, match=message):
        load_weights(nn.Linear(3, 2), tmp_path / name)


def test_npz_batches_cover_everything_in_order(tmp_path):
    np.savez(tmp_path / "d.npz", inputs=np.arange(10.0).reshape(5, 2), labels=np.arange(5))
    data = load_data(str(tmp_path / "d.npz"), batch_size=2)
    assert len(data) == 3
    for _ in range(2):
        inputs, labels = zip(*data, strict=True)
        assert torch.cat(inputs).tolist() == np.arange(10.0).reshape(5, 2).tolist()
        assert torch.cat(labels).tolist() == [0, 1, 2, 3, 4]
        assert torch.cat(inputs).dtype == torch.float32
    np.savez(tmp_path / "unlabelled.npz", inputs=np.ones((4, 2), np.float32))
    assert [len(batch) for batch in load_data(str(tmp_path / "unlabelled.npz"), 3)] == [3, 1]


class Speech(nn.Module):
    def forward(self, x, lengths=None, y=None):
        return x


def test_labels_of_a_file_and_random_inputs_are_taken_for_what_they_are(tmp_path):
    np.savez(tmp_path / "d.npz", inputs=np.ones((4, 2), np.float32), labels=np.arange(4))
    split = split_batch(next(iter(load_data(str(tmp_path / "d.npz")))), Speech())
    assert (len(split.args), split.kwargs, split.labels.tolist()) == (1, {}, [0, 1, 2, 3])
    image_folder(tmp_path)
    assert len(split_batch(next(iter(load_data(str(tmp_path)))), Speech()).labels) == 4
    assert len(split_batch(random_batches(["4,2", "4", "4"], seed=0)[0], Speech()).args) == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(3)}, "must hold an array `inputs`, it holds x"),
        ({"inputs": np.ones((0, 3))}, "`inputs` is empty"),
        ({"inputs": np.ones((4, 3)), "labels": np.ones(3)}, r"`labels` must have shape \(4,\), got \(3,\)"),
        ({"inputs": np.array([{}], dtype=object)}, "cannot be read as plain arrays"),
        ({"inputs": np.array(["text"])}, "arrays must be numbers"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(LoadError, match=message):
        load_data(str(tmp_path / "d.npz"))


def test_a_file_that_is_no_archive_and_one_that_unpacks_to_too_much_are_named(tmp_path, monkeypatch):
    (tmp_path / "d.npz").write_bytes(b"no archive")
    with pytest.raises(LoadError, match="cannot be read as plain arrays"):
        load_data(str(tmp_path / "d.npz"))
    monkeypatch.setattr("jumpout_export.loading.data._MAX_ARRAY_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs.npy", bytes(2 << 20))
    with pytest.raises(LoadError, match="unpacks to"):
        load_data(str(tmp_path / "bomb.npz"))


def image_folder(root, sizes=((4, 4), (4, 4), (4, 4), (4, 4))):
    for index, size in enumerate(sizes):
        folder = root / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (index, 255, 0)).save(folder / f"{index}.png")


def test_a_folder_of_images_gives_shuffled_labelled_batches(tmp_path):
    image_folder(tmp_path)
    data = load_data(str(tmp_path), batch_size=3, seed=1)
    assert data.classes == ["cat", "dog"]
    (x, y), (last, _) = list(data)
    assert x.shape == (3, 3, 4, 4)
    assert len(last) == 1
    assert x[:, 1].unique().tolist() == [1.0]
    red = (x[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(y, (red % 2 == 0).long())
    assert [file for file, _ in load_data(str(tmp_path), seed=1).files] == [file for file, _ in data.files]


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(LoadError, match="there is no such folder"):
        load_data(str(tmp_path / "missing"))
    with pytest.raises(LoadError, match="holds no images; expected"):
        load_data(str(tmp_path))
    image_folder(tmp_path / "sizes", ((4, 4), (5, 4)))
    with pytest.raises(LoadError, match="all must have one size"):
        list(load_data(str(tmp_path / "sizes")))
    image_folder(tmp_path / "broken")
    (tmp_path / "broken" / "cat" / "1.png").write_bytes(b"no image")
    with pytest.raises(LoadError, match=r"image .*1\.png cannot be read"):
        list(load_data(str(tmp_path / "broken")))


def test_a_callable_gives_its_own_batches(folder):
    assert len(load_data("factories_of_test:batches")) == 1
    data = load_data("factories_of_test:generator")
    assert len(list(data)) == len(list(data)) == 3


def test_of_a_generator_that_never_ends_only_the_batches_asked_for_are_made(folder):
    data = load_data("factories_of_test:endless")
    first = list(itertools.islice(data, 4))
    again = list(itertools.islice(data, 6))
    assert all(one is other for one, other in zip(first, again, strict=False))
    assert len(data._kept) == 6


def test_a_callable_that_yields_forever_serves_a_check_of_as_many_samples_as_asked(folder):
    model = nn.Sequential(nn.BatchNorm1d(3))
    report = check_batchnorm(model, load_data("factories_of_test:endless"), samples=64)
    assert report.samples == 64


def test_random_batches():
    (first, second) = random_batches(["2,3"], seed=1)
    assert first.args[0].shape == (2, 3)
    assert not torch.equal(first.args[0], second.args[0])
    named = random_batches(["image:1,3,4,4", "mask:1,4"], seed=1)[0]
    assert {name: tuple(value.shape) for name, value in named.items()} == {"image": (1, 3, 4, 4), "mask": (1, 4)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["1,a"], "must be positive integers such as 1,3,32,32, got '1,a'"),
        (["1,0"], "must be positive integers"),
        (["x:1,2", "1,2"], "give all shapes a name or none"),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    with pytest.raises(LoadError, match=message):
        random_batches(shapes, 0)
