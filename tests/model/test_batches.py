"""What a loader yields becomes inputs and labels."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from jumpout_export.model.batches import split_batch, tensors_in
from jumpout_export.model.held import first_tensor

X, Y = torch.randn(6, 3), torch.arange(6)
FLOAT, COLUMN = torch.randn(6), torch.randn(6, 1)
ONE_HOT = torch.eye(8)[[3, 1, 4, 1, 5, 7]]
IMAGE = torch.randn(6, 3, 4, 4)
GREY = IMAGE[:, :1]
IDS, MASK = torch.randint(2, 9, (6, 5)), torch.tensor([1, 1, 1, 0, 0]).expand(6, 5)


class Sample(NamedTuple):
    image: torch.Tensor
    target: torch.Tensor


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclass
class Item:
    image: torch.Tensor
    mask: torch.Tensor
    label: torch.Tensor


class One(nn.Module):
    def forward(self, x):
        return x


class Two(nn.Module):
    def forward(self, image, mask=None):
        return image


class Any(nn.Module):
    def forward(self, *inputs):
        return inputs


class Keywords(nn.Module):
    def forward(self, **inputs):
        return inputs


class Flagged(nn.Module):
    def forward(self, x, features=False, mode="class"):
        return x


class Targets(nn.Module):
    def forward(self, images, targets=None):
        return images


class Pairwise(nn.Module):
    def forward(self, first, second):
        return first


class Listed(nn.Module):
    def forward(self, levels):
        return levels[0]


class Text(nn.Module):  # as Hugging Face's
    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None):
        return input_ids


@pytest.mark.parametrize(
    ("batch", "model", "args", "kwargs", "has_labels"),
    [
        (X, One(), 1, [], False),
        ((X,), One(), 1, [], False),
        ((X, Y), One(), 1, [], True),
        ([X, Y], Two(), 1, [], True),
        ((X, X), Two(), 2, [], False),
        ((X, X, Y), Two(), 2, [], True),
        ((X, torch.randn(6)), One(), 1, [], False),  # a regression target is no input
        ((X, X, X), Any(), 3, [], False),
        ({"image": X, "labels": Y}, Two(), 0, ["image"], True),
        ({"inputs": X, "target": Y}, One(), 1, [], True),
        ({"image": X, "mask": X}, Two(), 0, ["image", "mask"], False),
    ],
)
def test_split_batch(batch, model, args, kwargs, has_labels):
    result = split_batch(batch, model)
    assert len(result.args) == args
    assert list(result.kwargs) == kwargs
    assert (result.labels is not None) is has_labels
    assert result.size == 6
    result(model)


@pytest.mark.parametrize(
    ("batch", "model", "args", "kwargs"),
    [
        ((X, FLOAT), One(), [X], {}),
        ((X, COLUMN), One(), [X], {}),
        ((X, FLOAT), Flagged(), [X], {}),
        ((X, ONE_HOT), Targets(), [X], {}),
        ((X, FLOAT), Pairwise(), [X, FLOAT], {}),  # required, so it is an input
        ((X, Y), Pairwise(), [X, Y], {}),
        ((IDS, MASK), Text(), [IDS, MASK], {}),
        ((IDS, MASK, Y), Text(), [IDS, MASK], {}),
        ((IMAGE, GREY), Two(), [IMAGE, GREY], {}),
        (((X, IMAGE), Y), Pairwise(), [X, IMAGE], {}),
        ([[X, IMAGE], Y], Listed(), [[X, IMAGE]], {}),
        (((X, IMAGE), FLOAT), Pairwise(), [X, IMAGE], {}),
        (((X, IMAGE), IMAGE), Pairwise(), [X, IMAGE, IMAGE], {}),
        (((X, IMAGE), Y), Any(), [X, IMAGE], {}),
        (({"image": X, "mask": MASK}, Y), Two(), [], {"image": X, "mask": MASK}),
        (
            UserDict(input_ids=IDS, attention_mask=MASK, labels=Y),
            Text(),
            [],
            {"input_ids": IDS, "attention_mask": MASK},
        ),
        ({"image": X, "label": Y, "index": Y, "path": ["a"] * 6}, Two(), [], {"image": X}),
        ({"image": IMAGE, "mask": IMAGE, "path": ["a"] * 6}, One(), [IMAGE], {}),
        ({"pixels": X, "path": ["a"] * 6}, One(), [X], {}),
        ({"a": X, "b": X}, Keywords(), [], {"a": X, "b": X}),
        ({"a": X}, Keywords(), [], {"a": X}),
        ({"a": X}, Any(), [X], {}),
        (Sample(IMAGE, Y), One(), [IMAGE], {}),
        (Pair(X, IMAGE), Pairwise(), [], {"first": X, "second": IMAGE}),
        (Pair(X, Y), One(), [X], {}),
        (Item(X, MASK, Y), Two(), [], {"image": X, "mask": MASK}),
    ],
)
def test_inputs_are_told_from_targets(batch, model, args, kwargs):
    result = split_batch(batch, model)
    assert result.kwargs.keys() == kwargs.keys()
    found, expected = tensors_in((result.args, result.kwargs)), tensors_in((args, kwargs))
    assert all(one is other for one, other in zip(found, expected, strict=True))
    assert result.size == 6
    result(model)


@pytest.mark.parametrize(
    ("batch", "model", "labels"),
    [
        ((X, ONE_HOT), One(), [3, 1, 4, 1, 5, 7]),
        ((X, ONE_HOT.long()), One(), [3, 1, 4, 1, 5, 7]),
        ({"x": X, "label": ONE_HOT}, One(), [3, 1, 4, 1, 5, 7]),
        ((X, Y, Y + 10), One(), [0, 1, 2, 3, 4, 5]),  # (image, label, index)
        (({"image": X, "label": Y},), Two(), [0, 1, 2, 3, 4, 5]),
        (Sample(IMAGE, Y), One(), [0, 1, 2, 3, 4, 5]),
        (Item(X, MASK, Y), Two(), [0, 1, 2, 3, 4, 5]),
        ((X, FLOAT), One(), None),
        ((X, ONE_HOT + ONE_HOT.flip(0)), One(), None),  # two classes at once
        ((X, ONE_HOT * 0.9 + 0.0125), One(), None),  # smoothed
        ((X, ONE_HOT.to(torch.complex64)), One(), None),
    ],
)
def test_labels_are_class_labels_or_none(batch, model, labels):
    found = split_batch(batch, model).labels
    assert (found if found is None else found.tolist()) == labels


def test_names_that_the_model_does_not_have_are_an_error():
    with pytest.raises(TypeError, match="got 'left' where forward takes 'first', 'second'; rename the entry, leave it"):
        split_batch({"left": X, "right": X}, Pairwise())
    with pytest.raises(TypeError, match="got 'msk' where forward takes 'image', 'mask'; rename"):
        split_batch({"image": X, "msk": MASK}, Two())


def test_the_network_inside_a_wrapper_says_what_is_an_input():
    wrapped = nn.DataParallel(One())
    assert len(split_batch((X, FLOAT), wrapped).args) == 1
    assert split_batch({"inputs": X, "target": Y}, wrapped).args[0] is X


def test_nested_batches_are_moved_whole():
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    result = split_batch(({"image": X, "mask": [MASK, {"more": X}], "name": "a"}, Y), Two(), "meta")
    moved = (result.kwargs["image"], result.kwargs["mask"][0], result.kwargs["mask"][1]["more"], result.labels)
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert split_batch([[packed], Y], Listed(), "meta").args[0].data.device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", r"a tuple or list \(inputs, labels\), a dict, a named tuple or a data class, got str"),
        ((1, 2), "a batch must hold at least one tensor as input, got tuple without one"),
        ({}, "a batch must hold at least one tensor as input, got dict without one"),
    ],
)
def test_a_batch_of_another_kind_is_named(batch, message):
    with pytest.raises(TypeError, match=message):
        split_batch(batch, One())


def test_a_batch_without_a_first_dimension_is_named():
    with pytest.raises(ValueError, match="at least one tensor with a batch dimension, got none"):
        _ = split_batch(torch.tensor(1.0), One()).size


def test_first_tensor():
    assert first_tensor(OrderedDict(out=[X, Y])) is X
    assert first_tensor(Item(None, [MASK], Y)) is MASK
    assert first_tensor([[], None, (X,)]) is X
    with pytest.raises(TypeError, match="the model's output must hold a tensor, got int"):
        first_tensor(3)
