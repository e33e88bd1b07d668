"""Small ONNX files in text form, with what is forbidden in the graph, in a subgraph or in a function."""

from jumpout_export.verify.inspect import inspect_onnx
from support.onnx_files import parsed, saved

TRUE, FALSE, RATIO = "bool true = {1}", "bool false = {0}", "float ratio = {0.5}"
SCALE = [f"float[3] {name} = {{1, 1, 1}}" for name in ("scale", "bias", "mean", "var")]
LOCAL = ', "local" : 1'


def model_of(nodes, constants=(), *, inputs="", opset=18, more="", functions="", shape=(2, 3), weights=None):
    """The nodes between x and y, which have one shape; nothing checks them."""
    size = ",".join(map(str, shape))
    return parsed(
        f"""
        <ir_version: 10, opset_import: ["" : {opset}{more}]>
        graph (float[{size}] x{inputs}) => (float[{size}] y) <{", ".join(constants)}> {{ {nodes} }}
        {functions}
        """,
        weights,
        check=False,
    )


def in_a_subgraph(nodes, constants=()):
    """The same nodes inside the then-branch of an If inside the body of a Loop."""
    loop = f"""
        [outer_loop] y = Loop(trips, true, x) <
            body = body (int64 i, bool going, float[2,3] state) => (bool still, float[2,3] z) {{
                [inner_if] z = If(going) <
                    then_branch = then () => (float[2,3] y) <{", ".join(constants)}> {{ {nodes} }},
                    else_branch = else () => (float[2,3] y) {{ y = Identity(x) }}
                >
                still = Identity(going)
            }}
        >"""
    return model_of(loop, ["int64 trips = {2}", TRUE])


def block(nodes, inputs="x", attributes=""):
    """A local function of these nodes."""
    return f'<domain: "local", opset_import: ["" : 18{LOCAL}]> Block {attributes} ({inputs}) => (y) {{ {nodes} }}'


def in_a_function(nodes, constants=()):
    parts = [constant.split(maxsplit=3) for constant in constants]
    given = " ".join(f"{name} = Constant<value = {kind} {name} {values}>()" for kind, name, _, values in parts)
    return model_of("[call] y = local.Block(x)", more=LOCAL, functions=block(f"{given} {nodes}"))


def inspected(model, tmp_path):
    return inspect_onnx(saved(model, tmp_path / "model.onnx"))


def found(report):
    """The checks that did not pass, by their name without the prefix of the file's own."""
    return {check.name.removeprefix("file/"): check for check in report.checks if check.verdict != "pass"}


def dropout(flag="true"):
    return f"[drop] y = Dropout(x, ratio, {flag})"


def noise(op="RandomNormalLike", attributes=""):
    return f"[noise] n = {op} {attributes} ({'x' if op.endswith('Like') else ''}) y = Add(x, n)"


def batchnorm(mode=None, inputs="x, scale, bias, mean, var"):
    attributes = "" if mode is None else f"<training_mode = {mode}>"
    return f"[bn] {'y, m, v' if mode == 1 else 'y'} = BatchNormalization {attributes} ({inputs})"


def external(tensor, location):
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value=location)
