"""The network of an ONNX file: its tensors as parameters, its nodes as modules, run by PyTorch in any precision.

Each node runs by PyTorch's operator where `operators` has one, otherwise by the reference implementation of the onnx
package, as one operation that is opaque. In float64, `.double()`, a cast to float32 in the file is one to float64.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from jumpout_export.errors import LoadError
from jumpout_export.filenetwork.nodes import FileNode
from jumpout_export.model.batches import Batch
from jumpout_export.model.labels import LABELS, labels_among
from jumpout_export.onnxfile.data import external_files, misplaced, sha256_of_all
from jumpout_export.onnxfile.load import inlined, load_onnx
from jumpout_export.onnxfile.steps import read_inside
from jumpout_export.onnxfile.tables import is_size
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS, all_graphs, default_opset, nodes_of, tensors
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

_LOOK_UPS = ("Gather", "GatherElements", "GatherND")
# A tensor of so many integers is no weight: it says a shape, axes or the like, unless something is looked up in it.
_MOST_NUMBERS = 16


class FileNetwork(nn.Module):
    """Computes what an ONNX file computes, from and to dicts of tensors by their names in the file.

    Attributes:
        path: of the file.
        sha256: of the file and of those that its weights lie in, name to hex, as they were before they were read.
        inputs: names of its inputs, in order.
        outputs: names of its outputs, in order.
        shapes: of each input by name, as `declared_shape`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the file, with its external data, if that lies in plain files beside it.

        Raises:
            LoadError: if there is no such file, it is not a readable ONNX model, or it holds what PyTorch has not.
        """
        super().__init__()
        self.path = path = Path(path)
        self.sha256 = sha256_of_all(path.parent, [path.name])
        model = load_onnx(path)
        self.sha256 |= sha256_of_all(path.parent, _external_files(path, model))
        model = _with_data(path, model)
        graph = model.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        given = [value for value in graph.input if value.name not in constants]
        self.inputs = tuple(value.name for value in given)
        self._types = {value.name: _type(value.type.tensor_type.elem_type) for value in given}
        self.shapes = {value.name: declared_shape(value) for value in given}
        self.outputs = tuple(value.name for value in graph.output)
        # Of what says shapes, axes and the like, by name: the values, flat, type and shape.
        self._numbers: dict[str, tuple[list[Any], torch.dtype, torch.Size]] = {}
        self._dtype = torch.float32  # that the network runs in
        self._names: dict[str, str] = {}  # of tensors in the file, by those that they have here
        self._order: list[str] = []
        roles = _Roles(graph)
        for name, tensor in constants.items():
            self._hold(name, _tensor(tensor, path), roles)
        known = {value.name for value in graph.input} | {*constants}
        opset = default_opset(model)
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
                self._hold(node.output[0], _constant(node, path), roles)
                known.add(node.output[0])
                continue
            wanted = (node.name or f"{node.op_type}_{node.output[0]}").replace(".", "_")
            name = next(one for one in _numbered(wanted) if not hasattr(self, one))
            self._order.append(name)
            self.add_module(name, FileNode(node, opset, [one for one in read_inside(node) if one in known]))
            known |= {*node.output}
        self.eval()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the outputs by name, for the inputs by name."""
        held = (*self._parameters.items(), *self._buffers.items())
        values: dict[str, Tensor] = {self._names[name]: tensor for name, tensor in held if tensor is not None}
        values |= {
            name: torch.tensor(flat, dtype=dtype).reshape(shape) for name, (flat, dtype, shape) in self._numbers.items()
        }
        values |= {name: inputs[name] for name in self.inputs}
        nodes = [cast("FileNode", self.get_submodule(name)) for name in self._order]
        last = {name: number for number, node in enumerate(nodes) for name in node.reads}
        for number, node in enumerate(nodes):
            try:
                found = node(self._dtype, *(values[name] if name else None for name in node.reads))
            except Exception as error:  # of PyTorch, NumPy and onnx, without a common base
                raise RuntimeError(f"node `{self._order[number]}` ({node.kind}): {first_line(error)}") from error
            values |= zip(node.makes, found, strict=True)
            for name in {*node.reads} - {*self.outputs}:
                if last[name] == number:
                    values.pop(name, None)  # what nobody reads any more
        return {name: values[name] for name in self.outputs}

    def batches(self, given: Any) -> Any:
        """Returns one batch, or an iterable of batches, as this network takes them.

        A batch is a tensor, tensors in the order of the inputs, or a mapping by their names; of what is left, class
        labels are kept.

        Raises:
            TypeError: when they are taken, if one holds too few or a name is missing.
        """
        if isinstance(given, Tensor | tuple | Mapping | Batch) or not isinstance(given, Iterable):
            return _Named(self, [given])
        return _Named(self, given)

    def batch(self, given: Any) -> Batch:
        """Returns one batch as `batches` does, with class labels where it has any behind, or beside, the inputs."""
        labels = None
        if isinstance(given, Batch):  # a command makes those of --input-shape
            labels = given.labels
            given = given.kwargs or (given.args[0] if isinstance(given.args[0], Mapping) else given.args)
        given = (given,) if isinstance(given, Tensor) else given
        names = ", ".join(self.inputs)
        if isinstance(given, tuple | list) and len(given) >= len(self.inputs):
            labels = labels_among(given[len(self.inputs) :]) if labels is None else labels
            given = dict(zip(self.inputs, given, strict=False))
        if not isinstance(given, Mapping):
            raise TypeError(f"a batch must hold the file's inputs ({names}) as tensors, in this order or by name")
        if missing := [name for name in self.inputs if name not in given]:
            raise TypeError(f"the file's inputs are {names}; the batch lacks {', '.join(missing)}")
        for name in self.inputs:
            if isinstance(given[name], Tensor):
                self._check(name, given[name])
        beside = [given[name] for name in LABELS if name in given and name not in self.inputs]
        labels = labels_among(beside) if labels is None else labels
        return Batch(({name: given[name] for name in self.inputs},), {}, labels)

    def _check(self, name: str, value: Tensor) -> None:
        if value.dtype != self._types[name]:
            raise TypeError(f"input `{name}` must be {self._types[name]}, got {value.dtype}")
        wanted = self.shapes[name]
        if wanted is None:
            return
        # The first is the batch, which is given in pieces where it is fixed.
        fixed = zip(wanted[1:], value.shape[1:], strict=False)
        if len(wanted) != value.ndim or any(isinstance(one, int) and one != two for one, two in fixed):
            sizes = ", ".join(map(str, wanted))
            raise TypeError(f"input `{name}` must have the shape ({sizes}), got {tuple(value.shape)}")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._dtype = fn(torch.zeros((), dtype=self._dtype)).dtype
        return super()._apply(fn, recurse)

    def _hold(self, name: str, tensor: Tensor, roles: _Roles) -> None:
        """Registers a tensor by its name in the file, dots and all, as the state dict of what it was made of has it."""
        known = next(one for one in _numbered(name) if one not in vars(self))  # a file may call a tensor `training`
        if name in roles.sizes or (
            not tensor.is_floating_point() and tensor.numel() <= (1 if name in roles.tables else _MOST_NUMBERS)
        ):
            self._numbers[name] = tensor.reshape(-1).tolist(), tensor.dtype, tensor.shape
            return
        self._names[known] = name
        if tensor.is_floating_point():
            self._parameters[known] = nn.Parameter(tensor, requires_grad=False)
        else:
            self._buffers[known] = tensor


class _Roles:
    """What the constants of a graph are for.

    Attributes:
        tables: names of those that something is looked up in.
        sizes: names of those of which nothing but sizes, axes and places is read, such as the scales of a Resize.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.tables = {node.input[0] for node in graph.node if node.op_type in _LOOK_UPS}
        nodes = list(nodes_of(graph.node))
        read = {name for node in nodes for name in node.input}
        otherwise = {name for node in nodes for place, name in enumerate(node.input) if not is_size(node, place)}
        otherwise |= {value.name for inner in all_graphs(graph) for value in inner.output}
        self.sizes = read - otherwise


def declared_shape(value: ValueInfoProto) -> list[int | str] | None:
    """Returns the sizes of an input, text where they are open; None where the file does not say how many there are."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [axis.dim_value or axis.dim_param or "?" for axis in value.type.tensor_type.shape.dim]


class _Named:
    """Batches of a file by the names of its inputs, as often as what they are made of can be read."""

    def __init__(self, network: FileNetwork, given: Iterable[Any]) -> None:
        self._network, self._given = network, given

    def __iter__(self) -> Iterator[Batch]:
        return (self._network.batch(one) for one in self._given)


def _numbered(name: str) -> Iterator[str]:
    return itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))


def _external_files(path: Path, model: ModelProto) -> set[str]:
    """The names of the files that hold weights; raises where one is no plain file of the folder."""
    if wrong := [text for tensor in tensors(model) if (text := misplaced(path.parent, tensor))]:
        raise LoadError(f"{path}: its external data is not read: {wrong[0]}")
    return external_files(model)


def _with_data(path: Path, model: ModelProto) -> ModelProto:
    import onnx

    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # of onnx and of the operating system, in a dozen types
        raise LoadError(f"{path}: its external data cannot be read ({first_line(error)})") from error
    return inlined(model)


def _tensor(tensor: TensorProto, path: Path) -> Tensor:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.BFLOAT16:
        raise LoadError(f"{path}: `{tensor.name}` is bfloat16, which cannot be compared")
    try:
        return torch.from_numpy(numpy_helper.to_array(tensor).copy())
    except TypeError as error:
        raise LoadError(f"{path}: `{tensor.name}` has a type that PyTorch has not ({first_line(error)})") from error


def _type(kind: int) -> torch.dtype | None:
    """PyTorch's type of one of TensorProto's."""
    from onnx import helper

    return getattr(torch, str(helper.tensor_dtype_to_np_dtype(kind)), None)


def _constant(node: NodeProto, path: Path) -> Tensor:
    from onnx import helper

    attribute = node.attribute[0]
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return _tensor(value, path)
    kinds = {"value_float": torch.float32, "value_floats": torch.float32}
    kinds |= {"value_int": torch.int64, "value_ints": torch.int64}
    if attribute.name not in kinds:
        raise LoadError(f"{path}: `{node.output[0]}` is a constant of texts or a sparse one, which cannot be compared")
    return torch.tensor(value, dtype=kinds[attribute.name])
