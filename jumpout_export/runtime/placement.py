"""The proof of where a file ran: the execution provider of every single node, as ONNX Runtime assigned it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jumpout_export.onnxfile.shapes import shape_computations
from jumpout_export.report import Check
from jumpout_export.runtime.provider import Placed
from jumpout_export.runtime.providers import fallback, provider_of
from jumpout_export.text import joined


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
    wanted, cpu = provider_of(provider).onnxruntime_name, fallback().onnxruntime_name
    away = [node for node in nodes if node.provider != wanted]
    shapes = _shape_nodes(path) if any(node.provider == cpu for node in away) else frozenset()
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


def _shape_nodes(path: Path) -> frozenset[tuple[str, str]]:
    import onnx

    return shape_computations(onnx.load(path, load_external_data=False))
