"""Compares files that are random on purpose (Monte-Carlo dropout) with their models: by distribution.

Nothing here proves a file deterministic. What is compared: the network with its dropout switched off, value by value as
any other file; and with the noise on, mean and spread of every output value over independent runs of ONNX Runtime and
PyTorch (`verify/noise/sums.py`); at one batch size, or at several where the noise cannot be switched off.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Iterable
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
from jumpout_export.report import Check, ProviderReport, VerifyReport, passes
from jumpout_export.runtime.providers import provider_of
from jumpout_export.runtime.saved import SavedFile
from jumpout_export.runtime.session import LEVELS, open_session
from jumpout_export.text import first_line
from jumpout_export.verify.noise.quiet import switched_off
from jumpout_export.verify.noise.sums import NoiseComparison
from jumpout_export.verify.runner import run_providers
from jumpout_export.verify.values.loss import OWN_LOSS, Loss

# Independent runs on each side.
RUNS = 1000


def is_random(model: nn.Module, batch: Batch, allow: Iterable[str]) -> bool:
    """Returns whether two runs differ where random numbers are allowed; then the file will be random on purpose.

    That they agree proves nothing: rare noise may not show in two runs. A copy of the model is run, in eval mode.
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
    loss: Loss = OWN_LOSS,
    allow_constant: tuple[str, ...] = (),
    made_up: bool = True,
    thorough: bool = False,
    seed: int = 0,
    runs: int = RUNS,
    progress: Progress | None = None,
) -> VerifyReport:
    """Returns the comparison of a file that is random on purpose with its model, whose noise is on.

    Other files are written into the folder of `path`. `allow` are the modules whose noise is wanted; more `runs`, of
    either side, find smaller differences. The other arguments are those of `run_providers`.
    """
    batches = iter(batches)
    given = next(batches)
    first, quiet = loss.inputs(given), switched_off(original, tuple(allow))
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        folded = Path(folder) / path.name
        if problem := _why_not_without_noise(path, folded, quiet, first, seed):
            loss.add(given)
            note = f"the network without noise was not compared, the distributions alone were: {problem}"
            report = VerifyReport(passed=True, notes=[note])
        else:
            every = itertools.chain([given], batches)
            report = run_providers(
                SavedFile(folded),
                quiet,
                quiet,
                every,
                providers,
                loss=loss,
                allow_constant=allow_constant,
                made_up=made_up,
                thorough=thorough,
                seed=seed,
                progress=progress,
            )
    report.checks = [_named("without noise/", check) for check in report.checks]
    # Where nothing was compared without noise, the distributions have to tell whether other batch sizes are right.
    sizes = (2,) if report.checks else (2, 1, 7)
    names = input_names(original, first)
    if any("(Dropout)" in node for node in random_nodes(load_onnx(path))):
        report.notes += [note for name in providers if (note := provider_of(name).about_dropout)]
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
        known = report.providers.setdefault(provider, ProviderReport(verdict="pass"))
        if failed and known.verdict == "pass":
            report.providers[provider] = ProviderReport(verdict="fail", reason=f"{failed[0].name}: {failed[0].note}")
    return report.model_copy(update={"passed": passes(report.checks, report.providers)})


def _why_not_without_noise(path: Path, folded: Path, quiet: nn.Module, first: Batch, seed: int) -> str:
    """Writes `folded`, the file without noise, if the model with dropout switched off is without too, or says why."""
    try:
        refuse_randomness(quiet, lambda: call(quiet, first))
        return "" if fold_onnx(path, folded, seed=seed) else "the file's noise cannot be folded"
    except NotFoldableError:
        return "the model draws random numbers in other ways than dropout"
    except JumpoutExportError as error:
        return first_line(error)


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
