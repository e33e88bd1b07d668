"""The samples that a file is compared on."""

import math

import torch
from torch import nn

from jumpout_export.model.axes import Axes
from jumpout_export.model.samples import rows, samples
from jumpout_export.model.signature import onnx_batch

OPEN = Axes((True,), None, ({},))


def batch_of(*values):
    class Any(nn.Module):
        def forward(self, *inputs):
            return inputs[0]

    return onnx_batch(values, Any())


def test_all_images_are_compared_and_small_batches_and_noise_too():
    images = [batch_of(torch.arange(8.0).reshape(4, 2)), batch_of(torch.arange(8.0, 14.0).reshape(3, 2))]
    found = list(samples(iter(images), OPEN, seed=0))
    assert [(sample.group, sample.batch.size, sample.start) for sample in found] == [
        ("batch=1", 1, 0),
        ("batch=2", 2, 0),
        ("batch=7", 7, 0),
        ("data", 4, 0),
        ("data", 3, 4),
        ("random batch=1", 1, 0),
        ("random batch=2", 2, 0),
        ("random batch=7", 7, 0),
    ]
    assert torch.equal(torch.cat([sample.batch.args[0] for sample in found[3:5]]), torch.arange(14.0).reshape(7, 2))
    assert torch.equal(found[2].batch.args[0][4:], images[0].args[0][:3])  # seven of four images: from the start again
    again = list(samples(iter(images), OPEN, seed=0))
    other = list(samples(iter(images), OPEN, seed=1))
    assert torch.equal(found[7].batch.args[0], again[7].batch.args[0])
    assert not torch.equal(found[7].batch.args[0], other[7].batch.args[0])


def test_a_fixed_batch_size_is_filled_up():
    found = list(samples(iter([batch_of(torch.arange(5.0))]), Axes((True,), 3, ({},)), seed=0))
    assert [(sample.group, sample.batch.size) for sample in found] == [
        ("batch=3", 3),
        ("data", 3),
        ("data", 3),
        ("random batch=3", 3),
    ]
    assert found[2].batch.args[0].tolist() == [3.0, 4.0, 0.0]


def test_random_inputs_stay_among_the_values_given():
    index, mask, table = torch.tensor([3, 7, 7, 9]), torch.tensor([True, False, True, True]), torch.randn(6)
    *_, last = samples(iter([batch_of(index, mask, table)]), Axes((True, True, False), None, ({}, {}, {})), seed=0)
    assert set(last.batch.args[0].tolist()) <= {3, 7, 9}
    assert last.batch.args[1].dtype == torch.bool
    assert torch.equal(last.batch.args[2], table)  # as long as it is, it is no batch
    *_, last = samples(iter([batch_of(torch.zeros(4, 50))]), OPEN, seed=0)
    assert abs(last.batch.args[0].std().item() - 1) < 6 / math.sqrt(2 * 350)


def test_rows_start_again_at_the_first():
    assert rows(batch_of(torch.arange(3)), range(2, 6)).args[0].tolist() == [2, 0, 1, 2]
