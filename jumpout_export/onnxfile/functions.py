"""Local functions of an ONNX file: that they can be written out in bounded work, and are nobody else's operators.

A function whose body calls the next one twice, which does the same, doubles its nodes at every level: a few kB take
the ONNX checker, its inliner and ONNX Runtime years. So what a file comes to is counted before anything walks it.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.walk import nodes_of

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto, NodeProto

# How deep functions may call each other, as in the ONNX checker; ONNX Runtime 1.31 needs a stack for each level.
MOST_LEVELS = 100
# Nodes that come out of functions, each counted once for every function around it: that is how often ONNX Runtime
# touches it. It takes about 10 s for the worst file with that many, and a language model of 80 layers has fewer.
MOST_NODES = 200_000

# Domains whose operators ONNX and ONNX Runtime bring. The standard leaves it to a runtime whether a function or an
# operator of the same name runs: ONNX Runtime takes its own kernel, ONNX's reference the function.
_TAKEN = re.compile(r"|ai\.onnx(?:\..*)?|com\.microsoft(?:\..*)?|com\.ms\..*|org\.pytorch\.aten")

_Key = tuple[str, str, str]


def unbounded(model: ModelProto) -> str:
    """Returns why the file's functions cannot be written out in bounded work; empty if they can."""
    bodies = {_key(function.domain, function.name, function.overload): function for function in model.functions}
    if len(bodies) < len(model.functions):
        return "two of its functions have one name"
    calls = {key: Counter(_calls(function.node, bodies)) for key, function in bodies.items()}
    order = _callees_first(calls)
    if order is None:
        return f"its functions call each other in a circle, or more than {MOST_LEVELS} deep"
    nodes: dict[_Key, int] = {}  # of a function written out
    work: dict[_Key, int] = {}  # the same, each node counted once for every function around it
    for key in order:
        own = sum(1 for _ in nodes_of(bodies[key].node))
        nodes[key] = own + sum(times * nodes[callee] for callee, times in calls[key].items())
        work[key] = own + sum(times * (work[callee] + nodes[callee]) for callee, times in calls[key].items())
    graphs = [model.graph, *(graph for info in model.training_info for graph in (info.initialization, info.algorithm))]
    total = sum(work[callee] for graph in graphs for callee in _calls(graph.node, bodies))
    largest = max(total, *work.values(), 0)
    if largest > MOST_NODES:
        return f"its functions come to more than {MOST_NODES:,} nodes once they are written out where they are called"
    return ""


def ambiguous(model: ModelProto) -> list[str]:
    """Returns the functions that one runtime takes for an operator of its own, and another does not."""
    return [
        f"function `{function.domain or 'ai.onnx'}::{function.name}` may be an operator of a runtime's own, which runs "
        "in its place; give it a domain of yours"
        for function in model.functions
        if _TAKEN.fullmatch(function.domain)
    ]


def _calls(nodes: list[NodeProto], bodies: dict[_Key, FunctionProto]) -> list[_Key]:
    keys = (_key(node.domain, node.op_type, node.overload) for node in nodes_of(nodes))
    return [key for key in keys if key in bodies]


def _key(domain: str, name: str, overload: str) -> _Key:
    return "" if domain == "ai.onnx" else domain, name, overload


def _callees_first(calls: dict[_Key, Counter[_Key]]) -> list[_Key] | None:
    """The functions in an order in which each stands behind those it calls; None for a circle or too many levels."""
    left, order, levels = dict(calls), [], 0
    done: set[_Key] = set()
    while left and levels < MOST_LEVELS:
        ready = [key for key, callees in left.items() if callees.keys() <= done]
        if not ready:
            return None
        order += ready
        done.update(ready)
        for key in ready:
            del left[key]
        levels += 1
    return None if left else order
