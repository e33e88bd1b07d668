"""Whether every branch of an If, and every body of a Loop or Scan, was run by some sample.

A branch that no sample takes may hold anything. A copy of the file has a marked node at the end of each subgraph, at
any depth, and ONNX Runtime's profile says which of these ran.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jumpout_export.export.checks import counted, first_line
from jumpout_export.export.copies import copy_data, inlined
from jumpout_export.export.graph import load_onnx
from jumpout_export.export.limits import run_within_limits, within_memory
from jumpout_export.export.protos import Site, sites
from jumpout_export.export.signature import tensors
from jumpout_export.nn.batches import Batch
from jumpout_export.report import Check

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_MARK = "jumpout_export_branch_"


class Branches:
    """Watches which subgraphs of a file run, on ONNX Runtime's CPU; free for a file without one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._problem = ""
        self._marks: dict[str, str] = {}
        self._seen: set[str] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            model = load_onnx(path)
            if not any(True for site in sites(model) for _ in _subgraphs(site)):
                return
            model = copy.deepcopy(inlined(model))
            self._marks = _mark(model)
            self._folder = tempfile.TemporaryDirectory()
            copy_data(path, model, self._where)
            (self._where / "marked.onnx").write_bytes(model.SerializeToString())
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
            return counted("branches", [f"which branches of the file run could not be seen: {self._problem}"])
        if not self._marks:
            return None
        never = [f"the {where} was never run" for mark, where in self._marks.items() if mark not in self._seen]
        if never:
            never[-1] += "; give inputs that take it, what is in it is not verified"
        return counted("branches", never, f"{len(self._marks)} of {len(self._marks)} were run")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the copy."""
        if self._folder is not None:
            self._folder.cleanup()

    def _profiled(self, batch: Batch) -> set[str]:
        """The names of the nodes that run. A session of its own for each batch: a profile holds a million events."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling = True
        options.profile_file_prefix = str(self._where / "profile")
        options.log_severity_level = 4
        session = within_memory(
            lambda: onnxruntime.InferenceSession(
                str(self._where / "marked.onnx"), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        )
        names = [value.name for value in session.get_inputs()]
        try:
            feeds = {name: value.numpy(force=True) for name, value in zip(names, tensors(batch), strict=True)}
            run_within_limits(session, [value.name for value in session.get_outputs()], feeds)
        finally:
            profile = Path(session.end_profiling())
        events = json.loads(profile.read_text(encoding="utf-8"))
        profile.unlink()
        return {event["name"].removesuffix("_kernel_time") for event in events if event.get("cat") == "Node"}


def _subgraphs(site: Site) -> Iterator[tuple[str, GraphProto]]:
    for attribute in site.node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            if not _settled(site, attribute.name):
                yield attribute.name, graph


def _settled(site: Site, branch: str) -> bool:
    """Whether the condition of an If is a constant that never takes this branch."""
    from onnx import numpy_helper

    if site.node.op_type != "If" or len(site.node.input) != 1:
        return False
    condition = site.constants.get(site.node.input[0])
    if condition is None:
        return False
    return bool(numpy_helper.to_array(condition).reshape(-1)[0]) != (branch == "then_branch")


def _mark(model: ModelProto) -> dict[str, str]:
    """Puts a named Identity before the first output of every subgraph; returns its name -> where that is."""
    from onnx import helper

    marks: dict[str, str] = {}
    for branch, graph, where in _found(sites(model)):
        mark = f"{_MARK}{len(marks)}"
        output = graph.output[0]
        graph.node.append(helper.make_node("Identity", [output.name], [mark], name=mark))
        output.name = mark
        marks[mark] = f"{branch} of {where}"
    return marks


def _found(every: Iterable[Site]) -> list[tuple[str, Any, str]]:
    return [(name, graph, site.where) for site in every for name, graph in _subgraphs(site) if graph.output]
