"""Which nodes of an ONNX graph draw random numbers or are in training mode, by operator and opset: the one rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.load import broken
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS, Site, sites

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto

RANDOM_OPERATORS = frozenset(
    {"RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli", "Multinomial"}
)


def random_nodes(model: ModelProto) -> list[str]:
    """Returns the nodes that draw random numbers at every run, for a person; a Dropout that may be in training mode."""
    every = list(sites(model))
    return places(
        every, lambda site: (standard(site) and site.node.op_type in RANDOM_OPERATORS) or dropout_may_train(site)
    )


def dropout_may_train(site: Site) -> bool:
    """Whether a Dropout could drop something at run time."""
    node = site.node
    if node.op_type != "Dropout" or not standard(site):
        return False
    if site.opset < 7:
        return not _provably(_attribute(site, "is_test"), 1)
    if site.opset < 12 or len(node.input) < 3 or not node.input[2]:
        return False
    return not _is_false(site, node.input[2])


def batchnorm_may_train(site: Site) -> bool:
    """Whether a BatchNormalization could use the statistics of its batch at run time."""
    node = site.node
    if node.op_type != "BatchNormalization" or not standard(site):
        return False
    if site.opset < 7:
        return not _provably(_attribute(site, "is_test"), 1)
    if site.opset < 14:  # up to opset 13 the further outputs switch training on
        return any(node.output[1:])
    mode = _attribute(site, "training_mode")
    return mode is not None and not _provably(mode, 0)


def _is_false(site: Site, name: str) -> bool:
    from onnx import TensorProto, numpy_helper

    tensor = site.constants.get(name)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type != TensorProto.BOOL:
        return False
    if broken(tensor):
        return False
    array = numpy_helper.to_array(tensor)
    return array.size > 0 and not array.any()


def _attribute(site: Site, name: str) -> AttributeProto | None:
    return next((attribute for attribute in site.node.attribute if attribute.name == name), None)


def _provably(attribute: AttributeProto | None, value: int) -> bool:
    """Whether the attribute has the value; one that a function takes from its caller is not known here."""
    return attribute is not None and not attribute.ref_attr_name and attribute.i == value


def standard(site: Site) -> bool:
    """Whether the node is one of ONNX's own operators."""
    return site.node.domain in DEFAULT_DOMAINS


def places(every: Iterable[Site], bad: Callable[[Site], bool]) -> list[str]:
    """Returns where the nodes are for which `bad` is true, for a person."""
    return [site.where for site in every if bad(site)]


def may_be_noise(node: NodeProto) -> bool:
    """Whether a look at the operator and its flags leaves noise possible."""
    if node.domain not in DEFAULT_DOMAINS:
        return False
    flags = {attribute.name for attribute in node.attribute} & {"training_mode", "is_test"}
    return (
        node.op_type in RANDOM_OPERATORS
        or (node.op_type == "Dropout" and (bool(flags) or len(node.input) > 2))
        or (node.op_type == "BatchNormalization" and (bool(flags) or len(node.output) > 1))
    )
