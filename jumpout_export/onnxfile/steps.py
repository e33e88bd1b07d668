"""Which constants each node of an ONNX file reads at which of its inputs, and which nodes come before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpout_export.onnxfile.computed import Reads, Source
from jumpout_export.onnxfile.walk import graphs_of, messages

if TYPE_CHECKING:
    from onnx import NodeProto


@dataclass(frozen=True)
class Step:
    """A node of the main graph that an input's values reach.

    Attributes:
        node: itself.
        reads: the constants that it reads, or what sizes make of them, each with the number of the node's input; -1
            where a subgraph of the node reads it.
        before: numbers of the steps whose results it reads.
    """

    node: NodeProto
    reads: tuple[tuple[int, Source], ...]
    before: tuple[int, ...]


def steps_of(file: Reads) -> list[Step]:
    """Returns the nodes of the main graph that data reach, in their order."""
    steps: list[Step] = []
    made_by: dict[str, int] = {}
    carried: dict[str, tuple[Source, ...]] = {}  # of what sizes make of constants
    for node in file.model.graph.node:
        if all(isinstance(file.main.get(name), Source) for name in node.output):
            continue
        read_here = node.input[:1] if node.op_type == "CastLike" else node.input
        names = [*enumerate(read_here), *((-1, name) for name in read_inside(node))]
        read: list[tuple[int, Source]] = []
        for place, name in names:
            source = file.main.get(name)
            read += [(place, source)] if isinstance(source, Source) else []
            read += [(place, one) for one in carried.get(name, ())]
        if any(file.main.get(name) is True for name in node.output):
            before = tuple(dict.fromkeys(made_by[name] for _, name in names if name in made_by))
            made_by |= dict.fromkeys(node.output, len(steps))
            steps.append(Step(node, tuple(read), before))
        elif read:
            carried |= dict.fromkeys(node.output, tuple(dict.fromkeys(source for _, source in read)))
    return steps


def read_inside(node: NodeProto) -> list[str]:
    """Returns the names that a node's subgraphs read or return, of values around them and of their own."""
    found: dict[str, None] = {}
    for _, graph in graphs_of(node):
        for message in messages(graph):
            if message.DESCRIPTOR.name == "NodeProto":
                found |= dict.fromkeys(message.input)
            elif message.DESCRIPTOR.name == "GraphProto":
                found |= dict.fromkeys(value.name for value in message.output)
    return list(found)
