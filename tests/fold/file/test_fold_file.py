"""Folding existing files: what real exporters write becomes torch's own eval network, all else is refused by name."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import random
import re
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from jumpout_export.errors import LoadError, NotVerifiableError
from jumpout_export.fold.file.copies import neutral_copy, observed_copy
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.fold.file.masks import EXPONENTS, Factor, Keep, Mask, is_dropout
from jumpout_export.fold.file.observe import observe
from jumpout_export.fold.file.proof import prove
from jumpout_export.fold.file.read import read_noise
from jumpout_export.runtime.session import open_session
from jumpout_export.verify.inspect import inspect_onnx

FLOAT, BOOL, INT64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
OPSET = [helper.make_opsetid("", 18)]
TRAINING = torch.onnx.TrainingMode.TRAINING


# What real exporters write.


class Between(nn.Module):
    """A convolution, a noisy function, a convolution."""

    def __init__(self, noise):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.noise = noise

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last(self.noise(y) if self.training else y)


def jumpout(x):
    q = (x > 0).float().mean()
    p = (0.01 + (torch.randn(()) * 0.1).abs()).clamp(max=0.6)
    rate = torch.where(q > 0, p / q, 0.0).clamp(max=0.95)
    keep = torch.rand_like(x) >= rate
    return x * keep * ((1 - rate) ** -0.75).to(x.dtype)


def jumpout_of_bernoulli(x):
    rate = torch.clamp(0.1 / ((x > 0).float().mean() + 1e-6), 0.0, 0.9)
    return x * torch.bernoulli((1 - rate).expand_as(x)) / (1 - rate) ** 0.75


def drop_path(x):  # timm
    return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.8).div_(0.8)


def old_drop_path(x):  # timm before 0.4.12
    return x.div(0.8) * (0.8 + torch.rand((x.shape[0], 1, 1, 1))).floor_()


def masked_fill(x):
    return x.masked_fill(torch.rand_like(x) < 0.3, 0.0) / 0.7


def selected(x):
    return torch.where(torch.rand_like(x) > 0.3, x / 0.7, torch.zeros_like(x))


class Twice(nn.Module):
    def forward(self, x):
        return F.dropout(F.dropout(x, 0.3, self.training) * 2, 0.2, self.training)


IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
MODELS = {
    "Dropout": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 2)), IMAGE),
    "Dropout1d": (lambda: nn.Sequential(nn.Conv1d(6, 4, 3), nn.Dropout1d(0.3), nn.Conv1d(4, 2, 1)), IMAGE[:, 0]),
    "Dropout2d": (lambda: Between(nn.Dropout2d(0.3)), IMAGE),
    "jumpout": (lambda: Between(jumpout), IMAGE),
    "jumpout of Bernoulli": (lambda: Between(jumpout_of_bernoulli), IMAGE),
    "DropPath": (lambda: Between(drop_path), IMAGE),
    "old DropPath": (lambda: Between(old_drop_path), IMAGE),
    "masked_fill": (lambda: Between(masked_fill), IMAGE),
    "where": (lambda: Between(selected), IMAGE),
    "two dropouts": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), Twice(), nn.Conv2d(2, 2, 1)), IMAGE),
    "LSTM": (lambda: First(nn.LSTM(6, 5, 2, dropout=0.2, batch_first=True)), IMAGE[:, 0]),
    "transformer": (lambda: nn.TransformerEncoderLayer(6, 2, 8, 0.2, batch_first=True), IMAGE[:, 0]),
}
# The old exporter knows no Dropout2d, and writes Dropout into attention by itself only in eval mode.
SCRIPTED = [name for name in MODELS if name not in ("Dropout1d", "Dropout2d", "LSTM", "transformer", "two dropouts")]


class First(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def exported(model, x, path, dynamo):
    """The file as a user would write it who forgot model.eval()."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            if dynamo:
                torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False)
            else:
                torch.onnx.export(
                    model, (x,), path, dynamo=False, training=TRAINING, do_constant_folding=False, input_names=["x"]
                )
    finally:
        logging.disable(logging.NOTSET)
    return path


def run(path, *arrays):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)})


def folded(model, tmp_path, name="out.onnx", **options):
    path = tmp_path / "in.onnx"
    path.write_bytes(model.SerializeToString())
    return fold_onnx(path, tmp_path / name, **options)


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [*((name, True) for name in MODELS), *((name, False) for name in SCRIPTED)],
    ids=lambda value: value if isinstance(value, str) else "dynamo" if value else "torchscript",
)
def test_a_model_exported_in_train_mode_becomes_its_eval_network(name, dynamo, tmp_path):
    make, x = MODELS[name]
    torch.manual_seed(0)
    model = make().train()
    path = exported(model, x, tmp_path / "noisy.onnx", dynamo)
    assert not inspect_onnx(path)
    report = fold_onnx(path, tmp_path / "out.onnx")
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert report.folded
    assert inspect_onnx(tmp_path / "out.onnx")
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x.numpy())[0], expected, rtol=1e-4, atol=1e-5)
    if dynamo and name in ("Dropout", "Dropout2d", "jumpout"):
        clean = onnx.load(exported(model, x, tmp_path / "clean.onnx", dynamo))
        kinds = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
        assert sorted(kinds) == sorted(node.op_type for node in clean.graph.node)


@pytest.mark.parametrize("name", ["jumpout", "masked_fill", "Dropout2d"])
def test_a_half_precision_model_is_folded_too(name, tmp_path):
    make, x = MODELS[name]
    path = exported(make().train().half(), x.half(), tmp_path / "noisy.onnx", True)
    report = fold_onnx(path, tmp_path / "out.onnx")
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert len(report.folded) == 1


def test_the_report_names_what_was_folded(tmp_path):
    path = exported(Between(jumpout).train(), IMAGE, tmp_path / "noisy.onnx", True)
    report = fold_onnx(path, tmp_path / "out.onnx")
    (layer,) = report.folded
    assert (layer.path, layer.kind, layer.action) == ("node_mul_2 (Mul)", "mask", "identity")
    assert layer.settings == "keep 1 - `clamp_1`, scale (1 - `clamp_1`)^-0.75"
    assert report.kind == "fold"
    assert {check.name for check in report.checks} >= {
        "fold/noise", "proof/rates at zero", "proof/repeatable", "proof/optimizer", "proof/noise observed"
    }  # fmt: skip
    assert report.notes[0] == "nodes removed: 21, of them random or in training mode: 2"


# Graphs written by hand.


def value(name, shape=("n", 4), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def tensor(values, name, kind=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype=kind), name)


def node(op, inputs, output, **attributes):
    outputs = output.split()
    return helper.make_node(op, inputs.split(), outputs, name=f"{op}_{outputs[0]}", **attributes)


CONSTANTS = [
    tensor(True, "true", np.bool_), tensor(False, "false", np.bool_), tensor(0.3, "0.3"), tensor(0.7, "0.7"),
    tensor(0.5, "0.5"), tensor(0, "0"), tensor(1, "1"), tensor(2, "2"), tensor(1 / 0.7, "1/0.7"),
    tensor(0.7**-0.75, "0.7^-0.75"), tensor(1.2, "1.2"), tensor(-0.5, "-0.5"), tensor(-1, "-1"),
    tensor(np.eye(4), "w"),
]  # fmt: skip


def graph_model(nodes, inputs=(), outputs=(), constants=(), opset=18, functions=(), shape=("n", 4), more=()):
    """`nodes` compute z from r, which is relu(x w); y = z w."""
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), *nodes, node("MatMul", "z w", "y")]
    graph = helper.make_graph(
        nodes, "g", [value("x", shape), *inputs], [value("y", shape), *outputs], [*CONSTANTS, *constants]
    )
    opsets = [helper.make_opsetid("", opset), *more]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(functions))
    used = {name for part in graph.node for name in part.input} | {
        name for part in in_subgraphs(graph) for name in part.input
    }
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]
    return model


def in_subgraphs(graph):
    for part in graph.node:
        for attribute in part.attribute:
            if attribute.HasField("g"):
                yield from attribute.g.node
                yield from in_subgraphs(attribute.g)


def mask(scale="Div", by="0.7", compare=("Less", "u 0.7"), like="r"):
    return [
        node("RandomUniformLike", like, "u"),
        node(compare[0], compare[1], "b"),
        node("Cast", "b", "m", to=FLOAT),
        node("Mul", "r m", "rm"),
        node(scale, f"rm {by}", "z"),
    ]


def dropout(flag="true", x="r", y="z"):
    return node("Dropout", f"{x} 0.3 {flag}", y)


FOLDED = {
    "Dropout": [dropout()],
    "Dropout whose flag is computed from a constant": [
        node("Identity", "1", "one"), node("Cast", "one", "flag", to=BOOL), dropout("flag")
    ],
    "Dropout whose flag is not false": [node("Not", "false", "flag"), dropout("flag")],
    "Dropout with an unused mask": [node("Dropout", "r 0.3 true", "z unused")],
    "Dropout twice": [dropout(y="a"), dropout(x="a")],
    "Dropout, gain, mask": [
        dropout(y="a"), node("Mul", "a 2", "g"), *mask()[:3], node("Mul", "g m", "gm"), node("Div", "gm 0.7", "z")
    ],
    "u < keep": mask(),
    "keep > u": mask(compare=("Greater", "0.7 u")),
    "u >= rate": mask(compare=("GreaterOrEqual", "u 0.3")),
    "times 1 / keep": mask("Mul", "1/0.7"),
    "jumpout's scale": mask("Mul", "0.7^-0.75"),
    "scale first": [node("Div", "r 0.7", "s"), *mask()[:3], node("Mul", "s m", "z")],
    "scale of the mask": [*mask()[:3], node("Mul", "m 1/0.7", "ms"), node("Mul", "ms r", "z")],
    "1 - drop": [
        node("RandomUniformLike", "r", "u"), node("Less", "u 0.3", "b"), node("Cast", "b", "drop", to=FLOAT),
        node("Sub", "1 drop", "m"), node("Mul", "r m", "rm"), node("Div", "rm 0.7", "z"),
    ],
    "Not drop": [
        node("RandomUniformLike", "r", "u"), node("Less", "u 0.3", "b"), node("Not", "b", "k"),
        node("Cast", "k", "m", to=FLOAT), node("Mul", "r m", "rm"), node("Div", "rm 0.7", "z"),
    ],
    "Where drop": [
        node("RandomUniformLike", "r", "u"), node("Less", "u 0.3", "b"), node("Where", "b 0 r", "rm"),
        node("Div", "rm 0.7", "z"),
    ],
    "Where keep": [
        node("RandomUniformLike", "r", "u"), node("Greater", "u 0.3", "b"), node("Mul", "r 1/0.7", "s"),
        node("Where", "b s 0", "z"),
    ],
    "floor(u + keep)": [
        node("RandomUniformLike", "r", "u"), node("Add", "u 0.7", "v"), node("Floor", "v", "m"),
        node("Mul", "r m", "rm"), node("Div", "rm 0.7", "z"),
    ],
    "Bernoulli": [
        node("Shape", "r", "size"), node("Expand", "0.7 size", "p"), node("Bernoulli", "p", "m"),
        node("Mul", "m r", "rm"), node("Div", "rm 0.7", "z"),
    ],
    "half": mask(by="0.5", compare=("Less", "u 0.5")),
    "one mask on two tensors": [
        *mask()[:3], node("Div", "m 0.7", "ms"), node("Mul", "r ms", "a"), node("Mul", "h ms", "b2"),
        node("Add", "a b2", "z"),
    ],
    "two masks at once": [
        *mask()[:4], node("RandomUniformLike", "r", "u2"), node("Less", "u2 0.5", "c"),
        node("Cast", "c", "m2", to=FLOAT), node("Mul", "rm m2", "rmm"), node("Div", "rmm 0.7", "a"),
        node("Div", "a 0.5", "z"),
    ],
    "a mask on weights": [
        node("RandomUniformLike", "w", "u"), node("Less", "u 0.7", "b"), node("Cast", "b", "m", to=FLOAT),
        node("Mul", "w m", "wm"), node("Div", "wm 0.7", "ws"), node("MatMul", "r ws", "z"),
    ],
    "a rate per batch": [
        node("RandomNormal", "", "n", shape=[1]), node("Abs", "n", "a"), node("Clip", "a 0 0.5", "rate"),
        node("RandomUniformLike", "r", "u"), node("GreaterOrEqual", "u rate", "b"), node("Cast", "b", "m", to=FLOAT),
        node("Sub", "1 rate", "k"), node("Mul", "r m", "rm"), node("Pow", "k -0.5", "s"), node("Mul", "rm s", "z"),
    ],
    "a scale in two parts": [
        node("ReduceMean", "r", "q", keepdims=0), node("Clip", "q 0.3 0.5", "rate"), node("Sub", "1 rate", "k"),
        node("RandomUniformLike", "r", "u"), node("Less", "u k", "b"), node("Cast", "b", "m", to=FLOAT),
        node("Sqrt", "k", "root"), node("Mul", "r m", "rm"), node("Div", "rm root", "part"),
        node("Div", "part root", "z"),
    ],
    "noise that nothing uses": [node("RandomNormalLike", "r", "n"), node("Abs", "n", "a"), node("Identity", "r", "z")],
}  # fmt: skip


@pytest.mark.parametrize("nodes", FOLDED.values(), ids=FOLDED.keys())
def test_a_pattern_is_folded_to_its_input(nodes, tmp_path):
    report = folded(graph_model(nodes), tmp_path)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    r = np.maximum(x, 0)
    expected = {"Dropout, gain, mask": 2 * r, "one mask on two tensors": r + x}
    name = next(key for key, held in FOLDED.items() if held is nodes)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x)[0], expected.get(name, r))
    left = {part.op_type for part in onnx.load(tmp_path / "out.onnx").graph.node}
    assert left <= {"MatMul", "Relu", "Mul", "Add", "Identity"}


REFUSED = {
    "added noise": (
        [node("RandomNormalLike", "r", "n"), node("Mul", "n 0.3", "s"), node("Add", "r s", "z")],
        r"RandomNormalLike_n \(RandomNormalLike\) draws normal numbers that are added in Add_z \(Add\)",
    ),
    "Gaussian dropout": (
        [
            node("RandomNormalLike", "r", "n"), node("Mul", "n 0.3", "s"), node("Add", "s 1", "f"),
            node("Mul", "r f", "z"),
        ],
        r"draws normal numbers that are a factor in Mul_z \(Mul\), and no keep mask",
    ),
    "RReLU": (
        [node("RandomUniformLike", "h", "u", low=0.125, high=0.33), node("PRelu", "h u", "z")],
        r"draws the slope of PRelu_z \(PRelu\), an RReLU",
    ),
    "a mask without scale": (
        [*mask()[:3], node("Mul", "r m", "z")],
        r"reaches MatMul_y \(MatMul\) as a mask with keep 0.7, scale 1: without a scale",
    ),
    "another scale": (mask("Mul", "1.2"), r"a mask with keep 0.7, scale 1.2; only \(1 / keep\)\^alpha"),
    "the scale of the other side": (mask(compare=("Less", "u 0.3")), "a mask with keep 0.3, scale 1.42857"),
    "a uniform of another range": (
        [node("RandomUniformLike", "r", "u", high=2.0), *mask()[1:]],
        r"draws random numbers for Less_b \(Less\), which makes no keep mask of them",
    ),
    "a mask that is broadcast up": (
        [
            node("Constant", "", "ones", value=tensor(np.ones((3, 1, 1)), "")),
            node("RandomUniformLike", "ones", "u"), node("Less", "u 0.7", "b"), node("Cast", "b", "m", to=FLOAT),
            node("Mul", "r m", "rm"), node("Div", "rm 0.7", "s"), node("ReduceMean", "s axes", "z", keepdims=0),
        ],
        "its shape is not proven to be that of `r`",
    ),
    "a mask and its opposite": (
        [
            node("RandomUniformLike", "r", "u"), node("Less", "u 0.5", "b"), node("Not", "b", "c"),
            node("Where", "b r 0", "p"), node("Where", "c h 0", "q"), node("Div", "p 0.5", "ps"),
            node("Div", "q 0.5", "qs"), node("Add", "ps qs", "z"),
        ],
        "its random numbers decide another mask too",
    ),
    "a mask that is used elsewhere": (
        [*mask(), node("ReduceMean", "m", "loss", keepdims=0)], r"reaches ReduceMean_loss \(ReduceMean\) as a mask"
    ),
    "AlphaDropout": (
        [*mask("Mul", "1.2")[:4], node("Sub", "m 1", "d"), node("Add", "rm d", "z")],
        r"reaches (Sub_d|Add_z) \(\w+\) as a mask",
    ),
    "a soft mask": (
        [node("RandomUniformLike", "r", "u"), node("Sigmoid", "u", "m"), node("Mul", "r m", "z")],
        r"draws random numbers for Sigmoid_m \(Sigmoid\)",
    ),
    "Dropout whose mask is used": (
        [node("Dropout", "r 0.3 true", "a kept"), node("Where", "kept a r", "z")],
        r"Dropout_a \(Dropout\) is in training mode, and its mask is used by Where_z \(Where\)",
    ),
    "Dropout with a computed flag": (
        [node("ReduceMean", "r", "q", keepdims=0), node("Greater", "q 0", "flag"), dropout("flag")],
        r"Dropout_z \(Dropout\) drops or not as its training_mode `flag` says, which is computed in the graph",
    ),
    "a network that draws its output": (
        [node("Multinomial", "r", "drawn", sample_size=4), node("Cast", "drawn", "z", to=FLOAT)],
        r"Multinomial_drawn \(Multinomial\) draws random numbers for|Multinomial_drawn \(Multinomial\) reaches",
    ),
    "BatchNormalization": (
        [node("BatchNormalization", "r ones ones ones ones", "z mean var", training_mode=1)],
        r"BatchNormalization_z \(BatchNormalization\) is in training mode: it normalizes with the statistics of",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_dropout_is_refused_with_the_node_named(nodes, reason, tmp_path):
    outputs = [value("loss", ())] if any("loss" in part.output for part in nodes) else []
    constants = [tensor([0], "axes", np.int64)]
    if not any("ones" in part.output for part in nodes):
        constants.append(tensor(np.ones(4), "ones"))
    (tmp_path / "out.onnx").write_bytes(b"older")
    report = folded(graph_model(nodes, outputs=outputs, constants=constants), tmp_path)
    assert not report
    (check,) = report.checks
    assert (check.name, check.verdict) == ("fold/noise", "fail")
    assert re.search(reason, check.note), check.note
    assert "export the model in eval mode instead" in check.note or "mask is used by" in check.note
    assert (tmp_path / "out.onnx").read_bytes() == b"older"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def test_a_training_mode_from_a_graph_input_is_refused_even_with_a_default(tmp_path):
    given = value("flag", (), BOOL)
    for constants in ([], [tensor(False, "flag", np.bool_)]):
        report = folded(graph_model([dropout("flag")], inputs=[given], constants=constants), tmp_path)
        assert "as its training_mode `flag` says, which is an input of the graph" in report.checks[0].note


def test_dropout_that_is_off_stays_and_is_listed(tmp_path):
    model = graph_model([dropout("false", y="a"), node("Dropout", "a", "z")])
    report = folded(model, tmp_path)
    assert report
    assert report.folded == []
    assert report.notes == [
        "there is nothing to fold", "Dropout_a (Dropout) is off and stays", "Dropout_z (Dropout) is off and stays"
    ]  # fmt: skip
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()


def test_the_domain_of_onnx_has_two_names(tmp_path):
    norm = node("BatchNormalization", "r ones ones ones ones", "n")
    nodes = [norm, dropout("false", x="n", y="a"), dropout(x="a")]
    model = graph_model(nodes, constants=[tensor(np.ones(4), "ones")])
    model.opset_import[0].domain = "ai.onnx"
    report = folded(model, tmp_path)
    assert report
    assert [layer.path for layer in report.folded] == ["Dropout_z (Dropout)"]


# Subgraphs and functions.


def branches(nodes, extra=()):
    """An If whose one branch is `nodes`, which compute z from r."""
    then = helper.make_graph(list(nodes), "then", [], [value("z")], list(extra))
    other = helper.make_graph([node("Identity", "r", "e")], "else", [], [value("e")])
    return [node("ReduceMean", "h", "q", keepdims=0), node("Greater", "q 0", "positive"),
            node("If", "positive", "z", then_branch=then, else_branch=other)]  # fmt: skip


def looped(nodes):
    """A Loop of two trips whose body is `nodes`, which compute z from state."""
    body = helper.make_graph(
        [*nodes, node("Identity", "going", "on")],
        "body",
        [value("i", (), INT64), value("going", (), BOOL), value("state")],
        [value("on", (), BOOL), value("out")],
    )
    return [helper.make_node("Loop", ["trips", "true", "r"], ["z"], name="loop", body=body)]


def scanned(nodes):
    body = helper.make_graph(list(nodes), "body", [value("row", (4,))], [value("out", (4,))])
    return [helper.make_node("Scan", ["r"], ["z"], name="scan", body=body, num_scan_inputs=1)]


def renamed(nodes, x, y):
    """The nodes that compute y from x instead of z from r."""
    changed = []
    for part in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(part)
        copy.input[:] = [x if name == "r" else name for name in part.input]
        copy.output[:] = [y if name == "z" else name for name in part.output]
        changed.append(copy)
    return changed


TRIPS = tensor(2, "trips", np.int64)
NESTED = {
    "If": (branches([dropout()]), "Dropout_z (Dropout) in then_branch of If_z (If)"),
    "If, a mask": (branches(mask()), "Div_z (Div) in then_branch of If_z (If)"),
    "Loop": (looped([dropout(x="state", y="out")]), "Dropout_out (Dropout) in body of loop (Loop)"),
    "Loop, a mask": (looped(renamed(mask(), "state", "out")), "Div_z (Div) in body of loop (Loop)"),
    "Scan": (scanned([dropout(x="row", y="out")]), "Dropout_out (Dropout) in body of scan (Scan)"),
    "If in a Loop": (looped([
        dropout(x="state", y="r2"), node("ReduceMean", "state", "q", keepdims=0), node("Greater", "q 0", "pos"),
        node("If", "pos", "out",
             then_branch=helper.make_graph([dropout(x="r2", y="t")], "then", [], [value("t")]),
             else_branch=helper.make_graph([node("Identity", "r2", "e")], "else", [], [value("e")]))]),
        "Dropout_t (Dropout) in then_branch of If_out (If) in body of loop (Loop)"),
    "the mask outside, its use inside": (
        [*mask()[:3], *branches([node("Mul", "r m", "rm"), node("Div", "rm 0.7", "z")])],
        "Div_z (Div) in then_branch of If_z (If)"),
    "followed by more inside": (branches([dropout(y="d"), node("Relu", "d", "z")]),
        "Dropout_d (Dropout) in then_branch of If_z (If)"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "where"), NESTED.values(), ids=NESTED.keys())
def test_noise_in_subgraphs_is_folded_and_named_with_its_path(nodes, where, tmp_path):
    report = folded(graph_model(nodes, constants=[TRIPS]), tmp_path)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert where in [layer.path for layer in report.folded]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x)[0], np.maximum(x, 0))
    assert any("noise in subgraphs was not watched" in note for note in report.notes)


def test_a_mask_that_is_passed_into_a_subgraph_is_refused(tmp_path):
    body = helper.make_graph(
        [node("Mul", "r state", "rm"), node("Div", "rm 0.7", "out"), node("Identity", "going", "on")],
        "body",
        [value("i", (), INT64), value("going", (), BOOL), value("state")],
        [value("on", (), BOOL), value("out")],
    )
    loop = helper.make_node("Loop", ["trips", "true", "m"], ["z"], name="loop", body=body)
    report = folded(graph_model([*mask()[:3], loop], constants=[TRIPS]), tmp_path)
    assert "RandomUniformLike_u (RandomUniformLike) reaches loop (Loop) as a mask" in report.checks[0].note


LOCAL = helper.make_opsetid("local", 1)


def function(name, inputs, output, nodes, opsets=OPSET, **more):
    return helper.make_function("local", name, inputs, [output], nodes, opsets, **more)


def test_noise_in_functions_is_folded_where_they_are_called(tmp_path):
    rate = node("Constant", "", "p", value_float=0.3)
    inner = function("Drop", ["a", "flag"], "b", [rate, node("Dropout", "a p flag", "b")])
    outer = function("Block", ["a", "flag"], "c", [helper.make_node("Drop", ["a", "flag"], ["d"], domain="local"),
                                                    node("Relu", "d", "c")], [*OPSET, LOCAL])  # fmt: skip
    clean = function("Clean", ["a"], "b", [node("Relu", "a", "b")])
    unused = function("Unused", ["a"], "b", [node("RandomNormalLike", "a", "b")])
    nodes = [
        helper.make_node("Block", ["r", "true"], ["s"], domain="local", name="on"),
        helper.make_node("Block", ["s", "false"], ["t"], domain="local", name="off"),
        helper.make_node("Clean", ["t"], ["z"], domain="local", name="clean"),
    ]
    model = graph_model(nodes, functions=[inner, outer, clean, unused], more=[LOCAL])
    report = folded(model, tmp_path)
    assert report, [check for check in report.checks if check.verdict != "pass"]
    assert len(report.folded) == 1
    assert len([note for note in report.notes if note.endswith("is off and stays")]) == 1
    assert {
        "function `Block` is written out where it is called",
        "function `Drop` is written out where it is called",
    } <= set(report.notes)
    out = onnx.load(tmp_path / "out.onnx")
    assert [body.name for body in out.functions] == ["Clean"]
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x)[0], np.maximum(x, 0))


def test_a_training_mode_that_a_function_takes_as_an_attribute_is_known_where_it_is_called(tmp_path):
    for mode, outputs in ((0, "b"), (1, "b mean var")):
        bn = node("BatchNormalization", "a ones ones ones ones", outputs)
        bn.attribute.add(name="training_mode", type=onnx.AttributeProto.INT).ref_attr_name = "mode"
        ones = node("Constant", "", "ones", value=tensor(np.ones(4), ""))
        block = function("Norm", ["a"], "b", [ones, bn], attributes=["mode"])
        call = helper.make_node("Norm", ["r"], ["s"], domain="local", mode=mode)
        report = folded(graph_model([call, dropout(x="s")], functions=[block], more=[LOCAL]), tmp_path)
        assert bool(report) is (mode == 0)
    assert "BatchNormalization_b__1 (BatchNormalization) is in training mode" in report.checks[0].note


def test_a_function_with_the_name_of_an_operator_is_refused(tmp_path):
    body = helper.make_function("", "Relu", ["a"], ["b"], [node("Neg", "a", "b")], OPSET)
    report = folded(graph_model([dropout()], functions=[body]), tmp_path)
    assert report.checks[-1].note == "`Relu` has the name of an ONNX operator"


# The file.


def test_the_rest_of_the_file_stays_as_it_was(tmp_path):
    model = graph_model(
        [*mask(by="0.5", compare=("Less", "u 0.5")), node("Identity", "r", "second")], outputs=[value("second")]
    )
    model.graph.value_info.extend([value("r"), value("m"), value("z")])
    model.metadata_props.add(key="author", value="me")
    model.metadata_props.add(key="source", value="/home/me/net.py line 3")
    model.doc_string, model.graph.doc_string, model.producer_name = "a model", "a graph", "somebody"
    model.graph.node[0].metadata_props.add(key="scope", value="features.0")
    report = folded(model, tmp_path)
    assert report
    out = onnx.load(tmp_path / "out.onnx")
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    kept = [part for part in model.graph.node if part.op_type in ("MatMul", "Relu", "Identity")]
    del expected.graph.node[:], expected.graph.value_info[1:], expected.graph.initializer[:]
    expected.graph.node.extend(kept)
    expected.graph.node[-1].input[0] = "r"
    expected.graph.initializer.extend([part for part in model.graph.initializer if part.name == "w"])
    expected.metadata_props[1].value = "net.py line 3"
    assert out == expected
    assert "texts whose absolute paths are cut to file names: 1" in report.notes


def test_an_output_keeps_its_name(tmp_path):
    model = graph_model([dropout()], outputs=[value("z")])
    assert folded(model, tmp_path)
    out = onnx.load(tmp_path / "out.onnx")
    assert [entry.name for entry in out.graph.output] == ["y", "z"]
    assert [part.op_type for part in out.graph.node] == ["MatMul", "Relu", "Identity", "MatMul"]
    assert out.graph.node[2].name == "Dropout_z"


def test_a_folded_file_has_nothing_left_to_fold(tmp_path):
    assert folded(graph_model(mask()), tmp_path)
    report = fold_onnx(tmp_path / "out.onnx", tmp_path / "again.onnx")
    assert report.folded == []
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_the_same_file_gives_the_same_bytes_in_any_folder(tmp_path):
    contents = set()
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        assert folded(graph_model(mask()), tmp_path / name, seed=len(name))
        contents.add((tmp_path / name / "out.onnx").read_bytes())
    assert len(contents) == 1


def test_a_file_may_be_folded_in_place_and_stays_as_it_is_if_that_fails(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_model(REFUSED["added noise"][0]).SerializeToString())
    before = path.read_bytes()
    assert not fold_onnx(path, path)
    assert path.read_bytes() == before
    path.write_bytes(graph_model([dropout()]).SerializeToString())
    assert fold_onnx(path, path)
    assert inspect_onnx(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_external_data_is_taken_into_the_file(tmp_path):
    folder, path = tmp_path / "in", tmp_path / "out.onnx"
    folder.mkdir()
    model = graph_model([dropout()])
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    report = fold_onnx(folder / "model.onnx", path)
    assert report
    assert report.notes[0] == "external data is taken into the file"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["out.onnx"]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(path, x)[0], x)
    (folder / "weights").write_bytes((folder / "weights").read_bytes()[:-1])
    with pytest.raises(LoadError, match=r"model.onnx: its external data cannot be read \(.* exceeds available data"):
        fold_onnx(folder / "model.onnx", path)


def with_metadata(model, **entries):
    for name, text in entries.items():
        model.metadata_props.add(key=f"jumpout_export.{name}", value=text)
    return model


def ours(path):
    return {entry.key.removeprefix("jumpout_export."): entry.value for entry in onnx.load(path).metadata_props}


def test_metadata_that_is_true_of_the_noisy_file_only_is_corrected(tmp_path):
    said = {"random": "random on purpose: 1 node", "folded": "0: Dropout(p=0.1) -> identity", "torch": "2.13.0"}
    said |= {"batchnorm": "ok, largest W 0.01 over 64 images", "tolerance": "a rule", "weights_sha256": "00"}
    said |= {"tolerance.y": "cap=0.001 median=1 sizes=1 limits=1"}
    report = folded(with_metadata(graph_model([dropout()]), **said), tmp_path)
    assert report
    kept = {name: said[name] for name in ("torch", "tolerance", "weights_sha256")}
    assert ours(tmp_path / "out.onnx") == {
        **kept,
        "folded": f"{said['folded']}; Dropout_z (Dropout): Dropout() -> identity",
        "batchnorm": "not checked since noise was taken out of the file",
    }
    assert report.provenance == {f"jumpout_export.{key}": text for key, text in ours(tmp_path / "out.onnx").items()}
    notes = " ".join(report.notes)
    assert "the older one says: random on purpose: 1 node" in notes
    assert "the tolerance of golden data, measured with the noise on, is removed" in notes
    assert "the verdict on BatchNorm, made with the noise on, is removed from the metadata" in notes


def test_without_noise_the_metadata_stays(tmp_path):
    said = {"folded": "none", "batchnorm": "ok, largest W 0.01 over 64 images", "tolerance.y": "cap=0"}
    assert folded(with_metadata(graph_model([node("Identity", "r", "z")]), **said), tmp_path)
    assert ours(tmp_path / "out.onnx") == said


def test_the_hash_of_weights_that_were_taken_into_the_file_is_removed(tmp_path):
    model = graph_model([node("Identity", "r", "z")])
    onnx.save_model(model, tmp_path / "in.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    model = onnx.load(tmp_path / "in.onnx", load_external_data=False)
    digest = hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()
    (tmp_path / "in.onnx").write_bytes(with_metadata(model, data_sha256=digest).SerializeToString())
    report = fold_onnx(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert report
    assert ours(tmp_path / "out.onnx") == {}
    assert "the hash of the weights beside the older file is removed from the metadata" in report.notes
    assert report.data_files == {}


def test_an_opset_whose_noise_onnxruntime_cannot_run_is_folded_without_watching_it(tmp_path):
    report = folded(graph_model(mask(), opset=22), tmp_path)
    assert report, report.checks
    (note,) = [note for note in report.notes if "was not watched" in note]
    assert "RandomUniformLike(22)" in note
    assert "proof/noise observed" not in {check.name for check in report.checks}


def test_open_axes_other_than_the_batch_are_tried_at_several_sizes(tmp_path):
    weights = tensor(np.ones((2, 3, 5, 5)), "kernel")
    nodes = [node("Conv", "x kernel", "h"), node("Relu", "h", "r"), dropout(y="y")]
    graph = helper.make_graph(nodes, "g", [value("x", ("n", 3, "height", "width"))],
                              [value("y", ("n", 2, "a", "b"))], [weights, *CONSTANTS[:3]])  # fmt: skip
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=10)
    report = folded(model, tmp_path)
    assert report
    assert "batch=2, other axes 16" in {check.name: check.note for check in report.checks}["proof/repeatable"]


def test_a_file_that_runs_on_no_random_input_is_not_verifiable(tmp_path):
    graph = helper.make_graph(
        [node("StringNormalizer", "text", "s"), node("Cast", "s", "x", to=FLOAT), node("Dropout", "x 0.3 true", "y")],
        "g", [value("text", (2,), TensorProto.STRING)], [value("y", (2,))], CONSTANTS[:3],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=10)
    with pytest.raises(NotVerifiableError, match="input `text` holds no numbers"):
        folded(model, tmp_path)
    fixed = graph_model(
        [node("Reshape", "r size", "r2"), dropout(x="r2")], constants=[tensor([7, 4], "size", np.int64)]
    )
    with pytest.raises(NotVerifiableError, match="cannot be run on random inputs of any size that was tried"):
        folded(fixed, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["in.onnx"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("out.pt", "must end in .onnx"),
        ("nowhere/out.onnx", "folder of the file to write does not exist"),
        ("folder.onnx", "is a folder"),
    ],
)
def test_a_target_that_cannot_be_written_is_named(out, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=message):
        fold_onnx(tmp_path / "in.onnx", tmp_path / out)


# The proof can fail.


def read(nodes):
    return read_noise(onnx.shape_inference.infer_shapes(graph_model(nodes)))


def test_a_wrong_x_is_found_by_the_file_with_its_rates_at_zero(tmp_path):
    path = tmp_path / "wrong.onnx"
    path.write_bytes(graph_model([node("Identity", "h", "z")]).SerializeToString())  # h where the fold would say r
    reading = read(mask())
    checks, _ = prove(path, neutral_copy(reading.graph, reading.noise), 0)
    assert {check.name: check.verdict for check in checks}["proof/rates at zero"] == "fail"


def test_a_file_that_is_still_random_is_found(tmp_path):
    path = tmp_path / "random.onnx"
    path.write_bytes(graph_model([dropout()]).SerializeToString())
    reading = read(mask())
    checks, _ = prove(path, neutral_copy(reading.graph, reading.noise), 0)
    assert {check.name: check.verdict for check in checks}["proof/repeatable"] == "fail"


def watched(nodes, change=lambda site: site, runs=8):
    reading = read(nodes)
    noisy = open_session(observed_copy(reading.typed, reading.noise.sites), "cpu", "off")
    feeds = {"x": np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)}
    return observe([noisy(feeds) for _ in range(runs)], [change(site) for site in reading.noise.sites])


def with_factor(**changes):
    return lambda site: dataclasses.replace(site, factor=dataclasses.replace(site.factor, **changes))


def test_noise_that_is_not_what_the_graph_was_read_as_is_found():
    assert watched(mask()).verdict == "pass"
    assert watched([dropout()]).verdict == "pass"
    wrong_scale = watched(mask(), with_factor(number=1.5))
    assert "makes something else of x than 0 or x times the scale" in wrong_scale.note

    def rarer(site):
        masks = frozenset(dataclasses.replace(mask, keep=Keep(0.9)) for mask in site.factor.masks)
        return dataclasses.replace(site, factor=dataclasses.replace(site.factor, masks=masks))

    wrong_rate = watched(mask(), rarer)
    assert wrong_rate.verdict == "fail"
    assert re.search(r"drops 0\.\d+ of the values, where its mask says 0\.1", wrong_rate.note)


def test_watching_a_right_file_raises_no_false_alarm():
    assert all(watched(mask()).verdict == "pass" for _ in range(40))


# Random graphs: what is folded is the mean of the noisy network, which is linear in every mask.


def random_nodes(rng):
    """Masks, scales, gains, sums and dropouts in random order; often no dropout that anybody would write."""
    nodes, plain, masks, drawn = [], ["r", "h"], [], []

    def add(op, inputs, **attributes):
        nodes.append(node(op, inputs, f"v{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    for _ in range(rng.randrange(4, 14)):
        x, number = rng.choice(plain), rng.choice(["0.3", "0.7", "0.5"])
        match rng.randrange(12):
            case 0:
                drawn.append(add("RandomUniformLike", x))
            case 1 | 2 | 3 if drawn:
                pair = rng.choice([f"{drawn[-1]} {number}", f"{number} {drawn[-1]}"])
                decided = add(rng.choice(["Less", "Greater", "LessOrEqual", "GreaterOrEqual"]), pair)
                if rng.random() < 0.3:
                    plain.append(add("Where", rng.choice([f"{decided} {x} 0", f"{decided} 0 {x}"])))
                else:
                    masks.append(add("Cast", decided, to=FLOAT))
            case 4 | 5 if masks:
                plain.append(add("Mul", rng.choice([f"{x} {masks[-1]}", f"{masks[-1]} {x}"])))
            case 6 | 7:
                plain.append(add("Div", f"{plain[-1]} {number}"))
            case 8:
                plain.append(add("Mul", f"{plain[-1]} {rng.choice([number, '1/0.7', '2', '1.2'])}"))
            case 9:
                plain.append(add("Add", f"{x} {rng.choice(plain)}"))
            case 10:
                plain.append(add("Dropout", f"{x} 0.3 true"))
            case 11 if masks:
                masks.append(rng.choice([add("Div", f"{masks[-1]} {number}"), add("Sub", f"1 {masks[-1]}")]))
    return [*nodes, node("Identity", plain[-1], "z")]


def test_random_graphs_are_folded_to_the_mean_of_the_noisy_network_or_refused(tmp_path):
    rng, rows, folds, refusals = random.Random(3), 20_000, 0, 0
    x = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    for _ in range(120):
        report = folded(graph_model(random_nodes(rng)), tmp_path)
        refusals += not report
        if report.folded:
            folds += 1
            noisy = run(tmp_path / "in.onnx", x.repeat(rows, 0))[0].astype(np.float64)
            error = np.abs(noisy.mean(0) - run(tmp_path / "out.onnx", x)[0][0])
            assert (error <= 6 * noisy.std(0) / rows**0.5 + 1e-5).all(), report.folded
    assert folds > 20
    assert refusals > 10


# The algebra of masks and scales.


def factor(keep, scale):
    return Factor(frozenset({Mask(ir.node("RandomUniformLike", []), Keep(keep), True)}), scale)


@pytest.mark.parametrize("eps", [2.0**-23, 2.0**-10], ids=["float32", "float16"])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.7, 0.99])
def test_only_the_scales_of_dropout_and_jumpout_are_taken(keep, eps):
    kind = np.float32 if eps < 1e-4 else np.float16
    for alpha in EXPONENTS:
        rounded = float(kind(1 - float(kind(1 - keep))))
        assert is_dropout(factor(rounded, float(kind(keep**-alpha))), eps)
    others = [1.0, keep, keep**-0.5, keep**-2, -1 / keep, 1.1 / keep, 0.95 / keep]
    taken = [scale for scale in others if is_dropout(factor(keep, scale), eps)]
    # Almost nothing is dropped at 0.99: the scales are all near 1.
    assert not taken or keep == 0.99 or (kind is np.float16 and keep == 0.05)
