"""Whether every branch of an If, and every body of a Loop or Scan, was run by some sample.

A branch that no sample takes may hold anything. A copy of the file has a marked node at the end of each subgraph, at
any depth, and ONNX Runtime's profile says which of these ran.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jumpout_export.errors import NotVerifiableError
from jumpout_export.model.batches import Batch
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.data import copy_data
from jumpout_export.onnxfile.load import inlined, load_onnx
from jumpout_export.onnxfile.walk import Site, constants_of, graphs_of, sites
from jumpout_export.report import Check, counted
from jumpout_export.runtime.providers import fallback
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.runtime.session import open_session
from jumpout_export.text import first_line

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

# The name of the check.
BRANCHES = "branches"
_MARK = "jumpout_export_branch_"
_MARKED = re.compile(rf'"({_MARK}\d+)_kernel_time"')
_FILE = "marked.onnx"
# ONNX Runtime's profile holds so many events, and no more.
_MOST_EVENTS = 999_000


@dataclass(frozen=True)
class _Branch:
    """A subgraph: the name that its node has in the copy, and where it is for a person."""

    node: str
    where: str


class Branches:
    """Watches which subgraphs of a file run, on ONNX Runtime's CPU; free for a file without one.

    Args:
        file: the saved file.
        name: of the check.
    """

    def __init__(self, file: SavedFile, name: str = BRANCHES) -> None:
        self._name = name
        self._problem = ""
        self._marks: dict[str, _Branch] = {}
        self._seen: set[str] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            model = file.proto
            if not any(True for site in sites(model) for _ in _subgraphs(site)):
                return
            model = copy.deepcopy(inlined(model))
            self._marks = _mark(model)
            self._folder = tempfile.TemporaryDirectory()
            copy_data(file.path, model, self._where)
            (self._where / _FILE).write_bytes(model.SerializeToString())
        except Exception as error:  # a file may hold anything
            self._problem = first_line(error)

    @property
    def _where(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name)

    def run(self, batch: Batch) -> None:
        """Runs the marked copy, as long as there are subgraphs that have not run yet."""
        if self._problem or len(self._seen) == len(self._marks):
            return
        try:
            self._seen |= self._marks.keys() & self._profiled(batch)
        except Exception as error:  # ONNX Runtime raises a dozen types without a common base
            self._problem = first_line(error)

    def check(self) -> Check | None:
        """Returns whether all subgraphs ran; None for a file without one."""
        if self._problem:
            return counted(self._name, [f"which branches of the file run could not be seen: {self._problem}"])
        if not self._marks:
            return None
        never = {mark: branch for mark, branch in self._marks.items() if mark not in self._seen}
        possible = _still_possible(self._where / _FILE) if never else set()
        wrong = [
            f"the {branch.where} was never run"
            for branch in never.values()
            if any(name.endswith(branch.node) for name in possible)  # what is inlined gets a prefix
        ]
        if wrong:
            wrong[-1] += "; give inputs that take it, what is in it is not verified"
        run = f"{len(self._marks) - len(never)} of {len(self._marks)} were run"
        return counted(
            self._name, wrong, f"{run}, constants and sizes in the file rule the others out" if never else run
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the copy."""
        if self._folder is not None:
            self._folder.cleanup()

    def _profiled(self, batch: Batch) -> set[str]:
        """The names of the nodes that run. A session of its own for each batch: a profile holds a million events."""
        session = open_session(self._where / _FILE, fallback().name, "off", profile=str(self._where / "profile"))
        try:
            session(session.feeds(tensors(batch)))
        finally:
            profile = session.end_profile()
        seen, events = set(), 0
        with profile.open(encoding="utf-8") as lines:  # an event each; of a Loop there may be very many
            for line in lines:
                events += 1
                seen |= set(_MARKED.findall(line))
        profile.unlink()
        if events > _MOST_EVENTS and seen != self._marks.keys():
            raise NotVerifiableError(f"one run has more than {_MOST_EVENTS} events")
        return seen


def _still_possible(marked: Path) -> set[str]:
    """The nodes whose branches inputs decide; all of them where that cannot be worked out."""
    model = load_onnx(marked)
    try:
        return left_open(model)
    except Exception:  # onnx and onnxscript raise a dozen types without a common base
        return {site.node.name for site in sites(model)}


def _subgraphs(site: Site) -> Iterator[tuple[str, GraphProto]]:
    return ((name, graph) for name, graph in graphs_of(site.node) if graph.output)


def _mark(model: ModelProto) -> dict[str, _Branch]:
    """Puts a named Identity before an output of every subgraph; returns its name -> what it marks."""
    from onnx import helper

    marks: dict[str, _Branch] = {}
    found = [(site, list(_subgraphs(site))) for site in sites(model)]
    for number, (site, graphs) in enumerate(found):
        for branch, graph in graphs:
            node, mark = f"{_MARK}node_{number}_", f"{_MARK}{len(marks)}"
            # An Identity of a sequence needs opset 14.
            output = next((value for value in graph.output if value.type.HasField("tensor_type")), graph.output[0])
            graph.node.append(helper.make_node("Identity", [output.name], [mark], name=mark))
            output.name = mark
            marks[mark] = _Branch(node, f"{branch} of {site.where}")
        if graphs:
            site.node.name = node
    return marks


def left_open(model: ModelProto) -> set[str]:
    """Returns the names of the nodes that are left after constants and declared sizes are folded.

    A converter that cannot know a size writes an If about it. Where the file declares that size, one branch can never
    be taken, by any input that the file accepts.

    Args:
        model: with unique names for the nodes that matter; it stays as it is.

    Raises:
        Exception: of onnx or onnxscript, where they cannot read the model.
    """
    import onnxscript.optimizer
    from onnx import shape_inference

    known = copy.deepcopy(model)
    del known.graph.value_info[:]  # nobody holds a file to these; to the sizes of its inputs ONNX Runtime does
    given = {value.name for value in known.graph.input}  # has only a default value: the caller may pass another
    kept = [tensor for tensor in known.graph.initializer if tensor.name not in given]
    del known.graph.initializer[:]
    known.graph.initializer.extend(kept)
    known = shape_inference.infer_shapes(known, data_prop=True)
    _fold_known_sizes(known.graph)
    folded = onnxscript.optimizer.optimize(known)
    return {site.node.name for site in sites(folded)}


def _fold_known_sizes(graph: Any) -> None:
    """Puts a constant in the place of every Gather of a size that is declared.

    The optimizer leaves most of them alone: up to onnxscript 0.7 it takes a list of indices and a written axis only.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.value_info)}
    constants = {name: tensor for name, tensor in constants_of(graph).items() if tensor is not None}
    of = {node.output[0]: node for node in graph.node if node.op_type == "Shape" and not node.attribute}
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in of or node.input[1] not in constants:
            continue
        dims = shapes.get(of[node.input[0]].input[0], [])
        index = numpy_helper.to_array(constants[node.input[1]])
        if not len(dims) or not all(-len(dims) <= i < len(dims) and dims[i].HasField("dim_value") for i in index.flat):
            continue
        sizes = np.array([dims[i].dim_value for i in index.flat], np.int64).reshape(index.shape)
        node.CopyFrom(helper.make_node("Constant", [], list(node.output), value=numpy_helper.from_array(sizes)))
