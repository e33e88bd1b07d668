"""What is converted: opsets, inputs and outputs of every kind, open axes, half precision, weights beside the file."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import re
import signal
import sys
import time
import warnings
from collections import OrderedDict

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from jumpout_export import Jumpout, inspect_onnx, verify_onnx
from jumpout_export.cli import app as cli
from jumpout_export.errors import ConversionError
from jumpout_export.export.convert import convert
from jumpout_export.export.publish import export_onnx
from jumpout_export.export.size_guards import check_sizes
from jumpout_export.fold.network.half import half_copy
from jumpout_export.model.axes import Axes, choose_axes, declared_axes, other_sizes
from jumpout_export.model.signature import input_names, onnx_batch, outputs, tensors
from jumpout_export.onnxfile.data import data_files
from jumpout_export.onnxfile.load import DEFAULT_OPSET
from jumpout_export.runtime.session import newest_opset
from jumpout_export.verify.values.reference import Reference

SIZES = ("height=10 width=11", "height=8 width=7")
X = torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(1))


def found(report):
    return {check.name: check.note for check in report.checks if check.verdict != "pass"}


def note(report, name):
    (text,) = [check.note for check in report.checks if check.name == name]
    return text


def shapes(path):
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def trained(model, shape=(16, 1, 9, 9)):
    for _ in range(3):
        model(torch.randn(shape) * 2 + 1)
    return model.eval()


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), Jumpout(relu=True), nn.Conv2d(4, 3, 3))

    def forward(self, x):
        return self.body(x)


# Opsets


@pytest.mark.parametrize("opset", range(18, 27))
def test_every_opset_that_onnx_runtime_accepts_is_honoured(opset, tmp_path):
    if opset > newest_opset():
        pytest.skip(f"this ONNX Runtime accepts opsets up to {newest_opset()}")
    model = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.Flatten(), nn.Softmax(1)))
    batch = onnx_batch(X, model)
    assert convert(model, batch, tmp_path / "model.onnx", opset=opset).opset == opset
    proto = onnx.load(tmp_path / "model.onnx")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    assert proto.ir_version == 10
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": X.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, model(X).numpy(), rtol=1e-4, atol=1e-6)


def test_the_newest_opset_is_the_one_after_which_onnx_runtime_refuses(tmp_path):
    newest = newest_opset()
    assert DEFAULT_OPSET < newest <= onnx.defs.onnx_opset_version()
    text = f"opset must be in [18, {newest}], got {newest + 1}; {newest} is the newest that the installed ONNX Runtime"
    with pytest.raises(ValueError) as error:
        export_onnx(nn.Linear(4, 2), tmp_path / "model.onnx", torch.ones(2, 4), opset=newest + 1)
    assert str(error.value).startswith(text)
    if newest == onnx.defs.onnx_opset_version():
        pytest.skip("this ONNX Runtime accepts everything that onnx can write")
    convert(nn.Linear(4, 2).eval(), onnx_batch(torch.ones(2, 4), nn.Linear(4, 2)), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    proto.opset_import[0].version = newest + 1
    with pytest.raises(Exception, match="opset"):
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


# Inputs and outputs


class TakesDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, inputs: dict[str, torch.Tensor]):
        return self.linear(inputs["a"]) - inputs["b"]


class TakesUnnamedDict(TakesDict):
    def forward(self, inputs):
        return self.linear(inputs["a"]) - inputs["b"]


class TakesKeywords(nn.Module):
    def forward(self, a, *, b, c):
        return {"difference": a - 2 * b, "nothing": None, "sum": b + 3 * c}


class TakesNested(nn.Module):
    def forward(self, x, pair, more):
        return x + pair[0] - 2 * pair[1], (3 * more["a"], None)


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    twice: torch.Tensor | None = None


class ModelOutput(OrderedDict):
    """As Hugging Face's: a dict with attributes that torch's pytrees do not know."""


class ReturnsDataClass(nn.Module):
    def forward(self, x):
        return Result(x + 1, None, 2 * x)


class ReturnsModelOutput(nn.Module):
    def forward(self, x):
        result = ModelOutput()
        result["logits"], result["hidden"] = x + 1, (2 * x, 3 * x)
        return result


A, B, C = (torch.randn(4, size, generator=torch.Generator().manual_seed(size)) for size in (3, 2, 2))


@pytest.mark.parametrize(
    ("model", "example", "inputs", "results"),
    [
        (TakesDict(), {"a": A, "b": B}, ["a", "b"], ["output"]),
        (TakesUnnamedDict(), ({"a": A, "b": B},), ["a", "b"], ["output"]),
        (TakesUnnamedDict(), {"inputs": {"b": B, "a": A}}, ["b", "a"], ["output"]),
        (TakesKeywords(), {"c": C, "a": B, "b": C}, ["a", "b", "c"], ["difference", "sum"]),
        (TakesNested(), (B, (C, B), {"a": C}), ["x", "pair_0", "pair_1", "a"], ["output_0", "output_1"]),
        (ReturnsDataClass(), A, ["x"], ["logits", "twice"]),
        (ReturnsModelOutput(), A, ["x"], ["output_0", "output_1", "output_2"]),
    ],
    ids=["dict", "dict without annotation", "dict by name", "keywords", "nested", "data class", "ModelOutput"],
)
def test_inputs_and_outputs_of_any_kind_keep_their_names_and_values(model, example, inputs, results, tmp_path):
    report = export_onnx(model, tmp_path / "model.onnx", example, golden=tmp_path)
    assert report, found(report)
    assert list(shapes(tmp_path / "model.onnx")) == [*inputs, *results]
    assert all(shape[0] == "batch" for shape in shapes(tmp_path / "model.onnx").values())
    # Names say which is which: each value goes where its name says, not where its place happens to be.
    batch = onnx_batch(example, model)
    expected = [one.tensor.detach().numpy() for one in outputs(batch(model), inputs)]
    feeds = {name: value.numpy() for name, value in zip(inputs, tensors(batch), strict=True)}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for got, want in zip(session.run(results, feeds), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert len(os.listdir(tmp_path / "test_data_set_0")) == len(inputs) + len(results)


def test_inputs_of_one_name_are_told_apart_by_the_parameters():
    class Two(nn.Module):
        def forward(self, first, second):
            return first["a"] + second["a"]

    assert input_names(Two(), onnx_batch(({"a": A}, {"a": A}), Two())) == ["first_a", "second_a"]


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (3, TypeError, "every output of the model must be a tensor, got int; wrap the model in a module"),
        ((None, {}), ValueError, "the model returns no tensor, so there is nothing to export"),
    ],
)
def test_an_output_that_cannot_be_exported_is_refused(result, error, message):
    with pytest.raises(error, match=message):
        outputs(result, ["x"])


# Which axes are open


class Table(nn.Module):
    """`table` happens to be as long as the batch, and has nothing to do with it."""

    def forward(self, x, table):
        return x @ table.T


class Lookup(nn.Module):
    def forward(self, x, index, table):
        return x + table[index]


class PerImage(nn.Module):
    def forward(self, x, scale, shift):
        return x * scale + shift


class Baked(nn.Module):
    def forward(self, x, table):
        return x.view(4, -1) + table


@pytest.mark.parametrize(
    ("model", "example", "batched"),
    [
        (Table(), (A, A), (True, False)),
        (Lookup(), (A, torch.tensor([0, 3, 1, 1]), A), (True, True, False)),
        (PerImage(), (A, A, A), (True, True, True)),
        (PerImage(), (A, A[:, :1], A[0]), (True, True, False)),
        (Baked(), (A, A), (True, True)),
    ],
    ids=["matrix", "lookup", "per image", "broadcast", "baked in"],
)
def test_an_input_as_long_as_the_batch_is_open_only_if_it_has_an_entry_per_image(model, example, batched):
    batch = onnx_batch(example, model)
    assert choose_axes(model, batch, True).batched == batched
    assert choose_axes(model, batch, False).size == 4


def test_a_table_as_long_as_the_batch_is_exported_with_its_size_and_compared_as_it_is(tmp_path):
    report = export_onnx(Table(), tmp_path / "model.onnx", (A, A), golden=tmp_path)
    assert report, found(report)
    assert shapes(tmp_path / "model.onnx") == {"x": ["batch", 3], "table": [4, 3], "output": ["batch", 4]}
    table = numpy_helper.to_array(onnx.load_tensor(tmp_path / "test_data_set_0" / "input_1.pb"))
    assert np.array_equal(table, A.numpy())


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


def test_further_axes_are_open_and_compared_at_other_sizes(tmp_path):
    model = trained(Convolutions())
    axes = {"x": {2: "height", 3: "width"}}
    report = export_onnx(model, tmp_path / "model.onnx", X, dynamic_axes=axes, golden=tmp_path)
    assert report, found(report)
    assert shapes(tmp_path / "model.onnx")["x"] == ["batch", 1, "height", "width"]
    assert note(report, "dynamic axes") == "compared at batch=3 height=10 width=11, batch=3 height=8 width=7"
    names = {check.name for check in report.checks}
    moved = {f"cpu/{level}/sizes batch=3 {size}/worst error" for level in ("off", "all") for size in SIZES}
    assert moved <= names
    verified = verify_onnx(tmp_path / "model.onnx", model, torch.randn(2, 1, 12, 15))
    assert note(verified, "dynamic axes") == "compared at batch=3 height=13 width=17, batch=3 height=11 width=13"
    before = (tmp_path / "model.onnx").read_bytes()
    assert export_onnx(model, tmp_path / "model.onnx", X, dynamic_axes=axes, golden=tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == before


class Chunks(nn.Linear):
    """Runs 32 images at a time."""

    def forward(self, x):
        return torch.cat([super(Chunks, self).forward(part) for part in x.split(32)])


class LargeBatch(nn.Module):
    def forward(self, x):
        return x.tanh() * 2 if x.shape[0] > 16 else x.tanh()


class Sixteens(nn.Module):
    def forward(self, x):
        return x.tanh() if x.shape[0] % 16 else x.tanh() * 2


class LongRows(nn.Module):
    def forward(self, x):
        return x.tanh() * 2 if x.shape[1] > 100 else x.tanh()


class Pyramid(nn.Module):
    """Takes heights and widths that 4 divides."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        low = self.second(nn.functional.max_pool2d(x, 4))
        return torch.cat([x, nn.functional.interpolate(low, scale_factor=4)], 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Chunks(3, 3),
            r"at batch=33 \(it gives \(33, 3\), what was traced gives \(32, 3\)\): .* `batch <= 32`; pass dyn",
        ),
        (LargeBatch(), r"another path at batch=17 \(what was traced gives other values there\): .* `batch <= 16`"),
        (Sixteens(), r"another path at batch=16 .* `Ne\(Mod\(batch, 16\), 0\)`; pass dynamic_batch=False \(--static\)"),
    ],
    ids=["chunks", "large batch", "sixteens"],
)
def test_a_model_that_takes_another_path_at_a_batch_size_is_refused_with_an_open_one(model, message, tmp_path):
    report = export_onnx(model, tmp_path / "model.onnx", A)
    assert re.search(message, found(report)["convert"])
    assert os.listdir(tmp_path) == []
    assert export_onnx(model, tmp_path / "model.onnx", A, dynamic_batch=False)


def test_a_model_that_takes_another_path_at_the_size_of_a_named_axis_is_refused(tmp_path):
    report = export_onnx(LongRows(), tmp_path / "model.onnx", A, dynamic_axes={"x": {1: "width"}})
    text = found(report)["convert"]
    assert "at width=101" in text
    assert text.endswith("right only where `width <= 100`; leave `width` out of dynamic_axes (--dynamic)")
    assert export_onnx(LongRows(), tmp_path / "model.onnx", A)


def test_sizes_that_the_model_itself_refuses_are_a_note(tmp_path):
    example = torch.randn(4, 1, 8, 12)
    axes = {"x": {2: "height", 3: "width"}}
    report = export_onnx(Pyramid(), tmp_path / "model.onnx", example, dynamic_axes=axes)
    assert report, found(report)
    (text,) = [text for text in report.notes if "sizes have to obey" in text]
    assert "`Eq(4*((height//4)), height)`" in text
    assert text.endswith("the model runs at no other that was tried")
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        Pyramid()(example[:, :, :6])


def test_where_conditions_are_kept_as_text_other_sizes_are_run():
    """What torch.export does by itself, and torch.onnx may do in other versions."""

    def checked(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.eval(), (A,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            program._guards_code.append("L['x'].size()[0] != 0")
            return check_sizes(program, model, onnx_batch(A, model), Axes((True,), None, ({},)), {"batch": "advice"})

    with pytest.raises(
        ConversionError, match=r"another path at batch=16 .* only where `batch is as in the example`; advi"
    ):
        checked(Sixteens())
    assert checked(nn.Linear(3, 3)) == []


def test_a_limit_beyond_what_can_be_tried_is_refused(tmp_path):
    class Huge(nn.Module):
        def forward(self, x):
            return x.tanh() * 2 if x.shape[0] > 20000 else x.tanh()

    with pytest.raises(
        ConversionError, match="where not `batch <= 20000`, and inputs of that size are too large to try"
    ):
        convert(Huge().eval(), onnx_batch(torch.randn(2, 4000), Huge()), tmp_path / "model.onnx")


def test_the_export_function_of_torch_is_itself_again_after_an_error(tmp_path):
    before = torch.export.export
    with pytest.raises(ConversionError, match="another path"):
        convert(Sixteens().eval(), onnx_batch(A, Sixteens()), tmp_path / "model.onnx")
    assert torch.export.export is before


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_transformer_layer_of_torch_behind_other_layers_is_exported(norm_first, layers, tmp_path):
    class VisionTransformer(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
            self.patches, self.token = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 1, 8))
            self.encoder = layer if layers == 1 else nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1)
            return self.encoder(x)[:, 0]

    report = export_onnx(VisionTransformer(), tmp_path / "model.onnx", torch.randn(4, 5, 6))
    assert report, found(report)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_first_axis_may_be_named_where_the_batch_size_is_fixed():
    batch = onnx_batch(torch.randn(6, 3, 4), nn.Identity())
    axes = choose_axes(nn.Identity(), batch, False, {"input": {0: "time", 1: "n"}})
    assert axes.opened() == [{0: "time", 1: "n"}]
    assert axes.batched == (False,)


def test_a_sequence_model_may_take_time_first(tmp_path):
    """Axis 0 is the time, of which steps depend on one another; the batch is fixed and comes second."""

    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x):
            return self.linear(x - x.mean(0, keepdim=True)).relu()

    torch.manual_seed(0)
    axes = {"x": {0: "time"}}
    x = torch.randn(6, 2, 4)
    report = export_onnx(Sequence(), tmp_path / "model.onnx", x, dynamic_batch=False, dynamic_axes=axes)
    assert report, found(report)
    assert "time=" in note(report, "dynamic axes")
    assert onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "time"


def test_a_scripted_layer_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: torch.jit.script is deprecated, and copies of its modules warn
        model = nn.Sequential(torch.jit.script(nn.Linear(3, 3)))
        report = export_onnx(model, tmp_path / "model.onnx", A)
    assert found(report)["convert"].startswith("`0` is scripted (torch.jit), which the converter does not take")


def test_a_file_that_is_right_at_the_size_of_the_example_only_fails(tmp_path):
    """What `Dim.AUTO` leaves: an axis that is declared open, in a graph for one size."""
    model = nn.AdaptiveAvgPool2d(1)
    batch = onnx_batch(X, model)
    convert(model.eval(), batch, tmp_path / "model.onnx", axes=Axes((True,), None, ({},)))
    proto = onnx.load(tmp_path / "model.onnx")
    (reduce,) = [node for node in proto.graph.node if node.op_type in ("ReduceMean", "GlobalAveragePool")]
    total = numpy_helper.from_array(np.array(1 / 81, np.float32), "one_by_81")
    proto.graph.initializer.append(total)
    inputs = [reduce.input[0], "axes"]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    nodes = [
        onnx.helper.make_node("ReduceSum", inputs, ["sum"]),
        onnx.helper.make_node("Mul", ["sum", "one_by_81"], ["output"]),
    ]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, tmp_path / "model.onnx")
    assert verify_onnx(tmp_path / "model.onnx", model, X)
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size_{axis}"
    onnx.save(proto, tmp_path / "model.onnx")
    report = verify_onnx(tmp_path / "model.onnx", model, X)
    assert "cpu/off/sizes batch=3 size_2=10 size_3=11/worst error" in found(report)


def test_two_open_axes_of_which_the_file_ties_one_to_the_other_fail(tmp_path):
    class Square(nn.Module):
        def forward(self, x):
            return x.mT if x.shape[-1] == x.shape[-2] else x

    report = export_onnx(Square(), tmp_path / "model.onnx", X, dynamic_axes={"x": {2: "height", 3: "width"}})
    assert not report
    assert found(report)


def test_axes_that_pytorch_runs_at_no_other_size_fail_and_say_so(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(81, 2))
    report = export_onnx(model, tmp_path / "model.onnx", X, dynamic_axes={"input": {2: "height"}})
    text = " ".join(found(report).values())
    assert "height" in text
    assert "PyTorch runs no other size that was tried" in text or "the model fixes" in text
    assert os.listdir(tmp_path) == []


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
    batch = onnx_batch((A, A, X), PerImage())

    def axes(*declared):
        return declared_axes(declared, ("x", "y", "z"), batch)

    ours = axes(["batch", 3], ["rows", 3], [4, 1, "height", 9])
    assert (ours.batched, ours.size, ours.further) == ((True, False, False), None, ({}, {0: "rows"}, {2: "height"}))
    others = axes(["n", 3], ["m", 3], [None, 1, None, 9])  # of equal length: names say nothing else
    assert (others.batched, others.further, others.anonymous) == ((True, True, True), ({}, {}, {2: "z:2"}), {"z:2"})
    fixed = axes([4, 3], [4, 3], [4, 1, 9, 9])
    assert (fixed.batched, fixed.size, fixed.names) == ((True, True, True), 4, ())


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({"image": {2: "h"}}, ValueError, "dynamic_axes names no input of the model: 'image'; it has x"),
        ({"x": {4: "h"}}, ValueError, r"axis 4 of input `x` does not exist, its shape is \(4, 1, 9, 9\)"),
        ({"x": {-1: "h"}}, ValueError, "axis -1 of input `x` does not exist"),
        ({"x": {"2": "h"}}, ValueError, "axis '2' of input `x` does not exist"),
        ({"x": {2: "1 h"}}, ValueError, r"axis 2 of input `x` needs a name such as height .*, got '1 h'"),
        ({"x": {2: None}}, ValueError, "needs a name such as height"),
        ({"x": {2: "batch"}}, ValueError, "cannot be `batch`, which is the name of the first axis"),
        ({"x": {0: "n"}}, ValueError, "axis 0 of input `x` is the batch: it is named `batch`"),
        ({"x": {1: "channels"}}, ValueError, "has length 1 in the example, .* give an example of 2 or more"),
        ({"x": [2]}, TypeError, r"dynamic_axes must be \{input: \{axis: name\}\}, got"),
        (["x"], TypeError, r"dynamic_axes must be \{input: \{axis: name\}\}, got"),
    ],
)
def test_wrong_axes_are_named(axes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(Convolutions(), tmp_path / "model.onnx", X, dynamic_axes=axes)
    assert os.listdir(tmp_path) == []


def test_axes_of_one_name_must_have_one_size_and_a_fixed_batch_is_not_open():
    batch = onnx_batch((A, B, C), PerImage())
    with pytest.raises(ValueError, match="axis 1 of input `scale` is named `n` as one of input `x`, but has 2 entries"):
        choose_axes(PerImage(), batch, True, {"x": {1: "n"}, "scale": {1: "n"}})
    with pytest.raises(ValueError, match=r"cannot be open: dynamic_batch=False \(--static\) fixes the batch size"):
        choose_axes(PerImage(), batch, False, {"scale": {0: "batch"}})
    odd = onnx_batch((A, torch.ones(1, 3), A), PerImage())
    with pytest.raises(ValueError, match="axis 0 of input `scale` is no batch: it has 1 entries, the example holds 4"):
        choose_axes(PerImage(), odd, True, {"scale": {0: "batch"}})


# Types


class HalfResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pre, self.drop, self.linear = nn.BatchNorm2d(8), Jumpout(relu=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.drop(self.bn1(self.first(x)))
        y = self.bn2(self.second(x))
        return self.linear((self.pre(x) + y).mean((2, 3)))


def test_half_precision_is_exported_verified_and_measured_against_the_model(tmp_path):
    model = trained(HalfResidual())
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, X, calibration=[X, X[:2]], dtype=torch.float16, golden=tmp_path)
    assert report, found(report)
    proto = onnx.load(path)
    types = {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    assert types == {onnx.TensorProto.FLOAT16}
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in proto.graph.initializer}
    assert report.provenance["jumpout_export.dtype"] == "float16"
    text = note(report, "precision")
    assert text.startswith("float16 against the model's own precision, 6 images: output `output` is off by up to 0.")
    assert text.endswith("top-1 agrees on 6 of 6")
    # An oracle of its own: what the file gives, against the float64 model.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": X.half().numpy()})[0].astype(np.float64)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(X.double()).numpy()
    assert np.abs(got - exact).max() < 0.01 * np.abs(exact).max()
    before = path.read_bytes()
    assert export_onnx(model, path, X, calibration=[X, X[:2]], dtype=torch.float16, golden=tmp_path)
    assert path.read_bytes() == before
    verified = verify_onnx(path, model, X)
    assert verified, found(verified)
    assert "compared with the model in float16, which the file's metadata names as its type" in verified.notes
    # 1, 2 and 7 are rows of the first batch; `verify` sees X alone, the export X and two more images.
    assert note(verified, "precision").startswith(
        "float16 against the model's own precision, 4 images: output `output`"
    )
    with torch.no_grad():
        model.linear.weight[0, 0] += 0.1 * model.linear.weight.abs().max()
    assert not verify_onnx(path, model, X)


def test_a_network_that_float16_does_not_hold_is_refused(tmp_path):
    model = trained(HalfResidual())
    with torch.no_grad():
        model.linear.weight *= 1e-8
        model.linear.bias *= 1e-8
    report = export_onnx(model, tmp_path / "model.onnx", X, dtype=torch.float16)
    assert not report
    check = next(check for check in report.checks if check.name == "precision")
    assert (check.verdict, check.limit) == ("fail", 0.25)
    assert check.measured == pytest.approx(1, abs=0.1)
    assert check.note.endswith("float16 does not hold this network")


def test_batchnorm_is_folded_before_the_rounding_where_that_is_exact_and_not_elsewhere():
    model = trained(HalfResidual())
    model.bn1.running_var.mul_(1e5), model.bn1.weight.data.mul_(300)  # beyond float16 by itself
    half = half_copy(model, onnx_batch(X, model))
    kinds = {path: type(module) for path, module in half.named_modules()}
    assert (kinds["bn1"], kinds["bn2"], kinds["pre"]) == (nn.Identity, nn.Identity, nn.BatchNorm2d)
    with torch.no_grad():
        torch.testing.assert_close(half(X.half()).float(), model(X), rtol=0.02, atol=0.02)
        rounded_first = copy.deepcopy(model).half()(X.half())
        assert not torch.allclose(rounded_first.float(), model(X), rtol=0.02, atol=0.02)
    assert model.first.weight.dtype == torch.float32

    class Shared(nn.Module):
        """What the convolution gives is used beside BatchNorm too: to fold it would change that."""

        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.linear, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.last(self.linear((self.bn(y) + y).mean((2, 3))))

    shared = trained(Shared())
    half = half_copy(shared, onnx_batch(X, shared))
    assert (type(half.bn), type(half.last)) == (nn.BatchNorm2d, nn.Identity)


def test_a_model_that_float16_cannot_hold_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].weight.data[0, 0] = 1e5
    report = export_onnx(model, tmp_path / "model.onnx", torch.ones(2, 4), dtype=torch.float16)
    assert found(report)["convert"] == "beyond the range of float16 (65504): `0.weight` (largest value 1e+05)"

    class Fixed(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    with pytest.raises(ConversionError, match="the model does not run in float16: RuntimeError"):
        half_copy(Fixed(4, 2).eval(), onnx_batch(torch.ones(2, 4), Fixed(4, 2)))

    class Overflows(nn.Linear):
        def forward(self, x):
            return super().forward(x).abs() * 1e5 + 1e5

    report = export_onnx(Overflows(4, 2), tmp_path / "model.onnx", torch.ones(2, 4), dtype=torch.float16)
    assert "NaN or infinite values" in found(report)["cpu/off/finite"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("dtype", "error", "message"),
    [
        (torch.bfloat16, ValueError, "ONNX Runtime's CPU provider has no bfloat16 convolution"),
        (torch.float64, ValueError, r"dtype must be torch\.float16 or None \(the model's own\), got torch\.float64"),
        ("fp16", TypeError, r"dtype must be torch\.float16 or None, got 'fp16'"),
    ],
)
def test_other_types_are_refused(dtype, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_onnx(nn.Linear(4, 2), tmp_path / "model.onnx", torch.ones(2, 4), dtype=dtype)


def test_onnx_runtimes_cpu_provider_still_has_no_bfloat16_convolution():
    """If this fails, bfloat16 need not be refused any more."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BFLOAT16, [1, 1, 3, 3]) for name in "xwy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], "g", value[:2], value[2:]
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 22)])
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|Could not find an implementation"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_float64_output_of_a_float32_model_is_judged_as_what_it_was_computed_in(tmp_path):
    class Widened(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y, y.double() * 2

    model = Widened(300, 20)
    example = torch.randn(16, 300)
    assert export_onnx(model, tmp_path / "model.onnx", example, golden=tmp_path)
    proto = onnx.load(tmp_path / "model.onnx")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["jumpout_export.tolerance.output_1"].startswith("cap=0.001 ")
    weight = next(
        tensor for tensor in proto.graph.initializer if list(tensor.dims) == [300, 20] or tensor.dims[0] == 20
    )
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1e-4
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, tmp_path / "model.onnx")
    assert not verify_onnx(tmp_path / "model.onnx", model, example)
    batch = onnx_batch(example, model)
    assert [one.precision for one in Reference(model.eval(), batch)(batch)] == [None, torch.float32]
    double = onnx_batch(example.double(), model)
    assert [one.precision for one in Reference(model.double(), double)(double)] == [None, None]


# The command line


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `export` in a folder with a factory; returns exit code and stderr."""
    (tmp_path / "convert_factory.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers are for a process of its own

    def run(*arguments):
        argv = ["jumpout-export", "export", "convert_factory:net", "m.onnx", "--input-shape", "4,1,9,8", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ending:
            cli.main()
        return ending.value.code, capsys.readouterr().err

    return run


def test_the_command_takes_axes_type_and_external_data(command):
    axes = ["--dynamic", "input:2=height", "--dynamic", "input:3=width"]
    assert command(*axes, "--dtype", "fp16", "--external-data")[0] == 0
    proto = onnx.load("m.onnx")
    assert shapes("m.onnx")["input"] == ["batch", 1, "height", "width"]
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dynamic", "input=height"], "--dynamic must be INPUT:AXIS=NAME, for example image:2=height, got 'input=he"),
        (["--dynamic", "input:2"], "--dynamic must be INPUT:AXIS=NAME"),
        (["--dynamic", "input:two=h"], "--dynamic must be INPUT:AXIS=NAME"),
        (["--dynamic", "input:2=h", "--dynamic", "input:2=w"], "--dynamic names axis 2 of input twice"),
        (["--dynamic", "image:2=h"], "--dynamic: dynamic_axes names no input of the model: 'image'; it has input"),
        (["--dtype", "bf16"], "'bf16' is not"),
        (["--opset", "17"], "--opset: opset must be in [18, "),
        (["--opset", "99"], "is the newest that the installed ONNX Runtime accepts"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(arguments, message, command, tmp_path):
    code, err = command(*arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "m.onnx").exists()


# Weights beside the file


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 3)).eval()
    report = export_onnx(model, folder / "model.onnx", torch.randn(4, 9), external_data=True)
    assert report, found(report)
    return model, folder, report


def test_weights_beside_the_file_are_named_after_their_content(outside):
    model, folder, report = outside
    (data,) = data_files(folder, "model.onnx")
    assert sorted(os.listdir(folder)) == ["model.onnx", data.name]
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert metadata["jumpout_export.data_sha256"] == digest
    assert data.name == f"model.onnx.{digest[:16]}.data"
    assert report.sha256 == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert inspect_onnx(folder / "model.onnx")
    assert verify_onnx(folder / "model.onnx", model, torch.randn(3, 9))


def test_the_bytes_of_both_files_are_the_same_again(outside, tmp_path):
    model, folder, _ = outside
    assert export_onnx(model, tmp_path / "model.onnx", torch.randn(4, 9), external_data=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_other_weights_in_the_data_file_are_found_before_anything_is_run(outside, tmp_path):
    model, folder, _ = outside
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (data,) = data_files(tmp_path, "model.onnx")
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    for report in (
        inspect_onnx(tmp_path / "model.onnx"),
        verify_onnx(tmp_path / "model.onnx", model, torch.randn(3, 9)),
    ):
        assert not report
        text = f"{data.name} does not hold the weights the file was written with (its sha256 differs)"
        assert found(report)["file/external data"] == text


def test_a_new_export_removes_the_weights_of_the_one_before(outside, tmp_path):
    other = nn.Linear(9, 300)
    assert export_onnx(other, tmp_path / "model.onnx", torch.randn(4, 9), external_data=True)
    (first,) = data_files(tmp_path, "model.onnx")
    mine = tmp_path / "model.onnx.data"
    mine.write_bytes(b"not ours")
    with torch.no_grad():
        other.weight.mul_(2)
    assert export_onnx(other, tmp_path / "model.onnx", torch.randn(4, 9), external_data=True)
    (second,) = data_files(tmp_path, "model.onnx")
    assert first != second
    assert export_onnx(other, tmp_path / "model.onnx", torch.randn(4, 9))
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx.data"]


def test_a_model_without_large_weights_has_no_data_file(tmp_path):
    assert export_onnx(nn.ReLU(), tmp_path / "model.onnx", torch.randn(4, 9), external_data=True)
    assert os.listdir(tmp_path) == ["model.onnx"]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("JUMPOUT_LARGE") != "1", reason="needs 12 GiB of memory: set JUMPOUT_LARGE=1")
def test_a_model_of_more_than_two_gibibytes_is_exported(tmp_path):
    model = nn.Sequential(nn.Linear(16384, 33000), nn.ReLU(), nn.Linear(33000, 8))
    begin = time.monotonic()
    report = export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 16384))
    assert report, found(report)
    (data,) = data_files(tmp_path, "model.onnx")
    assert data.stat().st_size > 2 * 2**30
    assert (tmp_path / "model.onnx").stat().st_size < 2**20
    print(f"{time.monotonic() - begin:.0f} s, {data.stat().st_size / 2**30:.2f} GiB")
