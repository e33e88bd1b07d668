"""Finds the noise of training in a graph: what can be taken out without changing the network, and what cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from jumpout_export.fold.file.factors import Factor, Form, Keep, Noised, Uniform, describe, rounding
from jumpout_export.fold.file.masks import Forms
from jumpout_export.fold.file.values import Values, attribute, made_by, standard
from jumpout_export.onnxfile.training import RANDOM_OPERATORS, batchnorm_trains, dropout_trains
from jumpout_export.onnxfile.walk import default_opset, main_sites

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto

_IN_EVAL = "export the model in eval mode instead"


@dataclass(frozen=True)
class NoiseSite:
    """A value that is its own input times dropout, and becomes that input."""

    y: ir.Value  # the value
    x: ir.Value  # what it becomes
    where: str  # the node that computes y, for a person
    factor: Factor | None = None  # the masks and their scale; None for a Dropout node


@dataclass
class Noise:
    """The noise of a model."""

    where: dict[ir.Node, str]  # the name of each node for a person
    inputs: set[ir.Value]  # inputs of all graphs
    values: Values  # what is known of each value
    opset: int  # of ONNX's own operators
    sites: list[NoiseSite] = field(default_factory=list)  # what can be folded
    refused: list[str] = field(default_factory=list)  # what cannot, one sentence each that names the node
    kept: list[str] = field(default_factory=list)  # Dropout nodes that are off and stay
    off: int = 0  # Dropout nodes that are off, and go
    # random nodes and Dropout nodes that are gone after the fold
    removed: list[ir.Node] = field(default_factory=list)
    alive: set[ir.Node] = field(default_factory=set)  # the nodes that are needed after the fold
    # values that are x times a whole dropout, but not of the shape of x, or not alone
    doubts: dict[ir.Value, str] = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether there is anything to take out."""
        return bool(self.sites or self.removed)

    def becomes(self, value: ir.Value) -> ir.Value:
        """Returns what takes the value's place after the fold, the value itself if nothing does."""
        while value in self.replaced:
            value = self.replaced[value]
        return value

    @cached_property
    def replaced(self) -> dict[ir.Value, ir.Value]:
        """What each site's y becomes, in one step."""
        return {site.y: site.x for site in self.sites}


def find_noise(model: ir.Model, proto: ModelProto, *, written_out: bool = False) -> Noise:
    """Returns what is random or in training mode in the main graph and its subgraphs; functions are not looked into.

    The model has the types of its values; `proto` is the protobuf that it was read from, where functions were written
    out or not.
    """
    nodes = list(model.graph.all_nodes())
    where = {node: site.where for node, site in zip(nodes, main_sites(proto), strict=True)}
    inputs = {value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.inputs}
    noise = Noise(where, inputs, Values(inputs), default_opset(proto))
    forms = Forms(noise.values)
    for node in nodes:
        noise.values.add(node)
        forms.add(node)
    trains = {node: _trains(node, noise) for node in nodes if standard(node)}
    known = [node for node in trains if node.op_type == "Dropout" and trains[node] is not None]
    noisy = written_out or any(trains.values()) or any(node.op_type in RANDOM_OPERATORS for node in trains)
    stay = [node for node in known if not trains[node] and _said_off(node, noise, noisy)]
    noise.kept = [where[node] for node in stay]
    gone = [node for node in known if node not in stay]
    noise.off = sum(not trains[node] for node in gone)
    dropouts = [NoiseSite(node.outputs[0], x, where[node]) for node in gone for x in node.inputs[:1] if x is not None]
    noise.sites = [*dropouts, *_masks(nodes, forms, noise)]
    noise.alive, reached = _alive(model.graph, noise)
    noise.sites = [site for site in noise.sites if site.y in reached]
    for node in nodes:
        random = standard(node) and node.op_type in RANDOM_OPERATORS
        if node not in noise.alive:
            noise.removed += [node] * (random or node in gone)
        elif random:
            noise.refused.append(f"{where[node]} {_why_random(node, forms, noise)}")
        elif node in gone:
            noise.refused.append(f"{where[node]} {_why_mask(node, noise)}")
        elif trains.get(node, False) is not False:
            noise.refused.append(f"{where[node]} {_why_training(node, noise)}")
    return noise


def _trains(node: ir.Node, noise: Noise) -> bool | None:
    """Whether one of ONNX's own nodes is in training mode; None if that is not known."""
    is_test = attribute(node, "is_test", 0)
    if node.op_type == "Dropout":
        flag = _flag(node)
        number = 0 if flag is None else noise.values.number(flag)
        return dropout_trains(noise.opset, is_test, None if number is None else bool(number))
    if node.op_type == "BatchNormalization":
        statistics = any(value.name for value in node.outputs[1:])
        return batchnorm_trains(noise.opset, is_test, attribute(node, "training_mode", 0), statistics)
    return False


def _flag(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def _said_off(node: ir.Node, noise: Noise, noisy: bool) -> bool:
    """Whether a Dropout that is off can stay: the file says so without anything computed.

    ONNX Runtime has no Dropout of opset 6 or older, so where a file is changed anyhow, it would not run with one.
    """
    if noise.opset < 7:
        return not noisy
    flag = _flag(node)
    return bool(flag is None or flag.producer() is None or made_by(flag, "Constant") is not None)


def _masks(nodes: list[ir.Node], forms: Forms, noise: Noise) -> list[NoiseSite]:
    """The values that are x times a whole dropout, of the shape of x, whose random numbers decide one thing only."""
    sites = []
    for node in nodes:
        form = forms.of.get(node.outputs[0]) if len(node.outputs) == 1 else None
        whole = forms.finished(form, rounding(node)) if isinstance(form, Noised) else None
        if whole is None:
            continue
        if all(noise.values.broadcasts_into(value, whole.x) for value in node.inputs if value is not None):
            sites.append(NoiseSite(node.outputs[0], whole.x, noise.where[node], whole.factor))
        else:
            noise.doubts[node.outputs[0]] = f"its shape is not proven to be that of `{whole.x.name}`"
    events: dict[ir.Node, set[tuple[Keep, bool]]] = {}
    for mask in (mask for site in sites if site.factor for mask in site.factor.masks):
        events.setdefault(mask.source, set()).add((mask.keep, mask.low))
    for site in sites:
        if site.factor and any(len(events[mask.source]) > 1 for mask in site.factor.masks):
            noise.doubts[site.y] = "its random numbers decide another mask too"
    return [site for site in sites if site.y not in noise.doubts]


def _alive(graph: ir.Graph, noise: Noise) -> tuple[set[ir.Node], set[ir.Value]]:
    """The nodes from which an output is computed once every site has become its x, and the values on that way."""
    alive: set[ir.Node] = set()
    reached: set[ir.Value] = set()
    queue = list(graph.outputs)
    while queue:
        value = queue.pop()
        reached.add(value)
        if value in noise.replaced:
            queue.append(noise.replaced[value])
            continue
        node = value.producer()
        if node is not None and node not in alive:
            alive.add(node)
            queue += [value for value in node.inputs if value is not None]
            queue += [value for inner in _subgraphs(node) for value in inner.outputs]
    return alive, reached


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    import onnx_ir as ir

    for held in node.attributes.values():
        if held.type == ir.AttributeType.GRAPH and not held.is_ref():
            yield held.as_graph()
        elif held.type == ir.AttributeType.GRAPHS and not held.is_ref():
            yield from held.as_graphs()


def _why_mask(node: ir.Node, noise: Noise) -> str:
    users = [noise.where[use.node] for value in node.outputs[1:] for use in value.uses() if use.node in noise.alive]
    return f"is in training mode, and its mask is used by {users[0]}" if users else "has its mask as an output"


def _why_training(node: ir.Node, noise: Noise) -> str:
    flag = _flag(node)
    if node.op_type == "Dropout" and flag is not None:
        source = "an input of the graph" if flag in noise.inputs else "computed in the graph"
        return f"drops or not as its training_mode `{flag.name}` says, which is {source}; {_IN_EVAL}"
    if noise.opset < 7:
        return f"is in training mode (is_test is 0); {_IN_EVAL}"
    return (
        "is in training mode: it normalizes with the statistics of the batch it is given, and those that "
        f"training recorded may never have been used; a network that does is another one; {_IN_EVAL}"
    )


def _why_random(source: ir.Node, forms: Forms, noise: Noise) -> str:
    """Where the random numbers end up, and why that is nothing to take out."""
    queue, seen = [source.outputs[0]], {source.outputs[0]}
    while queue:
        value = queue.pop(0)
        if value in noise.doubts:
            return f"makes {_what(forms.of.get(value))} in `{value.name}`, but {noise.doubts[value]}; {_IN_EVAL}"
        for use in value.uses():
            if use.node not in noise.alive:
                continue
            after = [output for output in use.node.outputs if output in forms.of]
            if not after and not _passes(use.node, value, noise):
                return f"{_explained(source, forms.of.get(value), use.node, noise)}; {_IN_EVAL}"
            queue += [output for output in use.node.outputs if output not in seen and noise.becomes(output) is output]
            seen.update(use.node.outputs)
        if value.is_graph_output():
            return f"reaches `{value.name}`, an output of its graph, as {_what(forms.of.get(value))}; {_IN_EVAL}"
    return f"is part of nothing that is known here; {_IN_EVAL}"


def _passes(node: ir.Node, value: ir.Value, noise: Noise) -> bool:
    """Whether the node only scales, shifts or bounds the random numbers by constants."""
    others = [other for other in node.inputs if other is not None and other is not value]
    known = {"Identity", "Cast", "Abs", "Neg", "Expand", "Reshape", "Clip", "Mul", "Div", "Add", "Sub", "Exp"}
    return standard(node) and node.op_type in known and all(noise.values.number(other) is not None for other in others)


def _explained(source: ir.Node, form: Form | None, node: ir.Node, noise: Noise) -> str:
    kind, target = ("normal" if "Normal" in source.op_type else "random"), noise.where[node]
    if (isinstance(form, Factor) and form.masks) or isinstance(form, Noised):
        return f"reaches {target} as {_what(form)}"
    if not standard(node):
        return f"draws {kind} numbers for {target}"
    if node.op_type == "PRelu":
        return f"draws the slope of {target}, an RReLU, which has another in eval mode"
    if node.op_type in ("Add", "Sub"):
        return f"draws {kind} numbers that are added in {target}"
    if node.op_type in ("Mul", "Div"):
        return f"draws {kind} numbers that are a factor in {target}, and no keep mask"
    return f"draws {kind} numbers for {target}, which makes no keep mask of them"


def _what(form: Form | None) -> str:
    if isinstance(form, Uniform) or form is None:
        return "plain random numbers"
    factor = form.factor if isinstance(form, Noised) else form
    if not factor.masks:
        return "a scale"
    scaled = "; only (1 / keep)^alpha would be the identity at rate 0" if factor.number != 1 or factor.powers else ""
    return f"a mask with {describe(factor)}{scaled or ': without a scale, what it is at rate 0 is not in the file'}"
