"""Exported programs (`torch.export`) as modules in eval mode, with what was in training mode and what cannot be."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

from jumpout_export.model.norms import COUNTER, STATISTICS
from jumpout_export.model.randomness import RandomCall
from jumpout_export.model.tracing import is_users_file
from jumpout_export.program.sizes import InputSizes
from jumpout_export.report import FoldedLayer
from jumpout_export.text import joined

# Arguments of torch's operators that say whether noise is on, and what says so.
_SWITCHES = ("train", "training", "use_input_stats")
_RATES = ("p", "dropout_p", "dropout")
_FRAME = re.compile(r'File "(?P<file>.*?)", line (?P<line>\d+)')
_AS_FUNCTION = "is no layer of torch, so it was taken to be off in eval mode"


class ProgramNetwork(fx.GraphModule):
    """The graph of an exported program, in eval mode; parameters and buffers keep their names."""

    def __deepcopy__(self, memo: Any) -> fx.GraphModule:
        with warnings.catch_warnings():
            # torch's own specs of inputs and outputs warn about their class when they are copied.
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            copied: fx.GraphModule = super().__deepcopy__(memo)
        _check_sizes(copied)  # hooks that take keyword arguments are not copied along
        return copied

    def double(self) -> Self:
        """Casts all parameters and buffers to float64, and the float32 that the graph itself makes or casts to."""
        for graph in _graphs(self):
            for node in graph.nodes:
                node.args = _in_double(node.args)
                node.kwargs = _in_double(node.kwargs)
        for module in self.modules():
            if isinstance(module, fx.GraphModule):
                module.recompile()
        return super().double()


@dataclass
class ProgramFacts:
    """What was done to a program to get its eval network."""

    sizes: InputSizes  # the sizes of its inputs that it takes
    layers: list[FoldedLayer] = field(default_factory=list)  # the noise that was switched off
    notes: list[str] = field(default_factory=list)  # sentences on what else was
    # the noise that cannot be, and that no deterministic graph equals
    refused: list[RandomCall] = field(default_factory=list)
    # noise that was on and belongs to no layer of torch, so that it may be on in eval mode too
    functional: list[RandomCall] = field(default_factory=list)
    off: list[str] = field(default_factory=list)  # the nodes that the program has in eval mode


@dataclass(frozen=True)
class BatchNormNode:
    """A batch normalisation in a program's graph, with the buffers it reads."""

    running_mean: Tensor | None
    running_var: Tensor | None
    eps: float


def as_module(model: Any) -> Any:
    """Returns the eval network of an exported program as a module, anything else as it is.

    In a program that was exported in train mode, what follows a layer's mode is taken in eval mode: dropout of all
    kinds and of attention and recurrent layers is the identity, RReLU a LeakyReLU, BatchNorm uses its running
    statistics. What cannot be is kept, and `program_facts` names it. Inputs of other sizes than the program takes are
    refused when it is called.
    """
    if not isinstance(model, ExportedProgram):
        return model
    # Checking guards would run source text that the program carries.
    plain = model.module(check_guards=False)
    facts = ProgramFacts(InputSizes(model))
    for graph in _graphs(plain):
        for node in list(graph.nodes):
            if node.op == "call_function" and isinstance(node.target, OpOverload):
                _to_eval(graph, node, facts)
        _drop_updates(graph)
    network = ProgramNetwork(plain, plain.graph)
    network.meta["jumpout_export"] = facts
    _check_sizes(network)
    if facts.functional and not facts.off:
        places = joined([str(call) for call in facts.functional])
        facts.notes.append(f"{places} {_AS_FUNCTION}; export the module itself if it is not")
    elif facts.functional:  # a program in eval mode: what is on there stays on
        facts.refused += facts.functional
    return network.eval()


def program_facts(model: nn.Module) -> ProgramFacts | None:
    """Returns what `as_module` did to get this module, None for any other module."""
    facts = getattr(model, "meta", {}).get("jumpout_export") if isinstance(model, ProgramNetwork) else None
    return facts if isinstance(facts, ProgramFacts) else None


def program_batchnorms(model: ProgramNetwork) -> list[tuple[str, BatchNormNode]]:
    """Returns the batch normalisations of a program by the path of their layer."""
    found: list[tuple[str, BatchNormNode]] = []
    for graph in _graphs(model):
        for node in graph.nodes:
            if node.op == "call_function" and isinstance(node.target, OpOverload) and _normalises(node):
                values = [_tensor(model, _argument(node, name)) for name in STATISTICS]
                eps = _argument(node, "eps")
                place = _call(node).module or str(node.name)
                found.append((place, BatchNormNode(values[0], values[1], 0.0 if eps is None else float(eps))))
    return found


def _in_double(arguments: Any) -> Any:
    return fx.node.map_aggregate(arguments, lambda value: torch.float64 if value is torch.float32 else value)


def _check_sizes(network: fx.GraphModule) -> None:
    network.register_forward_pre_hook(network.meta["jumpout_export"].sizes.check, with_kwargs=True)


def _to_eval(graph: fx.Graph, node: fx.Node, facts: ProgramFacts) -> None:
    """Switches one node to eval mode in place, and notes what it was."""
    switches = [name for name in _SWITCHES if isinstance(_argument(node, name), bool)]
    rate = next((float(value) for name in _RATES if isinstance(value := _argument(node, name), int | float)), None)
    call = _call(node)
    if _normalises(node):
        _normalise(node, switches, call, facts)
    elif "rrelu" in _name(node):
        if _uses_noise(node):
            facts.refused.append(call)
            return
        if _argument(node, switches[0]):
            facts.layers.append(_layer(call, "leaky_relu", f"lower={_argument(node, 'lower')}"))
        _to_leaky_relu(graph, node)
    elif switches or (rate is not None and _has(node, "dropout_p")):
        on = all(_argument(node, name) for name in switches) and rate != 0
        for name in switches:
            _set(node, name, False)
        if _has(node, "dropout_p"):
            _set(node, "dropout_p", 0.0)
        if on:
            facts.layers.append(_layer(call, "identity", f"p={rate}"))
            if not _is_layer(node):
                facts.functional.append(call)
        elif rate:
            facts.off.append(str(node.name))
    elif torch.Tag.nondeterministic_seeded in node.target.tags:  # type: ignore[union-attr]
        facts.refused.append(call)


def _normalise(node: fx.Node, switches: list[str], call: RandomCall, facts: ProgramFacts) -> None:
    if _argument(node, STATISTICS[0]) is None or not switches:
        return  # without running statistics it is no other in eval mode; the audit refuses it
    if _argument(node, switches[0]):
        place = call.module or node.name
        facts.notes.append(f"in training mode in the program: `{place}`; its running statistics are used")
        _set(node, switches[0], False)
    else:
        facts.off.append(str(node.name))


def _uses_noise(node: fx.Node) -> bool:
    return any(user.target is operator.getitem and user.args[1] != 0 for user in node.users)


def _to_leaky_relu(graph: fx.Graph, node: fx.Node) -> None:
    bounds = [_argument(node, name) for name in ("lower", "upper")]
    slope = sum(float(bound) for bound in bounds) / 2
    in_place = _name(node).endswith("_")
    target = torch.ops.aten.leaky_relu_.default if in_place else torch.ops.aten.leaky_relu.default
    with graph.inserting_before(node):
        new = graph.call_function(target, (node.args[0], slope))
    new.meta = dict(node.meta)
    # With the noise as a second result, the first one is taken out of a tuple.
    results = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    for old in [*results, node]:
        old.replace_all_uses_with(new)
        graph.erase_node(old)


def _drop_updates(graph: fx.Graph) -> None:
    """Removes what writes running statistics, which only training does."""
    for node in list(graph.nodes):
        written = node.args[0] if node.args else None
        if (
            node.op == "call_function"
            and not node.users
            and getattr(node.target, "__name__", "").startswith(("add_.", "copy_."))
            and isinstance(written, fx.Node)
            and written.op == "get_attr"
            and str(written.target).endswith((*STATISTICS, COUNTER))
        ):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()


def _graphs(model: nn.Module) -> Iterator[fx.Graph]:
    """The graph and those of torch.cond and its like."""
    for module in model.modules():
        if isinstance(module, fx.GraphModule):
            yield module.graph


def _normalises(node: fx.Node) -> bool:
    return _has(node, STATISTICS[0])


def _is_layer(node: fx.Node) -> bool:
    """Whether the node was called by a layer of torch, whose noise follows its mode."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return bool(stack) and str(stack[-1][1]).removeprefix("<class '").startswith("torch.nn.modules.")


def _call(node: fx.Node) -> RandomCall:
    """The node as a call: with the path of its module, and the line of the user's source."""
    stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    frames = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    file, line = next(((name, int(number)) for name, number in reversed(frames) if is_users_file(name)), ("", 0))
    module = stack[-1] if stack and not stack[-1].startswith("_empty_nn_module_stack") else ""
    return RandomCall(f"node `{node.name}` ({node.target})", module, file, line)


def _layer(call: RandomCall, action: str, settings: str) -> FoldedLayer:
    kind = call.operator.partition("(")[2].removesuffix(")").removeprefix("aten.").partition(".")[0]
    return FoldedLayer(path=call.module, kind=kind, action=action, settings=settings)


def _name(node: fx.Node) -> str:
    return str(node.target).split(".")[1]


def _position(node: fx.Node, name: str) -> tuple[int, Any]:
    """Where an operator takes an argument, and its default; -1 if there is no such argument."""
    arguments = enumerate(node.target._schema.arguments)  # type: ignore[union-attr]
    return next(((index, one.default_value) for index, one in arguments if one.name == name), (-1, None))


def _has(node: fx.Node, name: str) -> bool:
    return _position(node, name)[0] >= 0


def _argument(node: fx.Node, name: str) -> Any:
    """The value of an operator's argument, its default where it is not given; None if there is no such argument."""
    index, default = _position(node, name)
    return node.args[index] if 0 <= index < len(node.args) else node.kwargs.get(name, default)


def _set(node: fx.Node, name: str, value: Any) -> None:
    index, _ = _position(node, name)
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


def _tensor(model: nn.Module, node: Any) -> Tensor | None:
    """What a get_attr node reads, None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    path, _, name = str(node.target).rpartition(".")
    value = getattr(model.get_submodule(path), name, None)
    return value if isinstance(value, Tensor) else None
