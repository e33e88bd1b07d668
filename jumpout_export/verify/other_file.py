"""The file that another one is compared with: whether it is free of noise itself, and run here as it is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jumpout_export.errors import NotFoldableError, NotVerifiableError
from jumpout_export.filenetwork.network import FileNetwork, declared_shape
from jumpout_export.model.batches import Batch
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.static import of_another_writer
from jumpout_export.report import Check, counted
from jumpout_export.runtime.loads import inspect_file
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.text import first_line
from jumpout_export.verify.runner import OTHER, run_providers

if TYPE_CHECKING:
    from onnx import ModelProto

_NAME = "other file"
AS_RUN = f"{_NAME} as run"


def check_other_file(network: FileNetwork) -> Check:
    """Returns whether the file that a network was read from may be run, and holds nothing random: `inspect_onnx` of it.

    Raises:
        NotFoldableError: of the check, if it does not: there is nothing to compare with.
    """
    proto = load_onnx(network.path)
    checks = of_another_writer(inspect_file(network.path, proto), proto)
    failed = [f"{check.name}: {check.note}" for check in checks if check.blocks]
    if failed:
        raise NotFoldableError(f"{network.path}: {'; '.join(failed)}", check=_NAME)
    return counted(_NAME, [], f"{network.path} holds nothing random")


def check_open_axes(file: ModelProto, network: FileNetwork) -> Check:
    """Returns whether a file takes every size that the other one takes: what that leaves open is not fixed in it."""
    new = {value.name: declared_shape(value) for value in file.graph.input}
    fixed = []
    for name, wanted in network.shapes.items():
        have = new.get(name)  # an input that is missing is reported where names are
        for axis, size in enumerate(have or ()):
            if isinstance(size, int) and (wanted is None or (axis < len(wanted) and not isinstance(wanted[axis], int))):
                fixed.append(f"axis {axis} of input `{name}` is fixed at {size}, {network.path.name} leaves it open")
    if fixed:
        fixed[-1] += "; if that is meant, compare with a copy of it whose axis has that size, too"
    return counted(f"{OTHER}open axes", fixed, "what it leaves open is open")


def check_as_run(network: FileNetwork, batch: Batch) -> Check:
    """Returns that ONNX Runtime gives for the other file what is compared with: its nodes run by PyTorch and onnx.

    Without it, an operator that is read here in another way than by the runtime would be laid to the new file.

    Raises:
        NotVerifiableError: if it does not, or the other file cannot be run: nothing can be told by it.
    """
    try:
        network(batch.args[0])
    except Exception as error:  # of onnx's reference implementation, without a common base
        raise NotVerifiableError(f"{network.path} cannot be run here: {first_line(error)}") from error
    try:
        report = run_providers(SavedFile(network.path), network, network, [batch], ("cpu",), made_up=False)
    except Exception as error:  # of onnx's reference implementation and ONNX Runtime, without a common base
        raise NotVerifiableError(f"{network.path} cannot be run here: {first_line(error)}") from error
    wrong = [f"{check.name}: {check.note}" for check in report.checks if check.blocks and _is_of_values(check.name)]
    if wrong:
        first = f" (first at {report.first_divergence})" if report.first_divergence else ""
        hint = f"what its nodes mean here is not what ONNX Runtime makes of them{first}, so nothing can be told by it"
        raise NotVerifiableError(f"{network.path}: {wrong[0]}: {hint}")
    good = "ONNX Runtime gives for the other file what its nodes give in PyTorch and in onnx's reference implementation"
    return Check(name=AS_RUN, verdict="pass", note=good)


def _is_of_values(name: str) -> bool:
    """Whether a check compares values; what a file promises of sizes and constants is asked of the new one."""
    return name.startswith(("cpu/off/", "torch/"))
