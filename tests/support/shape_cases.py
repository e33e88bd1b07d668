"""Graphs, and which of their nodes only read shapes: for Python, where a unit test asks, and for the replay in C++."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from jumpout_export.onnxfile.walk import nodes_of

from .onnx_files import parsed


@dataclass
class Case:
    """A graph, the names of its nodes that read shapes only, and whether ONNX Runtime runs it."""

    text: str
    reads: set[str]
    change: Callable[[onnx.ModelProto], None] | None = None
    runs: bool = True
    more: list[tuple[str, str]] = field(default_factory=list)  # nodes that are not in the file

    def model(self):
        model = parsed(self.text, check=self.change is None and self.runs)
        if self.change is not None:
            self.change(model)
        return model

    def refused(self, model):
        """The nodes of the model, and those that are not in it, that do more than read shapes."""
        unread = {node for node in nodes_in(model) if (node[0] or node[1]) not in self.reads}
        return unread | set(self.more)


def sparse(model):
    """Gives the graph an initializer `k` that is sparse."""
    tensor = model.graph.sparse_initializer.add()
    tensor.values.CopyFrom(numpy_helper.from_array(np.array([2]), "k"))
    tensor.indices.CopyFrom(numpy_helper.from_array(np.array([0])))
    tensor.dims.append(1)


def out_of_order(model):
    """Puts the last node of the then branch first."""
    (branch,) = [a.g for node in model.graph.node for a in node.attribute if a.name == "then_branch"]
    nodes = [*branch.node]
    del branch.node[:]
    branch.node.extend([nodes[-1], *nodes[:-1]])


_ODD = '", "provider" : "CUDAExecutionProvider", "\\'


def rename(model):
    """Gives the nodes names that a profile cannot hold as they are."""
    for node in model.graph.node:
        node.name += _ODD


CASES = {
    "a chain that ends in a Reshape": Case(
        """g (float[n,2,3] x) => (float[a,b] y) <int64[1] zero = {0}, int64[1] minus = {-1}> {
            [shape] s = Shape (x)
            [part] p = Gather (s, zero)
            [concat] t = Concat <axis = 0> (p, minus)
            [reshape] y = Reshape (x, t)
        }""",
        {"shape", "part", "concat"},
    ),
    "token ids are whole numbers and no shapes": Case(
        """g (int64[n] ids, bool[n] keep) => (float[n,2] y, int64[n] k, bool[n] b)
        <float[2,2] table = {1, 2, 3, 4}, int64[1] one = {1}, int64[1] zero = {0}> {
            [where] m = Where (keep, ids, zero)
            [embed] y = Gather (table, m)
            [next] k = Add (ids, one)
            [same] b = Equal (ids, zero)
        }""",
        set(),
    ),
    "sizes in floating point": Case(
        """g (float[n,2] x) => (float[n] y) <float[1] half = {0.5}> {
            [shape] s = Shape <end = 1> (x)
            [float] f = Cast <to = 1> (s)
            [half] h = Mul (f, half)
            [floor] d = Floor (h)
            [whole] i = Cast <to = 7> (d)
            [add] a = Add (i, s)
            [zeros] z = ConstantOfShape (s)
            [sum] r = ReduceSum <keepdims = 0> (x, one)
            [one] one = Constant <value = int64[1] {1}> ()
            [y] y = Add (r, z)
        }""",
        {"shape", "float", "half", "floor", "whole", "add", "zeros", "one"},
        runs=False,  # `one` is computed after it is read
    ),
    "positions from a Size": Case(
        """g (int64[n] ids) => (int64[n] y, int64[n] z) <int64 zero = {0}, int64 one = {1}> {
            [size] n = Size (ids)
            [range] r = Range (zero, n, one)
            [later] y = Add (ids, r)
            [twice] d = Add (r, r)
            [id] z = Mul (d, ids)
        }""",
        {"size", "range", "twice"},
    ),
    "a Where chooses between shapes, or by ids": Case(
        """g (int64[2] ids, float[2,3] x) => (int64[2] y) <int64[2] two = {2, 2}> {
            [shape] s = Shape (x)
            [equal] e = Equal (s, two)
            [where] w = Where (e, s, two)
            [odd] b = Equal (ids, two)
            [mixed] y = Where (b, w, two)
        }""",
        {"shape", "equal", "where"},
    ),
    "a shape of what ids give": Case(
        """g (int64[n] ids) => (int64[k] y) {
            [found] f = NonZero (ids)
            [shape] y = Shape (f)
        }""",
        {"shape"},
    ),
    "inputs that are left out": Case(
        """g (float[2,3] x) => (int64[k] y) <int64[1] zero = {0}, int64[1] one = {1}> {
            [shape] s = Shape (x)
            [slice] y = Slice (s, zero, one, , one)
        }""",
        {"shape", "slice"},
    ),
    "values out of nothing": Case(
        """g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            [normal] a = RandomNormal <shape = [2]> ()
            [like] b = RandomUniformLike (w)
            [draw] c = Bernoulli (w)
            [constant] d = Constant <value_floats = [1.0, 2.0]> ()
            [sum] s = Sum (a, b, c, d)
            [y] y = Add (x, s)
        }""",
        {"constant"},
    ),
    "an initializer that is an input may be another value": Case(
        """g (float[2] x, int64[1] k = {2}) => (float[a] y) <int64[1] fixed = {2}> {
            [open] a = Add (k, fixed)
            [closed] b = Add (fixed, fixed)
            [reshape] r = Reshape (x, fixed)
            [expand] y = Expand (r, fixed)
        }""",
        {"closed"},
    ),
    "a sparse initializer": Case(
        """g (float[1] x) => (float[1] y) {
            [read] a = Cast <to = 1> (k)
            [y] y = Add (x, a)
        }""",
        {"read"},
        change=sparse,
        runs=False,
    ),
    "branches read shapes of the graph around, an If is none whatever its condition": Case(
        """g (float[n] x) => (int64[1] y) <int64[1] one = {1}, int64 two = {2}> {
            [shape] s = Shape (x)
            [size] n = Size (x)
            [more] c = Greater (n, two)
            [if] y = If (c) <
                then_branch = then () => (int64[1] t) { [then] t = Add (s, one) },
                else_branch = else () => (int64[1] e) <int64[1] own = {4}> {
                    [own] o = Mul (own, s)
                    [cast] i = Cast <to = 7> (x)
                    [else] e = ReduceMax <keepdims = 1> (i)
                }
            >
            [after] z = Add (y, one)
        }""",
        {"shape", "size", "more", "then", "own"},
    ),
    "a value of an inner graph hides a shape, before and after it is computed": Case(
        """g (bool c, float[n] x) => (int64[1] y) {
            [shape] s = Shape (x)
            [if] y = If (c) <
                then_branch = then () => (int64[1] t) {
                    [cast] s = Cast <to = 7> (x)
                    [then] t = Neg (s)
                },
                else_branch = else () => (int64[1] e) { [else] e = Neg (s) }
            >
        }""",
        {"shape", "else"},
        change=out_of_order,
        runs=False,
    ),
    "what a Loop carries is no shape": Case(
        """g (float[n] x) => (int64[1] y) <bool true = {1}, int64 once = {1}, int64[1] one = {1}> {
            [shape] s = Shape (x)
            [loop] y = Loop (once, true, s) <
                body = body (int64 i, bool go, int64[1] s) => (bool next, int64[1] r) <int64[1] k = {7}> {
                    [next] next = Identity (go)
                    [carried] a = Add (s, one)
                    [inside] b = Add (k, one)
                    [r] r = Add (a, b)
                }
            >
        }""",
        {"shape", "inside"},
    ),
    "a function may be called with anything, and shares its names": Case(
        """<ir_version: 10, opset_import: ["": 18, "local": 1]>
        g (float[2] x) => (float[2] y) <int64[1] one = {1}> {
            [shape] s = Shape (x)
            [size] n = Size (x)
            [deep] d = Add (s, one)
            [call] y = local.double (x)
            [known] k = local.double (s)
        }
        <domain: "local", opset_import: ["": 18]>
        double (a) => (b) {
            [size] n = Size (a)
            [true] c = Constant <value = bool {1}> ()
            [if] b = If (c) <
                then_branch = then () => (float[2] t) { [deep] t = Add (a, a) },
                else_branch = else () => (float[2] e) { [other] e = Identity (a) }
            >
        }""",
        {"shape"},
        runs=False,
    ),
    "a function in the place of an operator": Case(
        """<ir_version: 10, opset_import: ["": 18]>
        g (float[2] x) => (float[2] y) {
            [shape] y = Shape (x)
            [size] n = Size (x)
        }
        <domain: "", opset_import: ["": 18]>
        Shape (a) => (b) { [inner] b = Relu (a) }""",
        {"size"},
        runs=False,
    ),
    "operators of others": Case(
        """<ir_version: 10, opset_import: ["": 18, "ai.onnx": 18, "com.microsoft": 1]>
        g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            [gelu] a = com.microsoft.Gelu (w)
            [own] s = ai.onnx.Shape (x)
            [theirs] z = com.microsoft.Shape (x)
            [y] y = Add (x, a)
        }""",
        {"own"},
        runs=False,
    ),
    "one name, two nodes": Case(
        """g (float[2] x, float[n] z) => (float[1] f, double[2] d) {
            [a] s = Shape (x)
            [b] f = Cast <to = 1> (s)
            [b] d = Cast <to = 11> (x)
            [a] t = Shape (z)
        }""",
        {"a"},
        runs=False,
    ),
    "no names": Case(
        """g (float[2] x) => (float[1] f, double[2] d) {
            s = Shape (x)
            f = Cast <to = 1> (s)
            d = Cast <to = 11> (x)
        }""",
        {"Shape"},  # of nodes without a name, their operators
    ),
    "no names, all of one operator read shapes": Case(
        """g (float[2] x) => (float[1] f, int32[1] d) {
            s = Shape (x)
            f = Cast <to = 1> (s)
            d = Cast <to = 6> (s)
        }""",
        {"Shape", "Cast"},
    ),
    "a name as ONNX Runtime gives it to a node without one": Case(
        """g (float[2] x) => (float[1] f, double[2] d) {
            [Shape_0] s = Shape (x)
            f = Cast <to = 1> (s)
            [Cast_2] d = Cast <to = 11> (x)
        }""",
        {"Shape_0", "Cast"},
    ),
    "names with quotes and backslashes": Case(
        """g (float[2] x) => (float[1] f, double[2] d) {
            [shape] s = Shape (x)
            [cast] f = Cast <to = 1> (s)
            [data] d = Cast <to = 11> (x)
        }""",
        {"shape" + _ODD, "cast" + _ODD},
        change=rename,
    ),
    "nodes of the optimizer": Case(
        """g (float[2] x) => (float[1] f) {
            [shape] s = Shape (x)
            [cast] f = Cast <to = 1> (s)
        }""",
        {"shape", "cast"},
        more=[("fused", "Shape"), ("shape", "Gather"), ("cast_token_1", "Cast"), ("", "Cast")],
    ),
}


def nodes_in(model):
    """Name and operator of every node, in functions too."""
    nodes = [*nodes_of(model.graph.node), *(node for function in model.functions for node in nodes_of(function.node))]
    return list(dict.fromkeys((node.name, node.op_type) for node in nodes))
