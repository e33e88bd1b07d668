"""Finds keep masks, their scale and what they multiply in a graph, whatever operators an exporter wrote them in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jumpout_export.fold.file.factors import Factor, Form, Keep, Mask, Noised, Uniform, Use, is_dropout, rounding
from jumpout_export.fold.file.values import MOVES, Values, attribute, made_by, standard

if TYPE_CHECKING:
    import onnx_ir as ir

_COMPARE = {"Less": True, "LessOrEqual": True, "Greater": False, "GreaterOrEqual": False}
# Steps that are followed backwards from a value, and tensors in one product.
_DEPTH = 16
_MOST_POWERS = 8


class Forms:
    """Finds the form of each value, node after node in the order of the graph; `values` knows the same nodes."""

    def __init__(self, values: Values) -> None:
        self.of: dict[ir.Value | None, Form] = {}
        self._values = values
        self._scales: dict[ir.Value | None, Factor] = {}

    def add(self, node: ir.Node) -> None:
        """Takes in a node that `values` has taken in, and whose inputs were taken in before."""
        if not standard(node) or len(node.outputs) != 1:
            return
        if scale := self._powers(node):
            self._scales[node.outputs[0]] = scale
        if form := self._form(node):
            self.of[node.outputs[0]] = form

    def finished(self, noised: Noised, eps: float) -> Noised | None:
        """Returns the value as x times a whole dropout, which is x where the rate is zero; None if it is none.

        A scale may have been applied to x before the mask: then x is the tensor before it.
        """
        return next((form for form in self._unwrapped(noised) if is_dropout(form.factor, eps)), None)

    def _unwrapped(self, noised: Noised) -> list[Noised]:
        """Returns the same value written with factors of x moved into the scale, none first.

        Only of an x that nothing else uses: a scale that others see too is none of the mask's.
        """
        forms = [noised]
        while len(forms) < _DEPTH and (node := made_by(forms[-1].x, "Mul", "Div")) is not None:
            if not _used_once(forms[-1].x):
                break
            last = forms[-1]
            for index in (1, 0) if node.op_type == "Mul" else (1,):
                inner, other = node.inputs[1 - index], node.inputs[index]
                scale = self._scale((node, index), other, last.factor)
                factor = last.factor.times(scale, 1.0 if node.op_type == "Mul" else -1.0) if scale else None
                if inner is not None and factor is not None:
                    forms.append(Noised(inner, factor))
                    break
            else:
                break
        return forms

    def _form(self, node: ir.Node) -> Form | None:
        op, first = node.op_type, node.inputs[0] if node.inputs else None
        form = self.of.get(first)
        if op in ("RandomUniform", "RandomUniformLike"):
            known = not any(node.attributes[name].is_ref() for name in ("low", "high") if name in node.attributes)
            unit = attribute(node, "low", 0.0) == 0 and attribute(node, "high", 1.0) == 1
            return Uniform(node) if unit and known else None
        if op == "Bernoulli" and first is not None:
            keep = self._keep(first)
            return Factor(frozenset({Mask(node, keep, True)})) if _possible(keep) else None
        if op in _COMPARE:
            return self._compared(node)
        if op == "Identity":
            return form
        if op in MOVES and isinstance(form, Factor | Uniform):
            return form
        if op == "Cast" and (_to_float(node) or (isinstance(form, Factor) and form.is_mask)):
            return form if isinstance(form, Factor | Uniform) else None
        if op == "Not":
            return _opposite(form)
        if op == "Floor" and isinstance(form, Uniform) and form.plus is not None:
            return Factor(frozenset({Mask(form.source, Keep(form.keep), False, form.plus)}))
        if op in ("Add", "Sub", "Mul", "Div") and len(node.inputs) == 2:
            return self._arithmetic(node)
        if op == "Where" and len(node.inputs) == 3:
            return self._selected(node, form)
        return None

    def _compared(self, node: ir.Node) -> Form | None:
        for index in (0, 1):
            form, threshold = self.of.get(node.inputs[index]), node.inputs[1 - index]
            if isinstance(form, Uniform) and form.plus is None and threshold is not None:
                low = _COMPARE[node.op_type] == (index == 0)
                below = self._keep(threshold)
                keep = below if low else below.opposite()
                use = (node, 1 - index) if isinstance(keep.base, float) else None
                return Factor(frozenset({Mask(form.source, keep, low, use)})) if _possible(keep) else None
        return None

    def _arithmetic(self, node: ir.Node) -> Form | None:
        op, (one, two) = node.op_type, map(self.of.get, node.inputs)
        if op == "Mul":
            return self._product(node)
        if op == "Div":
            return self._scaled(one, (node, 1), -1.0)
        if op == "Sub":
            return _opposite(two) if self._values.number(node.inputs[0]) == 1 else None
        for index, form in enumerate((one, two)):
            number = self._values.number(node.inputs[1 - index])
            if isinstance(form, Uniform) and form.plus is None and number is not None and 0 < number <= 1:
                return Uniform(form.source, (node, 1 - index), number)
        return None

    def _product(self, node: ir.Node) -> Form | None:
        forms = [self.of.get(value) for value in node.inputs]
        for index, form in enumerate(forms):
            if isinstance(form, Factor):
                return self._masked(form, (node, 1 - index))
        for index, form in enumerate(forms):
            if isinstance(form, Noised) and forms[1 - index] is None:
                return self._scaled(form, (node, 1 - index), 1.0)
        return None

    def _selected(self, node: ir.Node, condition: Form | None) -> Form | None:
        """Where(mask, x, 0) and Where(mask, 0, x)."""
        for index, form in ((1, condition), (2, _opposite(condition))):
            if isinstance(form, Factor) and form.is_mask and self._values.number(node.inputs[3 - index]) == 0:
                return self._masked(form, (node, index))
        return None

    def _masked(self, factor: Factor, use: Use) -> Form | None:
        """The factor times any value: another factor, a scale, or x."""
        value = use[0].inputs[use[1]]
        other = self.of.get(value)
        if value is None or isinstance(other, Uniform):
            return None
        if isinstance(other, Factor):
            return factor.times(other)
        if isinstance(other, Noised) and self.finished(other, rounding(use[0])) is None:
            product = other.factor.times(factor)
            return Noised(other.x, product) if product is not None else None
        scale = self._scale(use, value, factor)
        return factor.times(scale) if scale is not None else Noised(value, factor)

    def _scaled(self, form: Form | None, use: Use, power: float) -> Form | None:
        """The form times scale^power; None if the other value is no scale of it, or belongs to what comes after."""
        node, index = use
        value = node.inputs[index]
        if isinstance(form, Uniform) or form is None or value in self.of:
            return None
        own = form.factor if isinstance(form, Noised) else form
        scale = self._scale(use, value, own)
        product = own.times(scale, power) if scale is not None else None
        if product is None or isinstance(form, Factor):
            return product
        # A dropout that is whole may be followed by a gain; a scale in two parts ends where both are there.
        eps = rounding(node)
        gain = not is_dropout(product, eps) and self.finished(form, eps) is not None
        return None if gain else Noised(form.x, product)

    def _scale(self, use: Use, value: ir.Value | None, factor: Factor) -> Factor | None:
        """The value as a scale that belongs to the masks: a constant, or powers of their keep probabilities."""
        scale = self._power(value)
        if scale is None or not scale.powers.keys() <= {mask.keep for mask in factor.masks}:
            return None
        return scale if scale.powers else replace(scale, constants=((use, scale.number),))

    def _power(self, value: ir.Value | None) -> Factor | None:
        """The value as a positive number times powers of keep probabilities; any tensor is one, to the power 1."""
        if value is None:
            return None
        number = self._values.number(value)
        if number is not None:
            return Factor(number=number) if number > 0 else None
        return self._scales.get(value) or Factor(powers={self._keep(value): 1.0})

    def _powers(self, node: ir.Node) -> Factor | None:
        """The node's output as `_power` gives it, if the node computes a power or a product of powers."""
        op = node.op_type
        if op not in {"Pow", "Sqrt", "Reciprocal", "Mul", "Div"}:
            return self._scales.get(node.inputs[0]) if _moves(node) else None
        first = self._power(node.inputs[0])
        if first is None:
            return None
        if op in ("Mul", "Div"):
            second = self._power(node.inputs[1])
            product = first.times(second, 1.0 if op == "Mul" else -1.0) if second is not None else None
            return product if product is not None and len(product.powers) <= _MOST_POWERS else None
        exponent = self._values.number(node.inputs[1]) if op == "Pow" else {"Sqrt": 0.5, "Reciprocal": -1.0}[op]
        return Factor().times(first, exponent) if exponent is not None else None

    def _keep(self, value: ir.Value) -> Keep:
        complement = False
        for _ in range(_DEPTH):
            number = self._values.number(value)
            if number is not None:
                return Keep(1 - number if complement else number)
            node = value.producer()
            if node is None or not standard(node):
                break
            inner = node.inputs[0] if _moves(node) else None
            if node.op_type == "Sub" and self._values.number(node.inputs[0]) == 1:
                inner, complement = node.inputs[1], not complement
            if inner is None:
                break
            value = inner
        return Keep(value, complement)


def _moves(node: ir.Node) -> bool:
    """Whether the node leaves the numbers of its first input as they are, up to rounding."""
    return node.op_type in MOVES or (node.op_type == "Cast" and _to_float(node))


def _used_once(value: ir.Value) -> bool:
    """Whether only one node uses the value's elements; its shape may be used by more."""
    shape_only = {"Shape", "RandomUniformLike", "RandomNormalLike"}
    users = [use for use in value.uses() if use.node.op_type not in shape_only]
    return len(users) == 1 and not value.is_graph_output()


def _opposite(form: Form | None) -> Factor | None:
    if not isinstance(form, Factor) or not form.is_mask:
        return None
    (mask,) = form.masks
    return replace(form, masks=frozenset({mask.opposite()})) if _possible(mask.opposite().keep) else None


def _possible(keep: Keep) -> bool:
    return not isinstance(keep.base, float) or 0 < keep.base <= 1


def _to_float(node: ir.Node) -> bool:
    import onnx_ir as ir

    floats = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return attribute(node, "to", None) in [kind.value for kind in floats]
