"""What a noisy value is made of: keep masks, their scale and the tensor they multiply.

Dropout of rate r, in whatever operators an exporter wrote it, is

    y = x * M * (1 - r)^-alpha,    M = 1 with probability k = 1 - r, else 0

with alpha = 1 for dropout and 0.75 for jumpout. k is a constant, or a tensor of the graph (a rate drawn anew for each
batch). Both M and the scale are 1 where the rate is 0; then y = x, which is what the network computes when it serves.
Nothing else is taken for dropout: a mask without its scale, a scale of another number, noise that is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

# Exponents that a constant scale may have: dropout's, and jumpout's (Wang, Zhou, Bilmes, ICML 2019, section 4). Of a
# scale computed from the rate's tensor the exponent is read off the graph, and may be any in (0, 1].
EXPONENTS = (1.0, 0.75)


@dataclass(frozen=True)
class Keep:
    """The probability k with which a mask is one: a number, or a tensor of the graph, or one minus that tensor."""

    base: ir.Value | float
    complement: bool = False

    def opposite(self) -> Keep:
        """Returns 1 - k."""
        return Keep(1 - self.base) if isinstance(self.base, float) else Keep(self.base, not self.complement)

    def __str__(self) -> str:
        if isinstance(self.base, float):
            return f"{self.base:.6g}"
        return f"1 - `{self.base.name}`" if self.complement else f"`{self.base.name}`"


# A place in the graph: an input of a node, by its index.
Use = tuple["ir.Node", int]


@dataclass(frozen=True)
class Mask:
    """A {0, 1} tensor."""

    source: ir.Node  # the random node
    keep: Keep  # probability of a one
    low: bool  # whether it is one where the random number is small; tells a mask of 1/2 from its opposite
    # where the random number meets the constant threshold; None for a tensor, or a Bernoulli node
    threshold: Use | None = None

    def opposite(self) -> Mask:
        """Returns the mask that is one where this is zero."""
        return replace(self, keep=self.keep.opposite(), low=not self.low)


@dataclass(frozen=True)
class Factor:
    """A product of masks, a number and powers of keep probabilities."""

    masks: frozenset[Mask] = frozenset()  # each once; none for a plain scale
    number: float = 1.0  # product of the constant factors
    powers: Mapping[Keep, float] = field(default_factory=dict)  # exponent per keep probability that is a tensor
    constants: tuple[tuple[Use, float], ...] = ()  # where the constant factors stand

    def times(self, other: Factor, power: float = 1.0) -> Factor | None:
        """Returns self * other^power; None if it has no value."""
        try:
            number = self.number * other.number**power
        except ArithmeticError:
            return None
        if isinstance(number, complex) or not math.isfinite(number) or (other.masks and power != 1):
            return None
        powers = dict(self.powers)
        for keep, exponent in other.powers.items():
            powers[keep] = powers.get(keep, 0.0) + power * exponent
        return Factor(self.masks | other.masks, number, powers, self.constants + other.constants)

    @property
    def is_mask(self) -> bool:
        """Whether it is one mask and nothing else."""
        return len(self.masks) == 1 and self.number == 1 and not any(self.powers.values())


@dataclass(frozen=True)
class Uniform:
    """A random number in [0, 1), or it plus a constant in (0, 1], which Floor makes a mask."""

    source: ir.Node
    plus: Use | None = None
    keep: float = 0.0


@dataclass(frozen=True)
class Noised:
    """x times a factor with a mask."""

    x: ir.Value
    factor: Factor


Form = Factor | Uniform | Noised


def is_dropout(factor: Factor, eps: float) -> bool:
    """Returns whether the factor's scale is k^-alpha for its masks' k, with an alpha that dropout or jumpout has.

    Args:
        factor: masks and their scale.
        eps: of the dtype in which the scale was rounded.
    """
    keeps = [mask.keep for mask in factor.masks]
    constant = math.prod(keep.base for keep in keeps if isinstance(keep.base, float))
    tensors = [keep for keep in keeps if not isinstance(keep.base, float)]
    if not keeps or not all(0 < -factor.powers.get(keep, 0.0) <= 1 for keep in tensors):
        return False
    # k and the scale are both rounded, and k may have been computed from the rate.
    tolerance = 2 * eps * (1 + 1 / constant)
    exponents = EXPONENTS if len(tensors) < len(keeps) else (1.0,)
    return any(abs(factor.number * constant**alpha - 1) <= tolerance for alpha in exponents)


def rounding(node: ir.Node) -> float:
    """Returns eps of the dtype that a node computes in; of float32 where it is not known."""
    import onnx_ir as ir

    kind = node.outputs[0].dtype
    return {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.DOUBLE: 2.0**-23}.get(kind or ir.DataType.FLOAT, 2.0**-23)


def describe(factor: Factor) -> str:
    """Returns the factor for a person, for example `keep 0.7, scale 1.42857`."""
    keeps = ", ".join(sorted(f"keep {mask.keep}" for mask in factor.masks))
    powers = [f"({keep})^{exponent:g}" for keep, exponent in factor.powers.items() if exponent]
    number = [f"{factor.number:.6g}"] if factor.number != 1 or not powers else []
    return f"{keeps}, scale {' * '.join([*number, *powers])}"
