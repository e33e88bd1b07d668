"""What a file is tried on: sizes of values and batches, places, inputs that nobody gave, outputs that never move."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.verify.verify import verify_onnx

pytestmark = pytest.mark.integration


def the(report, name):
    (check,) = [check for check in report.checks if check.name == name]
    return check


def linear(*sizes):
    torch.manual_seed(0)
    return nn.Linear(*sizes)


class Does(nn.Module):
    """What a function makes of a layer's result."""

    def __init__(self, function, outputs=7):
        super().__init__()
        self.function, self.fc = function, linear(8, outputs)

    def forward(self, x):
        return self.function(self.fc(x))


def beside(boxes, scores):
    return torch.cat([1e7 + 1e6 * boxes, scores], -1)


LAYOUTS = {
    "one row": lambda h: beside(h[:, :6], h[:, 6:].sigmoid())[:, None],
    "rows": lambda h: beside(h[:, :6], h[:, 6:].sigmoid())[:, None] * torch.ones(1, 10, 1),
    "columns": lambda h: beside(h[:, :6], h[:, 6:].sigmoid())[..., None] * torch.ones(1, 1, 10),
    "flat": lambda h: beside(h[:, :6], h[:, 6:].sigmoid()),
    "batch behind": lambda h: beside(h[:, :6], h[:, 6:].sigmoid()).T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_score_that_is_wrong_beside_large_boxes_is_found_in_any_layout(tmp_path, layout):
    model, path, x = Does(LAYOUTS[layout]).eval(), tmp_path / "m.onnx", torch.randn(16, 8)
    assert export_onnx(model, path, x)
    proto = onnx.load(path)
    (node,) = [node for node in proto.graph.node if node.op_type == "Sigmoid"]
    node.op_type = "HardSigmoid"
    onnx.save(proto, path)
    assert the(verify_onnx(path, model, x), "cpu/off/data/worst error").verdict == "fail"


@pytest.mark.parametrize("layout", ["flat", "batch behind", "rows"])
def test_a_fixed_batch_is_judged_along_the_axis_of_its_samples(tmp_path, layout):
    model, path, x = Does(LAYOUTS[layout]).eval(), tmp_path / "m.onnx", torch.randn(16, 8)
    assert export_onnx(model, path, x, dynamic_batch=False)
    proto = onnx.load(path)
    (node,) = [node for node in proto.graph.node if node.op_type == "Sigmoid"]
    node.op_type = "HardSigmoid"
    onnx.save(proto, path)
    assert the(verify_onnx(path, model, x), "cpu/off/data/worst error").verdict == "fail"


def changes_from(path, size, factor):
    """Multiplies the output of a file by a factor from `size` samples on."""
    proto = onnx.load(path)
    graph, make = proto.graph, helper.make_node
    out = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["whole" if name == out else name for name in node.output]
    values = {"limit": np.int64(size), "zero": np.int64(0), "one": np.float32(1), "other": np.float32(factor)}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    graph.node.extend(
        [
            make("Shape", [graph.input[0].name], ["shape"]),
            make("Gather", ["shape", "zero"], ["images"]),
            make("GreaterOrEqual", ["images", "limit"], ["many"]),
            make("Where", ["many", "other", "one"], ["factor"]),
            make("Mul", ["whole", "factor"], [out]),
        ]
    )
    onnx.save(proto, path)


@pytest.mark.parametrize("size", [5, 16, 64, 200])
def test_a_file_that_is_right_for_fewer_samples_only_is_found(tmp_path, size):
    model, path, x = Does(torch.tanh).eval(), tmp_path / "m.onnx", torch.randn(2, 8)
    assert export_onnx(model, path, x)
    changes_from(path, size, 2)
    report = verify_onnx(path, model, x)
    assert not report
    assert f"batch={size}" in the(report, "sizes").note
    assert the(report, f"cpu/off/batch={size}/worst error").verdict == "fail"
    assert the(report, "cpu/all/batch=3/worst error").verdict == "pass"


class Limited(nn.Module):
    """Refuses batches that are larger, as a model with a table of positions does."""

    def __init__(self, most):
        super().__init__()
        self.most, self.fc = most, linear(8, 3)

    def forward(self, x):
        if not torch.compiler.is_compiling() and x.shape[0] > self.most:
            raise ValueError("too many samples")
        return self.fc(x)


def test_a_size_that_the_file_decides_by_and_pytorch_refuses_is_listed(tmp_path):
    model, path, x = Limited(20).eval(), tmp_path / "m.onnx", torch.randn(4, 8)
    assert export_onnx(model, path, x)
    changes_from(path, 64, 2)
    report = verify_onnx(path, model, x)
    assert not [check for check in report.checks if check.name.startswith("torch/")]
    assert "not shown, as PyTorch itself does not run it: batch=63; batch=64; batch=65" in the(report, "sizes").note


def test_a_size_that_is_always_tried_and_pytorch_refuses_fails(tmp_path):
    report = export_onnx(Limited(2).eval(), tmp_path / "m.onnx", torch.randn(2, 8))
    check = the(report, "torch/batch=3")
    assert "too many samples; does the model fix its batch size?" in check.note


@pytest.mark.parametrize(
    "leak",
    [
        lambda h: h * (1 + (torch.arange(h.shape[0]) == 4)[:, None]),
        lambda h: h + 0.1 * (torch.arange(h.shape[0]) >= 8)[:, None] * h[:1],
        lambda h: h - h.mean(0),
    ],
    ids=["place", "from the ninth on", "mean"],
)
def test_a_sample_whose_result_depends_on_its_place_or_the_others_is_found(tmp_path, leak):
    report = export_onnx(Does(leak).eval(), tmp_path / "m.onnx", torch.randn(2, 8))
    assert the(report, "batch independence").verdict == "fail"
    assert not (tmp_path / "m.onnx").exists()


def samples_run(report):
    return next(note for note in report.notes if note.startswith("PyTorch was run on"))


def test_an_export_runs_pytorch_on_the_largest_batch_only_where_the_file_differs(tmp_path):
    model, path, x = Does(torch.tanh).eval(), tmp_path / "m.onnx", torch.randn(2, 8)
    report = export_onnx(model, path, x)
    # Two given samples and four made-up ones alone, two and three together (three in float64, too), five at magnitudes.
    assert samples_run(report).startswith("PyTorch was run on 16 samples in the model's own precision and 9 in float64")
    check = the(report, "cpu/all/batch=17/worst error")
    assert (check.verdict, "17 samples" in check.note) == ("pass", True)
    # Of a file that anybody may have made, PyTorch is asked what it gives at that size.
    assert "PyTorch was run on 33 samples" in samples_run(verify_onnx(path, model, x))
    late = Does(lambda h: h + 0.1 * (torch.arange(h.shape[0]) >= 8)[:, None] * h[:1]).eval()
    differs = export_onnx(late, tmp_path / "late.onnx", x)
    # The file does what the model does, and it is the model that is to blame.
    assert [check.name for check in differs.checks if check.verdict == "fail"] == ["batch independence"]
    dependent = the(differs, "batch independence").note
    assert "batch=17: output `output`" in dependent


def test_a_dead_network_is_not_shown_unless_that_is_allowed(tmp_path):
    model, path = Does(lambda h: (h * 1e-3 - 100).relu()).eval(), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randn(16, 8))
    assert [check.name for check in report.checks if check.blocks] == ["outputs move"]
    assert not path.exists()
    assert export_onnx(model, path, torch.randn(16, 8), allow_constant="output")


def test_an_output_that_may_be_constant_has_to_be_one_of_the_models(tmp_path):
    model, path = Does(torch.tanh).eval(), tmp_path / "m.onnx"
    with pytest.raises(ValueError, match="no output `typo`; its outputs are output") as raised:
        export_onnx(model, path, torch.randn(16, 8), allow_constant="typo")
    assert raised.value.argument == "allow_constant"
    assert not list(tmp_path.iterdir())


def test_an_output_that_no_input_reaches_passes_with_a_note(tmp_path):
    model = Does(lambda h: {"scores": h, "anchors": torch.arange(4.0) * 8}).eval()
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(4, 8))
    assert report
    assert the(report, "outputs move").note == "no input reaches `anchors`, compared as constants"


class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = linear(2, 4)

    def forward(self, boxes):
        return self.fc((boxes[:, 2:] - boxes[:, :2]).log())


class Tabular(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Embedding(20, 4), nn.Embedding(5, 4), nn.Linear(8, 3)

    def forward(self, codes):
        return self.fc(torch.cat([self.a(codes[:, 0]), self.b(codes[:, 1])], 1))


class Graph(nn.Module):
    """Takes symmetric matrices of zeros and ones in which every node has a neighbour, as floats."""

    def __init__(self):
        super().__init__()
        self.fc = linear(8, 3)

    def forward(self, x, edges):
        degree = edges.sum(-1, keepdim=True)
        return self.fc(edges @ x / degree).mean(1)


def boxes():
    low = torch.rand(16, 2)
    return torch.cat([low, low + 0.1 + torch.rand(16, 2)], 1)


def codes():
    return torch.stack([torch.randint(20, (32,)), torch.randint(5, (32,))], 1)


def graphs():
    edges = torch.zeros(6, 4, 4)
    for row, (one, two) in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]):
        edges[row, one, two] = edges[row, two, one] = 1
    return torch.randn(6, 4, 8), (edges + torch.eye(4)).clamp(max=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("network", "example"), [(Boxes, boxes), (Tabular, codes), (Graph, graphs)])
def test_made_up_inputs_respect_what_the_data_shows(tmp_path, network, example, seed):
    torch.manual_seed(seed)
    report = export_onnx(network().eval(), tmp_path / "m.onnx", example(), seed=seed)
    assert report, [check for check in report.checks if check.blocks]
    assert the(report, "made-up inputs").note == "4 inputs made of the given ones"


def test_a_made_up_input_that_pytorch_refuses_fails_nothing(tmp_path):
    x = torch.rand(4, 8)

    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = linear(8, 3)

        def forward(self, x):
            if not torch.compiler.is_compiling() and not all((row == given).all(-1).any() for row in x):
                raise ValueError("not my data")
            return self.fc(x)

    given = x
    report = export_onnx(Picky().eval(), tmp_path / "m.onnx", x)
    check = the(report, "made-up inputs")
    assert (check.verdict, check.required) == ("not_run", False)
    assert "not my data" in check.note


def test_made_up_inputs_can_be_left_out_and_the_report_says_so(tmp_path):
    report = export_onnx(Does(torch.tanh).eval(), tmp_path / "m.onnx", torch.randn(4, 8), made_up=False)
    assert report
    assert "switched off" in the(report, "made-up inputs").note


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image):
        return self.conv(image).mean((2, 3))


def test_a_file_that_is_right_for_small_heights_only_is_found(tmp_path):
    torch.manual_seed(0)
    model, path, x = Mean().eval(), tmp_path / "m.onnx", torch.randn(2, 3, 8, 8)
    assert export_onnx(model, path, x, dynamic_axes={"image": {2: "height"}})
    proto = onnx.load(path)
    graph, make = proto.graph, helper.make_node
    out = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["whole" if name == out else name for name in node.output]
    values = {"limit": np.int64(100), "axis": np.int64(2), "one": np.float32(1), "two": np.float32(2)}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    graph.node.extend(
        [
            make("Shape", ["image"], ["shape"]),
            make("Gather", ["shape", "axis"], ["height"]),
            make("Greater", ["height", "limit"], ["tall"]),
            make("Where", ["tall", "two", "one"], ["factor"]),
            make("Mul", ["whole", "factor"], [out]),
        ]
    )
    onnx.save(proto, path)
    report = verify_onnx(path, model, x)
    assert "height=101" in the(report, "sizes").note
    assert the(report, "cpu/off/sizes batch=3 height=101/worst error").verdict == "fail"
    assert the(report, "cpu/off/sizes batch=3 height=100/worst error").verdict == "pass"
