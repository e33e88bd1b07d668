"""The way back from a wrong output, on a chain of three layers whose comparisons are made up."""

from pathlib import Path

import pytest
import torch
from support.onnx_files import parsed
from torch import nn

from jumpout_export.model.operations import Operation, Recording
from jumpout_export.onnxfile.constants import FileConstants
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.divergence.search import Result, Search

LAYERS = ("a", "b", "c")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in LAYERS})


def search(model, shares, wrong=100.0, located=(), without=()):
    """What is found if each layer's result is so many limits off, and the file lacks the weights of some layers."""
    shape = torch.Size((1, 2))
    operations = [
        Operation(
            "aten.mm.default",
            name,
            shape,
            torch.float32,
            (index - 1,) if index else (),
            (f"{name}.weight",),
            True,
            (name,),
            ("", 0),
        )
        for index, name in enumerate(LAYERS)
    ]
    results = {
        index: Result(
            torch.tensor([[1.0, 2.0]]), torch.ones(shape), share, share, 1.0, f"`v{index}`" if share < 1e9 else ""
        )
        for index, share in enumerate(shares)
    }
    weights = {name: model[name].weight.detach().numpy() for name in LAYERS if name not in without}
    file = parsed("g (float[n,2] x) => (float[n,2] y) { y = Identity(x) }", weights)
    constants = FileConstants(Path("model.onnx"), file)
    recording = Recording(operations, None, [2], {})
    return Search(recording, results, {2: wrong}, list(located), constants, model).divergence()


INF = float("inf")


@pytest.mark.parametrize(
    ("shares", "layer"),
    [((100.0, 100.0, 100.0), "a"), ((0.5, 100.0, 100.0), "b"), ((0.5, 0.5, 100.0), "c"), ((0.5, INF, 100.0), "b")],
)
def test_the_first_layer_behind_right_results_is_named(shares, layer, model):
    assert search(model, shares).layer == layer


def test_an_error_that_grows_little_by_little_names_none(model):
    found = search(model, (0.5, 2.0, 3.0), wrong=3.0)
    assert found.layer is None
    assert found.note == "no layer can be named: the error at the outputs grows little by little on the way"


def test_weights_that_the_file_does_not_hold_name_their_layer(model):
    assert search(model, (0.5, 2.0, 3.0), wrong=3.0, without=("b",)).layer == "b"
    found = search(model, (0.5, 0.5, 3.0), wrong=0.5, without=("b",))  # nothing is off by enough to be seen
    assert found.layer == "b"
    assert found.note.endswith("it alone has weights that the file does not hold")
    assert search(model, (0.5, 0.5, 3.0), wrong=0.5, without=("a", "b")).layer is None


def test_a_layer_into_which_a_right_batchnorm_is_folded_misses_no_weights(model):
    """Its own weights are in the file no more; what it is folded into tells whether it is wrong."""
    for error, layer in ((0.0, None), (1.0, "b")):
        one = Located("c", 2, "b", "Gemm b", layer=1, error=error, limit=0.5)
        assert search(model, (0.5, 2.0, 3.0), wrong=3.0, located=[one], without=("b",)).layer == layer
