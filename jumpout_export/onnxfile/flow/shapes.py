"""The shapes of the values of a file: with the names of its open axes, or at given sizes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.flow.values import Dims, Sizes
from jumpout_export.onnxfile.sizes import without_values
from jumpout_export.onnxfile.walk import graphs_of

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

# Nodes whose shapes are inferred, counted each time; what is asked for then is not known.
_MOST_INFERRED = 100_000


class Shapes:
    """The shapes of values, with names of open axes, or at given sizes."""

    def __init__(self, light: ModelProto, known: Sizes) -> None:
        self._light, self._names = light, frozenset(known)
        self._cache: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
        self._inferred = 0
        self.symbolic: dict[str, Dims] = {
            name: tuple(dim if isinstance(dim, int) or dim in self._names else None for dim in dims)
            for name, dims in self._infer(light).items()
        }

    def keep(self, names: set[str]) -> None:
        """Leaves out of what is measured all that these values do not depend on."""
        needed, nodes = set(names), []
        for node in reversed(self._light.graph.node):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(_reads(node))
        nodes.reverse()
        del self._light.graph.node[:]
        self._light.graph.node.extend(nodes)
        del self._light.graph.output[:]

    def __call__(self, name: str, sizes: Sizes) -> tuple[int, ...] | None:
        """Returns the shape of a value at sizes by name, None where it is not known."""
        dims = self.symbolic.get(name)
        if dims is not None and None not in dims:
            return tuple(sizes[dim] if isinstance(dim, str) else int(dim or 0) for dim in dims)
        key = tuple(sizes.values())
        if key not in self._cache:
            self._inferred += len(self._light.graph.node)
            if self._inferred > _MOST_INFERRED:
                return None
            for value in self._light.graph.input:
                for dim, axis in zip(value.type.tensor_type.shape.dim, self.symbolic.get(value.name, ()), strict=False):
                    if isinstance(axis, str):
                        dim.dim_value = sizes[axis]
            found = self._infer(self._light).items()
            self._cache[key] = {
                one: tuple(int(dim) for dim in dims) for one, dims in found if all(isinstance(d, int) for d in dims)
            }
        return self._cache[key].get(name)

    def _infer(self, model: ModelProto) -> dict[str, tuple[int | str, ...]]:
        from onnx import shape_inference

        try:
            graph = shape_inference.infer_shapes(model, data_prop=True).graph
        except Exception:  # onnx raises several types; an invalid graph is for its checker to explain
            graph = model.graph
        return {
            value.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param
                for dim in value.type.tensor_type.shape.dim
            )
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.HasField("shape")
        }


def _reads(node: NodeProto) -> set[str]:
    names = set(node.input)
    for _, graph in graphs_of(node):
        for inner in graph.node:
            names |= _reads(inner)
    return names


def light(model: ModelProto, opened: Sequence[Mapping[int, str]]) -> ModelProto:
    """A copy whose weights have no values, and whose axes have the names that they are called by."""
    import onnx

    light, graph = onnx.ModelProto(), model.graph
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.node.extend(graph.node)
    light.graph.initializer.extend(without_values(graph.initializer))
    given = {tensor.name for tensor in graph.initializer}
    light.graph.input.extend(graph.input)
    inputs = [value for value in light.graph.input if value.name not in given]
    for value, axes in zip(inputs, opened, strict=False):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis in axes:
                dim.dim_param = axes[axis]
    for output in graph.output:
        light.graph.output.add().CopyFrom(output)
        light.graph.output[-1].type.tensor_type.ClearField("shape")
    _forget(light.graph)
    return light


def _forget(graph: GraphProto) -> None:
    """Removes the shapes that the file claims."""
    del graph.value_info[:]
    for node in graph.node:
        for _, inner in graphs_of(node):
            _forget(inner)
