"""Which nodes of an ONNX graph draw random numbers or are in training mode, by operator and opset: the one rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.load import broken
from jumpout_export.onnxfile.walk import DEFAULT_DOMAINS, Site, sites

if TYPE_CHECKING:
    from onnx import ModelProto

RANDOM_OPERATORS = frozenset(
    {"RandomUniform", "RandomUniformLike", "RandomNormal", "RandomNormalLike", "Bernoulli", "Multinomial"}
)


def dropout_trains(opset: int, is_test: int | None, flag: bool | None) -> bool | None:
    """Returns whether a Dropout drops; None if that is not known.

    Args:
        opset: of ONNX's own operators, where the node stands.
        is_test: the attribute, 0 where it is left out; None if a function's caller sets it.
        flag: the input training_mode, False where it is left out; None if it is computed or passed in.
    """
    if opset < 7:
        return None if is_test is None else not is_test
    return flag if opset >= 12 else False


def batchnorm_trains(opset: int, is_test: int | None, training_mode: int | None, statistics: bool) -> bool | None:
    """Returns whether a BatchNormalization uses the statistics of its batch; None if that is not known.

    Args:
        opset: of ONNX's own operators, where the node stands.
        is_test: the attribute, 0 where it is left out; None if a function's caller sets it.
        training_mode: the same.
        statistics: whether it has further outputs, which up to opset 13 switch training on.
    """
    if opset < 7:
        return None if is_test is None else not is_test
    if opset < 14:
        return statistics
    return None if training_mode is None else bool(training_mode)


def random_nodes(model: ModelProto) -> list[str]:
    """Returns the nodes that draw random numbers at every run, for a person; a Dropout that may be in training mode."""
    return places(sites(model), lambda site: draws(site) or dropout_may_train(site))


def draws(site: Site) -> bool:
    """Whether the node draws random numbers, whatever its mode."""
    return standard(site) and site.node.op_type in RANDOM_OPERATORS


def dropout_may_train(site: Site) -> bool:
    """Whether a Dropout could drop something at run time."""
    if site.node.op_type != "Dropout" or not standard(site):
        return False
    return dropout_trains(site.opset, _attribute(site, "is_test"), _flag(site)) is not False


def batchnorm_may_train(site: Site) -> bool:
    """Whether a BatchNormalization could use the statistics of its batch at run time."""
    if site.node.op_type != "BatchNormalization" or not standard(site):
        return False
    is_test, mode = _attribute(site, "is_test"), _attribute(site, "training_mode")
    return batchnorm_trains(site.opset, is_test, mode, any(site.node.output[1:])) is not False


def may_be_noise(site: Site) -> bool:
    """Whether the node may be random or in training mode, as far as the file around it says."""
    return draws(site) or dropout_may_train(site) or batchnorm_may_train(site)


def standard(site: Site) -> bool:
    """Whether the node is one of ONNX's own operators."""
    return site.node.domain in DEFAULT_DOMAINS


def places(every: Iterable[Site], bad: Callable[[Site], bool]) -> list[str]:
    """Returns where the nodes are for which `bad` is true, for a person."""
    return [site.where for site in every if bad(site)]


def _flag(site: Site) -> bool | None:
    """The third input: False where it is left out, or a constant that is false all over; None where it may be true."""
    from onnx import TensorProto, numpy_helper

    if len(site.node.input) < 3 or not site.node.input[2]:
        return False
    tensor = site.constants.get(site.node.input[2])
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type != TensorProto.BOOL:
        return None
    if broken(tensor):
        return None
    array = numpy_helper.to_array(tensor)
    return False if array.size > 0 and not array.any() else None


def _attribute(site: Site, name: str) -> int | None:
    """An integer, 0 where it is left out; None for one that a function takes from its caller."""
    found = next((attribute for attribute in site.node.attribute if attribute.name == name), None)
    return 0 if found is None else None if found.ref_attr_name else found.i
