"""Which entries of a batch are inputs and which are labels: the signature of forward decides."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from jumpout_export.model.batches import split_batch
from jumpout_export.model.signature import example_batch, first_and_all

X, Y, MASK = torch.randn(6, 5, 3), torch.arange(6), torch.ones(6, 5, dtype=torch.long)
FLOAT, COLUMN = torch.randn(6), torch.randn(6, 1)
ONE_HOT = torch.eye(8)[[3, 1, 4, 1, 5, 7]]
STATE = torch.randn(2, 6, 4)
BOXES = [{"boxes": torch.ones(1, 4)}] * 6


def network(parameters: str) -> nn.Module:
    """A network whose forward has these parameters."""
    scope: dict[str, Any] = {"Tensor": Tensor}
    exec(f"def forward(self, {parameters}): pass", scope)
    return type("Net", (nn.Module,), {"forward": scope["forward"]})()


@pytest.mark.parametrize(
    ("forward", "batch", "inputs", "labels"),
    [
        # Required: an input, whatever its name and type.
        ("x, index", (X, Y), 2, None),
        ("x, y", (X, Y), 2, None),
        ("x, labels", (X, Y), 2, None),
        ("x, target", (X, FLOAT), 2, None),
        ("z, y", (X, Y, Y + 1), 2, 2),
        ("x, t, attn_mask=None", (X, Y, Y + 1), 2, 2),
        # Optional, and the name says one number per sample.
        ("x, lengths=None", (X, Y), 2, None),
        ("x, lengths=None", [X, Y.to(torch.int32)], 2, None),
        ("x, x_lens=None", (X, FLOAT), 2, None),
        ("x, seq_len=None", (X, Y, Y + 1), 2, 2),
        ("x, length: Tensor | None = None", (X, Y), 2, None),
        # Optional, and the name says more than one number per sample.
        ("x, mask=None", (X, MASK), 2, None),
        ("x, src_key_padding_mask=None", (X, MASK.bool(), Y), 2, 2),
        ("x, mask=None, lengths=None", (X, MASK, Y), 3, None),
        ("x, h0=None", (X, STATE), 2, None),
        ("x, hx=None", (X, (STATE, STATE)), 2, None),
        ("input_ids=None, attention_mask=None, token_type_ids=None, labels=None", (MASK, MASK, MASK, Y), 3, 3),
        ("input_ids, attention_mask=None, labels=None", (MASK, MASK, Y), 2, 2),
        ("input_ids, attention_mask=None, token_type_ids=None, labels=None", (MASK, MASK, Y), 2, 2),
        # Labels, whatever optional parameter stands in their place.
        ("x", (X,), 1, None),
        ("x", (X, Y), 1, 1),
        ("x", (X, Y, Y + 1), 1, 1),
        ("x", (X, Y.to(torch.uint8), ["path"] * 6), 1, 1),
        ("x", (X, FLOAT, Y), 1, 2),
        ("x, attn_mask=None", (X, Y), 1, 1),
        ("x, attn_mask=None", (X, Y, Y + 1), 1, 1),
        ("x, hidden=None", (X, Y), 1, 1),
        ("x, attn_mask=None, return_features=False", (X, Y), 1, 1),
        ("x, return_features=False", (X, Y), 1, 1),
        ("x, return_features: bool | None = None", (X, Y), 1, 1),
        ("x, mode='class'", (X, Y), 1, 1),
        ("x, size=(4, 4)", (X, Y), 1, 1),
        ("x, temperature=1.0", (X, Y), 1, 1),
        ("x, hidden_size=8", (X, Y), 1, 1),
        ("x, labels=None", (X, Y), 1, 1),
        ("images, targets=None", (X, Y), 1, 1),
        ("images, targets=None", (X, BOXES), 1, None),
        ("x, *, mask=None", (X, Y), 1, 1),
        ("*inputs", (X, X), 2, None),
    ],
)
def test_entries_in_an_order(forward, batch, inputs, labels):
    split = split_batch(batch, network(forward))
    assert len(split.args) == inputs
    assert all(one is other for one, other in zip(split.args, batch, strict=False))
    assert split.kwargs == {}
    assert split.labels is (None if labels is None else batch[labels])
    split(network(forward))


@pytest.mark.parametrize(
    ("forward", "batch", "name", "ways"),
    [
        ("z, y=None", (X, Y), "y", r"\{'z': ..., 'y': ...\} if it is, \{'z': ..., 'labels': ...\} if it is not"),
        ("a, b, y=None", (X, X, Y), "y", r"\{'a': ..., 'b': ..., 'y': ...\} if it is, \{'a': ..., 'b': ..., 'l"),
        ("x, t=None", (X, Y.to(torch.int32)), "t", "give"),
        ("x, class_labels=None", (X, Y), "class_labels", "give"),
        ("left, right=None", (X, X), "right", "give"),
        ("x, scale=1.0", (X, FLOAT), "scale", "give"),
        ("x, mask=None, prior=None", (X, Y, Y), "prior", "give"),
        ("x, mask=None, lengths=None", (X, Y), "lengths", "give"),
        ("x, mask=None, lengths=None", (X, Y, Y), "lengths", "give"),
        ("x, flag=False, mask=None", (X, MASK), "mask", "give"),
        ("x, *, lengths=None", (X, Y), "lengths", "give"),
        ("x, *, scale", (X, FLOAT), "scale", r"\{'x': ..., 'scale': ..."),
        ("x, mask=None", (X, FLOAT), "mask", "give"),
        ("x, mask=None", (X, COLUMN), "mask", "give"),
        ("x, mask=None", (X, ONE_HOT), "mask", "give"),
        ("x, mask=None", (X, ONE_HOT * 0.9 + 0.0125), "mask", "give"),
        ("*inputs", (X, Y), "inputs", r"\(\(a, b\),\) for a forward of a and b, \{'input': a, 'labels': b\} for"),
        ("*inputs", (X, FLOAT), "inputs", "give"),
    ],
)
def test_what_may_be_an_input_or_none_is_an_error_that_names_both_ways(forward, batch, name, ways):
    entry = next(index for index, value in reversed(list(enumerate(batch))) if value is not X or index)
    with pytest.raises(TypeError) as error:
        split_batch(batch, network(forward))
    assert error.match(rf"the one of shape \({', '.join(map(str, batch[entry].shape))},?\) may be the input `{name}`")
    assert error.match(ways)


def test_both_ways_out_of_an_error():
    split = split_batch({"z": X, "y": Y}, network("z, y=None"))
    assert (list(split.kwargs), split.labels) == (["z", "y"], None)
    split = split_batch({"z": X, "labels": Y}, network("z, y=None"))
    assert (list(split.kwargs), split.labels is Y) == (["z"], True)
    assert len(split_batch(((X, Y),), network("*inputs")).args) == 2
    split = split_batch({"input": X, "labels": Y}, network("*inputs"))
    assert (len(split.args), split.labels is Y) == (1, True)


class Named(NamedTuple):
    x: Tensor
    lengths: Tensor
    target: Tensor


@dataclass
class Fields:
    x: Tensor
    y: Tensor
    labels: Tensor


@pytest.mark.parametrize(
    ("forward", "batch", "inputs", "labelled"),
    [
        ("x, lengths=None", {"x": X, "lengths": Y}, ["x", "lengths"], False),
        ("x, *, lengths", {"x": X, "lengths": Y, "label": Y}, ["x", "lengths"], True),
        ("z, y=None", {"z": X, "y": Y, "target": Y}, ["z", "y"], True),
        ("src, target", {"src": X, "target": MASK}, ["src", "target"], False),
        ("x, labels", {"x": X, "labels": Y}, ["x", "labels"], False),
        ("images, targets=None", {"images": X, "targets": BOXES}, ["images"], False),
        ("input_ids, attention_mask=None, labels=None", {"input_ids": MASK, "labels": Y}, ["input_ids"], True),
        ("input_ids, attention_mask=None", {"input_ids": MASK, "labels": Y, "idx": Y}, ["input_ids"], True),
        ("x, **more", {"x": X, "lengths": Y}, ["x", "lengths"], False),
        ("*inputs, **more", {"x": X, "lengths": Y, "labels": Y}, ["x", "lengths"], True),
        ("x, lengths=None", Named(X, Y, Y + 1), ["x", "lengths"], True),
        ("x, y=None", Fields(X, Y, Y + 1), ["x", "y"], True),
        ("x, lengths=None", ({"x": X, "lengths": Y}, Y + 1), ["x", "lengths"], True),
    ],
)
def test_entries_with_names(forward, batch, inputs, labelled):
    split = split_batch(batch, network(forward))
    assert (split.args, list(split.kwargs)) == ((), inputs)
    assert (split.labels is not None) is labelled
    split(network(forward))


@pytest.mark.parametrize(
    ("forward", "batch"),
    [
        ("x, lengths=None", {"x": X, "length": Y}),
        ("z, y=None", {"z": X, "cls": Y}),
        ("x, mask=None", {"x": X, "msk": MASK}),
        ("image, mask", {"image": X, "msk": MASK}),
    ],
)
def test_a_name_that_forward_does_not_have_is_an_error_where_it_may_be_an_input(forward, batch):
    with pytest.raises(TypeError, match=f"got '{list(batch)[-1]}' where forward takes .* rename the entry, leave it"):
        split_batch(batch, network(forward))


@pytest.mark.parametrize("annotation", ["", ": dict", ": dict[str, Tensor]"])
@pytest.mark.parametrize("batch", [{"a": X, "b": Y}, ({"a": X, "b": Y},), ({"a": X, "b": Y}, Y)])
def test_a_forward_that_takes_a_dict_gets_the_whole_dict(annotation, batch):
    split = split_batch(batch, network(f"batch{annotation}"))
    assert [list(value) for value in split.args] == [["a", "b"]]
    assert (split.labels is Y) is (len(batch) == 2 and isinstance(batch, tuple))


def test_a_dict_beside_an_optional_input_stays_whole():
    split = split_batch(({"a": X, "b": X}, Y), network("batch: dict, mask=None"))
    assert (len(split.args), list(split.args[0]), split.labels is Y) == (1, ["a", "b"], True)


def test_a_list_of_images_stays_a_list():
    for batch in ([X[0]], BOXES[:1]), ([X[0], X[1]], BOXES[:2]):
        for forward in ("images: list[Tensor], targets: list[dict[str, Tensor]] | None = None", "images, targets=None"):
            assert split_batch(batch, network(forward)).args == (batch[0],)


def test_a_data_class_is_one_batch():
    first, batches = first_and_all(Fields(X, Y, Y), network("x, y=None"), "inputs")
    assert list(first.kwargs) == ["x", "y"]
    assert len(list(batches)) == 1


class Speech(nn.Module):
    def forward(self, x, lengths=None):
        return x


def _hooked(model):
    model.register_forward_hook(lambda module, args, output: output)
    return model


def _decorated(model):
    forward = model.forward

    @functools.wraps(forward)
    def more(*args, **kwargs):
        return forward(*args, **kwargs)

    model.forward = more
    return model


def _partial(model):
    model.forward = functools.partial(network("x, lengths=None, flag=True").forward, flag=False)
    return model


def _exported(model):
    return torch.export.export(model, (X,), {"lengths": Y}).module()


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel, copy.deepcopy, _hooked, _decorated, _partial,
     _exported],
)  # fmt: skip
def test_what_stands_around_a_network_does_not_hide_its_signature(wrap):
    model = wrap(Speech())
    for split in split_batch((X, Y), model), example_batch((X, Y), model):
        assert (len(split.args), split.labels) == (2, None)
    for split in split_batch((X, Y, Y), model), split_batch({"x": X, "lengths": Y, "labels": Y}, model):
        assert split.labels is Y
        assert len(split.args) + len(split.kwargs) == 2
