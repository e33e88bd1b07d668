"""Which sizes of inputs an exported program takes: its graph may hold decisions that were made for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

_OPEN_HINT = (
    "pass dynamic_batch=False (--static) to export one batch size, or export the program with an open one: "
    "dynamic_shapes={{'{}': {{0: torch.export.Dim.DYNAMIC}}}}"
)
_UNREADABLE = (
    "this version of torch does not say what the exported program takes for granted about sizes: give the module "
    "itself, or a fixed size"
)


@dataclass(frozen=True)
class Size:
    """One input's axis: its smallest and largest size."""

    name: str  # of the input
    axis: int  # its number
    least: int  # smallest size
    most: float  # largest size, infinite where there is none


class InputSizes:
    """The sizes of inputs that a program takes.

    Attributes:
        sizes: of every axis of every input.
        names: of the inputs, in order.
        guards: what it took for granted about sizes beyond their ranges, as text; torch keeps it in a private place.
        readable: whether this version of torch has it there.
    """

    def __init__(self, program: ExportedProgram) -> None:
        """Reads them from a program's inputs and range constraints."""
        self.sizes: list[Size] = []
        self.names: list[str] = []
        self.readable = hasattr(program, "_guards_code")
        self.guards = [str(guard) for guard in program._guards_code] if self.readable else []
        wanted = set(program.graph_signature.user_inputs)
        for node in program.graph.nodes:
            value = node.meta.get("val")
            if node.op != "placeholder" or node.name not in wanted or not isinstance(value, Tensor):
                continue
            self.names.append(str(node.name))
            for axis, size in enumerate(value.shape):
                least, most = limits(program, size)
                self.sizes.append(Size(str(node.name), axis, least, most))

    def fixed_batch(self) -> str:
        """Returns why the batch size cannot be left open; empty if it can."""
        first = next((size for size in self.sizes if size.axis == 0), None)
        if first is None:
            return ""
        hint = _OPEN_HINT.format(first.name)
        if first.least == first.most:
            return f"the exported program fixes its batch size at {first.least}; {hint}"
        found = self._restriction(first)
        return (
            f"the exported program holds only where `{found}`, so its batch size is not open; {hint}" if found else ""
        )

    def restricted(self, opened: Sequence[Mapping[int, str]]) -> tuple[str, str]:
        """Returns why further open axes cannot be left open, and the conditions on them; empty where there is none.

        Args:
            opened: the open axes of each input, by number.
        """
        if not self.readable:
            return "", _UNREADABLE
        found: list[str] = []
        for name, axes in zip(self.names, opened, strict=True):
            for size in self.sizes:
                if size.name != name or size.axis not in axes:
                    continue
                if size.most != float("inf"):
                    return (
                        f"the exported program holds only where `{self._restriction(size)}`, so `{axes[size.axis]}` is "
                        "not open: leave it out of dynamic_axes (--dynamic), or export the program without that limit"
                    ), ""
                found += [f"`{guard}`" for guard in self.guards if f".size()[{size.axis}]" in guard]
        text = ", ".join(dict.fromkeys(found))
        return "", f"sizes have to obey {text}: the exported program was made for no other" if text else ""

    def _restriction(self, size: Size) -> str:
        if size.most != float("inf"):
            return f"L['{size.name}'].size()[{size.axis}] <= {size.most:.0f}"
        # Of any input: the text names the user's arguments, of which an input may be a part.
        return next((guard for guard in self.guards if f".size()[{size.axis}]" in guard), "")

    def check(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuses other sizes; made to be a forward pre-hook.

        Raises:
            ValueError: naming the input, the axis and what is allowed.
        """
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        values = dict(zip(self.names, [leaf for leaf in leaves if isinstance(leaf, Tensor)], strict=False))
        for size in self.sizes:
            value = values.get(size.name)
            if value is None or value.ndim <= size.axis:
                continue
            if size.least == size.most:
                if value.shape[size.axis] != size.least:
                    raise ValueError(_wrong_size(size, value.shape[size.axis]))
            elif not torch.compiler.is_compiling() and not size.least <= value.shape[size.axis] <= size.most:
                raise ValueError(_wrong_size(size, value.shape[size.axis]))


def limits(program: ExportedProgram, size: Any) -> tuple[int, float]:
    """Returns the smallest and largest size of an axis, infinite where there is none.

    Args:
        program: whose ranges are read.
        size: of an input's fake tensor: a number, or a symbol.
    """
    if isinstance(size, int):
        return size, size
    found = program.range_constraints.get(size.node.expr)
    if found is None:
        return 1, float("inf")
    # torch notes 2 as the least size of every open axis, because 1 broadcasts; it does not check it either.
    least, most = float(found.lower), float(found.upper)
    return (1 if least <= 2 else int(least)), (most if most < 2**62 else float("inf"))


def _wrong_size(size: Size, got: int) -> str:
    allowed = f"{size.least}" if size.least == size.most else f"{size.least} to {size.most:.0f}"
    hint = _OPEN_HINT.format(size.name) if size.axis == 0 else "the program was exported for that size"
    return f"axis {size.axis} of input `{size.name}` is {got}, the exported program takes {allowed}; {hint}"
