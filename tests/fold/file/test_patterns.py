"""Every form of Dropout and jumpout is folded to its input; what only looks like one is refused with the node named."""

import re

import numpy as np
import onnx
import pytest
from support.noisy_files import ADDED_NOISE, BOOL, FLOAT, dropout, folded, graph_model, mask, node, run, tensor, value

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
        ADDED_NOISE,
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
