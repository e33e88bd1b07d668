"""Weights that hold no usable numbers and archives that are broken: one line that says so, and nothing is changed."""

import copy
import io
import random
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from jumpout_export.errors import LoadError
from jumpout_export.loading import load_data, load_model, load_weights
from jumpout_export.model.randomness import same_bits


def quantised(value: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


def nested(value: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(list(value))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.to_sparse(), r"weight is stored as sparse_coo; save value.to_dense\(\)"),
        (lambda w: w.to_sparse_csr(), r"weight is stored as sparse_csr; save value.to_dense\(\)"),
        (quantised, r"weight is quantised; save value.dequantize\(\)"),
        (nested, "weight is a nested tensor; save one tensor"),
        (lambda w: w.to("meta"), r"weight holds no numbers \(a meta tensor\)"),
        (lambda w: (w * 100).to(torch.int8), "weight is int8 there and floating-point in the model"),
        (lambda w: w > 0, "weight is bool there and floating-point in the model"),
        (lambda w: w.to(torch.complex64), "weight is complex64 there and floating-point in the model"),
    ],
    ids=["sparse", "csr", "quantised", "nested", "meta", "int8", "bool", "complex"],
)
def test_tensors_that_do_not_hold_the_numbers_are_refused(tmp_path, change, said):
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    state = {**model.state_dict(), "weight": change(torch.ones(2, 3))}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(LoadError, match=said) as caught:
        load_weights(model, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    assert same_bits(dict(model.state_dict()), dict(before))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_taken(tmp_path, dtype):
    model = nn.BatchNorm1d(2)
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}  # the count of batches, too
    state["running_var"] += 1
    torch.save(state, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert model.running_var.tolist() == [2, 2]
    assert model.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("key", [0, ("weight",), None, b"weight"])
def test_names_that_are_no_strings_are_refused(tmp_path, key):
    torch.save({key: torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(LoadError, match="names must be strings, got") as caught:
        load_weights(nn.Linear(3, 2), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_a_model_on_the_meta_device_is_refused(tmp_path, monkeypatch):
    (tmp_path / "meta_of_test.py").write_text(
        "from torch import nn\ndef network(): return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device='meta'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        LoadError, match=r"must return a module with numbers, but 1.weight, 1.bias is on the meta device"
    ):
        load_model("meta_of_test:network")


def test_a_model_whose_own_loading_fails_is_named(tmp_path):
    class Picky(nn.Linear):
        def _load_from_state_dict(self, *args, **kwargs):
            raise TypeError("not\nlike this")

    model = Picky(3, 2)
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(LoadError, match="cannot be loaded into the model: not"):
        load_weights(model, tmp_path / "w.pt")


@pytest.mark.parametrize("kind", [">f4", "<f4", ">f8", ">i4", "|u1"])
def test_numbers_of_either_byte_order_are_read(tmp_path, kind):
    x = np.arange(12).reshape(4, 3)
    np.savez(tmp_path / "a.npz", inputs=x.astype(kind), labels=np.arange(4).astype(">i8"))
    inputs, labels = next(iter(load_data(str(tmp_path / "a.npz"), batch_size=4)))
    assert inputs.tolist() == x.tolist()
    assert labels.tolist() == [0, 1, 2, 3]


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez(buffer, inputs=np.ones((4, 3), np.float32), labels=np.zeros(4, np.int64))
    elif kind == "compressed npz":
        np.savez_compressed(buffer, inputs=np.ones((4, 3), np.float32))
    elif kind == "pt":
        torch.save(nn.Linear(3, 2).state_dict(), buffer)
    else:
        return save(nn.Linear(3, 2).state_dict())
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["npz", "compressed npz", "pt", "safetensors"])
def test_broken_archives_are_errors_of_one_line_or_are_read(tmp_path, kind):
    whole, chance, said = archive(kind), random.Random(1), []
    file = tmp_path / f"a.{kind.split()[-1]}"
    for _ in range(150):
        broken = bytearray(whole if chance.random() < 0.7 else whole[: chance.randrange(1, len(whole))])
        for _ in range(chance.randrange(1, 5)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        file.write_bytes(broken)
        try:
            if "npz" in kind:
                list(load_data(str(file)))
            else:
                load_weights(nn.Linear(3, 2), file)
        except LoadError as error:
            said.append(str(error))
    assert len(said) > 30
    assert [text for text in said if "\n" in text or str(file) not in text] == []
