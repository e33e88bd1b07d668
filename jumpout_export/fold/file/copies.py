"""Copies of a noisy model for the proof: one with its rates at zero, one that shows what its noise does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jumpout_export.fold.file.factors import Mask, Use
from jumpout_export.fold.file.noise import Noise, NoiseSite
from jumpout_export.fold.file.values import attribute

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto

# What every random number in [0, 1) becomes: at rate zero any of them keeps everything.
_DRAWN = 0.5


def observed_copy(model: ModelProto, sites: list[NoiseSite]) -> ModelProto:
    """Returns a copy of the noisy model with more outputs: those that `observed` lists, for sites of the main graph."""
    copy = type(model)()
    copy.CopyFrom(model)
    shown: set[str] = set()
    for value, name in (pair for site in sites for pair in observed(site).items()):
        if name not in shown and value.dtype is not None:
            shown.add(name)
            copy.graph.node.add(op_type="Identity", input=[value.name], output=[name])
            copy.graph.output.add(name=name).type.tensor_type.elem_type = value.dtype.value
    return copy


def observed(site: NoiseSite) -> dict[ir.Value, str]:
    """Returns x, y, the random numbers and the tensors of keep probabilities, with the outputs that show them."""
    masks = site.factor.masks if site.factor else ()
    drawn = [mask.source.outputs[0] for mask in masks]
    rates = [mask.keep.base for mask in masks if not isinstance(mask.keep.base, float)]
    return {value: f"observed: {value.name}" for value in (site.x, site.y, *drawn, *rates)}


def neutral_copy(model: ir.Model, noise: Noise) -> ModelProto:
    """Returns the model with all rates at zero and everything else, masks and scales included, as it was.

    Dropout nodes stay in training mode with ratio 0; a constant keep probability becomes 1 where a mask and its scale
    use it, a tensor of rates becomes zeros; random numbers become 1/2. The model is changed in place.
    """
    import onnx_ir as ir
    from onnx_ir.passes import common

    done: set[Any] = set()
    for site in noise.sites:
        node = site.y.producer()
        if site.factor is None:
            if node is not None and noise.opset < 7:  # by its definition; ONNX Runtime has no such Dropout
                node.op_type = "Identity"
                node.attributes.clear()
                node.resize_outputs(1)
            elif node is not None:
                node.resize_inputs(max(3, len(node.inputs)))
                _replace((node, 1), 0.0)
            continue
        for mask in site.factor.masks:
            for key in (mask.source, mask.threshold, mask.keep.base):
                if key is not None and key not in done and not isinstance(key, float):
                    done.add(key)
                    _neutralize(key, mask)
        for use, _ in site.factor.constants:
            if use not in done:
                done.add(use)
                _replace(use, 1.0)
    # What drew the numbers is not used any more; ONNX Runtime may not even have it.
    common.RemoveUnusedNodesPass()(model)
    return ir.serde.serialize_model(model)


def _neutralize(key: ir.Node | ir.Value | Use, mask: Mask) -> None:
    import onnx_ir as ir

    if isinstance(key, tuple):
        node, _ = key
        keeps_all = 1.0 if mask.low or node.op_type == "Add" else 0.0
        _replace(key, keeps_all)
    elif isinstance(key, ir.Node):
        _fill(key.outputs[0], 1.0 if key.op_type == "Bernoulli" else _DRAWN, key.inputs[0] if key.inputs else None)
    else:
        _fill(key, 0.0 if mask.keep.complement else 1.0, key)


def _fill(value: ir.Value, number: float, like: ir.Value | None) -> None:
    """Puts a tensor of one number, shaped as `like` or as its own node says, in the place of the value."""
    import onnx_ir as ir

    uses, producer = list(value.uses()), value.producer()
    if like is not None:
        shape = ir.node("Shape", [like])
    else:
        sizes = list(attribute(producer, "shape", [])) if producer is not None else []
        shape = ir.node("Constant", [], {"value": ir.tensor(sizes, dtype=ir.DataType.INT64)})
    full = ir.node("ConstantOfShape", shape.outputs, {"value": _tensor([number], value.dtype)})
    for new in (shape, full):
        _name(new)
    graph = value.graph
    if producer is not None:
        producer.append((shape, full))
    elif graph is not None and len(graph):
        graph.insert_before(graph[0], (shape, full))
    for use in uses:
        use.node.replace_input_with(use.idx, full.outputs[0])


def _replace(use: Use, number: float) -> None:
    """Puts a constant of the old value's type in the place of a node's input."""
    import onnx_ir as ir

    node, index = use
    old = node.inputs[index]
    new = ir.node("Constant", [], {"value": _tensor(number, old.dtype if old is not None else None)})
    _name(new)
    node.prepend(new)
    node.replace_input_with(index, new.outputs[0])


def _name(new: ir.Node) -> None:
    new.outputs[0].name = f"neutral_{id(new):x}"


def _tensor(number: Any, kind: ir.DataType | None) -> ir.TensorProtocol:
    import onnx_ir as ir

    return ir.tensor(number, dtype=kind or ir.DataType.FLOAT)
