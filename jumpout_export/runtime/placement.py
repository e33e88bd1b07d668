"""The proof of where a file ran: the execution provider of every single node, as ONNX Runtime assigned it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.report import Check
from jumpout_export.runtime.provider import Placed
from jumpout_export.runtime.providers import PROVIDERS, fallback
from jumpout_export.text import joined

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def check_placement(label: str, provider: str, nodes: Iterable[Placed], path: Path) -> Check:
    """Returns the check that every node runs on the provider: measured is how many do not, limit 0.

    ONNX Runtime leaves what computes shapes on the CPU on purpose, where shapes are needed. Such a node reads shapes
    and constants only, no value of an input reaches it, so it is counted in the note and is no failure. Any other
    node is named.

    Args:
        label: of the session, for example `cuda/all`; the check is `label/nodes`.
        provider: its name, for example `cuda`.
        nodes: of the session.
        path: the file, for what its nodes read; opened only if a node is elsewhere.
    """
    nodes = list(nodes)
    wanted, cpu = PROVIDERS[provider].onnxruntime_name, fallback().onnxruntime_name
    away = [node for node in nodes if node.provider != wanted]
    shapes = _shape_computations(path) if any(node.provider == cpu for node in away) else frozenset()
    allowed = [node for node in away if node.provider == cpu and (node.name, node.operator) in shapes]
    wrong = [node for node in away if node not in allowed]
    note = f"{len(nodes) - len(away)} nodes run on {wanted}"
    if allowed:
        note += f"; {len(allowed)} on the CPU read shapes and constants only"
    if wrong:
        what = joined([str(node) for node in wrong], 4)
        note = f"{len(wrong)} of {len(nodes)} nodes do not run on {wanted}, most often for want of a kernel: {what}"
    good = bool(nodes) and not wrong and len(nodes) > len(allowed)
    if not good and not wrong:
        note = f"no node runs on {wanted}"
    return Check(name=f"{label}/nodes", measured=len(wrong), limit=0, verdict="pass" if good else "fail", note=note)


def _shape_computations(path: Path) -> frozenset[tuple[str, str]]:
    """Name and operator of the file's nodes that no value of an input reaches.

    A name is taken only if every node that has it, with this operator, is of that kind: names need not be unique.
    """
    import onnx

    kinds: dict[tuple[str, str], list[bool]] = defaultdict(list)
    model = onnx.load(path, load_external_data=False)
    _walk(model.graph, frozenset(), kinds)
    for function in model.functions:
        for node in function.node:  # its inputs may be anything
            kinds[node.name, node.op_type].append(False)
    return frozenset(key for key, only_shapes in kinds.items() if all(only_shapes))


def _walk(graph: GraphProto, outer: frozenset[str], kinds: dict[tuple[str, str], list[bool]]) -> None:
    inner = {value.name for value in graph.input}
    known = {*outer, *(tensor.name for tensor in graph.initializer), *(t.values.name for t in graph.sparse_initializer)}
    known -= inner - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        reads_shapes_only = (
            not _subgraphs(node)
            and _default_domain(node)
            and (node.op_type in ("Shape", "Size") or all(name in known for name in node.input if name))
        )
        kinds[node.name, node.op_type].append(reads_shapes_only)
        if reads_shapes_only:
            known.update(node.output)
        else:
            known.difference_update(node.output)  # an outer value of the same name is hidden
        for subgraph in _subgraphs(node):
            _walk(subgraph, frozenset(known), kinds)


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    return [graph for value in node.attribute for graph in ([value.g] if value.HasField("g") else value.graphs)]


def _default_domain(node: NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")
