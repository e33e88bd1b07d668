"""Which axes are open: one entry per sample, named by the user, declared by a file, moved to other sizes."""

from __future__ import annotations

import pytest
import torch
from support.networks import Baked, PerSample, Table
from torch import nn

from jumpout_export.model.axes import Axes, choose_axes, declared_axes, other_sizes, why_not_batched
from jumpout_export.model.signature import onnx_batch

X = torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(1))
A, B, C = (torch.randn(4, size, generator=torch.Generator().manual_seed(size)) for size in (3, 2, 2))


class Lookup(nn.Module):
    def forward(self, x, index, table):
        return x + table[index]


@pytest.mark.parametrize(
    ("model", "example", "batched"),
    [
        (Table(), (A, A), (True, False)),
        (Lookup(), (A, torch.tensor([0, 3, 1, 1]), A), (True, True, False)),
        (PerSample(), (A, A, A), (True, True, True)),
        (PerSample(), (A, A[:, :1], A[0]), (True, True, False)),
        (Baked(), (A, A), (True, True)),
    ],
    ids=["matrix", "lookup", "per sample", "broadcast", "baked in"],
)
def test_an_input_as_long_as_the_batch_is_open_only_if_it_has_an_entry_per_sample(model, example, batched):
    batch = onnx_batch(example, model)
    assert choose_axes(model, batch, True).batched == batched
    assert choose_axes(model, batch, False).size == 4


def test_the_user_may_say_that_an_axis_is_the_batch():
    class Unused(nn.Module):
        def forward(self, x, table):
            return x + table.sum(0)

    batch = onnx_batch((A, A), Unused())
    assert choose_axes(Unused(), batch, True).opened() == [{0: "batch"}, {}]
    axes = choose_axes(Unused(), batch, True, {"table": {0: "batch"}})
    assert axes.opened() == [{0: "batch"}, {0: "batch"}]
    other = choose_axes(Unused(), batch, True, {"table": {0: "entries"}})
    assert other.opened() == [{0: "batch"}, {0: "entries"}]
    assert other.names == ("entries",)


def test_the_first_axis_may_be_named_where_the_batch_size_is_fixed():
    batch = onnx_batch(torch.randn(6, 3, 4), nn.Identity())
    axes = choose_axes(nn.Identity(), batch, False, {"input": {0: "time", 1: "n"}})
    assert axes.opened() == [{0: "time", 1: "n"}]
    assert axes.batched == (False,)


def test_sizes_are_moved_all_at_once_each_by_another_amount_and_only_where_the_model_runs():
    batch, axes = onnx_batch(X, nn.Identity()), Axes((True,), None, ({2: "h", 3: "w"},))

    def sizes(runs, most=2):
        return [tuple(one.args[0].shape[2:]) for one in other_sizes(batch, axes, runs, most)]

    assert sizes(lambda _: True) == [(10, 11), (8, 7)]
    assert sizes(lambda one: one.args[0].shape[2] == one.args[0].shape[3]) == [(10, 10), (8, 8)]
    assert sizes(lambda one: one.args[0].shape[2] % 9 == 0)[0][0] == 18
    assert sizes(lambda _: False) == []
    tied = Axes((True,), None, ({2: "side", 3: "side"},))
    assert [tuple(one.args[0].shape[2:]) for one in other_sizes(batch, tied, lambda _: True)] == [(10, 10), (8, 8)]
    (larger, _) = other_sizes(batch, axes, lambda _: True)
    assert torch.equal(larger.args[0][:, :, 9, :9], X[:, :, 0])  # beyond the end it starts again


def test_what_a_file_declares_is_read_as_its_writer_meant_it():
    batch = onnx_batch((A, A, X), PerSample())

    def axes(*declared):
        return declared_axes(declared, ("x", "y", "z"), batch)

    ours = axes(["batch", 3], ["rows", 3], [4, 1, "height", 9])
    assert (ours.batched, ours.size, ours.further) == ((True, False, False), None, ({}, {0: "rows"}, {2: "height"}))
    others = axes(["n", 3], ["m", 3], [None, 1, None, 9])  # of equal length: names say nothing else
    assert (others.batched, others.further, others.anonymous) == ((True, True, True), ({}, {}, {2: "z:2"}), {"z:2"})
    elsewhere = axes(["n", 3], [4, "n"], [4, 1, 9, 9])  # the batch is on axis 1 of an input
    assert (elsewhere.batched, elsewhere.size) == ((False, False, False), 4)
    assert elsewhere.further == ({0: "n"}, {1: "n"}, {})
    assert axes([4, "w"], ["n", 4], [4, 1, 9, 9]).size == 4  # a length is no name
    fixed = axes([4, 3], [4, 3], [4, 1, 9, 9])
    assert (fixed.batched, fixed.size, fixed.names) == ((True, True, True), 4, ())


def test_axes_of_one_name_must_have_one_size_and_a_fixed_batch_is_not_open():
    batch = onnx_batch((A, B, C), PerSample())
    with pytest.raises(ValueError, match="axis 1 of input `scale` is named `n` as one of input `x`, but has 2 entries"):
        choose_axes(PerSample(), batch, True, {"x": {1: "n"}, "scale": {1: "n"}})
    with pytest.raises(ValueError, match=r"cannot be open: dynamic_batch=False \(--static\) fixes the batch size"):
        choose_axes(PerSample(), batch, False, {"scale": {0: "batch"}})
    odd = onnx_batch((A, torch.ones(1, 3), A), PerSample())
    with pytest.raises(ValueError, match="axis 0 of input `scale` is no batch: it has 1 entries, the example holds 4"):
        choose_axes(PerSample(), odd, True, {"scale": {0: "batch"}})


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"input `x`": ["batch", 3], "output `y`": ["batch"]}, ""),
        ({"input `x`": ["batch", "height"], "output `y`": ["batch", "batches"]}, ""),
        ({"input `x`": ["batch", 3], "output `y`": []}, "output `y` is a scalar, without a batch axis"),
        ({"input `x`": [8, "batch"]}, "the first axis of input `x` has a fixed size, 8"),
        ({"input `x`": ["n", 3]}, "the first axis of input `x` is not the batch"),
        ({"input `x`": [None, 3]}, "the first axis of input `x` is not the batch"),
        ({"input `x`": ["batch", 3], "output `y`": ["2*batch", 3]}, "the first axis of output `y` is not the batch"),
        ({"output `y`": ["batch", "batch + 1"]}, "output `y` has a further axis that follows the batch"),
    ],
)
def test_why_a_server_may_not_batch(shapes, reason):
    assert why_not_batched(shapes) == reason
