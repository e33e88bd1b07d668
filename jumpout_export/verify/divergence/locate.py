"""The first layer of a saved file that differs from the model, found by value and named by its module path.

Every operation that PyTorch runs is compared with every value inside the file. One whose result is among them, within
the error that `tolerances.py` allows, is right. From the wrong outputs the search goes back along what each
operation read, through results that the file does not have, and stops at those that it has: the error came in between.
What is first there, and reads nothing but right results, is the layer.

A result can be missing although nothing is wrong: a BatchNorm was folded into the layer before, whose own result is
gone. Its later result is there then and the search never gets so far. Where both are missing the weights in the file
tell which of the two is wrong, as far as they are found there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from jumpout_export.model.batches import Batch
from jumpout_export.model.operations import Operation, Recording, record
from jumpout_export.model.run import cast, double_copy
from jumpout_export.model.signature import outputs as named_outputs
from jumpout_export.model.signature import tensors
from jumpout_export.onnxfile.constants import FileConstants
from jumpout_export.runtime.session import Level
from jumpout_export.verify.constants.batchnorms import Located
from jumpout_export.verify.divergence.search import TELLING_ERROR, Divergence, Result, Search
from jumpout_export.verify.divergence.values import BYTES_PER_RUN, FileValue, file_values
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale, relative

if TYPE_CHECKING:
    from onnx import ModelProto

# Values of a result that decide whether a value of the file may be the same one at all.
_PROBED = 512
# Share of those that must agree for the two to be the same value, right or with a fault in it.
_ALIKE = 0.25


def locate_divergence(
    path: Path,
    model: ModelProto,
    original: nn.Module,
    batch: Batch,
    located: Iterable[Located],
    *,
    provider: str = "cpu",
    level: Level = "off",
    bytes_per_run: int = BYTES_PER_RUN,
) -> Divergence:
    """Returns the first layer in which a saved file differs from the model.

    Args:
        path: the file.
        model: its protobuf, without external data.
        original: the model in eval mode, on the CPU; only copies of it are run.
        batch: inputs on which they differ.
        located: what the file has for the BatchNorms of the model.
        provider: `cpu` or `cuda`, where they differ.
        level: of ONNX Runtime's optimizations, where they differ.
        bytes_per_run: bound on the values of the file that are held at once.
    """
    recording, results = _expected(original, batch)
    by_size: dict[int, list[Result]] = {}
    for result in results.values():
        by_size.setdefault(result.exact.numel(), []).append(result)
    found: list[FileValue] = []
    for value in file_values(path, model, provider, level, tensors(batch), bytes_per_run):
        found += [value] * value.is_output
        if value.tensor.is_floating_point():
            for result in by_size.get(value.tensor.numel(), []):
                _compare(result, value)
    wrong = _wrong_outputs(recording, results, found)
    if not wrong:
        note = "no layer can be named: with the values inside of it as outputs the file is right"
        return Divergence(None, note, reproduced=False)
    search = Search(recording, results, wrong, list(located), FileConstants(path, model), original)
    return search.divergence()


def _expected(original: nn.Module, batch: Batch) -> tuple[Recording, dict[int, Result]]:
    """The operations, and by index what those give that are floating point and depend on the inputs."""
    own: dict[int, Tensor] = {}
    model = copy.deepcopy(original)
    recording = record(model, batch, lambda index, tensor: own.update({index: tensor.detach().clone()}))
    results: dict[int, Result] = {}

    def keep(index: int, exact: Tensor) -> None:
        if index >= len(recording.operations) or recording.operations[index].shape != exact.shape:
            raise _OtherCourseError
        mine = own.pop(index)
        if _comparable(recording.operations[index]):
            results[index] = _result(mine, exact, has_reference=True)

    try:
        record(double_copy(original), cast(batch, torch.float64), keep)
    except Exception:  # a forward that fixes float32 may fail in any way; the checks have said so already
        results.clear()
        record(copy.deepcopy(original), batch, lambda index, tensor: own.update({index: tensor.detach().clone()}))
        for index, mine in own.items():
            if _comparable(recording.operations[index]):
                results[index] = _result(mine, mine, has_reference=False)
    return recording, results


class _OtherCourseError(Exception):
    """The float64 copy runs other operations than the model."""


def _comparable(operation: Operation) -> bool:
    return operation.from_data and operation.dtype.is_floating_point and 0 not in operation.shape


def _result(own: Tensor, exact: Tensor, has_reference: bool) -> Result:
    scale = Scale()
    scale.add(Expected("", own, exact.double()))
    allowed = scale.budget(has_reference).allowed(scale.units)
    return Result(exact.to(own.dtype), allowed.to(own.dtype).reshape(own.shape))


def _compare(result: Result, value: FileValue) -> None:
    """Keeps the value if it is closer to what the operation must give than all before."""
    got, exact, limits = value.tensor.reshape(-1), result.exact.reshape(-1), result.limits.reshape(-1)
    step = -(-got.numel() // _PROBED)
    telling = exact[::step] != 0  # zeros behind a ReLU agree with those of any other
    alike = (got[::step].double() - exact[::step].double()).abs() <= TELLING_ERROR * limits[::step].double()
    if int((alike & telling).sum()) < _ALIKE * max(int(telling.sum()), 1):
        return
    error = (got.double() - exact.double()).abs().nan_to_num(nan=math.inf)
    shares = relative(error, limits.double())
    worst = int(shares.argmax())
    if not result.where or float(shares[worst]) < result.share:
        result.share, result.error, result.limit = float(shares[worst]), float(error[worst]), float(limits[worst])
        result.where = value.where


def _wrong_outputs(recording: Recording, results: dict[int, Result], found: list[FileValue]) -> dict[int, float]:
    """The operations that make outputs that are wrong in the file, and by how many times their limit."""
    values = {value.name: value.tensor for value in found}
    expected = named_outputs(recording.result, [])
    names = [output.name for output in expected]
    if set(names) - set(values):  # an input has the name of an output, so that the outputs are numbered
        names = [value.name for value in found]
    wrong: dict[int, float] = {}
    for name, output, producer in zip(names, expected, recording.producers, strict=True):
        if producer is None or name not in values:
            continue
        got = values[name]
        if got.shape != output.tensor.shape or got.dtype != output.tensor.dtype:
            wrong[producer] = math.inf
        elif producer in results:
            result = results[producer]
            error = (got.double().reshape(-1) - result.exact.double().reshape(-1)).abs().nan_to_num(nan=math.inf)
            share = float(relative(error, result.limits.double().reshape(-1)).max())
            if share > 1:
                wrong[producer] = max(share, wrong.get(producer, 0.0))
        elif not torch.equal(got, output.tensor):
            wrong[producer] = math.inf
    return wrong
