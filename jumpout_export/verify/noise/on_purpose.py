"""Compares files that are random on purpose (Monte-Carlo dropout) with their models: by distribution.

Nothing here proves a file deterministic. What is compared: the network with its dropout switched off, value by value as
any other file; and with the noise on, mean and spread of every output value over independent runs of ONNX Runtime and
PyTorch (`verify/noise/sums.py`); at one batch size, or at several where the noise cannot be switched off.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn

from jumpout_export.errors import JumpoutExportError, NotFoldableError, NotVerifiableError
from jumpout_export.fold.file.fold_file import fold_onnx
from jumpout_export.fold.network.audit import refuse_randomness
from jumpout_export.model.batches import Batch, Progress
from jumpout_export.model.randomness import repeated
from jumpout_export.model.run import call
from jumpout_export.model.signature import input_names
from jumpout_export.onnxfile.load import load_onnx
from jumpout_export.onnxfile.training import random_nodes
from jumpout_export.report import Check, ProviderReport, VerifyReport
from jumpout_export.runtime.providers import PROVIDERS
from jumpout_export.runtime.session import LEVELS, open_session
from jumpout_export.text import first_line
from jumpout_export.verify.noise.quiet import switched_off
from jumpout_export.verify.noise.sums import NoiseComparison
from jumpout_export.verify.runner import run_providers
from jumpout_export.verify.values.loss import Loss

# Independent runs on each side.
RUNS = 1000


def is_random(model: nn.Module, batch: Batch, allow: Iterable[str]) -> bool:
    """Returns whether two runs differ where random numbers are allowed; then the file will be random on purpose.

    That they agree proves nothing: rare noise may not show in two runs.

    Args:
        model: in eval mode, on the device of the batch; a copy is run.
        batch: inputs.
        allow: the modules whose noise is wanted; without any nothing is run.
    """
    if not tuple(allow):
        return False
    copied = copy.deepcopy(model)
    return not repeated(lambda: call(copied, batch), other_seed=True)[1]


def verify_random(
    path: Path,
    original: nn.Module,
    batches: Iterable[Batch],
    providers: tuple[str, ...],
    *,
    allow: Iterable[str],
    loss: Loss | None = None,
    seed: int = 0,
    runs: int = RUNS,
    progress: Progress | None = None,
) -> VerifyReport:
    """Returns the comparison of a file that is random on purpose with its model.

    Args:
        path: the file; others are written into its folder.
        original: the model in eval mode on the CPU, its noise on.
        batches: inputs on the CPU, in the model's own precision.
        providers: of `cpu`, `cuda`.
        allow: the modules whose noise is wanted.
        loss: gives batches in the file's precision, and takes in those that are read; by default of the model's own.
        seed: of PyTorch's noise and the random inputs.
        runs: of either side; more find smaller differences.
        progress: called as progress(what, done, total).
    """
    iterator = iter(batches)
    given = next(iterator)
    loss = Loss() if loss is None else loss
    report = _without_noise(
        path, original, given, iterator, providers, allow=tuple(allow), loss=loss, seed=seed, progress=progress
    )
    first = loss.inputs(given)
    # Where nothing was compared without noise, the distributions have to tell whether other batch sizes are right.
    sizes = (2,) if report.checks else (2, 1, 7)
    names = input_names(original, first)
    if any("(Dropout)" in node for node in random_nodes(load_onnx(path))):
        report.notes += [note for name in providers if (note := PROVIDERS[name].about_dropout)]
    for provider in providers:
        verdicts = []
        for level in LEVELS:
            label = f"{provider}/{level}"
            try:
                session = open_session(path, provider, level)
                made = [NoiseComparison(session, original, first, names, seed, size) for size in sizes]
                comparisons = {comparison.size: comparison for comparison in made}  # one where the file fixes its size
                if level == "off":
                    verdicts = [
                        _named(f"{label}/batch={size}/" if len(comparisons) > 1 else f"{label}/", check)
                        for size, comparison in comparisons.items()
                        for check in comparison.checks(runs)
                    ]
                else:
                    report.notes.append(_about_optimizer(made[0], provider, runs))
            except NotVerifiableError as error:
                report.providers[provider] = ProviderReport(verdict="not_run", reason=str(error))
                verdicts = [Check(name=provider, verdict="not_run", note=str(error))]
                break
            except Exception as error:  # ONNX Runtime raises a dozen types without a common base
                verdicts.append(Check(name=f"{label}/session", verdict="fail", note=first_line(error)))
        report.checks += verdicts
        failed = [check for check in verdicts if check.verdict == "fail"]
        known = report.providers.get(provider, ProviderReport(verdict="pass"))
        if failed and known.verdict == "pass":
            report.providers[provider] = ProviderReport(verdict="fail", reason=f"{failed[0].name}: {failed[0].note}")
        else:
            report.providers[provider] = known
    good = all(check.verdict == "pass" for check in report.checks)
    passed = good and all(entry.verdict == "pass" for entry in report.providers.values())
    return report.model_copy(update={"passed": passed})


def _without_noise(
    path: Path,
    original: nn.Module,
    given: Batch,
    others: Iterator[Batch],
    providers: tuple[str, ...],
    *,
    allow: tuple[str, ...],
    loss: Loss,
    seed: int,
    progress: Progress | None,
) -> VerifyReport:
    """The usual comparison of the file and the model with dropout switched off, where both can be had."""
    quiet, first = switched_off(original, allow), loss.inputs(given)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        folded = Path(folder) / path.name
        try:
            refuse_randomness(quiet, lambda: call(quiet, first))
            problem = "" if fold_onnx(path, folded, seed=seed) else "the file's noise cannot be folded"
        except NotFoldableError:
            problem = "the model draws random numbers in other ways than dropout"
        except JumpoutExportError as error:
            problem = first_line(error)
        if problem:
            loss.add(given)
            note = f"the network without noise was not compared, the distributions alone were: {problem}"
            return VerifyReport(passed=True, notes=[note])
        batches = itertools.chain([given], others)
        report = run_providers(folded, quiet, quiet, batches, providers, loss=loss, seed=seed, progress=progress)
    report.checks = [_named("without noise/", check) for check in report.checks]
    return report


def _named(prefix: str, check: Check) -> Check:
    return check.model_copy(update={"name": f"{prefix}{check.name}"})


def _about_optimizer(comparison: NoiseComparison, provider: str, runs: int) -> str:
    """What ONNX Runtime's optimizer, on by default, makes of the noise."""
    if not comparison.is_random():
        return (
            f"NOT random on {provider} with ONNX Runtime's default optimizations, which remove a Dropout in training "
            "mode: switch them off (ORT_DISABLE_ALL) where the noise is wanted"
        )
    failed = [check for check in comparison.checks(runs) if check.verdict != "pass"]
    if failed:
        return (
            f"random in another way on {provider} with ONNX Runtime's default optimizations ({failed[0].note}): switch "
            "them off (ORT_DISABLE_ALL)"
        )
    return f"random on {provider} with ONNX Runtime's default optimizations too, with the same distribution"
