"""Weights that stand where the model reads others of their size, behind a gain of zero."""

import re

import pytest
import torch
import torch.nn.functional as F
from support.onnx_files import parsed, saved
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.constants.proof import prove_constants

HIDDEN = "shown by its weights alone: what is multiplied with `g`, which is zero throughout"
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers of one shape, a norm and two gains, used by a function; the gains hide them from the outputs."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.n = nn.LayerNorm(8)
        self.g, self.h = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.full((8,), 1e-30))
        for parameter in self.n.parameters():
            nn.init.normal_(parameter)
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def line(name, value, out):
    return f"{out} = Gemm <transB = 1> ({value}, {name}_weight, {name}_bias) "


NORM = (
    "o = ReduceMean (x, last) c = Sub (x, o) d = Mul (c, c) v = ReduceMean (d, last) w = Add (v, eps) t = Sqrt (w) "
    "i = Div (c, t) "
)
NETS = {
    "one behind the other": (
        lambda m, x: x + m.g * m.b(F.relu(m.a(x))),
        line("a", "x", "p") + "q = Relu (p) " + line("b", "q", "r") + "s = Mul (g, r) y = Add (x, s)",
        [("a_weight", "b_weight"), ("a_bias", "b_bias")],
    ),
    "beside each other": (
        lambda m, x: x + m.g * m.b(x) + m.h * m.a(x),
        # in another order than PyTorch's
        line("a", "x", "p") + "q = Mul (p, h) " + line("b", "x", "r") + "s = Mul (g, r) z = Add (x, s) y = Add (z, q)",
        [("a_weight", "b_weight"), ("a_bias", "b_bias")],
    ),
    "of a norm": (
        lambda m, x: x + m.g * m.n(x),
        "p = LayerNormalization (x, n_weight, n_bias) s = Mul (g, p) y = Add (x, s)",
        [("n_weight", "n_bias")],
    ),
    "of a norm that is written out": (
        lambda m, x: x + m.g * m.n(x),
        NORM + "p = Mul (i, n_weight) q = Add (p, n_bias) s = Mul (g, q) y = Add (x, s)",
        [("n_weight", "n_bias")],
    ),
    "of a product and an addition": (
        lambda m, x: x + m.g * m.b(F.relu(m.a(x))),
        "u = Transpose (a_weight) o = MatMul (x, u) p = Add (o, a_bias) q = Relu (p) "
        + line("b", "q", "r")
        + "s = Mul (g, r) y = Add (x, s)",
        [("a_weight", "b_weight"), ("a_bias", "b_bias")],
    ),
}


def checked(name, folder, swapped=()):
    function, body, _ = NETS[name]
    model = Net(function).eval()
    weights = {key.replace(".", "_"): value.numpy() for key, value in model.state_dict().items()}
    body = re.sub(r"\w+", lambda match: dict([swapped, swapped[::-1]] if swapped else []).get(match[0], match[0]), body)
    weights |= {"last": torch.tensor([-1]).numpy(), "eps": torch.tensor(1e-5).numpy()}
    proto = parsed(f"g (float[n,8] x) => (float[n,8] y) {{ {body} }}", weights)
    return prove_constants(saved(proto, folder / "m.onnx"), model, onnx_batch(X, model), None)


@pytest.mark.parametrize("name", NETS)
def test_a_file_in_any_order_and_form_passes(name, tmp_path):
    result = checked(name, tmp_path)
    assert (result.checks[0].verdict, result.notes, result.faults) == ("pass", [HIDDEN], []), result


@pytest.mark.parametrize(
    ("name", "one", "two"), [(name, *pair) for name, (_, _, pairs) in NETS.items() for pair in pairs]
)
def test_weights_that_stand_for_each_other_fail(name, one, two, tmp_path):
    result = checked(name, tmp_path, (one, two))
    check = result.checks[0]
    assert check.verdict == "fail", check.note
    for pair in ((one, two), (two, one)):
        there, here = (text.replace("_", ".") for text in pair)
        assert f"where the model reads `{there}`, the file has `{here}`" in check.note, check.note
    assert result.faults[0].layer in (*"abn", ".")


def test_zeros_that_are_left_out_say_nothing(tmp_path):
    """As exporters leave a bias of zeros out, here and there."""
    function, body, _ = NETS["one behind the other"]
    model = Net(function).eval()
    for layer in (model.a, model.b):
        nn.init.zeros_(layer.bias)
    weights = {key.replace(".", "_"): value.numpy() for key, value in model.state_dict().items()}
    proto = parsed(f"g (float[n,8] x) => (float[n,8] y) {{ {body.replace(', a_bias', '')} }}", weights)
    result = prove_constants(saved(proto, tmp_path / "m.onnx"), model, onnx_batch(X, model), None)
    assert (result.checks[0].verdict, result.notes) == ("pass", [HIDDEN])


def test_weights_of_the_same_values_are_one(tmp_path):
    function, body, _ = NETS["one behind the other"]
    model = Net(function).eval()
    model.b.load_state_dict(model.a.state_dict())
    weights = {key.replace(".", "_"): value.numpy() for key, value in model.state_dict().items()}
    swapped = body.replace("a_", "?").replace("b_", "a_").replace("?", "b_")
    proto = parsed(f"g (float[n,8] x) => (float[n,8] y) {{ {swapped} }}", weights)
    result = prove_constants(saved(proto, tmp_path / "m.onnx"), model, onnx_batch(X, model), None)
    assert (result.checks[0].verdict, result.notes) == ("pass", [HIDDEN])


def test_what_is_read_elsewhere_and_by_no_exchange_is_listed(tmp_path):
    """The layers have changed places and the norm has come between them."""
    function = lambda m, x: x + m.g * m.b(F.relu(m.n(m.a(x))))  # noqa: E731
    model = Net(function).eval()
    weights = {key.replace(".", "_"): value.numpy() for key, value in model.state_dict().items()}
    body = (
        line("a", "x", "p") + line("b", "p", "r") + "q = Relu (r) t = LayerNormalization (q, n_weight, n_bias) "
        "s = Mul (g, t) y = Add (x, s)"
    )
    proto = parsed(f"g (float[n,8] x) => (float[n,8] y) {{ {body} }}", weights)
    result = prove_constants(saved(proto, tmp_path / "m.onnx"), model, onnx_batch(X, model), None)
    assert result.checks[0].verdict == "pass"
    assert result.notes[0] == HIDDEN
    assert "where `b.weight` is read" in result.notes[1]


FACTOR = (
    "one = Constant <value_ints = [1]> () u = Unsqueeze (x, one) o = Mul (u, a_weight) "
    "p = ReduceSum <keepdims = 0> (o, one) s = Mul (g, p) y = Add (x, s)"
)
TURNED = {
    "a product": (lambda m, x: x + m.g * m.a(x), line("a", "x", "p") + "s = Mul (g, p) y = Add (x, s)"),
    "a product that is written out": (
        lambda m, x: x + m.g * F.linear(x, m.a.weight),
        "u = Transpose (a_weight) p = MatMul (x, u) s = Mul (g, p) y = Add (x, s)",
    ),
    "a product from the left": (
        lambda m, x: x + m.g * F.linear(x, m.a.weight),
        "t = Transpose (x) o = MatMul (a_weight, t) p = Transpose (o) s = Mul (g, p) y = Add (x, s)",
    ),
    "a factor": (
        lambda m, x: x + m.g * (x.unsqueeze(1) * m.a.weight).sum(1),
        FACTOR,
    ),
}


@pytest.mark.parametrize("name", TURNED)
def test_a_square_weight_with_its_axes_swapped_fails(name, tmp_path):
    function, body = TURNED[name]
    model = Net(function).eval()
    weights = {key.replace(".", "_"): value.numpy() for key, value in model.state_dict().items()}
    for is_turned in (False, True):
        values = weights | {"a_weight": weights["a_weight"].T.copy() if is_turned else weights["a_weight"]}
        proto = parsed(f"g (float[n,8] x) => (float[n,8] y) {{ {body} }}", values)
        result = prove_constants(saved(proto, tmp_path / "m.onnx"), model, onnx_batch(X, model), None)
        assert result.checks[0].verdict == ("fail" if is_turned else "pass"), result.checks
    assert "the file reads `a.weight` with its last two axes swapped" in result.checks[0].note
    assert result.faults[0].layer == "a"


def test_a_square_kernel_with_its_axes_swapped_fails(tmp_path):
    torch.manual_seed(0)
    model = nn.Conv2d(2, 2, 3, bias=False)
    samples = torch.randn(2, 2, 5, 5)
    kernel = model.weight.detach().numpy()
    for values, expected in ((kernel, "pass"), (kernel.swapaxes(-1, -2).copy(), "fail")):
        proto = parsed("g (float[n,2,5,5] x) => (float[n,2,3,3] y) { y = Conv (x, weight) }", {"weight": values})
        result = prove_constants(saved(proto, tmp_path / "m.onnx"), model, onnx_batch(samples, model), None)
        assert result.checks[0].verdict == expected


def attention(query, key, value):
    """An attention behind a gain of zero, of projections that are read in these places."""
    lines = [f"{one}0 = MatMul (x, {one}_turned) {one} = Add ({one}0, {one}_bias) " for one in "abn"]
    return "".join(lines) + (
        f"u = Transpose <perm = [0, 2, 1]> ({key}) s = MatMul ({query}, u) p = Softmax <axis = -1> (s) "
        f"r = MatMul (p, {value}) m = Mul (g, r) y = Add (x, m)"
    )


def attend(m, x):
    return x + m.g * ((m.a(x) @ m.b(x).transpose(1, 2)).softmax(-1) @ m.n(x))


def fused(m, x):
    return x + m.g * F.scaled_dot_product_attention(m.a(x), m.b(x), m.n(x), scale=1.0)


@pytest.mark.parametrize("function", [attend, fused])
def test_factors_that_are_exchanged_are_listed(function, tmp_path):
    """Nothing stands before them or behind them that would tell the query from the key."""
    model = Net(function)
    model.n = nn.Linear(8, 8)
    weights = {key.replace(".", "_"): value.numpy() for key, value in model.eval().state_dict().items()}
    weights |= {key.replace("weight", "turned"): value.T.copy() for key, value in weights.items() if "weight" in key}
    for places, listed in (("abn", False), ("ban", True), ("nba", True)):
        text = f"g (float[n,t,8] x) => (float[n,t,8] y) {{ {attention(*places)} }}"
        batch = onnx_batch(torch.randn(2, 5, 8), model)
        result = prove_constants(saved(parsed(text, weights), tmp_path / "m.onnx"), model, batch, None)
        assert result.checks[0].verdict == "pass", result.checks
        assert any("which factors of a product come of `a.bias`" in note for note in result.notes) == listed, places
