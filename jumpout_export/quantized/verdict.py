"""The verdict on a quantized file, put together: form, scales, weights, everything but rounding, noise, outputs."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from jumpout_export.errors import NotVerifiableError
from jumpout_export.log import log_step
from jumpout_export.model.axes import Axes, declared_axes
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.model.probes import SIZES, rows
from jumpout_export.model.run import run, sharing_copy
from jumpout_export.model.signature import Output, input_names, outputs
from jumpout_export.quantized.floating import Twin, bounds_of, twin_of
from jumpout_export.quantized.noise import measure_noise
from jumpout_export.quantized.outputs import Served
from jumpout_export.quantized.read import QuantizedFile, read_quantized
from jumpout_export.quantized.scales import form_check, scales_check
from jumpout_export.quantized.settings import Quantized
from jumpout_export.quantized.tensors import clipped_check, noise_check, tensors_of
from jumpout_export.quantized.weights import RoundedFrom, rounded_from, weights_check
from jumpout_export.report import Check, ProviderReport, Quantization, VerifyReport, counted, passes
from jumpout_export.runtime.placement import check_placement
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.runtime.session import LEVELS
from jumpout_export.text import count, first_line, joined
from jumpout_export.verify.constants.proof import recorded_run

# Of the batches, so many are looked at tensor by tensor, and are what the twin is verified on; outputs are compared on
# all of them.
LOOKED_AT = 4
_TWIN = "without quantization"

# How a file is verified strictly: `run_providers` of verify/runner.py, which stands above.
Prove = Callable[..., VerifyReport]


@dataclass
class _Known:
    """What is known so far."""

    checks: list[Check]
    quantization: Quantization
    layer: str | None = None  # that is to blame


@np.errstate(all="ignore")  # a scale may be anything; what comes of it is judged
def judge_quantized(
    file: SavedFile,
    original: nn.Module,
    folded: nn.Module,
    batches: Iterable[Batch],
    providers: tuple[str, ...],
    *,
    limits: Quantized,
    prove: Prove,
    axes: Axes | None = None,
    allow_constant: tuple[str, ...] = (),
    made_up: bool = True,
    thorough: bool = False,
    other: SavedFile | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> VerifyReport:
    """Returns the verdict on a file as a quantized one: the comparison alone, as that of `run_providers`.

    What it is compared with is the model itself, in PyTorch, and for the tensors inside a twin that is made of the file
    by taking its rounding out and putting the model's weights in, and that is verified against the model strictly.
    A float file that was exported anew would have to be trusted, and would have other names inside than a file of
    another exporter.

    Args:
        file: the saved file.
        original: the model in eval mode, nothing replaced.
        folded: the folded model, which gives the inputs their names.
        batches: inputs on the CPU, with labels where accuracy is to be judged; taken one at a time.
        providers: on which outputs are compared; tensors are looked at on the CPU.
        limits: what rounding may cost.
        prove: `run_providers`.
        axes: of the inputs, where they are known.
        allow_constant: names of outputs that need not depend on the inputs.
        made_up: verify the twin on inputs that nobody gave, too.
        thorough: verify the twin at more sizes.
        other: the file that the model was read from, if it was, for the twin.
        seed: of the made-up inputs.
        progress: called as progress(what, done, total).
    """
    iterator = iter(batches)
    looked_at = list(itertools.islice(iterator, LOOKED_AT))
    first = looked_at[0]
    margins = (limits.top1_margin, limits.nll_margin) if limits.accuracy else (None, None)
    known = _Known(
        [],
        Quantization(
            min_sqnr=limits.min_sqnr, max_clipped=limits.max_clipped, top1_margin=margins[0], nll_margin=margins[1]
        ),
    )
    try:
        rounded = read_quantized(file.path, file.proto)
    except Exception as error:  # a file may hold anything
        return _ended([counted("quantization form", [f"it cannot be read: {first_line(error)}"])], providers)
    known.checks.append(form_check(rounded))
    if rounded.problems:
        return _ended(known.checks, providers, rounded.problems[0])
    log_step("verify: scales and weights")
    known.checks.append(scales_check(rounded))
    recorded = recorded_run(original, rows(first, range(min(2, first.size))))
    found = rounded_from(rounded, recorded, original)
    known.checks.append(weights_check(found))
    wrong = [one.layer for one in found if one.wrong]
    known.layer = next(iter(wrong), None)
    twin = twin_of(rounded, found, bounds_of(recorded.recording))
    checked = prove_twin(twin, found, lambda path: prove(
        SavedFile(path), original, folded, iter(looked_at), ("cpu",), axes=axes, allow_constant=allow_constant,
        made_up=made_up, thorough=thorough, other=other, seed=seed, progress=progress,
    ))  # fmt: skip
    known.checks.append(checked[0])
    known.layer = known.layer or checked[1]
    served = list(
        _serve(file, original, folded, itertools.chain(looked_at, iterator), providers, axes, known, progress)
    )
    _take_noise(known, rounded, twin, found, looked_at, served, limits)
    for one in served:
        result, checks = one.judged(limits)
        known.quantization.outputs[one.label] = result
        known.checks += checks
    return _report(known, providers)


def prove_twin(twin: Twin, found: list[RoundedFrom], prove: Callable[[Path], VerifyReport]) -> tuple[Check, str | None]:
    """Returns whether the twin is the model, and the first layer that differs where it is not.

    Where it is not known of a constant what it was rounded from, it stays rounded, and what differs may come of that.
    """
    unknown = [f"`{one.weight.name}`" for one in found if one.wanted is None]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "twin.onnx"
            path.write_bytes(twin.model.SerializeToString())
            report = prove(path)
    except Exception as error:  # of protobuf beyond 2 GiB and of ONNX Runtime, without a common base
        return Check(
            name=_TWIN, verdict="not_run", note=f"its graph without rounding cannot be run: {first_line(error)}"
        ), None
    blocking = sorted((one for one in report.checks if one.blocks), key=lambda one: one.verdict != "fail")
    good = (
        f"with the model's weights and no rounding the graph is the model: {count(len(report.checks), 'check')} passed"
    )
    if not blocking:
        return counted(_TWIN, [], good), None
    texts = [f"{one.name}: {one.note}" for one in blocking]
    if not any(one.verdict == "fail" for one in blocking):
        return Check(name=_TWIN, verdict="not_run", note=joined(texts, 3)), None
    note = f"with the model's weights and no rounding it is not the model: {joined(texts, 3)}"
    if unknown:
        note += f"; it is not known what {joined(unknown, 4)} was rounded from, which may be the reason"
        return Check(name=_TWIN, measured=len(blocking), limit=0, verdict="not_run", note=note), None
    return Check(name=_TWIN, measured=len(blocking), limit=0, verdict="fail", note=note), report.first_divergence


def _take_noise(
    known: _Known,
    rounded: QuantizedFile,
    twin: Twin,
    found: list[RoundedFrom],
    looked_at: list[Batch],
    served: list[Served],
    limits: Quantized,
) -> None:
    fixed = served[0].axes.size if served else None
    log_step("verify: noise of every tensor")
    try:
        noise = measure_noise(rounded, twin, looked_at, fixed)
    except Exception as error:  # ONNX Runtime raises a dozen types without a common base
        note = f"the tensors could not be looked at: {first_line(error)}"
        known.checks.append(Check(name="quantization noise", verdict="not_run", note=note))
        return
    known.quantization.samples = noise.samples
    rows_, known.quantization.worst_layer = tensors_of(rounded, found, noise)
    known.quantization.tensors = rows_
    checks = [clipped_check(rows_, noise, limits), noise_check(rows_, known.quantization.worst_layer, limits)]
    known.checks += checks
    if any(check.verdict == "fail" for check in checks) and known.layer is None:
        known.layer = known.quantization.worst_layer


def _serve(
    file: SavedFile,
    original: nn.Module,
    folded: nn.Module,
    batches: Iterable[Batch],
    providers: tuple[str, ...],
    axes: Axes | None,
    known: _Known,
    progress: Progress | None,
) -> Iterator[Served]:
    """Yields what each session gave for all batches."""
    iterator = iter(batches)
    first = next(iterator)
    model, names = sharing_copy(original), input_names(folded, first)
    own = _own(model, first, names, "data", known)
    if own is None:
        return
    served = []
    for provider, level in itertools.product(providers, LEVELS):
        label = f"{provider}/{level}"
        try:
            session = file.session(provider, level)
        except NotVerifiableError as error:
            if not any(check.name == provider for check in known.checks):
                known.checks.append(Check(name=provider, verdict="not_run", note=str(error)))
            continue
        except Exception as error:  # ONNX Runtime raises a dozen types without a common base
            known.checks.append(Check(name=f"{label}/session", verdict="fail", note=first_line(error)))
            continue
        if not session.provider.is_fallback:
            known.checks.append(check_placement(label, provider, session.nodes, file.path))
        wrong = [
            f"the file's {what} are {', '.join(there) or 'none'}, the model's are {', '.join(wanted) or 'none'}"
            for what, there, wanted in (
                ("inputs", session.inputs, names),
                ("outputs", session.outputs, [one.name for one in own]),
            )
            if there != wanted
        ]
        known.checks.append(counted(f"{label}/names", wrong, f"inputs {', '.join(names)}"))
        if wrong:
            continue
        declared = declared_axes(session.shapes, session.inputs, first)
        served.append(Served(label, session, axes if axes is not None and axes.size is not None else declared))
    if not served:
        return
    fixed = served[0].axes.size
    for size in SIZES if fixed is None else ():
        few = rows(first, range(size))
        _give(served, f"batch={size}", few, _own(model, few, names, f"batch={size}", known), None, twice=False)
    for number, batch in enumerate(itertools.chain([first], iterator)):
        if progress is not None:
            progress("verify: outputs", number, None)
        for part, labels in _parts(batch, fixed):
            _give(served, "data", part, _own(model, part, names, "data", known), labels, twice=not number)
    yield from served


def _own(model: nn.Module, batch: Batch, names: list[str], group: str, known: _Known) -> list[Output] | None:
    """What PyTorch gives for a batch; a failed check where it cannot run it."""
    try:
        return outputs(run(model, batch), names)
    except Exception as error:  # the user's forward may raise anything
        note = f"PyTorch itself cannot run it: {first_line(error)}"
        known.checks.append(Check(name=f"torch/{group}", verdict="fail", note=note))
        return None


def _give(
    served: list[Served], group: str, batch: Batch, own: list[Output] | None, labels: Tensor | None, *, twice: bool
) -> None:
    if own is not None:
        for one in served:
            one.add(group, batch, own, labels, twice=twice)


def _parts(batch: Batch, fixed: int | None) -> Iterator[tuple[Batch, Tensor | None]]:
    """The batch as it came, or whole ones of the size that the file fixes; fewer samples are repeated, unlabelled."""
    if fixed is None or batch.size == fixed:
        yield batch, batch.labels
    elif batch.size < fixed:
        yield rows(batch, range(fixed)), None
    else:
        for start in range(0, batch.size - fixed + 1, fixed):
            labels = None if batch.labels is None else batch.labels[start : start + fixed]
            yield rows(batch, range(start, start + fixed)), labels


def _ended(checks: list[Check], providers: tuple[str, ...], reason: str = "the file cannot be judged") -> VerifyReport:
    verdicts = {name: ProviderReport(verdict="not_run", reason=reason) for name in providers}
    return VerifyReport(passed=False, providers=verdicts, checks=checks)


def _report(known: _Known, providers: tuple[str, ...]) -> VerifyReport:
    verdicts = {name: _verdict(name, known) for name in providers}
    passed = passes(known.checks, verdicts)
    return VerifyReport(
        passed=passed,
        providers=verdicts,
        checks=known.checks,
        first_divergence=None if passed else known.layer,
        quantization=known.quantization,
        notes=["judged as a quantized file: by what its rounding costs, not by rounding errors of float"],
    )


def _verdict(provider: str, known: _Known) -> ProviderReport:
    own = [check for check in known.checks if check.name == provider or check.name.startswith(f"{provider}/")]
    for verdict in ("fail", "not_run"):
        bad = [check for check in own if check.verdict == verdict and check.blocks]
        if bad:
            return ProviderReport.model_validate({"verdict": verdict, "reason": f"{bad[0].name}: {bad[0].note}"})
    if not any(label.startswith(f"{provider}/") for label in known.quantization.outputs):
        return ProviderReport(verdict="fail", reason="nothing was compared")
    return ProviderReport(verdict="pass")
