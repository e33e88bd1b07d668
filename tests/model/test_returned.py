"""Whatever a model returns: which tensors are found in it, and what is said of what holds none."""

import collections
import dataclasses
import enum
from typing import NamedTuple

import numpy as np
import pytest
import torch

from jumpout_export.model.held import comparable_parts, first_tensor
from jumpout_export.model.randomness import same_bits

X, Y = torch.arange(6.0).view(2, 3), torch.ones(2)


@dataclasses.dataclass
class Out:
    logits: torch.Tensor
    rest: object = None


class Slots:
    __slots__ = ("inner", "made")

    def __init__(self, inner):
        self.inner, self.made = inner, object()


class DictLike:
    """Has keys, but is no Mapping and keeps its values where no attribute shows them."""

    def __init__(self, **values):
        self._get = values.__getitem__
        self._keys = tuple(values)

    def keys(self):
        return self._keys

    def __getitem__(self, key):
        return self._get(key)


class Cycle:
    def __init__(self):
        self.me, self.x = self, X


class Empty:
    pass


class Color(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


HOLDING = {
    "tensor": (X, [X]),
    "data class": (Out(X, Y), [X, Y]),
    "data class in a list": ([Out(X), Out(Y)], [X, None, Y, None]),
    "named tuple": (Pair(X, Y), [X, Y]),
    "mapping": (collections.UserDict(a=X, b=[Y]), [X, Y]),
    "dict-like": (DictLike(a=X, b=Y), [X, Y]),
    "array": (X.numpy(), [X]),
    "reversed array": (X.numpy()[::-1], [X.flip(0)]),
    "distribution": (torch.distributions.Normal(X, X + 1), [X, X + 1]),
    "mixture": (
        torch.distributions.Independent(torch.distributions.Normal(X, X + 1), 1),
        [X, X + 1],
    ),
    "object": (Slots(Out(X)), [X]),
    "cycle": (Cycle(), [X]),
    "sparse": (X.to_sparse(), [X]),
    "nested": (torch.nested.nested_tensor([X, X + 1], layout=torch.jagged), [X, X + 1]),
    "numbers": ([X, 3, "cat", 2.5, None], [X, 3, "cat", 2.5, None]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", HOLDING)
def test_the_tensors_in_it_are_found(name):
    value, expected = HOLDING[name]
    parts, unknown = comparable_parts(value)
    assert same_bits(parts, expected)
    assert unknown == []
    assert torch.equal(first_tensor(value), expected[0])


@pytest.mark.parametrize(
    ("value", "unknown"),
    [
        (Empty(), ["Empty"]),
        ([Empty(), Out(X, Empty()), Slots(3)], ["Empty", "Slots"]),
        (Color.RED, ["Color"]),
        ({"f": test_the_tensors_in_it_are_found}, ["function"]),
        (np.array(["a", "b"]), ["array of <U1"]),
        ({1, 2}, ["set"]),
    ],
    ids=["object", "several", "enum", "function", "texts", "set"],
)
def test_what_holds_no_tensor_is_named(value, unknown):
    assert comparable_parts(value)[1] == unknown


def test_nothing_to_compare_is_an_error_where_a_tensor_is_needed():
    with pytest.raises(TypeError, match="output must hold a tensor, got Empty"):
        first_tensor(Empty())


def test_numbers_in_attributes_are_no_results():
    """An object may count its calls; a data class returns what it holds."""

    class Counted:
        calls = 0

        def __init__(self):
            Counted.calls += 1
            self.x, self.number = X, Counted.calls

    assert same_bits(comparable_parts(Counted())[0], comparable_parts(Counted())[0])
    assert not same_bits(comparable_parts(Out(X, 1))[0], comparable_parts(Out(X, 2))[0])


def test_an_object_that_holds_everything_is_left_in_time():
    """Each node holds all others: without a memory the walk would take 100^8 steps."""

    class Node:
        pass

    nodes = [Node() for _ in range(100)]
    for node in nodes:
        node.others, node.x = nodes, X
    assert comparable_parts(nodes[0])[1] == []
    assert len(comparable_parts(nodes[0])[0]) == len(nodes)
