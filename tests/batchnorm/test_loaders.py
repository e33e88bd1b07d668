"""Batches of every kind give the same report, and memory does not grow with them."""

import gc
from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from support.checked_models import Net, assert_row, check, samples
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from jumpout_export import check_batchnorm


@pytest.mark.parametrize("size", [1, 31], ids=["one by one", "the last one alone"])
def test_batches_of_one_sample(size):
    model = Net()
    report = check(model, list(samples(32).split(size)))
    assert report.samples == 32
    assert_row(report.layers[1], model, model.bn2, [samples(32)])


class Pair(NamedTuple):
    sample: torch.Tensor
    label: torch.Tensor


@dataclass
class Item:
    sample: torch.Tensor
    index: torch.Tensor


LABELS = torch.arange(32) % 3
LOADERS = {
    "tuple": lambda x: (x, LABELS),
    "list": lambda x: [x, LABELS],
    "dict": lambda x: {"image": x, "label": LABELS, "path": ["a"] * 32},
    "mapping": lambda x: UserDict(pixel_values=x, labels=LABELS),
    "named tuple": lambda x: Pair(x, LABELS),
    "data class": lambda x: Item(x, LABELS),
    "one-hot": lambda x: (x, F.one_hot(LABELS).float()),
    "regression": lambda x: (x, torch.randn(32)),
    "label and index": lambda x: (x, LABELS, torch.arange(32)),
    "dict and label": lambda x: ({"x": x}, LABELS),
    "nested": lambda x: [[x], LABELS],
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_every_kind_of_batch_gives_the_same_report(make):
    expected = check(Net())
    report = check(Net(), [make(x) for x in samples().split(32)])
    assert [layer.model_dump() for layer in report.layers] == [layer.model_dump() for layer in expected.layers]
    assert report.samples == 128


def test_labels_of_every_kind_give_accuracy():
    x = samples().split(32)
    one_hot = [(batch, F.one_hot(LABELS, 4).float()) for batch in x]
    model = nn.Sequential(Net(), nn.Flatten(), nn.Linear(64, 4))
    reports = [check_batchnorm(model, batches) for batches in ([(batch, LABELS) for batch in x], one_hot)]
    assert reports[0].outputs.top1_before is not None
    assert reports[0].outputs == reports[1].outputs
    assert check_batchnorm(model, [(batch, torch.randn(32)) for batch in x]).outputs.top1_before is None


def test_several_inputs_and_forward_fn():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, left, right):
            return self.net(left) + self.net(right)

    x = list(samples().split(32))
    report = check(Two(), [(one, one.flip(0)) for one in x])
    called = check(
        Two(), [{"l": one} for one in x], forward_fn=lambda model, batch: model(batch["l"], batch["l"].flip(0))
    )
    assert [len(layer.calls) for layer in report.layers] == [2, 2]
    for layer, other in zip(report.layers, called.layers, strict=True):
        assert layer.model_dump() == other.model_dump()


def test_workers_and_generators_change_nothing():
    data = TensorDataset(samples(), torch.arange(128) % 4)
    options = {"batch_size": 32, "shuffle": True}
    loaders = [
        DataLoader(data, num_workers=workers, generator=torch.Generator().manual_seed(5), **options)
        for workers in (0, 2)
    ]
    reports = [check(Net(), loader) for loader in loaders]
    assert reports[0].model_dump() == reports[1].model_dump()


def test_a_parametrised_model_of_the_users_own_device_rules_gets_its_batches_there():
    report = check(Net(), device="cpu")
    assert report.samples == 128
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        check(Net(), device="meta")


@pytest.mark.integration
def test_memory_does_not_grow_with_the_samples():
    held = []

    def count(*_):
        tensors = [value for value in gc.get_objects() if type(value) is torch.Tensor and torch._C._has_storage(value)]
        held.append(sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values()))

    class Made:
        def __iter__(self):
            return (samples(16) for _ in range(12))

    check(Net(), Made(), progress=count)
    assert len(held) == 12
    assert max(held[2:]) <= held[1]


def test_samples_repeated_by_a_distributed_sampler_are_a_note():
    data = TensorDataset(samples(30))
    loader = DataLoader(data, 8, sampler=DistributedSampler(data, num_replicas=4, rank=0, shuffle=False))
    (note,) = [note for note in check(Net(), loader).notes if "DistributedSampler" in note]
    assert note.startswith("The DistributedSampler repeats 2 of 30 samples")
