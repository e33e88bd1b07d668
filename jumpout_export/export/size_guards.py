"""What a traced program took for granted about the sizes of open axes, and whether it is wrong where that fails."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from jumpout_export.errors import ConversionError
from jumpout_export.model.axes import BATCH, Axes, resized
from jumpout_export.model.batches import Batch
from jumpout_export.model.run import run_copy
from jumpout_export.model.signature import only_tensors, tensors
from jumpout_export.program.sizes import limits
from jumpout_export.text import first_line
from jumpout_export.tolerances import rounding_share

# Sizes at which a condition is tried. Not 1: torch traces every open axis as one that does not broadcast.
_SIZES = (*range(2, 1101), *sorted({2**power + step for power in range(11, 17) for step in (-1, 0, 1)}))
_SMALL = (*range(2, 10), 12, 15, 16, 17, 31, 32, 33)
# Where the conditions cannot be read: sizes beyond those that are verified.
_WITHOUT_CONDITIONS = (3, 16, 33, 101)
_TRIED = 4
# Numbers in the inputs: larger ones are not run.
_MOST_NUMBERS = 2**26


@dataclass(frozen=True)
class Condition:
    """What a traced program took for granted."""

    text: str  # in terms of the axes' names
    names: tuple[str, ...]  # of the open axes it is about
    holds: Callable[[Mapping[str, int]], bool]  # whether sizes by name obey it


@contextlib.contextmanager
def traced_programs() -> Iterator[list[ExportedProgram]]:
    """Collects the programs that `torch.export.export` returns while it is open.

    torch.onnx returns a program whose conditions on sizes are gone: its decompositions remove them.
    """
    programs: list[ExportedProgram] = []
    original = torch.export.export

    def export(*args: Any, **kwargs: Any) -> ExportedProgram:
        program = original(*args, **kwargs)
        programs.append(program)
        return program

    torch.export.export = export
    try:
        yield programs
    finally:
        torch.export.export = original


def check_sizes(
    program: ExportedProgram, model: nn.Module, batch: Batch, axes: Axes, hint: Mapping[str, str]
) -> list[str]:
    """Returns a sentence on the sizes that the model itself refuses, if any; raises if the program is wrong at others.

    The program holds one path through the model. Where a condition on sizes fails, the model is run at sizes that
    break it: if it gives something else than the program, a file made of the program is wrong there. `hint` says what
    to do about an axis, by its name.

    Raises:
        ConversionError: naming the condition and the sizes.
    """
    own = {
        name: value.shape[axis]
        for value, opened in zip(tensors(batch), axes.opened(), strict=True)
        for axis, name in opened.items()
    }
    plain = _without_assertions(program)
    restrictions = []
    for condition in conditions(program, axes):
        blocked, fixed_by_batch = [], False
        advice = " or ".join(hint[name] for name in condition.names)
        for sizes in itertools.islice(_breaking(condition, own), _TRIED):
            factor = math.prod(size / own[name] for name, size in sizes.items())
            if factor * sum(value.numel() for value in tensors(batch)) > _MOST_NUMBERS:
                raise ConversionError(
                    f"the model may take another path where not `{condition.text}`, and inputs of that size are too "
                    f"large to try; {advice}"
                )
            moved = resized(batch, axes.opened(), {**own, **sizes})
            said = " ".join(f"{name}={size}" for name, size in sizes.items())
            expected = _run(model, moved)
            if isinstance(expected, Exception):
                blocked.append(f"{said}: {first_line(expected)}")
                fixed_by_batch |= all((own[name] == size) != (name == BATCH) for name, size in sizes.items())
            elif problem := _difference(expected, _run(plain, moved)):
                raise ConversionError(
                    f"the model takes another path at {said} ({problem}): a file would be right only where "
                    f"`{condition.text}`; {advice}"
                )
        if blocked and fixed_by_batch:
            raise ConversionError(f"the model runs only where `{condition.text}` ({blocked[0]}); {advice}")
        if blocked:
            restrictions.append(f"`{condition.text}`")
    if not restrictions:
        return []
    return [f"sizes have to obey {', '.join(dict.fromkeys(restrictions))}: the model runs at no other that was tried"]


def conditions(program: ExportedProgram, axes: Axes) -> list[Condition]:
    """Returns what the program took for granted about the open axes."""
    symbols: dict[str, str] = {}
    found: list[Condition] = []
    wanted = set(program.graph_signature.user_inputs)
    inputs = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    inputs = [node for node in inputs if isinstance(node.meta.get("val"), Tensor)]
    for node, opened in zip(inputs, axes.opened(), strict=True):
        for axis, name in opened.items():
            size = node.meta["val"].shape[axis]
            if isinstance(size, int) or str(size) in symbols:
                continue
            symbols[str(size)] = name
            least, most = limits(program, size)
            if most < _SIZES[-1]:
                found.append(Condition(f"{name} <= {most:.0f}", (name,), _at_most(name, most)))
            if least > 2:
                found.append(Condition(f"{name} >= {least}", (name,), _at_least(name, least)))
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten._assert_scalar.default:
            asserted, names = node.args[0], set[str]()
            if _is_about_sizes(asserted, symbols, names) and names:
                found.append(Condition(_text(asserted, symbols), tuple(sorted(names)), _asserted(asserted, symbols)))
    if getattr(program, "_guards_code", None) != []:  # kept as text, or not known to this version of torch
        found += [
            Condition(f"{name} is as in the example", (name,), _none_of(name, _WITHOUT_CONDITIONS))
            for name in dict.fromkeys(symbols.values())
        ]
    return found


def _at_most(name: str, most: float) -> Callable[[Mapping[str, int]], bool]:
    return lambda sizes: sizes[name] <= most


def _at_least(name: str, least: int) -> Callable[[Mapping[str, int]], bool]:
    return lambda sizes: sizes[name] >= least


def _none_of(name: str, tried: tuple[int, ...]) -> Callable[[Mapping[str, int]], bool]:
    return lambda sizes: sizes[name] not in tried


def _asserted(node: Any, symbols: Mapping[str, str]) -> Callable[[Mapping[str, int]], bool]:
    return lambda sizes: bool(_value(node, symbols, sizes, {}))


def _symbol(node: fx.Node) -> str:
    """The symbol of an integer in the graph, such as s77; an expression of several for anything else."""
    value = node.meta.get("val")
    return str(value) if isinstance(value, torch.SymInt) else ""


def _is_about_sizes(node: Any, symbols: Mapping[str, str], names: set[str]) -> bool:
    """Whether a value follows from the sizes of open axes alone; adds those that it reads."""
    if not isinstance(node, fx.Node):
        return True
    if _symbol(node) in symbols:
        names.add(symbols[_symbol(node)])
        return True
    if node.op != "call_function" or isinstance(node.meta.get("val"), Tensor) or not node.all_input_nodes:
        return False
    return all(_is_about_sizes(argument, symbols, names) for argument in node.all_input_nodes)


def _value(node: Any, symbols: Mapping[str, str], sizes: Mapping[str, int], known: dict[fx.Node, Any]) -> Any:
    if not isinstance(node, fx.Node):
        return node
    if _symbol(node) in symbols:
        return sizes[symbols[_symbol(node)]]
    if node not in known:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: _value(each, symbols, sizes, known))
        known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]


def _text(asserted: Any, symbols: Mapping[str, str]) -> str:
    text = str(asserted.meta.get("val", asserted)) if isinstance(asserted, fx.Node) else str(asserted)
    for symbol, name in symbols.items():
        text = re.sub(rf"\b{symbol}\b", name, text)
    return text


def _breaking(condition: Condition, own: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yields sizes that break a condition, those near to the example's first."""
    sizes = {name: own[name] for name in condition.names}
    moved = [{**sizes, name: size} for name in sizes for size in _SIZES]
    if 1 < len(sizes) <= 3:
        moved += [dict(zip(sizes, grid, strict=True)) for grid in itertools.product(_SMALL, repeat=len(sizes))]

    def distance(candidate: Mapping[str, int]) -> int:
        return sum(abs(size - own[name]) for name, size in candidate.items())

    return (candidate for candidate in sorted(moved, key=distance) if not condition.holds(candidate))


def _without_assertions(program: ExportedProgram) -> nn.Module:
    plain = program.module(check_guards=False)
    for node in list(plain.graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten._assert_scalar.default:
            plain.graph.erase_node(node)
    plain.recompile()
    # Its hook checks the inputs' shapes against the ranges.
    plain._forward_pre_hooks.clear()
    return plain


def _run(model: nn.Module, batch: Batch) -> list[Tensor] | Exception:
    try:
        result = only_tensors(run_copy(model, batch))
    except Exception as error:  # the user's forward may raise anything; that it does is the answer
        return error
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _difference(expected: list[Tensor], traced: list[Tensor] | Exception) -> str:
    """What differs between the model's results and the traced program's; empty if nothing does."""
    if isinstance(traced, Exception):
        return f"what was traced fails there: {first_line(traced)}"
    for one, two in zip(expected, traced, strict=True):
        if one.shape != two.shape:
            return f"it gives {tuple(one.shape)}, what was traced gives {tuple(two.shape)}"
        if one.numel() and not torch.allclose(one.double(), two.double(), rtol=0, atol=_tolerance(one), equal_nan=True):
            return "what was traced gives other values there"
    return ""


def _tolerance(value: Tensor) -> float:
    share = rounding_share(value.dtype)
    return share * value.double().abs().nan_to_num(0, 0, 0).max().item() if share else 0.0
