"""What is wrong with a model before it is exported: modes, BatchNorm buffers, parameters, randomness alive in eval."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.fold.network.locate import first_difference
from jumpout_export.fold.network.subject import Subject, subject_of
from jumpout_export.model.norms import batches_tracked, eps
from jumpout_export.model.randomness import RandomCall, random_calls, repeated
from jumpout_export.report import Check, counted
from jumpout_export.text import count, joined

# What is summed in, where not in the type itself: one that has room for many of its largest values.
_SUMMED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
_DIFFERS = "two runs differ, by a random generator that torch does not own or a state that forward changes,"


@dataclass(frozen=True)
class Audit:
    """What the audit of a model's flags, parameters and buffers found."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def audit_model(model: nn.Module | Subject) -> Audit:
    """Returns checks and notes on the modes, parameters and BatchNorm layers; only reads the model.

    Raises:
        ValueError: if a lazy layer has not seen data yet, so that it has no parameters to export.
    """
    subject = subject_of(model)
    parameters = list(subject.module.named_parameters())
    for name, tensor in parameters:
        if isinstance(tensor, nn.UninitializedParameter):
            raise ValueError(f"parameter `{name}` belongs to a lazy layer that has not seen data; run one batch first")
    broken = [_non_finite(f"parameter `{name}`", tensor) for name, tensor in parameters]
    norms = subject.norms()
    problems = [problem for path, norm in norms for problem in _norm_problems(path, norm)]
    sound, usable = count(len(parameters), "parameter"), count(len(norms), "BatchNorm layer")
    checks = (
        counted("parameters", [text for text in broken if text], f"{sound}, all finite"),
        counted("batchnorm", problems, f"{usable}, all with usable statistics"),
    )
    untrained = [f"`{path}`" for path, norm in norms if _never_trained(norm)]
    notes = _mode_notes(subject.module)
    if untrained:
        notes.append(f"never trained, still the initial statistics (mean 0, variance 1): BatchNorm {joined(untrained)}")
    return Audit(checks, tuple(notes))


def refuse_randomness(
    model: nn.Module, run: Callable[[], Any], allow: Iterable[str] = (), *, known: tuple[Any, bool] | None = None
) -> Any:
    """Returns what `run()` returns, if the model draws nothing outside of `allow` and a second run agrees bitwise.

    The model is in eval mode; its hooks and the generator states are as before afterwards. `known` is a result that is
    there already, and whether a run with other seeds had the same bits.

    Raises:
        NotFoldableError: naming operator, module, file and line of everything that draws.
    """
    allow = tuple(allow)
    found = [_placed(model, run, call) for call in random_calls(model, run)]
    calls = [call for call in dict.fromkeys(found) if not allowed(call.module, allow)]
    # Not the run that `random_calls` watched: a watched operator may take another path and round differently. Where
    # noise was found, both runs get the same, so that what differs is drawn from a generator nobody else sees.
    result, agree = known if known is not None and known[1] else repeated(run, other_seed=not found)
    if not agree:
        call = first_difference(model, run, _DIFFERS, private=True) or RandomCall(_DIFFERS)
        if not allowed(call.module, allow):
            calls.append(call)
    if calls:
        places = tuple(dict.fromkeys(call.module for call in calls))
        raise NotFoldableError(
            "the model draws random numbers in eval mode, so no deterministic graph equals it: "
            + "; ".join(str(call) for call in calls)
            + "; draw them only under `if self.training:`",
            places,
        )
    return result


def allowed(path: str, allow: Iterable[str]) -> bool:
    """Whether the module path is one of `allow` or lies below one."""
    return any(path == entry or (entry and path.startswith(f"{entry}.")) for entry in allow)


def _placed(model: nn.Module, run: Callable[[], Any], call: RandomCall) -> RandomCall:
    """The call with its module and the line of that module's forward, where only the generator is known."""
    if call.file:
        return call
    place = first_difference(model, run, call.operator)
    return replace(call, module=place.module, file=place.file, line=place.line) if place else call


def _mode_notes(model: nn.Module) -> list[str]:
    training = [path for path, module in model.named_modules() if module.training]
    if not training:
        return []
    if len(training) == len(list(model.modules())):
        return ["the model was in train mode; its eval network was taken"]
    # A child is not named below its parent.
    outermost = [path for path in training if not any(path.startswith(f"{other}.") for other in training if other)]
    names = joined([f"`{path}`" if path else "the root module's own flag" for path in outermost])
    return [f"in train mode: {names}; the eval network was taken"]


def _norm_problems(path: str, layer: Any) -> list[str]:
    if layer.running_mean is None or layer.running_var is None:
        why = "so its output depends on the batch it is served in; train it with track_running_stats=True"
        return [f"`{path}` has no running statistics, {why}"]
    found = [_non_finite(f"`{path}` {name}", getattr(layer, name)) for name in ("running_mean", "running_var")]
    negative = int((layer.running_var + eps(layer) <= 0).sum())
    if negative:
        found.append(
            f"`{path}` running_var + eps is not positive in {negative} of {layer.running_var.numel()} channels"
        )
    return [text for text in found if text]


def _never_trained(layer: Any) -> bool:
    if layer.running_mean is None or layer.running_var is None or batches_tracked(layer) != 0:
        return False
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())


def _non_finite(what: str, tensor: torch.Tensor) -> str:
    tensor = tensor.detach()
    # NaN and infinities stay in a sum. One that overflows without any is counted, as rare as it is.
    if tensor.is_floating_point() and torch.isfinite(tensor.sum(dtype=_SUMMED.get(tensor.dtype))):
        return ""
    count = int((~torch.isfinite(tensor)).sum())
    return f"{what} has {count} non-finite of {tensor.numel()} values" if count else ""
