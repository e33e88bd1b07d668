"""Folds a model: an eval-mode copy in which the stochastic layers are gone, with the proof that it is the same."""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm

from jumpout_export.errors import NotFoldableError
from jumpout_export.fold.network.audit import allowed, refuse_randomness
from jumpout_export.fold.network.state import kept_state, untouched
from jumpout_export.model.batches import Batch
from jumpout_export.model.randomness import rng_restored, same_bits
from jumpout_export.model.signature import example_batch, fresh, on_device, only_tensors
from jumpout_export.model.stochastic import StochasticLayer, stochastic_layers
from jumpout_export.nn.modules import Jumpout
from jumpout_export.program.network import ProgramFacts, as_module, program_facts
from jumpout_export.report import Check, FoldedLayer
from jumpout_export.text import first_line, joined

STATE_PASSED = Check(name="state", verdict="pass", note="no call in eval mode depends on the calls before it")

# Their eval forward is known to return its input (RReLU's: to be a LeakyReLU).
_KNOWN = frozenset(
    layer.forward
    for layer in (
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
        nn.RReLU,
        Jumpout,
    )
)
_RESULTS = (Tensor, bool, int, float, complex, str, bytes, type(None))
# Any other layer is asked whether it returns its input: values of these sizes, of both signs.
_SCALES = (1e-3, 1.0, 1e4)


@dataclass(frozen=True)
class Folded:
    """A folded copy and what became of each stochastic layer.

    Attributes:
        model: the folded copy.
        original: a copy in eval mode in which nothing was replaced, to compare with.
        layers: what became of each stochastic layer.
        notes: sentences on what stays, and on state that has no effect.
    """

    model: nn.Module
    original: nn.Module
    layers: tuple[FoldedLayer, ...]
    notes: tuple[str, ...] = ()


def fold_model(model: nn.Module | ExportedProgram, example: Any = None, *, allow: Iterable[str] = ()) -> nn.Module:
    """Returns a copy of the model in eval mode in which every stochastic layer is the identity (or its fused ReLU).

    The model itself is not touched: flags, parameters, buffers and generator states stay as they are. A layer whose
    eval forward is not the identity, such as a dropout that scales by 1 - p in eval mode, stays in the copy.

    Args:
        model: any nn.Module that `copy.deepcopy` can copy, or an exported program. A program from train mode is taken
            in eval mode: dropout of all kinds off, BatchNorm with its running statistics.
        example: a batch (tensor, tuple, dict, or with labels). With it the proof runs on the spot: the folded copy is
            bitwise equal to the eval model, two runs agree bitwise, no random number is drawn and no call depends on
            the calls before it. Without it only layers whose eval forward is known are replaced.
        allow: module paths in which, and below which, random numbers may be drawn; these stay as they are.

    Returns:
        The folded copy, on the model's device.

    Raises:
        NotFoldableError: if the model draws random numbers in eval mode outside of `allow`, if its result depends on
            the calls before, or if a copy of it changes the model itself.
        TypeError: if `model` is neither or cannot be copied, `example` holds something else than tensors, or the
            model returns something else than tensors, numbers and texts.
        ValueError: if `allow` names no module of the model, or the model cannot run `example`.

    Example:
        >>> folded = fold_model(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)), torch.randn(3, 4))
        >>> folded[1]
        Identity()
    """
    return fold(model, example, allow=allow).model


def fold(model: nn.Module | ExportedProgram, example: Any = None, *, allow: Iterable[str] = ()) -> Folded:
    """Returns what `fold_model` returns, and what became of each stochastic layer."""
    allow = (allow,) if isinstance(allow, str) else tuple(allow)
    module: nn.Module = unwrap(model)
    original = _eval_copy(module)
    unknown = [path for path in allow if path not in dict(original.named_modules())]
    if unknown:
        raise ValueError(_not_allowed(unknown, [path for path, _ in original.named_modules() if path]))
    _refuse_layers_that_stay_random(original, allow)
    facts = program_facts(module)
    if facts is not None and facts.refused:
        raise NotFoldableError(
            "the exported program draws random numbers, so no deterministic graph equals it: "
            + "; ".join(map(str, facts.refused))
            + "; export the model in eval mode, with noise only under `if self.training:`",
            tuple(dict.fromkeys(call.module for call in facts.refused)),
        )
    if example is None:
        layers = _layers(original, allow)
        actions = {layer.path: _action(layer) if _known(layer.module) else "keep" for layer in layers}
        return _with_facts(Folded(_replaced(original, actions, allow), original, _report(layers, actions)), facts)
    batch = on_device(example_batch(example, original), _device(original))
    with untouched(module), rng_restored(), torch.no_grad():
        return _with_facts(_fold_with_proof(original, batch, allow), facts)


def _not_allowed(unknown: Sequence[str], paths: Sequence[str]) -> str:
    close = [path for name in unknown for path in difflib.get_close_matches(name, paths)]
    some = joined([repr(path) for path in close or paths])
    hint = f"did you mean {some}?" if close else f"it has {some or 'none'}"
    return f"allow names no module of the model: {', '.join(map(repr, unknown))}; {hint}"


def _with_facts(folded: Folded, facts: ProgramFacts | None) -> Folded:
    """Adds what was switched off in an exported program before it was folded."""
    if facts is None:
        return folded
    return replace(folded, layers=(*facts.layers, *folded.layers), notes=(*facts.notes, *folded.notes))


def _fold_with_proof(original: nn.Module, batch: Batch, allow: tuple[str, ...]) -> Folded:
    """Only copies of `original` are run, so that no state of a run reaches what is returned."""
    state = kept_state(original, batch, _run)
    kept = joined(list(state.changed)) or "something outside of its parameters, buffers and plain attributes"
    message = f"the model keeps a state in eval mode on which its result depends: {kept}; set it in train mode only"
    if state.matters and state.changed:
        raise NotFoldableError(message, check="state")
    notes = [f"a call in eval mode changes {kept}, without an effect on the result"] if state.changed else []

    audited = copy.deepcopy(original).eval()
    layers = _layers(audited, allow)
    seen: dict[str, list[Tensor] | None] = {}
    handles = [_watch(layer, seen) for layer in layers if not _known(layer.module)]
    try:
        expected = refuse_randomness(audited, lambda: _run(audited, batch), allow)
    finally:
        for handle in handles:
            handle.remove()
    drawn = {name: path for name, path in state.generators.items() if not allowed(path, allow)}
    if drawn:
        names = joined([f"`{name}`" for name in drawn])
        raise NotFoldableError(
            f"the model draws random numbers in eval mode, from a generator that it holds: {names}; draw them only "
            "under `if self.training:`",
            tuple(dict.fromkeys(drawn.values())),
        )
    if state.matters and not allow:
        raise NotFoldableError(message, check="state")
    actions = {}
    idle = [layer for layer in layers if not _known(layer.module) and layer.path not in seen]
    for layer in layers:
        if layer in idle:
            actions[layer.path] = "keep"
            continue
        problem = "" if _known(layer.module) else _not_identity(layer, seen[layer.path])
        actions[layer.path] = "keep" if problem else _action(layer)
        if _action(layer) != actions[layer.path]:
            notes.append(f"`{layer.path}` ({layer.kind}) {problem}; it stays, in eval mode")
    if unreached := joined([f"`{layer.path}` ({layer.kind})" for layer in idle if layer.action != "keep"]):
        notes.append(f"stays, in eval mode, because the example does not reach it: {unreached}")
    folded = _replaced(original, actions, allow)
    problem = _difference(copy.deepcopy(folded), batch, expected, allow)
    if not problem:
        return Folded(folded, original, _report(layers, actions), tuple(notes))
    # For example a forward that reads `self.drop.p`. The eval model itself was proven deterministic above.
    notes.append(f"the stochastic layers stay, in eval mode, because without them {problem}")
    return Folded(copy.deepcopy(original), original, _report(layers, dict.fromkeys(actions, "keep")), tuple(notes))


def _run(model: nn.Module, batch: Batch) -> Any:
    try:
        result = only_tensors(fresh(batch)(model))
    except Exception as error:
        raise ValueError(f"the model cannot run the example: {type(error).__name__}: {first_line(error)}") from error
    for leaf in torch.utils._pytree.tree_leaves(result):
        if not isinstance(leaf, _RESULTS):  # two of them cannot be compared, and would look like noise
            raise TypeError(
                f"the model must return tensors, numbers and texts, or these in lists and dicts, got "
                f"{type(leaf).__module__}.{type(leaf).__name__}; wrap the model in a module that returns the tensors"
            )
    return result


def _difference(folded: nn.Module, batch: Batch, expected: Any, allow: tuple[str, ...]) -> str:
    """What differs between the folded copy and the eval model's result; empty if nothing does."""
    try:
        result = refuse_randomness(folded, lambda: only_tensors(fresh(batch)(folded)), allow)
    except Exception as error:  # a user's forward may raise anything; the reason is reported
        return f"the model fails with {type(error).__name__}: {first_line(error)}"
    return "" if same_bits(expected, result) else "the result differs"


def unwrap(model: Any) -> Any:
    """Returns the module inside a `torch.compile` wrapper, which would compile anew for every copy.

    Of an exported program it is the eval network (`as_module`); anything else that is no module stays what it is.

    Raises:
        TypeError: for a TorchScript module.
        ValueError: for a module on the meta device.
    """
    model = as_module(model)
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, torch.jit.ScriptModule):
        raise TypeError(
            f"the model ({type(inner).__name__}) is a TorchScript module, which torch.export cannot trace; give the "
            "nn.Module that it was made of"
        )
    if not isinstance(inner, nn.Module):
        return model
    empty = next((name for name, value in [*inner.named_parameters(), *inner.named_buffers()] if value.is_meta), None)
    if empty is not None:
        raise ValueError(
            f"the model's `{empty}` has no values: they are on the meta device; load the weights first "
            '(model.to_empty(device="cpu"), then load_state_dict)'
        )
    return inner


def _eval_copy(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or torch.export.ExportedProgram, got {type(model).__name__}")
    try:
        copied: nn.Module = copy.deepcopy(model).eval()
        return copied
    except Exception as error:
        held = [
            f"`{f'{path}.' if path else ''}{name}`"
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor) and not value.is_leaf
        ]
        hint = f"; set {', '.join(held)} to None first, it holds a result with its gradient graph" if held else ""
        raise TypeError(
            f"the model cannot be copied, and the export never changes yours: copy.deepcopy raised "
            f"{type(error).__name__}: {first_line(error)}{hint}"
        ) from error


def _refuse_layers_that_stay_random(model: nn.Module, allow: tuple[str, ...]) -> None:
    """A model whose own `eval()` leaves a dropout or BatchNorm training, as Monte-Carlo dropout does."""
    stochastic = {layer.path for layer in stochastic_layers(model)}
    paths = tuple(
        path
        for path, module in model.named_modules()
        if module.training and (path in stochastic or isinstance(module, _BatchNorm)) and not allowed(path, allow)
    )
    if paths:
        raise NotFoldableError(
            f"{', '.join(f'`{path}`' for path in paths)} in train mode even after the model's eval(), "
            "so no deterministic graph equals it",
            paths,
        )


def _layers(model: nn.Module, allow: tuple[str, ...]) -> list[StochasticLayer]:
    return [layer for layer in stochastic_layers(model) if not allowed(layer.path, allow)]


def _watch(layer: StochasticLayer, seen: dict[str, list[Tensor] | None]) -> torch.utils.hooks.RemovableHandle:
    """Records the inputs of the layer; None once it was called with anything but one floating-point tensor."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = seen.setdefault(layer.path, [])
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            seen[layer.path] = None
        elif inputs is not None and all(args[0].shape != other.shape for other in inputs):
            inputs.append(args[0].detach().clone())

    return layer.module.register_forward_pre_hook(hook, with_kwargs=True)


def _not_identity(layer: StochasticLayer, seen: list[Tensor] | None) -> str:
    """Why the layer cannot be replaced; empty if it returns its input (or its relu) bit for bit at all scales."""
    if not seen:
        return "is called with more than one tensor, so it is not known to return its input in eval mode"
    generator = torch.Generator().manual_seed(0)
    for value in seen:
        noise = torch.randn(value.shape, generator=generator).to(value)
        for x in (value, *(noise * scale for scale in _SCALES)):
            expected = torch.relu(x) if layer.action == "relu" else x.clone()
            try:
                output = layer.module(x.clone())
            except Exception as error:  # a user's forward may raise anything; the reason is reported
                return f"fails on other values with {type(error).__name__}: {first_line(error)}"
            if not isinstance(output, Tensor) or not same_bits(expected, output):
                return "does more in eval mode than return its input"
    return ""


def _action(layer: StochasticLayer) -> str:
    """What the layer is to become; an RReLU, which the converter does not know, is a LeakyReLU in eval mode."""
    known = isinstance(layer.module, nn.RReLU) and _known(layer.module)
    return "leaky_relu" if known else layer.action


def _known(layer: nn.Module) -> bool:
    own = "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks
    return not own and type(layer).forward in _KNOWN and type(layer).__call__ is nn.Module.__call__


def _replaced(original: nn.Module, actions: dict[str, str], allow: tuple[str, ...]) -> nn.Module:
    """Returns a copy with the replacement of each layer everywhere the layer is held, however often it is shared."""
    model = copy.deepcopy(original).eval()  # a module that pickles itself in its own way may come back in train mode
    new: dict[nn.Module, nn.Module] = {}
    for layer in _layers(model, allow):
        if actions[layer.path] == "identity":
            new[layer.module] = nn.Identity().eval()
        elif actions[layer.path] == "relu":
            new[layer.module] = nn.ReLU(inplace=bool(getattr(layer.module, "inplace", False))).eval()
        elif actions[layer.path] == "leaky_relu" and isinstance(layer.module, nn.RReLU):
            slope = (layer.module.lower + layer.module.upper) / 2
            new[layer.module] = nn.LeakyReLU(slope, layer.module.inplace).eval()
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


def _report(layers: list[StochasticLayer], actions: dict[str, str]) -> tuple[FoldedLayer, ...]:
    return tuple(
        FoldedLayer(path=layer.path, kind=layer.kind, action=actions[layer.path], settings=layer.settings)
        for layer in layers
    )


def _device(model: nn.Module) -> torch.device:
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
