"""Inputs that are larger or smaller than the given ones: where PyTorch has a value, the file has to have one, too."""

import pytest
import torch
import torch.nn.functional as F
from support.onnx_files import parsed, saved
from torch import nn

from jumpout_export.model.axes import Axes
from jumpout_export.model.run import call, cast, double_copy
from jumpout_export.model.signature import onnx_batch, outputs
from jumpout_export.runtime.session import LEVELS, open_session
from jumpout_export.verify.magnitudes import check_magnitudes

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
Y = (X > 0).float()


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Of2(Function):
    def forward(self, x, y):
        return self.function(x, y)


def checked(
    folder, body, model, *values, size=None, double=True, inputs="float[n,8] x", out="float[n,8] y", weights=None
):
    """The check of a file with these nodes against a model."""
    path = saved(parsed(f"g ({inputs}) => ({out}) {{ {body} }}", weights, check=False), folder / "model.onnx")
    batch = onnx_batch(values if len(values) > 1 else values[0], model.eval())
    sessions = [(f"cpu/{level}", open_session(path, "cpu", level)) for level in LEVELS]
    precise = double_copy(model)

    def run(network, some):
        with torch.no_grad():
            return outputs(call(network, some), ["x"])

    return check_magnitudes(
        path,
        model,
        sessions,
        lambda some: run(model, some),
        (lambda some: run(precise, cast(some, torch.float64))) if double else None,
        batch,
        Axes(tuple(value.ndim > 0 for value in values), size, ({},) * len(values)),
    )


ONE = {"one": torch.tensor(1.0).numpy()}
OVERFLOWS = {
    "logsigmoid": ("s = Sigmoid (x) [log] y = Log (s)", F.logsigmoid, "`y` (Log log)"),
    "softplus": (
        "[exp] e = Exp (x) o = Add (e, one) y = Log (o)",
        F.softplus,
        "`e` (Exp exp)",
    ),
    "logsumexp": (
        "[exp] e = Exp (x) s = ReduceSum (e, axes) y = Log (s)",
        lambda x: x.logsumexp(1, keepdim=True),
        "`e` (Exp exp)",
    ),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_beyond_the_given_inputs_is_a_warning_that_names_the_node(tmp_path, name):
    body, function, node = OVERFLOWS[name]
    check = checked(
        tmp_path, body, Function(function), X, weights={**ONE, "axes": torch.tensor([1]).numpy()}, out="float[n,m] y"
    )
    assert check.verdict == "warning"
    assert "NaN or infinite" in check.note
    assert f"it begins at {node}" in check.note
    assert "times the given inputs" in check.note


LOSES = {
    "log1p": ("a = Abs (x) o = Add (a, one) [log] y = Log (o)", lambda x: x.abs().log1p(), "`y` (Log log)"),
    "expm1": ("e = Exp (x) [sub] y = Sub (e, one)", torch.expm1, "`y` (Sub sub)"),
    "elu": ("[elu] y = Elu (x)", F.elu, "`y` (Elu elu)"),
}


@pytest.mark.parametrize("name", LOSES)
def test_lost_digits_are_a_warning_that_names_the_node(tmp_path, name):
    body, function, node = LOSES[name]
    check = checked(tmp_path, body, Function(function), X, weights=ONE)
    assert check.verdict == "warning"
    assert check.measured == 1e-8
    assert "is off by" in check.note
    assert f"digits are lost at {node}: " in check.note


BOUND = "lo = Constant <value_float = 0.0> () hi = Constant <value_float = 60.0> () y = Clip (x, lo, hi)"
POWER = "a = Abs (x) e = Constant <value_float = 1.1> () y = Pow (a, e)"
OTHERS = {
    "the bound of a Relu6": (BOUND, F.relu6, "`y` (Clip y) is off by "),
    "the slope of a LeakyRelu": ("y = LeakyRelu <alpha = 0.02> (x)", F.leaky_relu, "`y` (LeakyRelu y) is off by "),
    "the alpha of an Elu": ("y = Elu <alpha = 1.5> (x)", F.elu, "`y` (Elu y) is off by "),
    "the exponent of a Pow": (POWER, torch.abs, "has the right result, `a` (Abs a), and makes something else of it"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_function_is_not_called_lost_digits(tmp_path, name):
    """At 1e-8 as well, where an Elu would lose its digits if it were right."""
    body, function, node = OTHERS[name]
    check = checked(tmp_path, body, Function(function), X)
    assert (check.verdict, check.measured) == ("warning", 10), check.note
    assert "no node loses digits, so it computes something else there: " in check.note
    assert node in check.note
    assert "digits are lost" not in check.note


@pytest.mark.parametrize(
    ("body", "function"),
    [
        ("y = Relu (x)", F.relu),
        ("y = Sigmoid (x)", torch.sigmoid),
        ("y = Tanh (x)", torch.tanh),
        ("y = Softmax <axis = 1> (x)", lambda x: x.softmax(1)),
        ("y = LogSoftmax <axis = 1> (x)", lambda x: x.log_softmax(1)),
        ("y = Softplus (x)", F.softplus),
        ("y = Exp (x)", torch.exp),
        ("z = Add (x, one) y = Sub (z, one)", lambda x: x + 1 - 1),
    ],
    ids=["relu", "sigmoid", "tanh", "softmax", "log_softmax", "softplus", "exp", "PyTorch loses them, too"],
)
def test_what_keeps_up_with_pytorch_passes(tmp_path, body, function):
    check = checked(tmp_path, body, Function(function), X, weights=ONE)
    assert check.verdict == "pass", check.note
    assert "1e-08, 0.001, 10, 100 times" in check.note


def test_inputs_that_reach_as_far_fail(tmp_path):
    given = torch.cat([X, 1e-8 * X])
    check = checked(
        tmp_path, "a = Abs (x) o = Add (a, one) y = Log (o)", Function(lambda x: x.abs().log1p()), given, weights=ONE
    )
    assert check.verdict == "fail"
    assert "as large as some that were given" in check.note


def test_what_pytorch_cannot_take_is_left_out(tmp_path):
    def picky(x):
        if x.abs().max() > 100:
            raise ValueError("too large")
        return x.relu()

    check = checked(tmp_path, "y = Relu (x)", Function(picky), X)
    assert check.verdict == "pass"
    assert "at 100 times PyTorch cannot run it: too large" in check.note


def test_where_pytorch_has_no_finite_value_nothing_is_compared(tmp_path):
    check = checked(tmp_path, "y = Acosh (x)", Function(torch.acosh), X.abs() / 100 + 1)
    assert check.verdict in ("pass", "not_run")
    assert "PyTorch has no finite value" in check.note


def test_nothing_that_pytorch_takes_is_not_run_and_not_required(tmp_path):
    def never(x):
        raise ValueError("no")

    check = checked(tmp_path, "y = Relu (x)", Function(never), X)
    assert (check.verdict, check.required) == ("not_run", False)


def test_masks_and_integers_stay_as_they_are(tmp_path):
    seen = []

    def masked(x, y):
        seen.append(y.clone())
        return x * y

    check = checked(
        tmp_path, "o = Mul (x, y)", Of2(masked), X, Y, inputs="float[n,8] x, float[n,8] y", out="float[n,8] o"
    )
    assert check.verdict == "pass", check.note
    assert all(bool(((one == 0) | (one == 1)).all()) for one in seen)
    ids = torch.arange(32).reshape(4, 8)
    assert (
        checked(tmp_path, "y = Add (x, x)", Function(lambda x: x + x), ids, inputs="int64[n,8] x", out="int64[n,8] y")
        is None
    )


def test_whole_outputs_and_a_scalar_input_are_no_obstacle(tmp_path):
    assert (
        checked(
            tmp_path, "y = ArgMax <axis = 1> (x)", Function(lambda x: x.argmax(1, keepdim=True)), X, out="int64[n,1] y"
        )
        is None
    )
    check = checked(
        tmp_path,
        "o = Mul (x, y)",
        Of2(torch.mul),
        X,
        torch.tensor(3.0),
        inputs="float[n,8] x, float y",
        out="float[n,8] o",
    )
    assert check.verdict == "pass"


def test_infinities_that_belong_there_are_not_named(tmp_path):
    """A mask of minus infinity is in the graph at any magnitude."""
    body = "m = Add (x, low) p = Softmax <axis = 1> (m) s = Sigmoid (x) [log] l = Log (s) y = Add (l, p)"
    low = torch.full((1, 8), 0.0)
    low[0, 0] = -torch.inf
    model = Function(lambda x: F.logsigmoid(x) + (x + low.to(x)).softmax(1))
    check = checked(tmp_path, body, model, X, weights={"low": low.numpy()})
    assert check.verdict == "warning"
    assert "(Log log)" in check.note


def test_a_fixed_batch_is_run_whole(tmp_path):
    seen = []

    def logsigmoid(x):
        seen.append(len(x))
        return F.logsigmoid(x)

    check = checked(
        tmp_path,
        "s = Sigmoid (x) y = Log (s)",
        Function(logsigmoid),
        X,
        size=4,
        inputs="float[4,8] x",
        out="float[4,8] y",
    )
    assert check.verdict == "warning"
    assert set(seen) == {4}


def test_the_largest_logits_of_the_batch_are_reached(tmp_path):
    """They belong to whichever sample: the weights decide, not the size of its inputs."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    weights = {"w": layer.weight.detach().numpy(), "b": layer.bias.detach().numpy()}
    body = "h = Gemm <transB = 1> (x, w, b) s = Sigmoid (h) [log] y = Log (s)"
    model = nn.Sequential(layer, nn.LogSigmoid())
    check = checked(tmp_path, body, model, X, weights=weights, out="float[n,4] y")
    assert check.verdict == "warning"


def test_few_forwards_are_run(tmp_path):
    seen = []

    def relu(x):
        seen.append(len(x))
        return x.relu()

    checked(tmp_path, "y = Relu (x)", Function(relu), X)
    assert sum(seen) == 7
