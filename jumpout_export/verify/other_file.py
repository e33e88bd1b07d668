"""The file that another one is compared with: whether it is free of noise itself, and run here as it is served."""

from __future__ import annotations

from jumpout_export.errors import NotFoldableError
from jumpout_export.filenetwork.network import FileNetwork
from jumpout_export.model.batches import Batch
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.static import of_another_writer
from jumpout_export.report import Check, counted
from jumpout_export.runtime.loads import inspect_file
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.text import first_line
from jumpout_export.verify.runner import run_providers

_NAME = "other file"


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


def check_as_run(network: FileNetwork, batch: Batch) -> Check:
    """Returns whether ONNX Runtime gives for the other file what is compared with: its nodes run by PyTorch and onnx.

    Without it, an operator that is read here in another way than by the runtime would be laid to the new file.
    """
    name = f"{_NAME} as run"
    try:
        report = run_providers(SavedFile(network.path), network, network, [batch], ("cpu",), made_up=False)
    except Exception as error:  # of onnx's reference implementation and ONNX Runtime, without a common base
        return Check(name=name, verdict="fail", note=f"the other file cannot be run: {first_line(error)}")
    wrong = [f"{check.name}: {check.note}" for check in report.checks if check.blocks and _is_of_values(check.name)]
    first = f" (first at {report.first_divergence})" if report.first_divergence else ""
    good = "ONNX Runtime gives for the other file what its nodes give in PyTorch and in onnx's reference implementation"
    hint = f": what its nodes mean here is not what ONNX Runtime makes of them{first}, so nothing can be told by it"
    return counted(name, [wrong[0] + hint] if wrong else [], good)


def _is_of_values(name: str) -> bool:
    """Whether a check compares values; what a file promises of sizes and constants is asked of the new one."""
    return name.startswith(("cpu/", "torch/"))
